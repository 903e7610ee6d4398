"""`compare`: results of several evaluations side by side, if they can be compared at all.

    python -m jaxseg.main compare results/a.json results/b.json ...

Figures are computed again from the confusion matrices. Results of one recipe with different seeds
become one column: their mean, standard deviation and number. The first column is what the others
are compared with. Variants of one checkpoint, image by image, are what `eval --compare` shows.
"""

import dataclasses
import json
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from jaxseg import results
from jaxseg.benchmark_table import aligned
from jaxseg.config import changes, leaves
from jaxseg.errors import UserError, show

# What results that may not be compared differ in, and what that does; by the beginning of the key.
WHY = {
    "dataset": "other images, other classes",
    "split": "other images",
    "images": "other images",
    "fingerprint": "not the same files: other images or labels, or the same ones stored otherwise",
    "classes": "mIoU is a mean over the classes",
    "ignore_label": "other pixels count",
    "resize": "objects have other sizes in the eyes of the model, edges lie elsewhere",
    "eval.base_size": "objects have other sizes in the eyes of the model",
    "predict.slide": "windows cut away context, or show the model the sizes it was trained on",
    "predict.flip": "averaging with the mirror image raises most figures, whatever the model",
    "predict.scales": "averaging over sizes raises most figures, whatever the model",
    "predict.samples": "averaging over dropout is another model",
    "predict.crf": "the CRF redraws all edges",
    "dtype": "rounding moves pixels between classes that are near each other",
}
# Of a config what makes no other recipe: the seed, the protocol, and what leaves the weights alone.
_NO_RECIPE = ("seed", "eval", "predict", "log_every", "checkpoint_every", "devices", "shard")
_SHOWN = 20  # differences between two recipes that are listed


@dataclasses.dataclass(frozen=True)
class Group:
    """Results that are one column: several seeds of a recipe, or a single one."""

    name: str
    files: tuple[str, ...]
    results: tuple[Mapping[str, Any], ...]

    def values(self, figure: str) -> list[float]:
        """A figure of each result, 'mIoU' or 'IoU/0', that of the first class, where defined."""
        found = (_figures(result)[figure] for result in self.results)
        return [value for value in found if value is not None]

    def mean(self, figure: str) -> float | None:
        """None where no result has the figure."""
        values = self.values(figure)
        return statistics.fmean(values) if values else None

    def shown(self, figure: str) -> str:
        """Percent, and of several the standard deviation (that of a sample: over n - 1)."""
        values = self.values(figure)
        if len(values) < 2:
            return f"{100 * values[0]:.2f}" if values else "-"
        return f"{100 * statistics.fmean(values):.2f} ± {100 * statistics.stdev(values):.2f}"


def run(files: Sequence[str]) -> int:
    """Prints the comparison; 1 where a file's figures do not follow from its matrix, else 0.

    Raises:
      UserError: fewer than two files, one that is no result, or unlike protocols.
    """
    found = read(files)
    text = table(groups(found))
    faults = [
        f"{file}: {line}"
        for file, result in found.items()
        for line in results.disagreements(result)
    ]
    if faults:
        text += "\n\nthese files contradict themselves:\n  " + "\n  ".join(faults)
    show(text)
    return 1 if faults else 0


