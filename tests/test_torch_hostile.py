"""PyTorch files that attack: none runs code, and each is refused."""

import copyreg
import os
import pickle
import struct
import subprocess

import numpy as np
import pytest
import torch_writer as writer
from torch_writer import Do, Name, refused, saved, whole

from jaxseg import torch_file, torch_pickle
from jaxseg.errors import UserError

WEIGHT = np.arange(6, dtype="f4")


class Attack:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def hostile(sentinel) -> dict[str, bytes]:
    shell = f"touch {sentinel}"
    python = f"open({str(sentinel)!r}, 'w')"
    system = b"cos\nsystem\n"
    attacks = {
        f"{name} {protocol}": pickle.dumps({"meta": [({"x": attack},)]}, protocol)
        for protocol in range(2, 6)
        for name, attack in {
            "system": Attack(os.system, shell),
            "eval": Attack(eval, python),
            "exec": Attack(exec, python),
            "getattr": Attack(getattr, "", "join"),
            "import": Attack(__import__, "os"),
            "open": Attack(open, str(sentinel), "w"),
            "check_call": Attack(subprocess.check_call, ["touch", str(sentinel)]),
        }.items()
    }
    loads = Do(Name("pickle", "loads"), (pickle.dumps(Attack(eval, python)),))
    rebuild = Name("torch._utils", "_rebuild_tensor_v2")
    history = Name("mmengine.logging.history_buffer", "HistoryBuffer")
    harmless = b"cargparse\nNamespace\n)R"
    return attacks | {
        "within a tensor": writer.pickled({"a": Do(rebuild, (loads, 0, (1,), (1,)))})[0],
        "as a state": writer.pickled({"a": Do(history, (), {"__setstate__": loads})})[0],
        "torch's own loader": writer.pickled(Do(Name("torch", "load"), (str(sentinel),)))[0],
        "torch's own os": writer.pickled(Name("torch.serialization", "os.system"))[0],
        "dotted": b"\x80\x04" + text("collections") + text("OrderedDict.__init__") + b"\x93.",
        "stack global": b"\x80\x04"
        + text("os")
        + text("system")
        + b"\x93"
        + text(shell)
        + b"\x85R.",
        "old module name": b"\x80\x02c__builtin__\neval\n" + text(python) + b"\x85R.",
        "only named": b"\x80\x02" + system + b".",
        "instance": b"\x80\x02(" + text(shell) + b"ios\nsystem\n.",
        "object": b"\x80\x02(cargparse\nNamespace\n" + text(shell) + b"o.",
        "extension": b"\x80\x02\x82\xf0" + text(shell) + b"\x85R.",
        "by text": b"\x80\x02S'x'\n.",
        "calls a result": b"\x80\x02" + harmless + text(shell) + b"\x85R.",
        "calls a text": b"\x80\x02" + text(shell) + b")R.",
        "state of a list": b"\x80\x02]}b.",
        "items of a text": b"\x80\x02" + text("a") + b"K\x01K\x02s.",
        "appends to a number": b"\x80\x02K\x01K\x02a.",
        "new object with options": b"\x80\x04cargparse\nNamespace\n)}\x92.",
    }


@pytest.mark.parametrize("name", sorted(hostile("x")))
def test_hostile_pickles_run_nothing_and_are_refused(write, tmp_path, name):
    sentinel = tmp_path / "sentinel"
    attack = hostile(sentinel)[name]
    copyreg.add_extension("os", "system", 240)
    try:
        refused(write(attack))
        refused(saved(tmp_path, attack))
    finally:
        copyreg.remove_extension("os", "system", 240)
    assert not sentinel.exists()


def test_the_attacks_are_real(tmp_path):
    """Python's own reader runs the same bytes."""
    sentinel = tmp_path / "sentinel"
    pickle.loads(hostile(sentinel)["system 2"])
    assert sentinel.exists()


