"""Which classes an image shows: the loss by its definition, in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxseg import losses

C = 5


def example(b=3):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (b, C)).astype(np.float32)
    labels = rng.integers(0, C, (b, 6, 7)).astype(np.int32)
    for image in range(b):  # leave a class out of each
        labels[image][labels[image] == image % C] = (image + 1) % C
    labels[:, :2] = 255
    return logits, labels


def definition(logits, labels, ignore_label=255, mask=None):
    """Binary cross-entropy, image by image and class by class: (sum, count)."""
    terms = []
    for image, row in enumerate(np.float64(logits)):
        shown = set(labels[image].ravel().tolist()) - {ignore_label}
        if (mask is not None and not mask[image]) or not shown & set(range(C)):
            continue
        for c, z in enumerate(row):
            p = 1 / (1 + np.exp(-z))
            terms.append(-np.log(p if c in shown else 1 - p))
    return np.sum(terms), len(terms)


loss = functools.partial(losses.presence_cross_entropy, ignore_label=255)


def test_by_its_definition():
    logits, labels = example()
    labels[0, 3, 3] = 0  # one pixel is enough
    np.testing.assert_allclose(jax.jit(loss)(logits, labels), definition(logits, labels), rtol=1e-5)


@pytest.mark.parametrize("ignore_label", [255, 2, -1])
def test_ignored_labels_are_not_shown(ignore_label):
    logits, labels = example()
    labels[0, 2, :3] = -1
    got = losses.presence_cross_entropy(logits, labels, ignore_label=ignore_label)
    np.testing.assert_allclose(got, definition(logits, labels, ignore_label), rtol=1e-5)


def test_images_that_tell_nothing_do_not_count():
    logits, labels = example(4)
    labels[1] = 255
    mask = np.array([True, True, False, True])
    got = loss(logits, labels, mask=mask)
    np.testing.assert_allclose(got, definition(logits, labels, mask=mask), rtol=1e-5)
    assert got[1] == 2 * C
    grads = jax.grad(lambda z: loss(z, labels, mask=mask)[0])(logits)
    assert not grads[1:3].any() and (grads[0] != 0).all()
    assert loss(logits, np.full_like(labels, 255)) == (0.0, 0.0)


def test_the_gradient_is_the_error_of_the_probability():
    logits, labels = example()
    grads = jax.grad(lambda z: loss(z, labels)[0])(logits)
    shown = np.stack([np.isin(np.arange(C), image) for image in labels])
    np.testing.assert_allclose(grads, 1 / (1 + np.exp(-logits)) - shown, atol=1e-6)


def test_large_logits_and_half_precision():
    logits, labels = example()
    shown = np.stack([np.isin(np.arange(C), image) for image in labels])
    sure = np.where(shown, 1e4, -1e4).astype(np.float32)
    assert loss(sure, labels)[0] == 0
    value, count = loss(-sure, labels)
    np.testing.assert_allclose(value / count, 1e4)
    half = jnp.asarray(logits, jnp.bfloat16)
    want = definition(np.float32(half), labels)
    np.testing.assert_allclose(loss(half, labels), want, rtol=1e-5)


def test_total_scores_the_output_as_it_is():
    """No resize, the weight, and an image of padding left out; on one device and on eight."""
    logits, labels = example(8)
    mask = np.arange(8) < 5

    def total(logits, labels, mask):
        value, parts = losses.total(
            {"presence_logits": logits},
            {"label": labels, "mask": mask},
            {"presence_logits": dict(name="presence_cross_entropy", weight=0.2)},
            ignore_label=255,
            align_corners=False,
        )
        assert list(parts) == ["loss/presence_logits"]
        return value

    want = 0.2 * np.divide(*definition(logits, labels, mask=mask))
    np.testing.assert_allclose(jax.jit(total)(logits, labels, mask), want, rtol=1e-5)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split = jax.device_put((logits, labels, mask), NamedSharding(mesh, PartitionSpec("data")))
    np.testing.assert_allclose(jax.jit(total)(*split), want, rtol=1e-5)
