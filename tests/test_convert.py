"""The importer on a state dict small enough to write down."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg import convert, models, zoo
from jaxseg.errors import UserError
from jaxseg.models.common import BatchNorm, Conv
from jaxseg.state import abstract_variables
from tests import references
from tests.conftest import SHARED

NAMES = [(r"features\.0", "stem/conv"), (r"features\.1", "stem/bn"), (r"fc(\d)", r"dense\1")]


class Tiny(nn.Module):
    """A convolution with its norm, and a linear layer behind it."""

    @nn.compact
    def __call__(self, x, train):
        class Stem(nn.Module):
            @nn.compact
            def __call__(self, x):
                x = Conv(3, kernel=3, use_bias=False, name="conv")(x)
                return BatchNorm(name="bn")(x, train)

        return nn.Dense(4, name="dense1")(Stem(name="stem")(x).mean((1, 2)))


def state():
    rng = np.random.default_rng(0)
    shapes = {
        "features.0.weight": (3, 2, 3, 3),
        "features.1.weight": (3,),
        "features.1.bias": (3,),
        "features.1.running_mean": (3,),
        "features.1.running_var": (3,),
        "features.1.num_batches_tracked": (),
        "fc1.weight": (4, 3),
        "fc1.bias": (4,),
    }
    return {key: rng.uniform(1, 2, shape) for key, shape in shapes.items()}


def abstract():
    image = jax.ShapeDtypeStruct((1, 5, 5, 2), jnp.float32)
    return jax.eval_shape(lambda x: Tiny().init(jax.random.key(0), x, False), image)


def test_every_leaf_lands_where_it_computes_the_same():
    source = state()
    variables = convert.from_torch(source, abstract(), NAMES)
    for got, want in zip(jax.tree.leaves(variables), jax.tree.leaves(abstract()), strict=True):
        assert got.dtype == want.dtype and got.shape == want.shape
    image = np.random.default_rng(1).normal(size=(5, 5, 2))
    got = Tiny().apply(variables, jnp.float32(image)[None], False)[0]

    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    pooled = np.zeros(3)
    for row, col in np.ndindex(5, 5):
        window = padded[row : row + 3, col : col + 3]
        y = np.einsum("hwi,oihw->o", window, source["features.0.weight"])
        y = (y - source["features.1.running_mean"]) / np.sqrt(
            source["features.1.running_var"] + 1e-5
        )
        pooled += (y * source["features.1.weight"] + source["features.1.bias"]) / 25
    want = source["fc1.weight"] @ pooled + source["fc1.bias"]
    np.testing.assert_allclose(got, want, rtol=1e-4)


def test_one_error_lists_everything():
    source = state()
    source["features.9.weight"] = np.zeros((3,))  # in no table
    source["fc1.gamma"] = np.zeros((4,))  # no such leaf
    source["fc2.bias"] = np.zeros((4,))  # named, but the model has none
    source["fc1.weight"] = np.zeros((7, 3))
    del source["features.1.running_var"]
    names = [*NAMES, ("alias", "stem/bn")]
    source["alias.bias"] = np.ones(3)
    with pytest.raises(UserError) as caught:
        convert.from_torch(source, abstract(), names)
    message = str(caught.value)
    for part in (
        "features.9.weight",
        "fc1.gamma",
        "fc2.bias (it would be params/dense2/bias)",
        "batch_stats/stem/bn/var",
        "params/dense1/kernel: fc1.weight gives (3, 7), the model has (3, 4)",
        "params/stem/bn/bias: features.1.bias and alias.bias",
    ):
        assert part in message
    assert "params/stem/conv/kernel" not in message  # nothing is wrong with it


def test_a_vector_in_the_place_of_a_kernel_is_of_a_wrong_shape():
    """Not a name without a place: rank alone tells a scale from a kernel."""
    source = state()
    a, b = "features.0.weight", "features.1.weight"
    source[a], source[b] = source[b], source[a]
    with pytest.raises(UserError, match="(?s)2 of unequal shape") as caught:
        convert.from_torch(source, abstract(), NAMES, "x.pth", lambda found: "\nadvice")
    message = str(caught.value)
    assert message.startswith("x.pth: ") and message.endswith("\nadvice")
    assert "features.0.weight gives (3,), the model has (3, 3, 2, 3)" in message
    assert "features.1.weight gives (3, 3, 2, 3), the model has (3,)" in message
    assert "missing" not in message and "without a place" not in message


def test_backwards_to_the_last_bit():
    source = {k: np.float32(v) for k, v in state().items() if not k.endswith("tracked")}
    got = convert.to_torch(convert.from_torch(source, abstract(), NAMES), NAMES)
    assert got.keys() == source.keys()
    for key, value in source.items():
        assert got[key].dtype == np.float32 and got[key].flags.c_contiguous
        np.testing.assert_array_equal(got[key], value, strict=True)


def test_names_that_a_path_does_not_determine():
    variables = convert.from_torch(state(), abstract(), NAMES)
    for row in ((r"fc(\d).*", r"dense\1"), (r"fc\d", "dense1"), (r"(fc|full)1", "dense1")):
        with pytest.raises(UserError, match="2 parameters.*no names.*params/dense1/"):
            convert.to_torch(variables, [*NAMES[:2], row])
    # The first row that leads to a path, but for those whose name another row would take.
    names = [(r"fc1", "other"), *NAMES[:2], (r"(?P<a>f)c(?P<b>\d)", r"dense\g<b>"), *NAMES]
    assert convert.key_of("params/dense1/bias", names) is None
    names = [*NAMES[:2], (r"(?P<a>f|g)c1", r"\g<a>"), (r"d\.(\d)\.\1", r"dense\1")]
    assert convert.key_of("params/g/bias", names) == "gc1.bias"
    assert convert.key_of("params/dense1/bias", names) is None
    assert convert.key_of("params/head/codes", [(r"enc\.(codes|scale)", r"head/\1")]) == "enc.codes"
    assert convert.key_of("params/head/scale", [(r"enc\.(codes|scale)", r"head/\1")]) == "enc.scale"


def reference_files():
    """One of each structure, golden ones and others where they are at hand; see references.py."""
    golden = sorted(references.GOLDEN.glob("*.npz"))
    others = sorted((SHARED / "zoo" / "outputs").glob("*.npz"))
    found = {}
    for path in [*golden, *others]:
        if zoo.has(path.stem) and "model" in zoo.facts()["names"][path.stem]:
            spec = zoo.facts()["models"][zoo.facts()["names"][path.stem]["model"]]
            backbone = spec.get("backbone", {})
            kind = (spec["name"], *(str(backbone.get(key)) for key in ("name", "stem", "size")))
            found.setdefault(kind, path)
    quick = {path: path in golden and len(np.load(path)["keys"]) < 400 for path in found.values()}
    return [
        pytest.param(path, marks=[] if q else [pytest.mark.slow], id=path.stem)
        for path, q in quick.items()
    ]


@pytest.mark.parametrize("path", reference_files())
def test_backwards_gives_the_names_and_shapes_of_mmsegmentation(path):
    want = {}
    for line in np.load(path)["keys"]:
        key, shape = str(line).split("|")
        if key.rpartition(".")[2] not in convert.DROPPED:
            want[key] = tuple(int(n) for n in shape.split(",") if n)
    model = models.get(zoo.config(path.stem).model)
    wanted = abstract_variables(model, (64, 64))
    variables = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), wanted)
    got = convert.to_torch(variables, convert.torch_names(model))
    assert {key: value.shape for key, value in got.items()} == want


def test_a_long_list_is_cut_and_counted():
    source = state() | {f"head.{i}.weight": np.zeros(1) for i in range(100)}
    with pytest.raises(UserError, match="(?s)100 in the checkpoint.*80 more") as caught:
        convert.from_torch(source, abstract(), NAMES)
    assert len(str(caught.value)) < 3000


def test_targets_may_be_float64():
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float64), abstract())
        got = convert.from_torch(state(), wide, NAMES)
    kernel = got["params"]["stem"]["conv"]["kernel"]
    assert kernel.dtype == np.float64
    np.testing.assert_array_equal(kernel[0, 2, 1], state()["features.0.weight"][:, 1, 0, 2])


def test_bfloat16_sources():
    half = {key: jnp.bfloat16(value) for key, value in state().items()}
    got = convert.from_torch(half, abstract(), NAMES)
    assert got["params"]["dense1"]["bias"].dtype == np.float32
    np.testing.assert_array_equal(got["params"]["dense1"]["bias"], np.float32(half["fc1.bias"]))


@pytest.mark.parametrize("stem", ["plain", "v1c", "v1d"])
@pytest.mark.parametrize("depth", [18, 50])
def test_names_of_a_whole_model(stem, depth):
    """A state dict named as MMSegmentation builds the modules fills the model exactly."""
    backbone = dict(name="resnet", depth=depth, stem=stem, output_stride=8)
    model = models.get(dict(name="deeplabv3p", backbone=backbone, channels=8), num_classes=3)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.uint8)
    want = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, False), image)
    keys = torch_keys(stem, depth)
    names = convert.torch_names(model)
    placed = [convert.place(key, rank, names) for key, rank in keys]
    flat = ["/".join(str(k.key) for k in path) for path, _ in jax.tree.flatten_with_path(want)[0]]
    assert sorted(placed) == sorted(flat)


def torch_keys(stem, depth):
    """(name, rank) of every tensor but the counters, by the rules of MMSegmentation's modules."""

    def conv(name, bias=False):
        yield f"{name}.weight", 4
        if bias:
            yield f"{name}.bias", 1

    def norm(name):
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            yield f"{name}.{leaf}", 1

    def conv_module(name):
        yield from conv(f"{name}.conv")
        yield from norm(f"{name}.bn")

    keys = []
    for i in range(0, 1 if stem == "plain" else 3):
        keys += conv("backbone.conv1" if stem == "plain" else f"backbone.stem.{3 * i}")
        keys += norm("backbone.bn1" if stem == "plain" else f"backbone.stem.{3 * i + 1}")
    for stage, blocks in enumerate({18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}[depth], start=1):
        for block in range(blocks):
            name = f"backbone.layer{stage}.{block}"
            for i in range(1, 3 if depth == 18 else 4):
                keys += [*conv(f"{name}.conv{i}"), *norm(f"{name}.bn{i}")]
            if block == 0 and (stage > 1 or depth == 50):
                first = 1 if stem == "v1d" else 0
                keys += conv(f"{name}.downsample.{first}")
                keys += norm(f"{name}.downsample.{first + 1}")
    head = ["image_pool.1", "aspp_modules.0", "bottleneck", "c1_bottleneck"]
    separable = [f"aspp_modules.{i}" for i in (1, 2, 3)] + [f"sep_bottleneck.{i}" for i in (0, 1)]
    head += [f"{name}.{half}_conv" for name in separable for half in ("depthwise", "pointwise")]
    for name in head:
        keys += conv_module(f"decode_head.{name}")
    keys += [*conv("decode_head.conv_seg", True), *conv("auxiliary_head.conv_seg", True)]
    return keys + list(conv_module("auxiliary_head.convs.0"))
