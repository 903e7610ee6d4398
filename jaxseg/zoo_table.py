"""The released models as a table: what they were trained on, what they reach, and which run."""

import collections
import difflib
import fnmatch
import re
import textwrap
from collections.abc import Sequence
from typing import Any

from jaxseg import errors, named, zoo
from jaxseg.errors import UserError

HEADS = ("name", "dataset", "M params", "mIoU", "ms+flip", "", "runs")
LEFT = ("name", "dataset", "", "runs")  # text; figures stand on the right
WIDTH = 120  # of text; names may make the table wider
FIGURES = ("mIoU", "mDice", "RMSE")  # what a model may be measured in


def show(pattern: str, sort: str) -> None:
    """Prints the table of `table`."""
    errors.show(table(pattern, sort))


def table(pattern: str = "", sort: str = "name") -> str:
    """Names with dataset, parameters, published mIoU, and whether jaxseg runs them.

    Args:
      pattern: a part of the name, or a glob for all of it; '' takes every name. Names of older
        releases are looked at where no present one fits.
      sort: 'name'; 'dataset'; 'params', the smallest first; 'miou', the best first; 'runs', those
        that do first. What is not known comes last; the same goes by name.

    Returns:
      Lines: the table, notes on its figures, what the models that do not run lack, how many run.

    Raises:
      UserError: no name fits, or `sort` is none of these.
    """
    named.check("--sort", "order", sort, ORDERS)
    rows = [_row(name) for name in matching(pattern)]
    rows.sort(key=lambda row: (ORDERS[sort](row), row["name"]))
    notes = list(dict.fromkeys(note for row in rows for note in row["notes"]))
    cells = [HEADS, *(_cells(row, notes) for row in rows)]
    return "\n".join(
        [
            *aligned(cells),
            "",
            *(f"[{number}] {note}" for number, note in enumerate(notes, start=1)),
            *_summary(rows),
        ]
    )


def matching(pattern: str) -> list[str]:
    """The names that a pattern fits, see `table`."""
    names, old = zoo.facts()["names"], zoo.facts()["old"]
    wanted = zoo.without_path(pattern).lower()
    if not set("*?[") & set(wanted):
        wanted = f"*{wanted}*"
    found = {name for name in names if fnmatch.fnmatchcase(name.lower(), wanted)}
    found = found or {
        name for key in old if fnmatch.fnmatchcase(key.lower(), wanted) for name in old[key]
    }
    if not found:
        plain = wanted.strip("*")
        parts = {part for name in (*names, *old) for part in re.split("[-_]", name)}
        # A part of a name is unlike every whole one.
        close = zoo.near(plain, running=False) or difflib.get_close_matches(plain, sorted(parts))
        raise UserError(
            f"zoo: no name of a released model fits {pattern!r}"
            + (f"; near it are {', '.join(close)}" if close else "")
            + ". Give a part of a name, or a glob in quotes: '*_r50-*cityscapes*'"
        )
    return sorted(found)


ORDERS = {
    "name": lambda row: 0,
    "dataset": lambda row: row["dataset"].lower(),
    "params": lambda row: row["params"] or float("inf"),
    # Other figures than mIoU cannot be compared with it.
    "miou": lambda row: (row["metric"] != "mIoU", -(row["figure"] or 0.0)),
    "runs": lambda row: not row["runs"],
}


def _row(name: str) -> dict[str, Any]:
    facts = zoo.facts()
    own = facts["names"][name]
    metrics = own["metrics"]
    metric = next((metric for metric in FIGURES if metric in metrics), None)
    return dict(
        name=name,
        dataset=facts["recipes"][own["recipe"]]["trained_on"],
        params=facts["parameters"].get(own.get("model")),
        metric=metric,
        figure=metrics.get(metric),
        with_flips=metrics.get("mIoU(ms+flip)"),
        notes=own.get("notes", ()),
        runs="model" in own,
        lacks=own.get("lacks"),
        listed="unlisted" not in own,
    )


def _cells(row: dict[str, Any], notes: Sequence[str]) -> tuple[str, ...]:
    marks = ",".join(str(notes.index(note) + 1) for note in row["notes"])
    figures = (_figure(row[key]) for key in ("params", "figure", "with_flips"))
    runs = "yes" if row["runs"] else "no"
    return (row["name"], row["dataset"], *figures, f"[{marks}]" if marks else "", runs)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.{3 if value < 1 else 2}f}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of cells in columns; `rows[0]` are the heads."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = ["<" if head in LEFT else ">" for head in rows[0]]
    return [
        "  ".join(
            f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)
        ).rstrip()
        for row in rows
    ]


def _summary(rows: Sequence[dict[str, Any]]) -> list[str]:
    lacking = collections.Counter(row["lacks"] for row in rows if not row["runs"])
    parts = ", ".join(f"{count} {part}" for part, count in lacking.most_common())
    listed = [row["runs"] for row in rows if row["listed"]]
    others = [row["runs"] for row in rows if not row["listed"]]
    last = f"{sum(listed)} of {len(listed)} run"
    if others:
        last += f"; and {sum(others)} of {len(others)} that are listed under another's name"
    return [*(textwrap.wrap(f"Not yet, for want of: {parts}", WIDTH) if parts else ()), last]
