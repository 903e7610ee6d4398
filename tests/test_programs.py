"""What an H200's compiler makes of the training steps: no kernel that is known to be slow."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import pytest

from jaxseg import deviceless, hlo, lowering
from jaxseg.models import resnet
from jaxseg.ops import conv
from tests.test_deviceless import needs_compilers

ROOT = pathlib.Path(__file__).resolve().parent.parent
# A feature map of 1/8 of this has phases at rate 4 that exceed a kernel, so giants are seen.
SIZE, KERNEL = (256, 320), 7
CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))


def lint():
    path = ROOT / "benchmarks" / "lint_programs.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compiled(config, description) -> str:
    on = deviceless.mesh("h200")
    lowered = lowering.training(config, description, on, SIZE, 2)
    return deviceless.compile_lowered(lowered, on, lint().FAST).as_text()


def check(text: str, kernel: int) -> None:
    executed = hlo.instructions(text)
    assert sum(each.category == hlo.CONVOLUTION for each in executed) > 10
    assert hlo.giant_windows(text, kernel) == []
    assert "select_and_scatter" not in text and "select-and-scatter" not in text


@needs_compilers
def test_the_plain_form_of_a_dilated_convolution_is_what_the_check_finds():
    """As long as this holds, the compiler wants the forms of `ops.conv`."""
    shapes = [
        jax.ShapeDtypeStruct(s, jnp.bfloat16)
        for s in ((2, 32, 64, 16), (3, 3, 16, 16), (2, 32, 64, 16))
    ]

    def gradient(f):
        program = deviceless.compile_function(
            lambda x, kernel, g: jax.vjp(lambda k: f(x, k), kernel)[1](g), *shapes, target="h200"
        )
        return hlo.giant_windows(program.as_text())

    (giant,) = gradient(lambda x, k: conv.conv_plain(x, k, ((1, 1), (2, 2), (2, 2))))
    assert giant.startswith("32x64 ")
    assert gradient(lambda x, k: conv.conv2d(x, k, 1, 2, 2)) == []


@needs_compilers
def test_deeplabv3plus_trains_without_giant_windows_on_an_h200(monkeypatch):
    # As few blocks as have all the rates: 1, 2 and 4 in the backbone, 12 to 36 in the head.
    monkeypatch.setitem(resnet.BLOCKS, 50, (resnet.Bottleneck, (1, 1, 2, 2)))
    check(compiled(*lint().read("deeplabv3p")), KERNEL)


@needs_compilers
@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_trains_without_giant_windows_on_an_h200(name):
    config, description = lint().read(name)
    check(compiled(config, description), lint().largest_kernel(config, description, SIZE))
