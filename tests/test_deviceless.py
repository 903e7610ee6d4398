"""Compiling for devices that are not here: targets, their programs, and what is missing."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from jaxseg import compiling, deviceless, hlo
from jaxseg.errors import UserError


def compilers() -> str:
    """Why nothing can be compiled for a target here; empty if it can."""
    try:
        deviceless.mesh("h200")
        deviceless.mesh("v5e:2x2")
    except UserError as e:
        return str(e)
    return ""


MISSING = compilers()
needs_compilers = pytest.mark.skipif(bool(MISSING), reason=MISSING or "they are here")
MATRICES = [jax.ShapeDtypeStruct((256, 256), jnp.bfloat16)] * 2


@needs_compilers
@pytest.mark.parametrize(
    ("target", "sign"), [("h100", "__cublas"), ("h200", "__cublas"), ("v5e:1x1", "T(8,128)")]
)
def test_the_program_is_the_targets_own(target, sign):
    compiled = deviceless.compile_function(jnp.matmul, *MATRICES, target=target)
    assert sign in compiled.as_text()
    (product,) = (i for i in hlo.instructions(compiled.as_text()) if i.category == hlo.MATMUL)
    assert product.flops == 2 * 256**3
    assert (product.cycles > 0) == (target == "v5e:1x1")
    assert compiled.memory_analysis().argument_size_in_bytes == 2 * 2 * 256**2


@needs_compilers
@pytest.mark.parametrize(("target", "chips"), [("h200:4", 4), ("v5e:1x2", 2), ("v5e:2x4", 8)])
def test_a_sharded_sum_is_one_exchange_between_all_chips(target, chips):
    from jax.sharding import NamedSharding, PartitionSpec

    on = deviceless.mesh(target, 0)
    assert on.size == chips
    assert deviceless.mesh(target, 1).size == 1
    split, whole = NamedSharding(on, PartitionSpec("data")), NamedSharding(on, PartitionSpec())
    total = jax.jit(lambda x: x.sum(0), in_shardings=split, out_shardings=whole)
    lowered = total.lower(jax.ShapeDtypeStruct((8, 1000), jnp.float32))
    (exchange,) = hlo.collectives(deviceless.compile_lowered(lowered, on).as_text())
    assert exchange.opcode == "all-reduce"
    assert exchange.bytes == 2 * 4 * 1000


@needs_compilers
def test_a_tpu_compiler_knows_the_options_of_a_training_step():
    """Else they have another name now, or are needed no more: benchmarks/RESULTS.md has why."""
    assert len(compiling.training_options(deviceless.mesh("v5e:2x2", 4))) == 2
    assert compiling.training_options(deviceless.mesh("h200")) == {}


@needs_compilers
def test_the_machines_own_devices_stay_what_they_are():
    deviceless.mesh("h200")
    deviceless.mesh("v5e:2x2")
    assert {device.platform for device in jax.devices()} == {jax.default_backend()}
    assert float(jax.jit(jnp.sum)(jnp.ones(10))) == 10


@pytest.mark.parametrize("target", ["h300", "a100", "v5e", "h200:2x2", "cpu", "../h200"])
def test_an_unknown_target_names_those_there_are(target):
    with pytest.raises(UserError, match="h100 or h200") as error:
        deviceless.mesh(target)
    assert repr(target) in str(error.value)


@needs_compilers
@pytest.mark.parametrize(
    ("target", "chips", "message"),
    [("v9:2x2", 1, "no target 'v9:2x2'"), ("h200:2", 3, "'h200:2' has 2 chips, and 3 are asked")],
)
def test_a_target_that_its_compiler_does_not_know(target, chips, message):
    with pytest.raises(UserError, match=message):
        deviceless.mesh(target, chips)


def test_missing_compilers_name_the_command_that_fetches_them(tmp_path):
    code = "from jaxseg import deviceless, errors\ntry: deviceless.mesh('h200')\n"
    code += "except errors.UserError as e: print(e)"
    environment = os.environ | {"JAXSEG_PLUGINS": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    said = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    if said:  # nothing, where jax's own CUDA plugin is installed
        assert str(tmp_path) in said and "python -m jaxseg.deviceless" in said


def test_a_failed_download_is_a_message(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXSEG_PLUGINS", str(tmp_path / "none"))
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(UserError, match="pip could not download"):
        deviceless.install()


def test_compilers_are_unpacked_where_they_are_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXSEG_PLUGINS", str(tmp_path))
    pip = tmp_path / "pip"
    # Stands for pip: two wheels with the files that matter, in the folder that `-d` names.
    pip.write_text(
        f"#!{sys.executable}\n"
        "import sys, zipfile, pathlib\n"
        "out = pathlib.Path(sys.argv[sys.argv.index('-d') + 1])\n"
        "wanted = [a for a in sys.argv if a.startswith(('jax-cuda13-pjrt==', 'libtpu'))]\n"
        "files = ['jax_plugins/xla_cuda13/plugin.so', 'libtpu/libtpu.so']\n"
        "for name, file in zip(wanted, files, strict=True):\n"
        "    with zipfile.ZipFile(out / (name[:6] + '.whl'), 'w') as f: f.writestr(file, 'x')\n"
    )
    pip.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(pip))
    found = deviceless.install()
    assert [path.relative_to(tmp_path / "unpacked").as_posix() for path in found] == [
        "jax_plugins/xla_cuda13/plugin.so",
        "libtpu/libtpu.so",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pip", "unpacked"]
