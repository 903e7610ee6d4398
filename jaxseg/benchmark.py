"""How fast a config runs on this machine: training steps, inference, the input pipeline.

Training and inference run on random data that is on the device already. What is timed is what a
run executes: `train.make_train_step` with its state donated, and the chain of config.predict from
uint8 images to labels. Compilation is timed apart, and never answered from a cache.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxseg import benchmark_programs as programs
from jaxseg import benchmark_table, command_line, data, manifest, named, sharding, timing
from jaxseg.compiling import without_cache
from jaxseg.console import say
from jaxseg.data import balance, rate
from jaxseg.data.base import Description
from jaxseg.errors import UserError
from jaxseg.models import segmenter

PROGRAMS = {"train": programs.training, "inference": programs.inference}
KINDS = (*PROGRAMS, "input", "end_to_end")
STEPS = 20  # batches read, and steps from end to end, where their number is not given
# What two results must share to be compared: what is computed, not where.
PROTOCOL = ("model", "augment", "losses", "predict", "ema", "remat", "data_cache", "data_backend")


@without_cache()
def run(
    config: ConfigDict,
    what: Sequence[str] = tuple(PROGRAMS),
    sizes: Sequence[str] = (),
    batches: Sequence[str] = (),
    steps: int = 0,
    roofline: bool = False,
    json_file: str | None = None,
    against: str | None = None,
) -> dict[str, Any]:
    """Measures, prints a table, and writes and compares the figures where asked to.

    Args:
      config: see configs/. Its dataset's files are wanted for 'input' and 'end_to_end' only.
      what: some of `KINDS`.
      sizes: of images for training and inference, 'HEIGHTxWIDTH'; by default config.augment.crop.
      batches: global batch sizes; by default config.batch_size.
      steps: how many to time; 0: what ten seconds hold.
      roofline: print which operations are the heaviest, and what they could take.
      json_file: where to write the figures.
      against: a file written so, to compare with.

    Returns:
      {'protocol', 'machine', 'peaks', 'rows'}, as in the file.

    Raises:
      UserError: a setting that makes no sense, or `against` measured something else.
    """
    for kind in what:
        named.check("--what", "measurement", kind, KINDS)
    if steps < 0:
        raise UserError(f"--steps={steps}: expected a number of steps, or 0 for as many as fit")
    shapes = [command_line.size("--sizes", text) for text in sizes]
    shapes = shapes or [tuple(config.augment.crop)]
    description = data.get(config.data)
    mesh = sharding.make_mesh(config.devices, config.shard.height)
    numbers = [_batch(text, mesh) for text in batches or [str(config.batch_size)]]
    protocol = _protocol(config, description)
    config = balance.without_labels(config, description)
    other = benchmark_table.read(against, protocol) if against else None

    result = {"protocol": protocol, "machine": manifest.environment(), "peaks": {}, "rows": []}
    say(
        f"{config.model.name}, {description.num_classes} classes, {protocol['dtype']}; "
        f"{mesh.devices.size} x {mesh.devices.flat[0].device_kind}"
    )
    crop = tuple(config.augment.crop)
    cases = [(kind, size, n) for kind in PROGRAMS for size in shapes for n in numbers]
    cases += [(kind, crop, n) for kind in ("input", "end_to_end") for n in numbers]
    cases = [case for case in cases if case[0] in what]
    peaks, texts = {}, {}
    for kind, size, number in cases:
        say(f"{kind}, {size[0]}x{size[1]}, batch {number} ...")
        key = {"what": kind, "size": size, "batch": number}
        if kind in PROGRAMS:
            peaks = timing.peaks(protocol["dtype"], peaks)
            arguments = (config, description, mesh, size, number)
            try:
                program = PROGRAMS[kind](*arguments)
                row = programs.measure(program, number, steps)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                say("that does not fit into the device's memory")
                continue
            texts[len(result["rows"])] = program.compiled.as_text()
        elif kind == "input":
            row = _measure_input(config, description, number, steps or STEPS)
        else:
            what_runs = (config, description, mesh, number, steps or STEPS)
            row = programs.end_to_end(*what_runs)
        result["rows"].append(key | row)

    if texts:
        # Taken now and then, the largest counts: the machine may be busy with something else.
        result["peaks"] = peaks = timing.peaks(protocol["dtype"], peaks)
        say(
            f"\na device's measured peaks: {peaks['flops'] / 1e12:.3g} TFLOP/s in a matrix "
            f"product, {peaks['bandwidth'] / 1e9:.3g} GB/s of memory"
        )
    for i, text in texts.items():
        row = result["rows"][i]
        row["share_of_peak"] = row["flops"] / (1e-3 * row["ms_median"]) / peaks["flops"]
        if roofline:
            say("\n" + benchmark_table.roofline(text, peaks, row))
    say("\n" + benchmark_table.table(result))
    if json_file:
        benchmark_table.write(json_file, result)
    if other:
        say("\n" + benchmark_table.compare(result, other))
    return result


def _measure_input(
    config: ConfigDict, description: Description, batch: int, batches: int
) -> dict[str, Any]:
    return rate.measure_input(
        description,
        config.train_split,
        config.augment,
        backend=config.data_backend,
        cache=config.data_cache,
        batch_size=batch,
        batches=batches,
        seed=config.seed,
    )


def _batch(text: str, mesh: Mesh) -> int:
    devices = mesh.shape["data"]
    if not re.fullmatch(r"[1-9]\d*", text) or int(text) % devices:
        raise UserError(
            f"--batches: {text!r}: expected a number of images that divides over the "
            f"{devices} device(s); config.devices takes fewer of them"
        )
    return int(text)


def _protocol(config: ConfigDict, description: Description) -> dict[str, Any]:
    """What is measured, whatever the machine."""
    values = json.loads(config.to_json_best_effort())
    del values["augment"]["crop"]  # sizes stand in the rows
    return {key: values[key] for key in PROTOCOL if key in values} | {
        "optimizer": config.optimizer.name,
        "accumulate": config.optimizer.accumulate,
        "classes": description.num_classes,
        "dtype": str(segmenter.compute_dtype(config.dtype)),
    }
