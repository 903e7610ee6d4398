"""How batches and states are laid over devices, and what that costs in exchanges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxseg import data, evaluate, hlo, lowering, models, sharding
from jaxseg import state as states
from jaxseg.errors import UserError
from jaxseg.ops.pool import max_pool
from tests.test_train import TINY, config_of

SPLIT = object()  # stands for the axis that is split over all devices


def test_the_devices_of_a_row_of_the_mesh_share_images():
    mesh = sharding.make_mesh(8, 4)
    assert dict(mesh.shape) == {"data": 2, "height": 4}
    image = np.arange(4 * 8 * 2 * 3, dtype=np.uint8).reshape(4, 8, 2, 3)
    batch = {"image": image, "label": image[..., 0], "mask": np.ones(4, bool)}
    arrays = sharding.shard_batch(batch, mesh)
    for place, device in np.ndenumerate(mesh.devices):
        rows, strip = slice(2 * place[0], 2 * place[0] + 2), slice(2 * place[1], 2 * place[1] + 2)
        for name, want in (
            ("image", image[rows, strip]),
            ("label", image[rows, strip, :, 0]),
            ("mask", np.ones(2, bool)),
        ):
            held = {s.device: s.data for s in arrays[name].addressable_shards}
            np.testing.assert_array_equal(held[device], want)
    np.testing.assert_array_equal(sharding.local_rows(arrays["image"]), image)


def test_images_whose_rows_do_not_divide_stay_whole():
    mesh = sharding.make_mesh(8, 4)
    batch = {"image": np.zeros((2, 6, 5, 3), np.uint8), "label": np.zeros((2, 6, 5), np.uint8)}
    arrays = sharding.shard_batch({**batch, "mask": np.ones(2, bool)}, mesh)
    assert arrays["image"].addressable_shards[0].data.shape == (1, 6, 5, 3)


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((3, 3, 128, 64), (None, None, SPLIT)),  # the longest axis
        ((3, 3, 64, 64), (None, None, None, SPLIT)),  # of equals the last
        ((1, 1, 129, 128), (None, None, None, SPLIT)),  # the longest does not divide
        ((129, 129), ()),
        ((2047,), ()),
        ((2048,), ()),  # too small
    ],
)
def test_large_arrays_are_split_along_their_longest_axis_that_divides(shape, spec):
    mesh = sharding.make_mesh(8, 2)
    (layout,) = jax.tree.leaves(
        sharding.over_devices([jax.ShapeDtypeStruct(shape, jnp.float32)], mesh)
    )
    both = ("data", "height")
    assert layout.spec == PartitionSpec(*(both if part is SPLIT else part for part in spec))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: sharding.make_mesh(8, 3), ("config.shard.height=3", "8 devices")),
        (lambda: sharding.make_mesh(8, 0), ("config.shard.height=0",)),
        (lambda: sharding.make_mesh(9), ("config.devices=9", "this run has 8")),
        (
            lambda: sharding.check_divides(3, (64, 64), sharding.make_mesh(8, 4)),
            ("config.batch_size=3", "2 groups of 4 devices"),
        ),
        (
            lambda: sharding.check_divides(4, (66, 64), sharding.make_mesh(8, 4)),
            ("config.augment.crop=(66, 64)", "config.shard.height=4"),
        ),
    ],
)
def test_what_does_not_divide_is_explained(call, words):
    with pytest.raises(UserError) as error:
        call()
    assert all(word in str(error.value) for word in words)


def exchanges(devices: int, **shard) -> dict[str, int]:
    """Bytes of each kind of exchange in the training step of the tiny model."""
    config = config_of("synthetic", *TINY)
    config.shard.update(shard)
    mesh = sharding.make_mesh(devices, config.shard.height)
    lowered = lowering.training(config, data.get(config.data), mesh, (64, 64), 8)
    found = hlo.totals(hlo.collectives(lowered.compile().as_text()), key=lambda each: each.opcode)
    return {opcode: size for opcode, (_, _, size, _) in found.items()}


@pytest.mark.slow
def test_a_split_state_costs_a_gathering_of_the_parameters(monkeypatch):
    monkeypatch.setattr(sharding, "MIN_SPLIT", 64)
    config = config_of("synthetic", *TINY)
    model = models.get(config.model, num_classes=9)
    params = 4 * states.count(states.abstract_variables(model)["params"])
    split = exchanges(8, state=True)
    assert set(split) <= {"all-reduce", "reduce-scatter", "all-gather"}
    # Each device sends an eighth and receives all: nothing but the parameters is gathered.
    assert 0.8 * params < split["all-gather"] <= 1.125 * params


@pytest.mark.slow
def test_split_images_exchange_the_rows_that_convolutions_reach_over():
    found = exchanges(8, height=4)
    assert found["collective-permute"] > 0


def test_an_image_that_is_split_has_the_same_labels():
    config = config_of("synthetic", *TINY, "--config.eval.batch_size=2")
    description = data.get(config.data)
    model = models.get(config.model, num_classes=description.num_classes)
    variables = jax.jit(lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), False))()

    def counts(devices, height):
        mesh = sharding.make_mesh(devices, height)
        step = evaluate.make_eval_step(model, config, description, mesh)
        batches = evaluate.batches(config, description, "val", mesh)
        return evaluate.run(step, variables, batches, description.num_classes, mesh, keep=4)

    one, kept = counts(1, 1)
    eight, kept_of_eight = counts(8, 4)
    assert (one.sum(0) > 0).sum() > 1, "one class only is predicted: the test shows little"
    np.testing.assert_array_equal(one, eight)
    for sample, other in zip(kept, kept_of_eight, strict=True):
        assert sample[0] == other[0]
        np.testing.assert_array_equal(sample[3], other[3])


def test_the_gradient_of_pooling_is_the_same_on_split_images():
    """Padded windows that begin before the image once crashed the compiler."""
    x = np.random.default_rng(0).standard_normal((2, 16, 12, 3)).astype(np.float32)
    weights = np.random.default_rng(1).standard_normal((2, 8, 6, 3)).astype(np.float32)

    def gradient(x):
        return jax.grad(lambda x: (max_pool(x) * weights).sum())(x)

    split = sharding.over_images(sharding.make_mesh(8, 4), 16)["image"]
    np.testing.assert_array_equal(
        jax.jit(gradient, in_shardings=split, out_shardings=split)(x), jax.jit(gradient)(x)
    )
