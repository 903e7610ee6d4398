"""What a compiled program executes: its instructions with their FLOPs, bytes and origin.

Pure text analysis of `jax.jit(f).lower(...).compile().as_text()`, the optimised HLO of a CPU, GPU
or TPU program (https://openxla.org/xla/operation_semantics). Nothing here needs JAX or a device.

FLOPs are those of convolutions and matrix products, two for each multiply-add. Positions that a
window finds in the zeros around an image are counted, as papers do and as most kernels compute;
the zeros between the pixels of a strided convolution's input gradient are not. So a convolution
and its two gradients have the same count, on every platform. Bytes are those of the operands and
results of an instruction, each read or written once: caches and a tile's rereads are not seen.
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Iterable, Iterator

from jaxseg import hlo_costs
from jaxseg.hlo_text import Computation, Line, parse

CONVOLUTION = "convolution"
MATMUL = "matmul"
COLLECTIVE = "collective"
ELEMENTWISE = "elementwise and reductions"
MOVEMENT = "data movement"
POOLING = "pooling windows"
SORT = "sort"
SCATTER = "scatter and gather"
OTHER = "other"

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "ragged-all-to-all",
    "reduce-scatter",
    "collective-permute",
    "collective-broadcast",
)
# Nothing is computed and no memory is moved for these.
_FREE = frozenset(
    "parameter constant tuple get-tuple-element bitcast after-all add-dependency partition-id "
    "replica-id opt-barrier get-dimension-size domain".split()
)
_MOVING = (
    "copy transpose pad slice concatenate reshape reverse broadcast iota dynamic-slice "
    "dynamic-update-slice".split()
)
_CATEGORIES = {
    "convolution": CONVOLUTION,
    "dot": MATMUL,
    "sort": SORT,
    "topk": SORT,
    "scatter": SCATTER,
    "gather": SCATTER,
    "reduce-window": POOLING,
    "select-and-scatter": POOLING,
    **dict.fromkeys(COLLECTIVES, COLLECTIVE),
    **dict.fromkeys(_MOVING, MOVEMENT),
}
# A fusion is the first of these that is in it.
_PRECEDENCE = (COLLECTIVE, CONVOLUTION, MATMUL, SORT, SCATTER, POOLING)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One executed instruction; a fusion is one, and stands for all that is in it.

    `flops`, `bytes` and `cycles` are those of all its `times` executions: loops whose number of
    turns the program shows count as often as they turn, others once.
    """

    name: str
    opcode: str  # 'fusion', 'all-reduce', ...; of a custom call, its target
    category: str
    flops: int
    bytes: int  # read and written
    op_name: str  # where it comes from: 'jit(train_step)/.../backbone/stem/conv_general_dilated'
    cycles: int  # the TPU compiler's own estimate; 0 in other programs
    times: int
    line: str  # the text it was read from


def instructions(text: str) -> list[Instruction]:
    """Everything that the program `text` executes, in order, calls and loops in their places.

    Returns [] for a text without an entry computation.
    """
    computations, entry = parse(text)
    return list(_executed(computations, entry, 1))


def collectives(text: str) -> list[Instruction]:
    """The exchanges between devices that the program executes; one may carry several arrays."""
    return [each for each in instructions(text) if each.category == COLLECTIVE]


def giant_windows(text: str, limit: int = 16, real: Collection[tuple[int, ...]] = ()) -> list[str]:
    """The cuDNN forward convolutions of a GPU program whose window exceeds any kernel's.

    These are weight gradients that XLA:GPU failed to match (openxla/xla#34273): the "kernel" is a
    feature map. On CPUs and TPUs a weight gradient properly has that form: [] for their programs.

    Args:
      text: the program.
      limit: the largest side a kernel may have.
      real: the (height, width) of kernels that are larger and meant to be.

    Returns:
      For each a line: the window's size and the module path it comes from.
    """
    found = []
    for each in instructions(text):
        window = re.search(r"window=\{size=([\dx]+)", each.line)
        if not window or "__cudnn$conv" not in each.opcode or "Backward" in each.opcode:
            continue
        size = tuple(int(n) for n in window.group(1).split("x"))
        if max(size) > limit and size not in set(map(tuple, real)):
            found.append(f"{window.group(1)} {each.op_name or each.name}")
    return found


