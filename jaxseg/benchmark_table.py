"""What `benchmark` prints: its figures as a table, against others, and by operation."""

import json
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxseg import hlo
from jaxseg.console import say
from jaxseg.errors import UserError

HEAVIEST = 15  # operations that `roofline` lists
COLUMNS = {
    "ms_median": ("ms", "{:.2f}"),
    "ms_least": ("least", "{:.2f}"),
    "images_per_s": ("images/s", "{:.2f}"),
    "images_per_cpu_s": ("per CPU s", "{:.2f}"),
    "format": ("from", "{}"),
    "backend": ("by", "{}"),
    "waited": ("waiting", "{:.0%}"),
    "compile_s": ("compiled in", "{:.1f} s"),
    "flops": ("GFLOP", lambda flops: f"{flops / 1e9:.1f}"),
    "share_of_peak": ("of peak", "{:.1%}"),
    "memory": ("memory", lambda size: f"{size / 2**30:.2f} GiB"),
}


def table(result: Mapping[str, Any]) -> str:
    """The rows of a result; times are medians per step, FLOPs and memory those of one device."""
    rows = result["rows"]
    columns = [key for key in COLUMNS if any(key in row for row in rows)]
    header = ["", "size", "batch", *(COLUMNS[key][0] for key in columns)]
    cells = [[_shown(row, key) for key in columns] for row in rows]
    return aligned([header, *([*_name(row), *cell] for row, cell in zip(rows, cells, strict=True))])


def read(file: str, protocol: Mapping[str, Any]) -> dict[str, Any]:
    """A result that was written to `file`.

    Raises:
      UserError: it cannot be read, or is the result of another protocol.
    """
    try:
        result = json.loads(pathlib.Path(file).read_text())
        theirs = result["protocol"]
        result["rows"], result["machine"]  # noqa: B018 (are they there?)
    except OSError as error:
        raise UserError(f"--against={file}: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"--against={file}: not a result that benchmark has written by --json ({error})"
        ) from error
    ours = json.loads(json.dumps(protocol))
    unlike = [
        f"\n  {key}: {theirs.get(key)} there, {ours.get(key)} here"
        for key in dict.fromkeys([*theirs, *ours])
        if theirs.get(key) != ours.get(key)
    ]
    if unlike:
        raise UserError(
            f"--against={file} measured something else:{''.join(unlike)}\n"
            "set the config's values as they were there, or measure that again"
        )
    return result


def write(file: str, result: Mapping[str, Any]) -> None:
    """Writes a result as JSON, and says so.

    Raises:
      UserError: `file` cannot be written.
    """
    path = pathlib.Path(file)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1))
    except OSError as error:
        raise UserError(
            f"--json={file}: {error.strerror or error}; the figures are above"
        ) from error
    say(f"written to {file}")


def compare(result: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Each row's images per second here and there, and their ratio; above 1 this is faster."""
    theirs = {_key(row): row for row in other["rows"]}
    lines = [["", "size", "batch", "images/s", "against", "ratio"]]
    for row in result["rows"]:
        if _key(row) in theirs:
            pair = row["images_per_s"], theirs[_key(row)]["images_per_s"]
            lines.append([*_name(row), *(f"{x:.2f}" for x in pair), f"{pair[0] / pair[1]:.2f}"])
        else:
            lines.append([*_name(row), f"{row['images_per_s']:.2f}", "-", "-"])
    ours, others = (_machine(r["machine"]) for r in (result, other))
    where = "" if ours == others else f"\nhere {ours}\nagainst {others}"
    return aligned(lines) + where


def roofline(text: str, peaks: Mapping[str, float], row: Mapping[str, Any]) -> str:
    """What a compiled program's operations could take, by category, and the heaviest of them.

    An operation cannot take less than its FLOPs at the measured peak, or its bytes at the measured
    bandwidth, whichever is longer (Williams et al. 2009, doi:10.1145/1498765.1498785).

    Args:
      text: of the program, as `jaxseg.hlo` takes it.
      peaks: 'flops' and 'bandwidth', as of `timing.peaks`.
      row: of the program, for its name and what a run of it took.
    """

    def least_ms(flops: float, size: float) -> float:
        return 1e3 * max(flops / peaks["flops"], size / peaks["bandwidth"])

    executed = hlo.instructions(text)
    bounds = [least_ms(each.flops, each.bytes) for each in executed]
    total, ms = sum(bounds), row["ms_median"]
    shares = dict.fromkeys((each.category for each in executed), 0.0)
    for each, bound in zip(executed, bounds, strict=True):
        shares[each.category] += bound
    lines = [[" ".join(_name(row)), "run", "GFLOP", "GB", "could take", "share"]]
    sums = hlo.totals(executed)
    for name, bound in sorted(shares.items(), key=lambda item: -item[1]):
        times, flops, size, _ = sums[name]
        shown = f"{times}", f"{flops / 1e9:.2f}", f"{size / 1e9:.3f}", f"{bound:.2f} ms"
        lines.append([name, *shown, f"{bound / total:.0%}"])
    by_bound = sorted(zip(bounds, executed, strict=True), key=lambda pair: -pair[0])
    heaviest = [["heaviest operations", "GFLOP", "GB", "could take", "bound by"]]
    for bound, each in by_bound[:HEAVIEST]:
        by_flops = each.flops / peaks["flops"] > each.bytes / peaks["bandwidth"]
        shown = f"{each.flops / 1e9:.2f}", f"{each.bytes / 1e9:.3f}", f"{bound:.3f} ms"
        heaviest.append([_place(each), *shown, "arithmetic" if by_flops else "memory"])
    return (
        f"{aligned(lines)}\n\n{aligned(heaviest)}\n\n"
        f"as compiled it could take {total:.2f} ms; it took {ms:.2f} ms: {total / ms:.0%} of that "
        "bound is reached"
    )


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Lines of columns as wide as their widest cell: the first to the left, others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join((row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:]))).rstrip()
        for row in rows
    )


def _place(instruction: hlo.Instruction) -> str:
    """Which part of the model an operation belongs to, in which direction."""
    path = re.sub(r"jit\([^/]*\)/", "", instruction.op_name)
    path = re.sub(r"(transpose\()?jvp\(\w*\)\)?/", lambda m: "backward " * bool(m[1]), path)
    return path.replace("Segmenter/", "").replace("/conv_general_dilated", "") or instruction.name


def _shown(row: Mapping[str, Any], key: str) -> str:
    if row.get(key) is None:
        return ""
    form = COLUMNS[key][1]
    return form(row[key]) if callable(form) else form.format(row[key])


def _name(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["what"], "x".join(map(str, row["size"])), str(row["batch"])


def _key(row: Mapping[str, Any]) -> tuple:
    return row["what"], tuple(row["size"]), row["batch"]


def _machine(machine: Mapping[str, Any]) -> str:
    commit = (machine.get("git") or {}).get("commit", "")[:9]
    versions: Iterable[str] = (
        f"{name} {machine['packages'][name]}"
        for name in ("jax", "jaxlib", "flax")
        if name in machine.get("packages", {})
    )
    count, device = machine.get("device_count"), machine.get("device")
    return ", ".join([f"{count} x {device}", *versions, *([f"commit {commit}"] * bool(commit))])
