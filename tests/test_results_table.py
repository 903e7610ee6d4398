"""The README's table of results: its rows, and that it is made of the files in results/."""

import json
import pathlib

import pytest

from jaxseg import results
from jaxseg.errors import UserError
from tests.test_results import ALL, make
from tools import results_table

ROOT = pathlib.Path(__file__).resolve().parents[1]


def test_the_readme_has_the_table_of_the_files_in_results():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    fresh = results_table.updated(text, results_table.table(ROOT / "results"))
    assert text == fresh, "stale; run PYTHONPATH=. python tools/results_table.py"


def test_a_row_of_the_table(tmp_path):
    results.write(tmp_path / "two.json", make())
    row = results_table.table(tmp_path).splitlines()[2]
    assert row == (
        "| [two](results/two.json) | fcn on resnet18 | 50 steps of 4 x 8x16, from scratch | "
        "toy/val, 2 images | whole image, float32 | 60.00 | 75.00 | 60.00 | "
        "2 CPU cores, 0.10.2, 2026-11-21 |"
    )
    results.write(tmp_path / "one.json", make([[2, 1], [1, 2]], seed=1))
    released = make(ALL, model="fcn_r50", **{"protocol.predict.flip": True})
    results.write(tmp_path / "released.json", released)
    rows = results_table.table(tmp_path).splitlines()[2:]
    assert rows[0].startswith("| [one](results/one.json), [two](results/two.json) (n=2) |")
    assert "| 55.00 ± 7.07 |" in rows[0] and len(rows) == 2
    assert "| `fcn_r50` | as released |" in rows[1] and "| whole image, flip, float32 |" in rows[1]


def test_the_table_takes_no_file_that_contradicts_itself(tmp_path):
    results.write(tmp_path / "lie.json", make(mIoU=0.75))
    with pytest.raises(UserError, match=r"lie.json: mIoU: 0.75 is stored"):
        results_table.table(tmp_path)


def test_the_table_goes_between_its_lines():
    begin, end = results_table.MARKERS
    text = f"before\n{begin}\nold\n{end}\nafter\n"
    assert results_table.updated(text, "new") == f"before\n{begin}\nnew\n{end}\nafter\n"
    for broken in ("", begin, f"{end}\n{begin}"):
        with pytest.raises(UserError, match="results:begin"):
            results_table.updated(broken, "new")


def test_results_hold_nothing_of_the_machines_folders():
    for path in (ROOT / "results").glob("*.json"):
        result = json.loads(path.read_text())
        assert "root" not in result["config"].get("data", {}) and "host" not in result["machine"]
