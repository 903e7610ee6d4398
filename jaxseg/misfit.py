"""Why weights do not fit a model: another number of classes, or another architecture."""

import functools
import json
import re
from collections.abc import Collection, Mapping
from typing import Any

from jaxseg import convert, matching, models, zoo
from jaxseg.state import abstract_variables
from jaxseg.trees import named_leaves

ALIKE = 0.9  # the share of names with a place from which on an architecture is named

Shape = tuple[int, ...]


def other_classes(
    shapes: Mapping[str, tuple[Shape, Shape]], spec: Mapping[str, Any], num_classes: int
) -> tuple[int, frozenset[str]] | None:
    """(number of classes there, parameters that go with the classes), or None.

    Which parameters depend on the classes is not read from their names: a model with one class
    more shows it. With a kernel goes its bias, and all else in the same module.

    Args:
      shapes: name -> (shape there, shape here) of the parameters whose shapes differ.
      spec: `config.model`.
      num_classes: of the model here.

    Returns:
      None when no such number of classes explains the shapes of all those that depend on it.
    """
    if not shapes:
        return None
    here, more = (_shapes(spec, num_classes + i) for i in range(2))
    depends = {name for name in here if here[name] != more[name]}
    counts = {
        _count(shapes[name][0], here[name], more[name], num_classes)
        for name in depends & shapes.keys()
    }
    if len(counts) != 1 or None in counts:
        return None
    modules = {_module(name) for name in depends}
    return counts.pop(), frozenset(name for name in here if _module(name) in modules)


def _shapes(spec: Mapping[str, Any], num_classes: int) -> dict[str, Shape]:
    model = models.get({**spec, "num_classes": num_classes})
    return {name: x.shape for name, x in named_leaves(abstract_variables(model)).items()}


def _count(there: Shape, here: Shape, more: Shape, num_classes: int) -> int | None:
    """The number of classes that gives a shape which is linear in it; None if none does."""
    if len(there) != len(here):
        return None
    axes = list(zip(there, here, more, strict=True))
    counts = {num_classes + (t - h) / (m - h) for t, h, m in axes if m != h}
    same = all(t == h for t, h, m in axes if m == h)
    count = counts.pop()
    return int(count) if same and not counts and count == int(count) > 0 else None


def _module(name: str) -> str:
    """'params/head/classifier/kernel' -> 'head/classifier', the same for its statistics."""
    return name.partition("/")[2].rpartition("/")[0]


def advice(
    found: matching.Match,
    keys: Collection[str],
    spec: Mapping[str, Any],
    num_classes: int,
    source: str,
) -> str:
    """How to mend that weights do not fit, for the end of a message.

    Args:
      found: what fits and what does not.
      keys: all names of the state dict.
      spec: `config.model`.
      num_classes: of the model here.
      source: the file's name.
    """
    differing = {name: (there, here) for name, (_, there, here) in found.shapes.items()}
    other = other_classes(differing, spec, num_classes)
    if other and differing.keys() <= other[1] and not (found.missing or found.unplaced):
        return (
            f"\nIt is the same network, for {other[0]} classes instead of {num_classes}. To "
            "predict with it, give data with its classes; to train on other ones from it, use "
            f"--config.init_from={source or 'FILE'}, which leaves out what depends on the classes"
        )
    name, share = architecture(keys)
    own, _ = placed(keys, spec)
    if share >= ALIKE and share > own:
        return (
            f"\n{share:.0%} of its names are those of networks like {name}, {own:.0%} those of one "
            f"like this. See: python -m jaxseg.main zoo {zoo.facts()['names'][name]['family']}"
        )
    return ""


def architecture(keys: Collection[str]) -> tuple[str, float]:
    """(a released model whose tables have places for most of these names, for which share)."""
    found = {name: placed(keys, spec) for name, spec in _structures().items()}
    # Of models with a place for the same names, the one with the fewest others.
    best = max(found, key=lambda name: (found[name][0], -found[name][1]))
    return best, found[best][0]


@functools.cache
def _structures() -> dict[str, Mapping[str, Any]]:
    """One released model, name -> spec, of each structure: sizes do not count."""
    facts, found = zoo.facts(), {}
    for name, entry in facts["names"].items():
        if "model" in entry:
            spec = facts["models"][entry["model"]]
            structure = re.sub(r"\d+|true|false", "0", json.dumps(spec, sort_keys=True))
            found.setdefault(structure, (name, spec))
    return dict(found.values())


def placed(keys: Collection[str], spec: Mapping[str, Any]) -> tuple[float, int]:
    """(the share of names that have a place in the tables of a model, rows of those tables)."""
    names = convert.torch_names(models.get({"num_classes": 2, **spec}))
    leaves = {key for key in keys if key.rpartition(".")[2] not in convert.DROPPED}
    found = sum(convert.place(key, 2, names) is not None for key in leaves)
    return found / max(len(leaves), 1), len(names)
