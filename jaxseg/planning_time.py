"""How long a compiled training step should take on a chip that is not here. Two estimates:

    roofline  each instruction takes as long as its FLOPs at the chip's peak, or its bytes at the
              bandwidth of its memory, whichever is longer (Williams et al. 2009,
              doi:10.1145/1498765.1498785); exchanges, their bytes on the links between chips, in a
              ring, nothing beside them. A bound that no program reaches
    cycles    what the TPU compiler expects itself, divided by the chip's clock; the roofline's time
              for what it has no expectation of

Input, evaluation, checkpoints and compilation are not in it.
"""

from collections.abc import Sequence
from typing import Any

from jaxseg import chips, hlo


def times(
    executed: Sequence[hlo.Instruction], chip: chips.Chip, number: int, peak: float
) -> dict[str, Any]:
    """The seconds of a step, by category.

    Args:
      executed: the program of one chip.
      chip: what it can do.
      number: of chips that exchange.
      peak: FLOP/s in the dtype of the computation.

    Returns:
      'categories': name -> {'run', 'flops', 'bytes', 'roofline_s', 'cycles_s'}; 'collectives': name
      -> {'run', 'bytes' of the arrays, 'sent' by each chip}; 'roofline_s', 'cycles_s' (None for
      GPUs) and 'step_s', the one of these two to be believed.
    """
    sums = hlo.totals(executed)
    categories = {
        name: {"run": n, "flops": flops, "bytes": size, "roofline_s": 0.0, "cycles_s": 0.0}
        for name, (n, flops, size, _) in sums.items()
    }
    exchanges: dict[str, dict[str, int]] = {}
    for each in executed:
        row = categories[each.category]
        bound = max(each.flops / peak, each.bytes / chip.bandwidth)
        if each.category == hlo.COLLECTIVE:
            kind, size, sent = exchanged(each, number)
            bound = max(bound, sent / chip.link)
            entry = exchanges.setdefault(kind, {"run": 0, "bytes": 0, "sent": 0})
            for key, value in (("run", each.times), ("bytes", size), ("sent", sent)):
                entry[key] += value
        row["roofline_s"] += bound
        row["cycles_s"] += each.cycles / chip.clock if chip.clock and each.cycles else bound
    total = {
        key: sum(row[key] for row in categories.values()) for key in ("roofline_s", "cycles_s")
    }
    if not chip.clock:
        total["cycles_s"] = None
    return {
        "categories": categories,
        "collectives": exchanges,
        **total,
        "step_s": total["cycles_s"] or total["roofline_s"],
    }


def exchanged(each: hlo.Instruction, number: int) -> tuple[str, int, int]:
    """(kind, bytes of the whole arrays, bytes that each of `number` chips sends in a ring).

    The instruction's bytes are those of operands and results: of a gather one is a part of the
    other.
    """
    kind = each.opcode.removesuffix("-start")
    if kind in ("all-gather", "reduce-scatter"):
        size = each.bytes * number // (number + 1)
        return kind, size, size * (number - 1) // number
    size = each.bytes // 2
    if kind == "all-reduce":
        return kind, size, 2 * size * (number - 1) // number
    return kind, size, size


def schedule(step_s: float, steps: int, batch: int, number: int) -> dict[str, float]:
    """What a run takes: 'images_per_s', 'hours', and 'chip_hours' of all chips together."""
    hours = step_s * steps / 3600
    return {"images_per_s": batch / step_s, "hours": hours, "chip_hours": hours * number}
