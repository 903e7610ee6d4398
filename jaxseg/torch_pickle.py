"""Pickles as PyTorch writes them, read as data: nothing that a file names is looked up or called.

A pickle is a program for a stack machine, and Python's own machine imports and calls whatever the
program says. This one knows only the instructions that `torch.save` writes (protocol 2, and the
strings and sets of protocol 4), and what would be a call becomes a `Call`: the callee's name,
arguments and state. `torch_tensors` makes arrays of the few that stand for tensors; all others stay
what they are, data without effect. A name that `torch_names` does not list is refused all the same,
because the file is then not what it should be.

Source: the instructions as documented in Python's `pickletools`; `torch/serialization.py`.
"""

import dataclasses
import pickle
import pickletools
import struct
from collections.abc import Callable
from typing import Any

from jaxseg import torch_names

AGAIN = "Download it again"
_MOST_STEPS = 10_000_000  # a large file with an optimizer's state takes a tenth of a million
_MOST_BYTES = 1 << 30


class Malformed(Exception):
    """What is wrong with a file and what to do; a reader puts the file's name before it."""


@dataclasses.dataclass(frozen=True, eq=False, slots=True)
class Global:
    """The name of a class or function, with its module. Only a name."""

    name: str


@dataclasses.dataclass(eq=False, slots=True)
class Call:
    """A call that the pickle asks for and that was not made."""

    name: str
    args: tuple
    state: Any = None


def load(data: Any, start: int, storage: Callable[[Any], Any]) -> tuple[Any, int]:
    """The value of the pickle at `start`, and where the pickle ends.

    Args:
      data: bytes or another buffer whose slices are bytes.
      start: index of the pickle's first byte.
      storage: makes a value of a persistent id, which is how PyTorch refers to tensors' data.

    Returns:
      None, bool, int, float, str, bytes, tuple, list, dict (also for OrderedDict), `Global`,
      `Call`, or what `storage` returned.

    Raises:
      Malformed: a name that is not allowed, an instruction that PyTorch does not write, or damage.
    """
    machine = _Machine(data, start, storage)
    try:
        return machine.run(), machine.at
    except (IndexError, KeyError, TypeError, ValueError, struct.error) as error:
        raise Malformed(
            f"damaged: its pickled part makes no sense at byte {machine.at} "
            f"({type(error).__name__}). {AGAIN}"
        ) from error


class _Machine:
    def __init__(self, data: Any, start: int, storage: Callable[[Any], Any]):
        self.data, self.at, self.end = data, start, min(len(data), start + _MOST_BYTES)
        self.storage = storage
        self.stack, self.marks, self.memo = [], [], {}

    def run(self) -> Any:
        for _ in range(_MOST_STEPS):
            code = self.take(1)
            if code == pickle.STOP:
                return self.pop()
            step = _STEPS.get(code)
            if step is None:
                raise Malformed(
                    f"{_instruction(code)}, which PyTorch never writes. "
                    "It was refused; take the weights from their publisher"
                )
            step(self)
        raise Malformed(f"more than {_MOST_STEPS} steps to read it, which no checkpoint needs")

    def take(self, n: int) -> bytes:
        if n > self.end - self.at:
            raise Malformed(f"truncated: it ends within its pickled part. {AGAIN}")
        self.at += n
        return self.data[self.at - n : self.at]

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def line(self) -> str:
        end = self.data.find(b"\n", self.at, min(self.end, self.at + 1000))
        if end < 0:
            raise ValueError("a name without an end")
        return self.take(end + 1 - self.at)[:-1].decode()

    def pop(self) -> Any:
        if self.marks and len(self.stack) <= self.marks[-1]:
            raise IndexError("nothing above the mark")
        return self.stack.pop()

    def pop_mark(self) -> list:
        mark = self.marks.pop()
        above = self.stack[mark:]
        del self.stack[mark:]
        return above

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def fill(self, values: list) -> None:
        """Appends to the list on top. What fills anything else (sets, deques) is left out."""
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, Call):
            raise TypeError(f"append to {type(target).__name__}")

    def set_items(self, values: list) -> None:
        target = self.stack[-1]
        if len(values) % 2 or not isinstance(target, dict | Call):
            raise TypeError(f"items of {type(target).__name__}")
        if isinstance(target, dict):
            target.update(_items(zip(values[::2], values[1::2], strict=True)))

    def global_(self, module: str, name: str) -> None:
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)
        full = f"{module}.{name}"
        if full not in torch_names.ALLOWED:
            raise Malformed(torch_names.refusal(module, full))
        self.push(Global(full))

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        if type(name) is not str or type(module) is not str:
            raise TypeError("a name that is no text")
        self.global_(module, name)

    def call(self) -> None:
        args, callee = self.pop(), self.pop()
        if type(args) is not tuple or type(callee) is not Global:
            raise TypeError("a call of what is not a name")
        if callee.name == "collections.OrderedDict":  # with pairs in files from Python 2
            pairs = args[0] if args else []
            self.push(dict(_items((key, value) for key, value in pairs)))
        else:
            self.push(Call(callee.name, args))

    def build(self) -> None:
        state, target = self.pop(), self.stack[-1]
        if isinstance(target, Call):
            target.state = state
        elif not isinstance(target, dict):  # a state dict's attributes, `_metadata`, are left out
            raise TypeError(f"state of {type(target).__name__}")


