"""Losses against their definitions in NumPy, pixel by pixel in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxseg import losses
from jaxseg.errors import UserError

C = 5
WEIGHTS = (0.5, 1.0, 2.0, 0.0, 1.5)


def example(seed=0, shape=(3, 6, 7), scale=3.0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, scale, (*shape, C)).astype(np.float32)
    labels = rng.integers(0, C, shape).astype(np.int32)
    labels[rng.random(shape) < 0.2] = 255
    return logits, labels


def reference(logits, labels, mask=None, weights=None, average="valid", smoothing=0.0, ignore=255):
    """(sum, count) from the definition."""
    weights = np.ones(C) if weights is None else np.asarray(weights, np.float64)
    total = count = 0.0
    for index in np.ndindex(labels.shape):
        if mask is not None and not mask[index[0]]:
            continue
        valid = 0 <= labels[index] < C and labels[index] != ignore
        count += average == "all"
        if not valid:
            continue
        z = logits[index].astype(np.float64)
        log_p = z - z.max() - np.log(np.exp(z - z.max()).sum())
        y = labels[index]
        target = np.full(C, smoothing / C) + (1 - smoothing) * (np.arange(C) == y)
        total -= (target * weights * log_p).sum()
        count += (average == "valid") * weights[y]
    return total, count


@pytest.mark.parametrize("average", ["valid", "all"])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_its_definition(average, weights, smoothing):
    logits, labels = example()
    mask = np.array([True, False, True])
    loss = jax.jit(
        functools.partial(
            losses.cross_entropy,
            ignore_label=255,
            class_weights=weights,
            average=average,
            label_smoothing=smoothing,
        )
    )
    value, count = loss(logits, labels, mask=mask)
    expected, expected_count = reference(logits, labels, mask, weights, average, smoothing)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(count, expected_count, rtol=1e-6)
    assert value.dtype == count.dtype == jnp.float32


@pytest.mark.parametrize("ignore", [255, -1, 0])
@pytest.mark.parametrize("jit", [True, False])
def test_ignored_labels_weigh_nothing(ignore, jit):
    """Labels 255 and -1 are no class, whichever of them the ignore label is; 0 may be ignored."""
    logits, labels = example(1)
    labels[0, 0, :4] = 255, -1, C, 0

    def loss(logits):
        value, count = losses.cross_entropy(logits, labels, ignore_label=ignore)
        return value / count

    function = jax.value_and_grad(loss)
    value, grad = (jax.jit(function) if jit else function)(logits)
    total, count = reference(logits, labels, ignore=ignore)
    np.testing.assert_allclose(value, total / count, rtol=1e-5)
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(-1, keepdims=True)
    valid = (labels >= 0) & (labels < C) & (labels != ignore)
    expected = (p - np.eye(C)[np.where(valid, labels, 0)]) * valid[..., None] / count
    np.testing.assert_allclose(grad, expected, atol=1e-8, rtol=1e-4)
    assert (np.asarray(grad)[~valid] == 0).all()


def test_gradient_is_that_of_finite_differences():
    logits, labels = example(2, (1, 3, 4))
    arguments = dict(weights=WEIGHTS, smoothing=0.2)

    def loss(logits):
        value, count = losses.cross_entropy(
            logits, labels, ignore_label=255, class_weights=WEIGHTS, label_smoothing=0.2
        )
        return value / count

    grad = np.asarray(jax.grad(loss)(logits))
    for index in np.ndindex(logits.shape):
        step = np.zeros(logits.shape)
        step[index] = 1e-4
        high, count = reference(logits + step, labels, **arguments)
        low, _ = reference(logits - step, labels, **arguments)
        np.testing.assert_allclose(grad[index], (high - low) / 2e-4 / count, atol=1e-6)


def test_padding_rows_do_not_count():
    logits, labels = example(3)
    padded = np.concatenate([logits, 9 * logits[:2]]), np.concatenate([labels, labels[:2]])
    mask = np.array([True] * 3 + [False] * 2)
    for average in ("valid", "all"):
        loss = functools.partial(losses.cross_entropy, ignore_label=255, average=average)
        np.testing.assert_allclose(loss(*padded, mask=mask), loss(logits, labels), rtol=1e-6)


def test_extreme_logits_stay_finite():
    logits, labels = example(4, scale=1e4)
    value, _ = losses.cross_entropy(logits, labels, ignore_label=255)
    np.testing.assert_allclose(value, reference(logits, labels)[0], rtol=1e-5)
    grad = jax.grad(lambda z: losses.cross_entropy(z, labels, ignore_label=255)[0])(logits)
    assert np.isfinite(grad).all()


def total(outputs, labels, spec, mask=None, align_corners=False):
    mask = np.ones(len(labels), bool) if mask is None else mask
    batch = {"label": labels, "mask": mask}
    return losses.total(outputs, batch, spec, ignore_label=255, align_corners=align_corners)


def test_total_is_the_weighted_sum_of_the_outputs_losses():
    logits, labels = example(5)
    aux, _ = example(6)
    spec = {
        "logits": dict(name="cross_entropy"),
        "aux_logits": dict(name="cross_entropy", weight=0.4, average="all"),
    }
    loss, parts = total({"logits": logits, "aux_logits": aux, "unused": None}, labels, spec)
    main = np.divide(*reference(logits, labels))
    auxiliary = 0.4 * np.divide(*reference(aux, labels, average="all"))
    np.testing.assert_allclose(parts["loss/logits"], main, rtol=1e-5)
    np.testing.assert_allclose(parts["loss/aux_logits"], auxiliary, rtol=1e-5)
    np.testing.assert_allclose(loss, main + auxiliary, rtol=1e-5)
    assert set(parts) == {"loss/logits", "loss/aux_logits"}


def test_total_resizes_logits_to_the_labels():
    """Against jax.image.resize, another implementation of half-pixel bilinear resizing."""
    logits, _ = example(7, (2, 4, 5))
    _, labels = example(7, (2, 16, 20))
    loss, _ = total({"logits": logits}, labels, {"logits": dict(name="cross_entropy")})
    large = np.asarray(jax.image.resize(logits, (2, 16, 20, C), "bilinear", antialias=False))
    np.testing.assert_allclose(loss, np.divide(*reference(large, labels)), rtol=1e-5)


def test_total_passes_on_align_corners():
    """With corners aligned, the corner pixels of the resized map are those of the small one."""
    logits, _ = example(8, (1, 3, 4))
    labels = np.full((1, 9, 13), 255, np.int32)
    labels[0, [0, 0, -1, -1], [0, -1, 0, -1]] = 0, 1, 2, 3
    loss, _ = total(
        {"logits": logits}, labels, {"logits": dict(name="cross_entropy")}, align_corners=True
    )
    corners = logits[:, [0, 0, -1, -1], [0, -1, 0, -1]][:, None]  # [1, 1, 4, C]
    expected = np.divide(*reference(corners, np.arange(4).reshape(1, 1, 4)))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize("average", ["valid", "all"])
def test_a_batch_without_a_valid_pixel_gives_zero(average):
    logits, labels = example(9)
    spec = {"logits": dict(name="cross_entropy", average=average)}
    for ignored, mask in ((np.full_like(labels, 255), None), (labels, np.zeros(3, bool))):

        def loss(logits, ignored=ignored, mask=mask):
            return total({"logits": logits}, ignored, spec, mask)[0]

        value, grad = jax.jit(jax.value_and_grad(loss))(logits)
        assert value == 0
        assert (np.asarray(grad) == 0).all()


def test_bfloat16_logits_are_taken_to_float32():
    logits, labels = example(10)
    low = jnp.asarray(logits, jnp.bfloat16)
    loss, _ = total({"logits": low}, labels, {"logits": dict(name="cross_entropy")})
    expected = np.divide(*reference(np.asarray(low, np.float32), labels))
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_eight_devices_give_the_mean_of_one():
    """Devices hold very different shares of the valid pixels, one of them none, one padding."""
    logits, labels = example(11, (8, 6, 7))
    labels[1, :5] = 255
    labels[2] = 255
    mask = np.arange(8) != 5
    spec = {"logits": dict(name="cross_entropy", class_weights=WEIGHTS)}

    def loss(logits, labels, mask):
        return total({"logits": logits}, labels, spec, mask)[0]

    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    over_batch = NamedSharding(mesh, PartitionSpec("data"))
    arguments = jax.device_put((logits, labels, mask), over_batch)
    step = jax.jit(jax.value_and_grad(loss)).lower(*arguments).compile()
    assert "all-gather" not in step.as_text()
    value, grad = step(*arguments)
    one_value, one_grad = jax.jit(jax.value_and_grad(loss))(logits, labels, mask)
    expected = np.divide(*reference(logits, labels, mask, WEIGHTS))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(value, one_value, rtol=1e-6)
    np.testing.assert_allclose(grad, one_grad, rtol=1e-5, atol=1e-9)


def test_the_order_of_the_pictures_does_not_matter():
    logits, labels = example(12, (6, 5, 4))
    order = np.random.default_rng(0).permutation(6)
    spec = {"logits": dict(name="cross_entropy")}
    first, _ = total({"logits": logits}, labels, spec)
    second, _ = total({"logits": logits[order]}, labels[order], spec)
    np.testing.assert_allclose(first, second, rtol=1e-6)


@pytest.mark.parametrize(
    ("spec", "messages"),
    [
        ({}, ["config.losses is empty"]),
        ({"logit": dict(name="cross_entropy")}, ["config.losses:", "'logit'", "'logits'"]),
        ({"logits": dict(name="crossentropy")}, ["losses.logits.name", "'cross_entropy'"]),
        ({"logits": dict(name="total")}, ["losses.logits.name", "'total'", "cross_entropy"]),
        ({"logits": dict(weight=1.0)}, ["losses.logits.name", "None", "cross_entropy"]),
        (
            {"logits": dict(name="cross_entropy", wieght=1.0)},
            ["config.losses.logits", "'wieght'", "mean 'weight'"],
        ),
        (
            {"logits": dict(name="cross_entropy", ignore_label=3)},
            ["config.losses.logits", "'ignore_label'"],
        ),
        (
            {"logits": dict(name="cross_entropy", average="vaild")},
            ["config.losses.logits", "'vaild'", "mean 'valid'"],
        ),
        (
            {"logits": dict(name="cross_entropy", class_weights=(1.0, 2.0))},
            ["config.losses.logits", "class_weights has 2", "5 classes"],
        ),
        (
            {"logits": dict(name="cross_entropy", label_smoothing=1.5)},
            ["config.losses.logits", "label_smoothing=1.5"],
        ),
    ],
)
def test_a_mistake_in_the_config_is_named(spec, messages):
    logits, labels = example(13)
    with pytest.raises(UserError) as caught:
        total({"logits": logits}, labels, spec)
    for message in messages:
        assert message in str(caught.value)
