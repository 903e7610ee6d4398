"""FLOPs and bytes of one line of a compiled program. See `jaxseg.hlo` for what is counted."""

import math
import re

from jaxseg.hlo_text import Computation, Line, size_of

_LOOK_UPS = ("dynamic-slice", "gather", "slice")


def flops(line: Line, scope: Computation) -> int:
    """Two for each multiply-add of a convolution or matrix product; else 0.

    `scope` is the computation that holds the line's operands.
    """
    shapes = [scope[name].shapes[0][1] for name in line.operands if name in scope]
    if len(shapes) < 2:
        return 0
    if line.opcode == "dot":
        return _matmul(line, shapes[0], line.attribute(r"lhs_contracting_dims=\{([\d,]*)\}"))
    if "cublas" in line.target:
        contracted = line.attribute(r'"lhs_contracting_dimensions":\[([^\]]*)\]')
        return _matmul(line, shapes[0], contracted)
    if line.target.startswith("__cudnn$conv"):
        return _cudnn(line, *shapes[:2])
    return _convolution(line, shapes[1]) if line.opcode == "convolution" else 0


def _matmul(line: Line, left: tuple[int, ...], contracted: str) -> int:
    depth = math.prod(left[int(axis)] for axis in re.findall(r"\d+", contracted))
    return 2 * math.prod(line.shapes[0][1]) * depth


def _cudnn(line: Line, first: tuple[int, ...], second: tuple[int, ...]) -> int:
    """Window and labels are those of the forward convolution, whichever gradient is computed."""
    result = line.shapes[0][1]
    if "BackwardFilter" in line.target:
        outputs, kernel = second, result
    elif "BackwardInput" in line.target:
        outputs, kernel = first, second
    else:
        outputs, kernel = result, second
    axes = zip(kernel, _labels(line)[1], strict=True)
    return 2 * math.prod(outputs) * math.prod(n for n, label in axes if label != "o")


def _convolution(line: Line, kernel: tuple[int, ...]) -> int:
    _, kernel_labels, labels = _labels(line)
    result, window = line.shapes[0][1], line.attribute(r"window=\{([^}]*)\}")
    count = kernel[kernel_labels.index("i")]
    for size, label in zip(result, labels, strict=True):
        count *= size
        if label.isdigit():
            taps, axis = kernel[kernel_labels.index(label)], int(label)
            stride, holes, rate = (
                _along(window, name, axis, 1) for name in ("stride", "lhs_dilate", "rhs_dilate")
            )
            meets = _meetings(size, taps, stride, _along(window, "pad", axis, 0), holes, rate)
            count = count // size * meets
    return 2 * count


def _labels(line: Line) -> list[str]:
    """'b01f_01io->b01f': what each axis of image, kernel and result is."""
    return re.split(r"_|->", line.attribute(r"dim_labels=(\w+->\w+)"))


def _along(window: str, name: str, axis: int, default: int) -> int:
    """The entry of an axis in 'size=3x3 pad=1_2x1_2 lhs_dilate=2x2'; of padding, the low one."""
    found = re.search(rf"\b{name}=([\d_x\-]+)", window)
    return int(found.group(1).split("x")[axis].split("_")[0]) if found else default


def _meetings(size: int, taps: int, stride: int, pad: int, holes: int, rate: int) -> int:
    """How many pairs of output pixel and tap do not meet a zero between two pixels."""
    places = [0] * holes  # how many taps lie at each remainder
    for tap in range(taps):
        places[(tap * rate - pad) % holes] += 1
    return sum(places[-pixel * stride % holes] for pixel in range(size))


def moved(line: Line, scope: Computation, computations: dict[str, Computation]) -> int:
    """Bytes of operands and results; where an operand is only looked up in or updated, the part."""
    operands = [scope[name] for name in line.operands if name in scope]
    reads = sum(each.bytes for each in operands)
    if line.opcode.endswith("-start"):  # the results: operands, then what will be there, then flags
        n = len(line.operands)
        done = sum(map(size_of, line.shapes[n : 2 * n] or line.shapes))
        return 2 * done if line.opcode in ("copy-start", "slice-start") else reads + done
    if line.target:  # the result, then scratch memory
        scratch = len(line.shapes) > 1 and line.shapes[-1][0] in ("u8", "s8")
        return reads + sum(map(size_of, line.shapes[:-1] if scratch else line.shapes))
    inside = {line.name: line}
    names = line.operands
    if line.opcode == "fusion":
        inside = computations.get(line.called[0], {}) if line.called else {}
        numbered = {int(e.attributes): e.name for e in inside.values() if e.opcode == "parameter"}
        names = tuple(numbered.get(i, "") for i in range(len(operands)))
    total = line.bytes
    for name, operand in zip(names, operands, strict=True):
        users = [each for each in inside.values() if name in each.operands]
        if users and all(e.opcode in _LOOK_UPS and e.operands[0] == name for e in users):
            total += min(operand.bytes, sum(each.bytes for each in users))
        elif users and all(_updates(each, name) for each in users):
            parts = [inside.get(e.operands[1]) or scope[e.operands[1]] for e in users]
            total += sum(part.bytes for part in parts) - operand.bytes
        else:
            total += operand.bytes
    return total


def _updates(line: Line, name: str) -> bool:
    return line.opcode == "dynamic-update-slice" and line.operands[0] == name
