"""The table of released models: what it shows, in which order, and what it says of mistakes."""

import math
import re
import subprocess
import sys

import pytest

from jaxseg import main, zoo, zoo_table

PSPNET = "pspnet_r50-d8_4xb2-40k_cityscapes-512x1024"


def rows(table: str) -> list[list[str]]:
    """Cells of the lines between the heads and the notes."""
    lines = table[: table.index("\n\n")].splitlines()
    assert lines[0].split() == ["name", "dataset", "M", "params", "mIoU", "ms+flip", "runs"]
    return [re.split(r"  +", line) for line in lines[1:]]


def test_the_table_by_name():
    table = zoo_table.table("PSPNET_R50-d8_4xb2-*_cityscapes-*")
    assert rows(table)[0] == [PSPNET, "Cityscapes", "48.98", "77.85", "79.18", "yes"]
    assert [row[0] for row in rows(table)] == [
        f"pspnet_r50-d8_4xb2-{k}_cityscapes-{crop}"
        for k in ("40k", "80k")
        for crop in ("512x1024", "769x769")
    ]
    assert table.endswith("\n\n4 of 4 run")
    assert max(map(len, table.splitlines())) <= 120
    # Figures stand below each other.
    ends = {
        line.index(row[2]) for line, row in zip(table.splitlines()[1:], rows(table), strict=False)
    }
    assert len(ends) == 1


def test_the_table_finds_old_names_where_no_present_one_fits():
    assert [row[0] for row in rows(zoo_table.table("r50-d8_512x1024_40k_cityscapes"))] == [
        f"{head}_r50-d8_4xb2-40k_cityscapes-512x1024"
        for head in (
            *("ann", "apcnet", "ccnet", "danet", "deeplabv3", "deeplabv3plus", "dmnet", "dnl"),
            *("encnet", "fcn", "gcnet", "isanet", "nonlocal", "psanet", "pspnet"),
        )
    ]
    assert [row[0] for row in rows(zoo_table.table(f"configs/pspnet/{PSPNET}.py"))] == [PSPNET]


def test_the_table_marks_doubts():
    table = zoo_table.table("unet-s5-d16_*_4xb4-40k_drive-64x64")
    assert [row[3:] for row in rows(table)] == [
        [figure, "-", "[1]", "yes"] for figure in ("88.38", "88.38", "88.35")
    ]
    assert "\n[1] mDice, not mIoU\n3 of 3 run" in table
    table = zoo_table.table("fastfcn_r50-d32_jpu_aspp_4xb?-80k_cityscapes-*")
    assert "\n[1] fastfcn_r50-d32_jpu_aspp_4xb4-80k_cityscapes-512x1024 is listed as " in table
    assert "\n1 of 1 run; and 1 of 1 that are listed under another's name" in table


@pytest.mark.parametrize("sort", ["name", "dataset", "params", "miou", "runs"])
def test_the_table_is_sorted(sort):
    table = zoo_table.table("", sort)
    names = [row[0] for row in rows(table)]
    assert sorted(names) == sorted(zoo.facts()["names"])

    def key(row):
        own = zoo.facts()["names"][row[0]]
        trained_on = zoo.facts()["recipes"][own["recipe"]]["trained_on"]
        millions = zoo.facts()["parameters"].get(own.get("model"), math.inf)
        measured = "mIoU" in own["metrics"]
        return dict(
            name=(),
            dataset=(trained_on.lower(),),
            params=(millions,),
            miou=(not measured, -own["metrics"]["mIoU"] if measured else 0),
            runs=(row[-1] == "no",),
        )[sort]

    keys = [key(row) for row in rows(table)]
    assert keys == sorted(keys)
    total = len([own for own in zoo.facts()["names"].values() if "unlisted" not in own])
    assert re.search(rf"\n\d+ of {total} run", table)


def test_the_table_as_a_command(capsys):
    assert main.main(["jaxseg", "zoo", "isaid", "--sort=miou"]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[1].startswith("fcn_hr48_4xb4-80k_isaid-896x896") and "67.80" in said


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("psnet",), ["'psnet'", "near it are pspnet"]),
        (("pspnet_r50-d8_4xb2-40k_cityscape-512x1024",), [f"near it are {PSPNET}"]),
        (("pspnet", "--sort=flops"), ["--sort", "'flops'", "params"]),
        (("pspnet", "--workdir=runs/x"), ["zoo: takes no --workdir"]),
        (("pspnet", "--config.steps=3"), ["config.steps"]),
    ],
)
def test_mistakes_are_told(capsys, argv, words):
    assert main.main(["jaxseg", "zoo", *argv]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and all(word in said for word in words)


def test_a_reader_that_stops_early_is_no_error():
    """The table is larger than a pipe holds."""
    command = f"set -o pipefail; {sys.executable} -m jaxseg.main zoo | head -n 1"
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.split()[0] == "name"
