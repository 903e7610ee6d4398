"""`--deterministic`: what it asks of XLA, what it refuses, and that runs repeat to the last bit."""

import os
import pathlib
import subprocess
import sys

import pytest

from jaxseg import deterministic, main
from jaxseg.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[1]
FLAG = "--xla_gpu_deterministic_ops=true"


@pytest.fixture
def without_jax(monkeypatch):
    """As in a process that has not imported jax yet."""
    monkeypatch.delitem(sys.modules, "jax")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, FLAG),
        ("", FLAG),
        (" --xla_a=1  --xla_b ", f"--xla_a=1  --xla_b {FLAG}"),
        (FLAG, FLAG),
        ("--xla_gpu_deterministic_ops", "--xla_gpu_deterministic_ops"),
        (
            "--xla_gpu_exclude_nondeterministic_ops=1",
            f"--xla_gpu_exclude_nondeterministic_ops=1 {FLAG}",
        ),
        (  # the last one counts
            "--xla_gpu_deterministic_ops=false --xla_gpu_deterministic_ops=True",
            "--xla_gpu_deterministic_ops=false --xla_gpu_deterministic_ops=True",
        ),
    ],
)
def test_the_flag_is_added_once(monkeypatch, without_jax, before, after):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    if before is not None:
        monkeypatch.setenv("XLA_FLAGS", before)
    deterministic.switch_on()
    assert os.environ["XLA_FLAGS"] == after and deterministic.is_on()
    deterministic.switch_on()
    assert os.environ["XLA_FLAGS"] == after


@pytest.mark.parametrize(
    "flags",
    [
        "--xla_gpu_deterministic_ops=false",
        "--xla_a --xla_gpu_deterministic_ops=0",
        "--xla_gpu_deterministic_ops=true --xla_gpu_deterministic_ops=false",
        "--xla_gpu_exclude_nondeterministic_ops=False",
        "flags.txt",
    ],
)
def test_contradictions_are_refused(monkeypatch, without_jax, capsys, flags):
    monkeypatch.setenv("XLA_FLAGS", flags)
    assert main.main(["jaxseg", "eval", "--workdir=w", "--deterministic"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --deterministic") and flags in error
    assert os.environ["XLA_FLAGS"] == flags


def test_it_does_not_pretend_where_it_comes_too_late(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_a")
    with pytest.raises(UserError, match=f"XLA_FLAGS={FLAG}"):
        deterministic.switch_on()
    assert not deterministic.is_on()


def test_without_it_nothing_is_set(monkeypatch, capsys):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    assert main.main(["jaxseg", "eval", "--workdir=nowhere"]) == 2
    assert "XLA_FLAGS" not in os.environ


# A command line is read, and then jax computes; what XLA was told is in its options.
COMPUTES = """
import hashlib, os, sys
from jaxseg import command_line
config = "--config=configs/deeplabv3p.py:synthetic"
command_line.parse(["jaxseg", config, "--workdir=unused", *sys.argv[1:]])
assert "jax" not in sys.modules
import jax
from jaxlib import xla_client
assert jax.numpy.ones(3).sum() == 3
options = xla_client.CompileOptions().SerializeAsString()
print(os.environ.get("XLA_FLAGS", ""), hashlib.sha256(options).hexdigest(), sep="\\n")
"""


def test_the_flag_gets_to_xla_which_knows_it():
    """XLA ends a process whose flags it does not know. test_train.py has a run with the flag."""
    found = []
    for arguments in ((), ("--deterministic",)):
        done = subprocess.run(
            [sys.executable, "-c", COMPUTES, *arguments],
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        found.append(done.stdout.splitlines())
    (before, plain), (flags, options) = found
    assert flags.split() == [*before.split(), FLAG]
    assert options != plain, "XLA was told the same without the flag"