def read(files: Sequence[str]) -> dict[str, dict[str, Any]]:
    """file -> result, of one protocol; raises `UserError` as `run` does."""
    if len(files) < 2:
        raise UserError(
            "compare: give two or more files that eval wrote, as in: "
            "compare runs/a/results-val.json runs/b/results-val.json"
        )
    places = [pathlib.Path(file).resolve() for file in files]
    twice = [file for i, file in enumerate(files) if places[i] in places[:i]]
    if twice:
        raise UserError(f"compare: {twice[0]} is given twice; expected different results")
    found = {str(file): results.read(file) for file in files}
    first = str(files[0])
    for file in list(found)[1:]:
        unlike = differences(found[first]["protocol"], found[file]["protocol"])
        if unlike:
            raise UserError(
                f"{file} was not evaluated as {first} was, so that their figures say nothing about "
                "which model is better:\n  " + "\n  ".join(unlike) + "\nevaluate one of the two "
                "again by the other's protocol, for instance with eval --config.predict.flip=False"
            )
    return found


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Each key in which two protocols differ, with both values and what that does."""
    ours, theirs = leaves(first), leaves(second)
    lines = []
    for key in dict.fromkeys([*ours, *theirs]):
        pair = [values.get(key, "none") for values in (ours, theirs)]
        if pair[0] != pair[1]:
            why = next((why for start, why in WHY.items() if key.startswith(start)), "")
            shown = (value if isinstance(value, str) else json.dumps(value) for value in pair)
            lines.append(f"{key}: {' | '.join(shown)}" + (f" ({why})" if why else ""))
    return lines


def recipe(result: Mapping[str, Any]) -> str:
    """What a result came from, but for the seed, as text that can be compared."""
    config = {key: value for key, value in result["config"].items() if key not in _NO_RECIPE}
    return json.dumps([result.get("model"), config, result["protocol"]], sort_keys=True)


def groups(found: Mapping[str, Mapping[str, Any]]) -> list[Group]:
    """The results, those that differ in nothing but the seed together, in the order of the first.

    Two results of the same seed are no two samples: then each of that recipe stands alone.
    """
    names = dict(zip(found, labels(list(found)), strict=True))
    by_recipe: dict[str, list[str]] = {}
    for file, result in found.items():
        by_recipe.setdefault(recipe(result), []).append(file)
    grouped = []
    for files in by_recipe.values():
        seeds = [found[file]["config"].get("seed") for file in files]
        if len(set(seeds)) < len(seeds) or None in seeds:
            grouped += [[file] for file in files]
        else:
            grouped.append(files)
    return [
        Group(_joined([names[f] for f in files]), tuple(files), tuple(found[f] for f in files))
        for files in grouped
    ]


def labels(files: Sequence[str]) -> list[str]:
    """Names of files without what is the same at the beginning or the end of all their paths."""
    paths = [pathlib.PurePath(file).with_suffix("").parts for file in files]
    shortest = min(map(len, paths), default=0)
    head = tail = 0
    while head < shortest - 1 and len({path[head] for path in paths}) == 1:
        head += 1
    while tail < shortest - 1 - head and len({path[-1 - tail] for path in paths}) == 1:
        tail += 1
    return ["/".join(path[head : len(path) - tail]) for path in paths]


def _joined(names: Sequence[str]) -> str:
    """One name for several: what they begin with, or the first."""
    if len(names) == 1:
        return names[0]
    shared = names[0]
    while not all(name.startswith(shared) for name in names):
        shared = shared[:-1]
    return f"{shared.rstrip('-_./ ') or names[0]} (n={len(names)})"


def table(columns: Sequence[Group]) -> str:
    """Figures and classes in percent with differences to the first column, and what the others are.

    'Figures' follow from the confusion matrices; a class without a figure has a '-'.
    """
    first = columns[0].results[0]
    rows = [["in percent", *(group.name for group in columns)]]
    for figure, name in results.FIGURES.items():
        rows.append([name, *_cells(columns, figure)])
    rows.append(["IoU"] + [""] * len(columns))
    for i, name in enumerate(first["protocol"]["classes"]):
        rows.append([f"  {name}", *_cells(columns, f"IoU/{i}")])
    protocol = first["protocol"]
    difference = f"; in brackets the difference to {columns[0].name}" if len(columns) > 1 else ""
    lines = [
        f"{protocol['dataset']}/{protocol['split']}, {protocol['images']} images, "
        f"{protocol['dtype']}{difference}",
        "",
        aligned(rows),
        "",
        *(_about(group) for group in columns),
    ]
    if len(columns) > 1 and any(len(group.results) == 1 for group in columns):
        lines.append(
            "(one result, n = 1, does not show how far another seed would move it: give several)"
        )
    for group in columns[1:]:
        lines += _apart(columns[0], group)
    return "\n".join(lines)


def _cells(columns: Sequence[Group], figure: str) -> list[str]:
    base, cells = columns[0].mean(figure), [columns[0].shown(figure)]
    for group in columns[1:]:
        mean = group.mean(figure)
        known = base is not None and mean is not None
        cells.append(group.shown(figure) + (f" ({100 * (mean - base):+.2f})" if known else ""))
    return cells


def _figures(result: Mapping[str, Any]) -> dict[str, float | None]:
    found = results.summary(result)
    return {name: found[name] for name in results.FIGURES} | {
        f"IoU/{i}": c["IoU"] for i, c in enumerate(found["classes"])
    }


def _about(group: Group) -> str:
    """Which weights, evaluated where."""
    first = group.results[0]
    which = first.get("model") or f"{first['config']['model'].get('name')}, " + _several(
        "step", (result.get("step") for result in group.results)
    )
    seeds = [result["config"].get("seed") for result in group.results]
    if None not in seeds:
        which += ", " + _several("seed", seeds)
    machine = first["machine"]
    where = f"{machine['device_count']} x {machine['device']}, jax {machine['packages'].get('jax')}"
    weights = ", ".join(result["weights_sha256"][:8] for result in group.results)
    return f"{group.name}: {which}; evaluated on {where}; weights {weights}"


def _several(what: str, values: Any) -> str:
    values = list(dict.fromkeys(values))
    return f"{what}{'s' if len(values) > 1 else ''} {', '.join(map(str, values))}"


def _apart(base: Group, group: Group) -> list[str]:
    """What the recipe of a column has otherwise than the first one's."""
    pair = (g.results[0]["config"] for g in (base, group))
    changed = [line for line in changes(*pair) if line.split(":")[0] != "seed"]
    if not changed:
        return []
    more = [f"... and {len(changed) - _SHOWN} more"] if len(changed) > _SHOWN else []
    return [f"config, {base.name} -> {group.name}:", *(f"  {x}" for x in changed[:_SHOWN] + more)]
