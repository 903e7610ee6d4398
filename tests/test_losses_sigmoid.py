"""Binary cross-entropy of every class, against its definition in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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


def reference(logits, labels, mask=(True,) * 3, weights=(1.0,) * C, average="valid"):
    """(sum, count): for each pixel and class, is it that class? Yes weighs its weight, no 1."""
    total = count = 0.0
    for index in np.ndindex(labels.shape):
        if not mask[index[0]]:
            continue
        valid = 0 <= labels[index] < C
        count += valid or average == "all"
        if valid:
            p = 1 / (1 + np.exp(-logits[index].astype(np.float64)))
            terms = [
                -weights[c] * np.log(p[c]) if c == labels[index] else -np.log(1 - p[c])
                for c in range(C)
            ]
            total += np.mean(terms)
    return total, count


@pytest.mark.parametrize("average", ["valid", "all"])
@pytest.mark.parametrize("weights", [(), WEIGHTS])
def test_it_is_its_definition(average, weights):
    logits, labels = example()
    labels[0, 0, :2] = -1, C  # are no class either
    mask = np.array([True, False, True])
    value, count = jax.jit(
        functools.partial(
            losses.sigmoid_cross_entropy, ignore_label=255, class_weights=weights, average=average
        )
    )(logits, labels, mask=mask)
    want = reference(logits, labels, mask, weights or (1.0,) * C, average)
    np.testing.assert_allclose((value, count), want, rtol=1e-5)
    assert value.dtype == count.dtype == jnp.float32


def test_logits_of_zero_cost_a_bit_per_class():
    _, labels = example(1)
    value, count = losses.sigmoid_cross_entropy(np.zeros((3, 6, 7, C)), labels, ignore_label=255)
    np.testing.assert_allclose(value / count, np.log(2), rtol=1e-6)


def test_classes_do_not_compete():
    """To raise the logit of another class changes nothing in what the first one learns."""
    logits, labels = example(2)
    grad = jax.grad(lambda z: losses.sigmoid_cross_entropy(z, labels, ignore_label=255)[0])
    other = logits.copy()
    other[..., 1:] += 2
    one, two = np.asarray(grad(logits)), np.asarray(grad(other))
    np.testing.assert_array_equal(one[..., 0], two[..., 0])
    assert (one[..., 1:] != two[..., 1:])[labels != 255].all()


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_gradient_is_sigmoid_minus_label(scale):
    logits, labels = example(3, scale=scale)
    grad = jax.grad(
        lambda z: losses.sigmoid_cross_entropy(
            z, labels, ignore_label=255, class_weights=(1.0, 1.0, 4.0, 1.0, 1.0)
        )[0]
    )(logits)
    with np.errstate(over="ignore"):
        p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    target = labels[..., None] == np.arange(C)
    weight = np.where(target, np.array((1.0, 1.0, 4.0, 1.0, 1.0)), 1.0)
    want = (p - target) * weight * (labels != 255)[..., None] / C
    np.testing.assert_allclose(grad, want, atol=1e-6)


def test_mistakes_in_the_config_are_named():
    logits, labels = example(4)
    batch = dict(label=labels, mask=np.ones(3, bool))
    for options, message in (
        (dict(class_weights=(1.0, 2.0)), "class_weights has 2.*5 classes"),
        (dict(average="kept"), "unknown rule 'kept'"),
    ):
        spec = {"logits": dict(name="sigmoid_cross_entropy", **options)}
        with pytest.raises(UserError, match=rf"config\.losses\.logits: .*{message}"):
            losses.total({"logits": logits}, batch, spec, ignore_label=255, align_corners=False)
