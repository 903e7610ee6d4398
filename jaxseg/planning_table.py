"""What `plan` prints: memory, time and exchanges on each target, targets side by side, and caveats.

Rows are those of `jaxseg.planning`.
"""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from jaxseg.benchmark_table import aligned
from jaxseg.chips import FRACTION

Row = Mapping[str, Any]
# A GPU's roofline bounds its time from below. Convolutional networks take up to twice as long:
# training ResNet-50, an A100 reaches 60 to 76 % of it by published speeds.
SLOWER = 2.0
MOST = 0.95  # of a GPU's memory, which the driver and libraries need something of


def gib(size: int) -> str:
    """Bytes in GiB: '12.60'."""
    return f"{size / 2**30:.2f}"


def about(run: Row) -> str:
    """What is planned: the model, the data and the schedule."""
    config = run["config"]
    height, width = config["augment"]["crop"]
    steps, batch = config["steps"], config["batch_size"]
    dtype = "bfloat16" if config["dtype"] == "auto" else config["dtype"]
    return (
        f"{run['model']}, {run['parameters'] / 1e6:.1f} M parameters, {run['classes']} classes of "
        f"{run['dataset']}, {height}x{width}, {dtype}, remat {config['remat']}\n"
        f"{steps:,} steps of {batch} images: {steps * batch:,} images"
    )


def target(row: Row) -> str:
    """All figures of one target."""
    parts = [heading(row)]
    if row["parts"]:
        parts.append(memory(row))
    parts.append(verdict(row))
    if "categories" in row:
        parts += [times(row), exchanges(row), needs(row)]
    if "largest" in row:
        parts.append(largest(row))
    return "\n\n".join(parts)


def heading(row: Row) -> str:
    each = row["batch"] / row["chips"]
    images = "one image" if each == 1 else f"{each:g} images"
    title = f"{row['target']}: {row['chips']} x {row['chip']}, {images} each"
    return f"{title}\n{'-' * len(title)}"


def memory(row: Row) -> str:
    lines = [["memory of a chip", "GiB"]]
    lines += [[name, gib(size)] for name, size in row["parts"].items()]
    return aligned([*lines, ["together", gib(row["needed"])]])


def verdict(row: Row) -> str:
    """Whether it fits, and what to do where it does not."""
    share = f"{gib(row['needed'])} of {gib(row['usable'])} GiB, {row['needed'] / row['usable']:.0%}"
    if row["fits"]:
        return f"FITS: {share}"
    lines = [f"DOES NOT FIT: {share}"]
    if row.get("cycles_s", 0) is None and row["needed"] < MOST * row["memory"]:
        lines.append(
            f"It would with {FRACTION}={MOST}: of the GPU's {gib(row['memory'])} GiB JAX takes "
            f"{row['usable'] / row['memory']:.0%} here."
        )
    lines.append(
        "What helps: a smaller --config.batch_size with --rescale, more chips, --config.remat=wide "
        "or blocks, --config.shard.height=2 (each image over two chips)."
    )
    return "\n".join(lines)


def times(row: Row) -> str:
    """A step's time by category, the longest first."""
    by_cycles = row["cycles_s"] is not None
    keys = ("roofline_s", "cycles_s") if by_cycles else ("roofline_s",)
    titles = ("roofline, ms", "compiler, ms")[: len(keys)]
    lines = [["a step, estimated", "run", "GFLOP", "GB", *titles, "share"]]
    last = keys[-1]
    ranked = sorted(row["categories"].items(), key=lambda item: -item[1][last])
    for name, each in ranked:
        figures = [f"{each['run']}", f"{each['flops'] / 1e9:.1f}", f"{each['bytes'] / 1e9:.2f}"]
        figures += [f"{1e3 * each[key]:.2f}" for key in keys]
        lines.append([name, *figures, f"{each[last] / row[last]:.1%}"])
    sums = [sum(each[key] for _, each in ranked) for key in ("run", "flops", "bytes")]
    whole = [f"{sums[0]}", f"{sums[1] / 1e9:.1f}", f"{sums[2] / 1e9:.2f}"]
    lines.append(["together", *whole, *(f"{1e3 * row[key]:.2f}" for key in keys), ""])
    return aligned(lines)