def test_the_message_names_what_would_have_been_called(write):
    system = f"{os.name}.system"
    message = refused(write(hostile("x")["system 2"]), system, "malicious", "nothing of it was run")
    assert "Delete it" in message
    refused(write(hostile("x")["eval 4"]), "builtins.eval")
    whole_model = writer.pickled(Do(Name("torchvision.models.resnet", "ResNet"), ()))[0]
    refused(write(whole_model), "torchvision.models.resnet.ResNet", "state_dict()")


def test_state_of_an_ordered_dict_is_left_out(write):
    start, end = writer.pickled({"a": whole(WEIGHT, "0")})[0], b"."
    state = writer.pickled({"__class__": 1, "update": 2, "__setstate__": 3})[0][2:-1]
    value = torch_pickle.load(start.removesuffix(end) + state + b"b.", 0, lambda _: None)[0]
    assert type(value) is dict and list(value) == ["a"] and callable(value.update)


@pytest.mark.parametrize(
    "data",
    [
        b")" + b"\x85" * 200_000 + b".",  # a tuple in a tuple in ...
        b"}" + b")" + b"\x85" * 200_000 + b"K\x01s.",  # ... as a key, whose hash would recurse
        b"]" * 200_000 + b"a" * 199_999 + b".",
        b"(" * 200_000 + b".",
        b"}" + b")q\x00" + b"h\x00h\x00\x86q\x00" * 64 + b"K\x01s.",  # 2^64 leaves, as a key
        b")q\x00" + b"h\x00h\x00\x86q\x00" * 64 + b".",
        b"]q\x00h\x00a.",  # a list that holds itself
        b"}q\x00" + text("state_dict") + b"h\x00s.",  # a dict that does
        b"Kar\xff\xff\xff\xff.",  # place 2^32 - 1 of the memo
        b"\x8d" + b"\xff" * 7 + b"\x7f.",  # texts and bytes of 2^63
        b"\x8e" + b"\xff" * 7 + b"\x7f.",
        b"\x96" + b"\xff" * 7 + b"\x7f.",
        b"\x95" + b"\xff" * 8 + b"K\x01.",
        b"X\xff\xff\xff\xff.",
        b"\x8b\xff\xff\xff\x7f.",
        b"h\x05.",
        b"0.",
        b".",
        b"t.",
        b"u.",
        b"(K\x01u.",
        b"R.",
        b"}(K\x01R.",
        b"\x8c\x01\xff.",
    ],
)
def test_bombs_and_nonsense(write, data):
    refused(write(b"\x80\x02" + data))


def test_more_steps_than_a_checkpoint_needs(write, monkeypatch):
    monkeypatch.setattr(torch_pickle, "_MOST_STEPS", 1000)
    refused(write(b"\x80\x02" + b"N" * 1001 + b"."), "1000 steps")


@pytest.mark.parametrize("kind", ["zip", "stream", "safetensors"])
def test_random_damage_gives_an_error_or_arrays(tmp_path, kind):
    arrays = {"a": WEIGHT, "b": np.arange(5)}
    value = {"meta": {"x": 1.5}, "state_dict": {k: whole(v, k) for k, v in arrays.items()}}
    data = writer.safetensors(arrays) if kind == "safetensors" else writer.FORMATS[kind](value)
    rng = np.random.default_rng(1)
    errors = 0
    for trial in range(300):
        damaged = bytearray(data)
        for at in rng.integers(len(data), size=rng.integers(1, 4)):
            damaged[at] = rng.integers(256)
        if trial % 5 == 0:
            del damaged[rng.integers(len(data)) :]
        path = saved(tmp_path, damaged)
        try:
            got = torch_file.read(path)
        except UserError as error:
            assert str(error).startswith(f"{path}: ")
            errors += 1
        else:
            assert all(isinstance(array, np.ndarray) for array in got.values())
            assert sum(array.nbytes for array in got.values()) <= 10 * len(data)
    assert errors > 60
