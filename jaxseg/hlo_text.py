"""Reads the text of a compiled program, HLO, into lines. See `jaxseg.hlo` for what they mean."""

import dataclasses
import functools
import math
import re

Shape = tuple[str, tuple[int, ...]]  # dtype, dimensions
_BITS = {"pred": 8}


@dataclasses.dataclass(frozen=True)
class Line:
    """`[ROOT] %name = type opcode(operands), attributes`."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]  # of each result
    operands: tuple[str, ...]
    attributes: str  # of a parameter, its number; of a constant, its value
    text: str

    @property
    def bytes(self) -> int:
        return sum(map(size_of, self.shapes))

    def attribute(self, pattern: str) -> str:
        """The first group of `pattern` among the attributes, or ''."""
        found = re.search(pattern, self.attributes)
        return found.group(1) if found else ""

    @functools.cached_property
    def op_name(self) -> str:
        return self.attribute(r'op_name="([^"]*)"')

    @functools.cached_property
    def target(self) -> str:
        """Of a custom call, what it calls; else ''."""
        found = self.opcode == "custom-call"
        return self.attribute(r'custom_call_target="([^"]*)"') if found else ""

    @functools.cached_property
    def called(self) -> tuple[str, ...]:
        """The computations of a fusion, a call or a conditional."""
        listed = self.attribute(r"branch_computations=\{([^}]*)\}")
        if listed:
            return tuple(re.findall(r"%?([\w.\-]+)", listed))
        keys = "calls|to_apply|true_computation|false_computation"
        return tuple(re.findall(rf"\b(?:{keys})=%?([\w.\-]+)", self.attributes))


Computation = dict[str, Line]


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """Returns ({name: computation}, the name of the entry computation, '' without one)."""
    computations: dict[str, Computation] = {}
    entry, body = "", None
    for row in text.splitlines():
        if row.endswith("{") and not row[:1].isspace():
            name = re.match(r"(ENTRY )?%?([\w.\-]+) ", row)
            if name:
                body = computations.setdefault(name.group(2), {})
                entry = name.group(2) if name.group(1) else entry
        elif row.startswith("}"):
            body = None
        elif body is not None and " = " in row:
            line = _line(row.strip())
            body[line.name] = line
    return computations, entry


def size_of(shape: Shape) -> int:
    """Bytes of an array as its dtype packs it, without a layout's padding."""
    dtype, dims = shape
    bits = _BITS.get(dtype)
    if bits is None:
        found = re.match(r"[a-z]+(\d+)", dtype)  # f32, bf16, s4, f8e4m3fn, c64; none in token
        bits = int(found.group(1)) if found else 0
    return math.prod(dims) * bits // 8


def _line(row: str) -> Line:
    name, _, rest = row.partition(" = ")
    # Types and layouts hold brackets of their own: (f32[8,3]{1,0:T(8,128)}, s32[])
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ") - 1
    kind, rest = rest[: end + 1], rest[end + 1 :].lstrip()
    opens = rest.index("(")
    closes = _closing(rest, opens)
    opcode, operands = rest[:opens], rest[opens + 1 : closes]
    literal = opcode in ("parameter", "constant")
    shapes = re.findall(r"\b([a-z]\w*)\[([\d,<=]*)\]", kind)
    return Line(
        name=name.removeprefix("ROOT ").lstrip("%"),
        opcode=opcode,
        shapes=tuple((dtype, tuple(map(int, re.findall(r"\d+", d)))) for dtype, d in shapes),
        operands=() if literal else tuple(re.findall(r"%([\w.\-]+)", operands)),
        attributes=operands if literal else rest[closes + 1 :],
        text=row,
    )


def _closing(text: str, start: int) -> int:
    """The index of the bracket that closes the one at `start`."""
    depth = 0
    for place in re.finditer(r"[()]", text[start:]):
        depth += 1 if place.group() == "(" else -1
        if depth == 0:
            return start + place.start()
    return len(text) - 1
