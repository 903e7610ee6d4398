"""Writes the README's table of results from the files in results/.

    PYTHONPATH=. python tools/results_table.py

A row is a file, or several of one recipe with different seeds; the name is the file's. To add one,
copy a run's results-SPLIT.json there under a name of its choice and run this. The table stands in
README.md between the lines of `MARKERS`.
"""

import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from jaxseg import compare_results, results
from jaxseg.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
MARKERS = ("<!-- results:begin -->", "<!-- results:end -->")
HEADS = (
    "result", "model", "trained", "evaluated on", "protocol", "mIoU", "pixel accuracy",
    "frequency-weighted IoU", "device, jax, date of the evaluation",
)  # fmt: skip


def table(folder: pathlib.Path) -> str:
    """The Markdown table of the results in a folder, by name.

    Raises:
      UserError: a file is no result, or its figures do not follow from its confusion matrix.
    """
    found = {}
    for path in sorted(folder.glob("*.json")):
        result = found[str(path)] = results.read(path)
        faults = results.disagreements(result)
        if faults:
            raise UserError(f"{path}: {faults[0]}; evaluate the weights again")
    lines = [HEADS, ("---",) * len(HEADS)]
    # Protocols differ from row to row here, and each says its own.
    lines += [_row(group) for group in compare_results.groups(found)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _row(group: compare_results.Group) -> tuple[str, ...]:
    first = group.results[0]
    names = [pathlib.Path(file).stem for file in group.files]
    links = ", ".join(f"[{name}](results/{name}.json)" for name in names)
    protocol, machine = first["protocol"], first["machine"]
    device = machine["device"]
    if device == "cpu":
        device = f"{machine['cores']} CPU cores"
    elif machine["device_count"] > 1:
        device = f"{machine['device_count']} x {device}"
    return (
        links + (f" (n={len(names)})" if len(names) > 1 else ""),
        _model(first),
        _trained(first),
        f"{protocol['dataset']}/{protocol['split']}, {protocol['images']} images",
        _chain(protocol),
        *(group.shown(name) for name in ("mIoU", "pixel_accuracy", "frequency_weighted_IoU")),
        f"{device}, {machine['packages']['jax']}, {first['time'][:10]}",
    )


def _model(result: Mapping[str, Any]) -> str:
    if "model" in result:
        return f"`{result['model']}`"
    model = result["config"]["model"]
    backbone = model.get("backbone") or {}
    kind = f"{backbone.get('name', '')}{backbone.get('depth') or ''}"
    return model["name"] + (f" on {kind}" if kind else "")


def _trained(result: Mapping[str, Any]) -> str:
    config = result["config"]
    if "model" in result:
        return "as released"
    crop = "x".join(map(str, config["augment"]["crop"]))
    start = f"init_from `{config['init_from']}`" if config.get("init_from") else "from scratch"
    return f"{config['steps']:,} steps of {config['batch_size']} x {crop}, {start}"


def _chain(protocol: Mapping[str, Any]) -> str:
    """'whole image', 'windows of 512x512', with what is averaged."""
    links = protocol["predict"]
    crop = links["slide"].get("crop")
    parts = [f"windows of {crop[0]}x{crop[1]}" if crop else "whole image"]
    if protocol["eval"]["base_size"]:
        parts.append("resized to {}x{}".format(*protocol["eval"]["base_size"]))
    if links["scales"]:
        parts.append(f"{len(links['scales'])} sizes")
    parts += [name for name in ("flip", "samples", "crf") if links[name]]
    return ", ".join([*parts, protocol["dtype"]])


def updated(text: str, table: str) -> str:
    """`text` with the table between the markers; raises `UserError` where these are missing."""
    begin, end = (text.find(marker) for marker in MARKERS)
    if not 0 <= begin < end:
        raise UserError(f"README.md: expected the lines {MARKERS[0]} and, below, {MARKERS[1]}")
    return f"{text[: begin + len(MARKERS[0])]}\n{table}\n{text[end:]}"


def main() -> int:
    path = ROOT / "README.md"
    try:
        text = path.read_text(encoding="utf-8")
        path.write_text(updated(text, table(ROOT / "results")), encoding="utf-8")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