def _items(pairs):
    """The pairs, once their keys are known to be harmless to hash: deep tuples would recurse."""
    for key, value in pairs:
        for part in key if type(key) is tuple else (key,):
            if type(part) not in (str, int, float, bool, bytes, type(None), Global, Call):
                raise TypeError(f"{type(part).__name__} as a key")
        yield key, value


def _instruction(code: bytes) -> str:
    known = pickletools.code2op.get(code.decode("latin-1"))
    return f"its pickled part has the instruction {known.name if known else code!r}"


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")


def _old_text(raw: bytes) -> str:  # Python 2's str, which has no encoding
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _integer(raw: bytes) -> int:
    return int.from_bytes(raw, "little", signed=True)


def _steps() -> dict[bytes, Callable[[_Machine], None]]:
    """Instruction -> what it does to the machine."""
    p = pickle
    steps = {
        p.PROTO: lambda m: m.take(1),
        p.FRAME: lambda m: m.take(8),
        p.MARK: lambda m: m.marks.append(len(m.stack)),
        p.NONE: lambda m: m.push(None),
        p.NEWTRUE: lambda m: m.push(True),
        p.NEWFALSE: lambda m: m.push(False),
        p.EMPTY_TUPLE: lambda m: m.push(()),
        p.EMPTY_LIST: lambda m: m.push([]),
        p.EMPTY_DICT: lambda m: m.push({}),
        p.EMPTY_SET: lambda m: m.push(Call("builtins.set", ())),
        p.FROZENSET: lambda m: m.push(Call("builtins.frozenset", (m.pop_mark(),))),
        p.ADDITEMS: lambda m: m.fill(m.pop_mark()),
        p.TUPLE: lambda m: m.push(tuple(m.pop_mark())),
        p.TUPLE1: lambda m: m.push((m.pop(),)),
        p.TUPLE2: lambda m: m.push((m.pop(), m.pop())[::-1]),
        p.TUPLE3: lambda m: m.push((m.pop(), m.pop(), m.pop())[::-1]),
        p.APPEND: lambda m: m.fill([m.pop()]),
        p.APPENDS: lambda m: m.fill(m.pop_mark()),
        p.SETITEM: lambda m: m.set_items([m.pop(), m.pop()][::-1]),
        p.SETITEMS: lambda m: m.set_items(m.pop_mark()),
        p.GLOBAL: lambda m: m.global_(m.line(), m.line()),
        p.STACK_GLOBAL: lambda m: m.stack_global(),
        p.REDUCE: lambda m: m.call(),
        p.NEWOBJ: lambda m: m.call(),
        p.BUILD: lambda m: m.build(),
        p.BINPERSID: lambda m: m.push(m.storage(m.pop())),
        p.MEMOIZE: lambda m: m.memo.__setitem__(len(m.memo), m.stack[-1]),
    }
    numbers = {p.BININT: "<i", p.BININT1: "<B", p.BININT2: "<H", p.BINFLOAT: ">d"}
    for code, layout in numbers.items():
        steps[code] = lambda m, layout=layout: m.push(m.number(layout))
    for put, get, layout in (
        (p.BINPUT, p.BINGET, "<B"),
        (p.LONG_BINPUT, p.LONG_BINGET, "<I"),
    ):
        steps[put] = lambda m, layout=layout: m.memo.__setitem__(m.number(layout), m.stack[-1])
        steps[get] = lambda m, layout=layout: m.push(m.memo[m.number(layout)])
    for code, layout, value in (
        (p.BINUNICODE, "<I", _text),
        (p.SHORT_BINUNICODE, "<B", _text),
        (p.BINUNICODE8, "<Q", _text),
        (p.BINSTRING, "<I", _old_text),
        (p.SHORT_BINSTRING, "<B", _old_text),
        (p.BINBYTES, "<I", bytes),
        (p.SHORT_BINBYTES, "<B", bytes),
        (p.BINBYTES8, "<Q", bytes),
        (p.LONG1, "<B", _integer),
    ):
        steps[code] = lambda m, layout=layout, value=value: m.push(value(m.take(m.number(layout))))
    return steps


_STEPS = _steps()