def exchanges(row: Row) -> str:
    if not row["collectives"]:
        return "No exchanges between chips."
    lines = [["exchanges of a step", "run", "MB of arrays", "MB sent by a chip"]]
    for name, each in row["collectives"].items():
        shown = (f"{each['run']}", f"{each['bytes'] / 1e6:.2f}", f"{each['sent'] / 1e6:.2f}")
        lines.append([name, *shown])
    return aligned(lines)


def needs(row: Row) -> str:
    """The run: hours, and what the input has to deliver."""
    return (
        f"The run: {hours(row)} hours of training steps ({hours(row, 'chip_hours')} chip hours), "
        f"if the input delivers {speed(row)} images/s."
    )


def largest(row: Row) -> str:
    found = row["largest"]
    tried = ", ".join(f"{batch}: {gib(size)}" for batch, size in found["compiled"].items())
    if not found["batch"]:
        line = "No batch fits." if found["sure"] else "None of the batches tried fits."
    else:
        each = found["batch"] / row["chips"]
        line = f"The largest batch that fits: {found['batch']}, {each:g} on each chip"
        line += "" if found["sure"] else ", or more: the search ended there"
    return f"{line}.\nGiB of a chip, as compiled, by batch: {tried}"


def comparison(rows: Sequence[Row]) -> str:
    """The targets side by side."""
    titles = ["", "chips", "batch", "GiB of a chip", "fits", "ms a step", "images/s", "hours"]
    lines = [[*titles, "chip hours", "largest batch"]]
    for row in rows:
        shown = f"{gib(row['needed'])} of {gib(row['usable'])}", "yes" if row["fits"] else "NO"
        cells = [row["target"], str(row["chips"]), str(row["batch"]), *shown]
        if "step_s" in row:
            cells += [step(row), speed(row), hours(row), hours(row, "chip_hours")]
        else:
            cells += ["-"] * 4
        lines.append([*cells, str(row["largest"]["batch"]) if "largest" in row else "-"])
    return aligned(lines)


def notes(rows: Sequence[Row]) -> str:
    """How the figures were made, and what is not in them."""
    lines = ["All of this is read off compiled programs; nothing ran."]
    if any(row.get("cycles_s") for row in rows):
        lines.append(
            "TPU times are the compiler's own estimate of cycles over the chip's clock. It has "
            "none for exchanges and pooling windows, where the roofline stands in, and poor ones "
            "for gathers and scatters."
        )
    if any(row.get("cycles_s", 0) is None for row in rows):
        lines.append(
            f"GPU times are from the roofline to {SLOWER:g} times as long: each kernel takes its "
            "FLOPs or its bytes at the data sheet's rates, which none exceeds and few reach; what "
            "it takes to start kernels and exchanges is left out, and counts where they are "
            "small. cuDNN's working memory, chosen on the device, comes on top of what is listed."
        )
    if any(row.get("cycles_s", 0) is None and row["chips"] > 8 for row in rows):
        lines.append("More than eight GPUs are on several hosts, with slower links than assumed.")
    lines.append(
        "Evaluation, checkpoints, compilation and a slow input take time besides; evaluation needs "
        "memory of its own."
    )
    return "\n".join(textwrap.fill(line, 100) for line in lines)


def step(row: Row) -> str:
    """Milliseconds of a step: '47.1', or '47.1 to 94.2' of a GPU."""
    return _range(row, 1e3 * row["step_s"])


def speed(row: Row) -> str:
    """Images per second."""
    least, most = f"{row['images_per_s'] / SLOWER:.0f}", f"{row['images_per_s']:.0f}"
    return f"{least} to {most}" if row["cycles_s"] is None else most


def hours(row: Row, key: str = "hours") -> str:
    return _range(row, row[key])


def _range(row: Row, least: float) -> str:
    """A TPU's figure, or from a GPU's bound to what it may well be; two digits, or thousandths."""
    digits = min(3, max(0, 1 - math.floor(math.log10(least)))) if least < 100 else 0
    figures = [least] if row["cycles_s"] is not None else [least, least * SLOWER]
    return " to ".join(f"{figure:.{digits}f}" for figure in figures)
