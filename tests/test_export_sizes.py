"""Sizes without numbers: operations and networks traced for images of any size, or of many."""

import functools
import pathlib
from fractions import Fraction
from math import floor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export

from jaxseg import config as configs
from jaxseg import export, models, predict
from jaxseg.exported import Axis, Form
from jaxseg.ops import adaptive_pool, pool, resize
from jaxseg.state import abstract_variables

ROOT = pathlib.Path(__file__).resolve().parents[1]


def symbolic(function, shape: str, x):
    """`function` traced for `shape`, symbols and numbers, and run on `x`."""
    spec = jax.ShapeDtypeStruct(jax_export.symbolic_shape(shape), x.dtype)
    return jax_export.export(jax.jit(function))(spec).call(x)


def values(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("form", [resize.resize, resize.by_matrices])
def test_resizing_of_and_to_any_size(form, align_corners):
    x = values(1, 7, 5, 2)
    kind = dict(method="bilinear", align_corners=align_corners)
    cases = [
        (lambda x: (11, 6), "1,h,w,2"),  # (size of the result, shape of the argument)
        (lambda x: (3 * x.shape[1] - 1, 2), "b,h,5,c"),
    ]
    for size, shape in cases:
        got = symbolic(lambda x, size=size: form(x, size=size(x), **kind), shape, x)
        want = resize.by_taps(x, size(x), **kind)
        np.testing.assert_allclose(got, want, atol=1e-6)


def test_nearest_of_and_to_any_size():
    x = values(1, 7, 5, 2)
    for size in ((11, 6), (3, 12)):
        for form in (resize.by_taps, resize.by_matrices):
            got = symbolic(functools.partial(form, size=size, method="nearest"), "1,h,w,2", x)
            np.testing.assert_array_equal(got, resize.resize(x, size, "nearest"))


def test_source_positions_are_exact():
    """Pixel centres are half-way, or the corner pixels' lie on each other; in fractions."""
    half = Fraction(1, 2)
    for n, m in ((5, 7), (480, 37), (1, 4), (4, 1), (97, 389)):
        for align_corners in (False, True):
            low, high, weight = resize._taps(n, m, "bilinear", align_corners)
            for i in range(m):
                place = (i + half) * Fraction(n, m) - half
                if align_corners:
                    place = i * Fraction(n - 1, max(m - 1, 1))
                place = min(max(place, Fraction(0)), Fraction(n - 1))
                assert (low[i], high[i]) == (floor(place), min(floor(place) + 1, n - 1))
                assert weight[i] == float(place - floor(place))


def test_pooling_of_any_size():
    for n, k in ((7, 3), (3, 6)):
        x = values(2, n, n + 1, 3)
        got = symbolic(lambda x, k=k: adaptive_pool.adaptive_avg_pool(x, (k, 2)), "b,h,w,3", x)
        np.testing.assert_allclose(got, adaptive_pool.adaptive_avg_pool(x, (k, 2)), atol=1e-6)
        np.testing.assert_array_equal(symbolic(pool.max_pool, "b,h,w,3", x), pool.max_pool(x))
    x = values(1, 64, 32, 2)
    for kind in (dict(ceil_mode=True), dict(window=2, padding=0, ceil_mode=True)):
        got = symbolic(functools.partial(pool.max_pool, **kind), "1,32*h,32*w,2", x)
        np.testing.assert_array_equal(got, pool.max_pool(x, **kind))


ANY, ANY_FROM_CROP = Axis(1, 1), Axis(128, 1)
MULTIPLES, FIXED = Axis(32, 32), None
SYSTEMS = {
    "deeplabv1": MULTIPLES, "deeplabv2": FIXED, "deeplabv3": ANY, "deeplabv3p": ANY,
    "deeplabv3p_mobilenetv2": ANY, "deeplabv3p_xception": ANY, "fcn": MULTIPLES,
    "fcn_hrnet": ANY, "fcn_resnet": ANY, "lraspp": FIXED, "pointrend": ANY_FROM_CROP,
    "pointrend_deeplabv3": FIXED, "pspnet": ANY, "segnet": MULTIPLES, "segnet_basic": MULTIPLES,
    "sem_fpn": ANY, "unet": ANY_FROM_CROP, "unet_fcn": MULTIPLES,
    "bisenetv1": ANY, "bisenetv2": ANY, "cgnet": ANY, "ddrnet": ANY, "encnet": ANY,
    "erfnet": ANY_FROM_CROP, "fastfcn": ANY, "fastscnn": ANY, "icnet": MULTIPLES, "ocrnet": ANY,
    "pidnet": ANY, "stdc": ANY, "unet_resnet": ANY, "upernet": ANY,
}  # fmt: skip
QUICK = ("fcn", "fcn_resnet", "unet")


def test_the_table_of_systems_is_complete():
    files = {path.stem for path in (ROOT / "configs").glob("*.py")}
    assert set(SYSTEMS) == files - {"finetune"}, "finetune is of the others' networks"


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in SYSTEMS],
)
def test_sizes_that_a_system_can_be_exported_for(name):
    config = configs.from_file(f"{ROOT}/configs/{name}.py:synthetic")
    model = models.get(config.model, num_classes=9)
    scores = predict.make_scores(model, config.predict, dtype="float32")
    variables = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), abstract_variables(model, (64, 64))
    )

    def program(image):
        return predict.to_labels(scores(variables, image, image.shape[1:3]))

    crop = tuple(config.augment.crop)
    form, _ = export._trace(program, export.forms(None, crop), ("cpu", "cuda", "tpu"))
    edges = [SYSTEMS[name]] * 2 if SYSTEMS[name] else [Axis(n, 0) for n in crop]
    assert form == Form(Axis(1, 1), *edges)