def totals(
    executed: Iterable[Instruction], key: Callable[[Instruction], str] = lambda each: each.category
) -> dict[str, tuple[int, int, int, int]]:
    """Sums what `instructions` returned: {key: (executions, flops, bytes, cycles)}."""
    sums: dict[str, tuple[int, int, int, int]] = {}
    for each in executed:
        n, flops, size, cycles = sums.get(key(each), (0, 0, 0, 0))
        sums[key(each)] = (
            n + each.times,
            flops + each.flops,
            size + each.bytes,
            cycles + each.cycles,
        )
    return sums


def _executed(computations: dict[str, Computation], name: str, times: int) -> Iterator[Instruction]:
    scope = computations.get(name, {})
    for line in scope.values():
        if line.opcode == "while":
            turns = times * _turns(computations, line)
            yield from _executed(computations, line.attribute(r"body=%?([\w.\-]+)"), turns)
        elif line.opcode == "conditional":
            branches = [list(_executed(computations, each, times)) for each in line.called]
            yield from max(branches, key=lambda b: sum(i.flops + i.bytes for i in b), default=())
        elif line.opcode in ("call", "async-start"):
            for each in line.called:
                yield from _executed(computations, each, times)
        elif line.opcode.endswith(("-done", "-update")) or line.target == "AllocateBuffer":
            continue
        elif line.opcode not in _FREE:
            yield _instruction(computations, scope, line, times)


def _instruction(computations, scope: Computation, line: Line, times: int) -> Instruction:
    inside = list(_inside(computations, line)) if line.opcode == "fusion" else []
    every = [(line, scope), *inside]
    counts = [hlo_costs.flops(*each) for each in every]
    heaviest = every[counts.index(max(counts))][0]
    names = [heaviest.op_name, line.op_name, *(each.op_name for each, _ in reversed(inside))]
    kinds = [(_kind(each), each) for each, _ in inside or every if each.opcode not in _FREE]
    category = _category({kind for kind, _ in kinds})
    opcode = line.target or line.opcode
    if category == COLLECTIVE:
        opcode = next(each.opcode for kind, each in kinds if kind == COLLECTIVE)
        opcode = opcode.removesuffix("-start")
    return Instruction(
        name=line.name,
        opcode=opcode,
        category=category,
        flops=times * sum(counts),
        bytes=times * hlo_costs.moved(line, scope, computations),
        op_name=next(filter(None, names), ""),
        cycles=times * int(line.attribute(r'"estimated_cycles":"(\d+)"') or 0),
        times=times,
        line=line.text,
    )


def _inside(computations, line: Line) -> Iterator[tuple[Line, Computation]]:
    """Every line of a fusion, fusions within it opened, each with the computation it is in."""
    for name in line.called:
        scope = computations.get(name, {})
        for each in scope.values():
            yield each, scope
            if each.opcode in ("fusion", "call"):
                yield from _inside(computations, each)


def _category(kinds: set[str]) -> str:
    for category in _PRECEDENCE:
        if category in kinds:
            return category
    return kinds.pop() if len(kinds) == 1 else ELEMENTWISE


def _kind(line: Line) -> str:
    """What a line was written as: compilers call matrix products convolutions (TPU) and 1x1
    convolutions matrix products (CPU, GPU)."""
    written = line.op_name.rpartition("/")[2]
    multiplies = line.opcode in ("convolution", "dot") or "cublas" in line.target
    if multiplies and written.startswith(("conv_general_dilated", "dot_general")):
        return CONVOLUTION if written.startswith("conv") else MATMUL
    if line.target.startswith("__cudnn$conv"):
        return CONVOLUTION
    if line.target:
        sorts = re.search("topk|sort", line.target, re.IGNORECASE)
        return MATMUL if multiplies else SORT if sorts else OTHER
    if line.opcode == "convolution" and not re.search(r"dim_labels=\w*\d", line.attributes):
        return MATMUL
    return _CATEGORIES.get(line.opcode.removesuffix("-start"), ELEMENTWISE)


def _turns(computations, line: Line) -> int:
    """As the compiler states it; else the bound of a condition that counts up to one constant."""
    stated = line.attribute(r'"known_trip_count":\{"n":"(\d+)"')
    if stated:
        return int(stated)
    condition = computations.get(line.attribute(r"condition=%?([\w.\-]+)"), {}).values()
    bounds = [each.attributes for each in condition if each.opcode == "constant"]
    counts = any("direction=LT" in each.attributes for each in condition)
    return int(bounds[0]) if counts and len(bounds) == 1 and bounds[0].isdigit() else 1
