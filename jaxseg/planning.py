"""What training a config would take on accelerators that are not here: memory, time, exchanges.

The training step is compiled for the target (`jaxseg.deviceless`), and its program is read. Nothing
runs: memory is what the compiler laid out, time is an estimate, see `jaxseg.planning_time`. (What
each training step reads is planned elsewhere, in `jaxseg.data.plan`.)
"""

import dataclasses
import functools
import json
import math
import re
import time
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxseg import (
    benchmark_table,
    chips,
    data,
    deviceless,
    feed,
    hlo,
    lowering,
    models,
    planning_search,
    planning_table,
    planning_time,
)
from jaxseg import state as states
from jaxseg.compiling import needed_bytes, without_cache
from jaxseg.console import duration, say
from jaxseg.data import balance
from jaxseg.data.base import Description
from jaxseg.errors import UserError
from jaxseg.sharding import check_divides

# Of a step's memory, what grows with the batch.
GROWS = ("batch", "batches that wait", "temporaries")


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A training step as compiled for a target.

    Attributes:
      batch: images, over all chips.
      needed: bytes of each chip, batches that wait for their step included.
      fits: whether a chip has them.
      parts: what needs them -> bytes; {} where the compiler gave up for want of memory.
      executed: the program; [] then.
    """

    batch: int
    needed: int
    fits: bool
    parts: dict[str, int]
    executed: list[hlo.Instruction]

    @property
    def fixed(self) -> int:
        """Bytes that any batch needs; 0 where nothing is known."""
        return sum(size for name, size in self.parts.items() if name not in GROWS)


@without_cache()  # from which programs for devices that are not here cannot be read
def run(
    config: ConfigDict, targets: Sequence[str], largest: bool = True, json_file: str | None = None
) -> dict[str, Any]:
    """Plans for each target, prints tables, and writes the figures where asked to.

    Args:
      config: see configs/. Its dataset's files are not needed, but for the classes of 'folder'.
      targets: as `deviceless` takes them; config.devices takes a part of their chips.
      largest: search for the largest batch that fits too, which takes compilations.
      json_file: where to write the figures.

    Returns:
      {'run': ..., 'targets': [...]}, as in the file.

    Raises:
      UserError: a target is not known, or its compiler is not here; or, after the other targets are
        done, the config's batch or crop does not divide over its chips.
    """
    kinds = [chips.of(target) for target in targets]
    description = data.get(config.data)
    config = balance.without_labels(config, description)
    meshes = [deviceless.mesh(target, config.devices, config.shard.height) for target in targets]
    result: dict[str, Any] = {"run": about(config, description), "targets": []}
    say(planning_table.about(result["run"]))
    wrong = []
    for target, chip, on in zip(targets, kinds, meshes, strict=True):
        try:
            check_divides(config.batch_size, config.augment.crop, on)
        except UserError as error:
            wrong.append(f"{target}: {error}{_equivalent(config.batch_size, on.shape['data'])}")
            continue
        row = plan(config, description, target, on, chip, largest)
        result["targets"].append(row)
        say("\n" + planning_table.target(row))
    if len(result["targets"]) > 1:
        say("\n" + planning_table.comparison(result["targets"]))
    if result["targets"]:
        say("\n" + planning_table.notes(result["targets"]))
    if json_file:
        benchmark_table.write(json_file, result)
    if wrong:
        raise UserError("\n".join(wrong))
    return result


def _equivalent(batch: int, unit: int) -> str:
    """What to add for a recipe of which every chip gets as many images; '' where they do."""
    if batch % unit == 0:
        return ""
    wanted = -(-batch // unit) * unit
    return f"; an equivalent recipe that does: --config.batch_size={wanted} --rescale"


def about(config: ConfigDict, description: Description) -> dict[str, Any]:
    """What is planned, whatever the target."""
    model = models.get(config.model, num_classes=description.num_classes)
    params = states.abstract_variables(model, tuple(config.augment.crop))["params"]
    return {
        "model": config.model.name,
        "parameters": states.count(params),
        "dataset": description.name,
        "classes": description.num_classes,
        "config": json.loads(config.to_json_best_effort()),
    }


def plan(
    config: ConfigDict,
    description: Description,
    target: str,
    on: Mesh,
    chip: chips.Chip,
    largest: bool = True,
) -> dict[str, Any]:
    """The figures of a target, see `run`; says what it compiles.

    Args:
      config, description: what to train.
      target: its name.
      on: its chips.
      chip: what one of them can do.
      largest: search for the largest batch that fits too.
    """
    compiled = functools.partial(compile_step, config, description, target, on, chip)
    first = compiled(config.batch_size)
    row = {
        "target": target,
        "chip": chip.name,
        "chips": on.size,
        "batch": first.batch,
        "needed": first.needed,
        "usable": chip.usable,
        "memory": chip.memory,
        "fits": first.fits,
        "parts": first.parts,
    }
    if first.executed:
        # A TPU's program in float32 has its products in several of bfloat16, which the cycles know.
        peak = chip.flops_float32 if config.dtype == "float32" else chip.flops
        row |= planning_time.times(first.executed, chip, on.size, peak)
        row |= planning_time.schedule(row["step_s"], config.steps, first.batch, on.size)
    if largest:
        row["largest"] = planning_search.search(compiled, first, on.shape["data"], chip.usable)
    return row


def compile_step(
    config: ConfigDict,
    description: Description,
    target: str,
    on: Mesh,
    chip: chips.Chip,
    batch: int,
) -> Compiled:
    """Compiles the training step for batches of so many images, and says so."""
    say(f"{target}: compiling the training step for a batch of {batch} ...")
    began = time.monotonic()
    lowered = lowering.training(config, description, on, tuple(config.augment.crop), batch)
    try:
        compiled = deviceless.compile_lowered(lowered, on)
    except jax.errors.JaxRuntimeError as error:
        needed = refused(str(error))
        if not needed:
            raise
        found = Compiled(batch, needed, False, {}, [])
    else:
        parts = memory(lowered, compiled, waiting=config.data_cache != "device")
        needed = sum(parts.values())
        executed = hlo.instructions(compiled.as_text())
        found = Compiled(batch, needed, needed <= chip.usable, parts, executed)
    verdict = "fits" if found.fits else "does not fit"
    say(
        f"  {planning_table.gib(found.needed)} of {planning_table.gib(chip.usable)} GiB on each: "
        f"{verdict} ({duration(time.monotonic() - began)})"
    )
    return found


def memory(
    lowered: jax.stages.Lowered, compiled: jax.stages.Compiled, waiting: bool
) -> dict[str, int]:
    """What needs how many bytes of a chip, in the order of a table.

    Args:
      lowered, compiled: the training step.
      waiting: whether batches wait on the chip for their step, `feed.AHEAD` of them.
    """
    sizes = jax.tree.map(_bytes, lowered.args_info, compiled.input_shardings)
    state, batch = sizes[0]
    parts = {
        "parameters": _sum(state.params),
        "optimizer": _sum(state.opt_state),
        "averages, statistics": _sum((state.ema, state.model_state)),
        "batch": _sum(batch),
    }
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    rest = needed_bytes(compiled) - temporaries - sum(parts.values())
    return parts | {
        "batches that wait": feed.AHEAD * parts["batch"] if waiting else 0,
        "temporaries": temporaries,
        "padding, results": max(0, rest),
    }


def refused(message: str) -> int:
    """The bytes that a program needs at least which a TPU's compiler refuses for want of memory;
    0 for other errors."""
    used = re.search(r"HLO temporaries \(([\d.]+)([KMGT]?)\) exceeds available HBM", message)
    used = used or re.search(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", message)
    return int(float(used[1]) * 1024 ** " KMGT".index(used[2] or " ")) if used else 0


def _bytes(argument: Any, layout: jax.sharding.Sharding) -> int:
    return math.prod(layout.shard_shape(argument.shape)) * argument.dtype.itemsize


def _sum(tree: Any) -> int:
    return sum(jax.tree.leaves(tree))
