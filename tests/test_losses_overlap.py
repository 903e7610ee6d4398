"""Dice, Tversky and Lovasz-softmax against their definitions, in NumPy and float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxseg import losses
from jaxseg.errors import UserError

C = 4
WEIGHTS = (0.5, 1.0, 2.0, 0.0)
OVERLAP = ("dice", "tversky", "lovasz_softmax")


def example(seed=0, shape=(3, 5, 6), scale=2.0):
    """Logits and labels; class 3 never occurs, class 1 not in the last image."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, scale, (*shape, C)).astype(np.float32)
    labels = rng.integers(0, C - 1, shape).astype(np.int32)
    labels[-1][labels[-1] == 1] = 2
    labels[rng.random(shape) < 0.2] = 255
    return logits, labels


def run(name, logits, labels, mask=None, **options):
    loss = functools.partial(losses.LOSSES[name], ignore_label=255, **options)
    return jax.jit(loss)(logits, labels, mask=mask)


def predictions(logits, activation):
    z = np.asarray(logits, np.float64)
    if activation == "sigmoid":
        return 1 / (1 + np.exp(-z))
    p = np.exp(z - z.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def dice_of(p, t, smooth=1.0, exponent=2.0):
    return 1 - (2 * (p * t).sum() + smooth) / ((p**exponent).sum() + t.sum() + smooth)


def tversky_of(p, t, alpha=0.3, beta=0.7, smooth=1.0, gamma=1.0):
    tp, fp, fn = (p * t).sum(), (p * (1 - t)).sum(), ((1 - p) * t).sum()
    return (1 - (tp + smooth) / (tp + alpha * fp + beta * fn + smooth)) ** (1 / gamma)


def lovasz_of(p, t):
    """The extension by its definition: the set of wrong pixels grows in the order of their error.

    The Jaccard loss of a prediction that is wrong on the set M: |M| / |region or M|.
    """
    error = np.abs(t - p)
    value = before = 0.0
    wrong = np.zeros(len(t), bool)
    for i in np.argsort(-error, kind="stable"):
        wrong[i] = True
        now = wrong.sum() / ((t == 1) | wrong).sum()
        value += error[i] * (now - before)
        before = now
    return value


def reference(
    of, logits, labels, classes, per_image, weights=None, activation="softmax", mask=None
):
    """(sum, count) over groups, the loss `of` one class's pixels given."""
    p = predictions(logits, activation)
    rows = np.arange(len(labels)) if mask is None else np.flatnonzero(mask)
    total = count = 0
    for group in [[i] for i in rows] if per_image else [list(rows)]:
        valid = (labels[group] >= 0) & (labels[group] < C)
        y, q = labels[group][valid], p[group][valid]
        if not len(y):
            continue
        chosen = range(C) if isinstance(classes, str) else classes
        values = [
            (1 if weights is None else weights[c]) * of(q[:, c], (y == c).astype(float))
            for c in chosen
            if classes != "present" or (y == c).any()
        ]
        total, count = total + np.mean(values), count + 1
    return total, count


CASES = [
    ("dice", dice_of, {}),
    ("dice", dice_of, dict(smooth=0.5, exponent=1.5)),
    ("dice", dice_of, dict(exponent=1.0)),
    ("tversky", tversky_of, {}),
    ("tversky", tversky_of, dict(alpha=0.6, beta=0.2, smooth=0.1, gamma=4 / 3)),
    ("lovasz_softmax", lovasz_of, {}),
]


@pytest.mark.parametrize(
    ("classes", "per_image", "weights"),
    [("all", True, None), ("present", False, WEIGHTS), ((1, 3), True, None)],
)
@pytest.mark.parametrize(("name", "of", "options"), CASES)
def test_loss_is_its_definition(name, of, options, classes, per_image, weights):
    logits, labels = example()
    mask = np.array([True, False, True])
    groups = dict(classes=classes, per_image=per_image, class_weights=weights)
    value, count = run(name, logits, labels, mask, **groups, **options)
    of = functools.partial(of, **options)
    expected, groups = reference(of, logits, labels, classes, per_image, weights, mask=mask)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert count == groups
    assert value.dtype == count.dtype == jnp.float32


@pytest.mark.parametrize("name", OVERLAP)
def test_defaults(name):
    """Dice and Tversky: each image, all classes. Lovasz: the batch, classes that occur."""
    logits, labels = example(1)
    of = dict(dice=dice_of, tversky=tversky_of, lovasz_softmax=lovasz_of)[name]
    how = ("present", False) if name == "lovasz_softmax" else ("all", True)
    value = run(name, logits, labels)
    np.testing.assert_allclose(value, reference(of, logits, labels, *how), rtol=1e-5)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_dice_of_all_classes_together(activation):
    """One ratio per image; class weights weigh the sums in it."""
    logits, labels = example(2)
    value, count = run(
        "dice",
        logits,
        labels,
        classes="together",
        activation=activation,
        smooth=0.0,
        class_weights=WEIGHTS,
    )
    valid = (labels != 255)[..., None]
    p = predictions(logits, activation) * valid
    t = (labels[..., None] == np.arange(C)) * valid
    over = (WEIGHTS * (2 * p * t)).sum((1, 2, 3)), (WEIGHTS * (p**2 + t)).sum((1, 2, 3))
    np.testing.assert_allclose(value, (1 - over[0] / over[1]).sum(), rtol=1e-5)
    assert count == 3


@pytest.mark.parametrize(("name", "of", "options"), [CASES[1], CASES[4], CASES[5]])
def test_gradient_is_that_of_finite_differences(name, of, options):
    logits, labels = example(3, (2, 2, 4))
    labels[0, 0, 0] = 255

    def loss(logits):
        return run(name, logits, labels, classes="present", per_image=True, **options)[0]

    grad = np.asarray(jax.grad(loss)(logits))
    of = functools.partial(of, **options)
    for index in np.ndindex(logits.shape):
        step = np.zeros(logits.shape)
        step[index] = 1e-6
        high, _ = reference(of, logits + step, labels, "present", True)
        low, _ = reference(of, logits - step, labels, "present", True)
        np.testing.assert_allclose(grad[index], (high - low) / 2e-6, atol=2e-6)
    assert (grad[labels == 255] == 0).all()


@pytest.mark.parametrize("per_image", [True, False])
def test_lovasz_of_hard_predictions_is_the_jaccard_loss(per_image):
    """1 - IoU, the mean over the classes that occur."""
    _, labels = example(4)
    predicted = np.random.default_rng(0).integers(0, C, labels.shape)
    hard = 100.0 * np.eye(C)[predicted]
    value, count = run("lovasz_softmax", hard, labels, per_image=per_image)
    groups = [[0], [1], [2]] if per_image else [[0, 1, 2]]
    expected = []
    for g in groups:
        y, q = labels[g][labels[g] != 255], predicted[g][labels[g] != 255]
        iou = [((y == c) & (q == c)).sum() / ((y == c) | (q == c)).sum() for c in np.unique(y)]
        expected.append(1 - np.mean(iou))
    np.testing.assert_allclose(value / count, np.mean(expected), rtol=1e-6)


@pytest.mark.parametrize("name", OVERLAP)
def test_a_perfect_prediction_costs_nothing(name):
    """And has a finite gradient, which the power of the focal Tversky loss has not at 0."""
    _, labels = example(5)
    logits = 200.0 * np.eye(C, dtype=np.float32)[np.where(labels == 255, 0, labels)]
    options = dict(gamma=2.0) if name == "tversky" else {}

    def loss(logits):
        return run(name, logits, labels, **options)[0]

    value, grad = jax.value_and_grad(loss)(logits)
    np.testing.assert_allclose(value, 0, atol=1e-6)
    assert np.isfinite(grad).all()


def test_tversky_between_dice_and_jaccard():
    logits, labels = example(6)
    half, _ = run("tversky", logits, labels, alpha=0.5, beta=0.5, smooth=1.0)
    dice, _ = run("dice", logits, labels, exponent=1, smooth=2.0)
    np.testing.assert_allclose(half, dice, rtol=1e-6)
    # With hard predictions, alpha = beta = 1 is the Jaccard loss, as is Lovasz'.
    hard = 100.0 * np.eye(C)[np.random.default_rng(1).integers(0, C, labels.shape)]
    options = dict(alpha=1.0, beta=1.0, smooth=0.0, classes="present")
    jaccard, _ = run("tversky", hard, labels, **options)
    lovasz, _ = run("lovasz_softmax", hard, labels, per_image=True)
    np.testing.assert_allclose(jaccard, lovasz, rtol=1e-6)


@pytest.mark.parametrize("name", OVERLAP)
def test_what_is_ignored_has_no_influence(name):
    """The logits of ignored pixels and padding rows, and images without a valid pixel."""
    logits, labels = example(7, (4, 5, 6))
    labels[1], labels[0, 0, 0] = 255, -1
    mask = np.array([True, True, True, False])
    other = np.where((labels == 255)[..., None], 1e4 * logits[::-1], logits)
    other[3] *= -50

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(logits):
        return losses.LOSSES[name](logits, labels, ignore_label=255, mask=mask, per_image=True)

    (value, count), grad = loss(logits)
    (changed, _), changed_grad = loss(other)
    assert count == 2
    np.testing.assert_allclose(value, changed, rtol=1e-6)
    np.testing.assert_allclose(grad, changed_grad, atol=1e-7)
    ignored = (labels == 255) | (labels == -1) | ~mask[:, None, None]
    assert (np.asarray(grad)[ignored] == 0).all()


@pytest.mark.parametrize("name", OVERLAP)
def test_without_a_valid_pixel_there_is_no_loss(name):
    logits, labels = example(8, (2, 3, 4))
    for per_image in (True, False):

        def loss(logits, per_image=per_image):
            return run(name, logits, np.full_like(labels, 255), per_image=per_image)

        (value, count), grad = jax.value_and_grad(loss, has_aux=True)(logits)
        assert value == count == 0
        assert (np.asarray(grad) == 0).all()


@pytest.mark.parametrize("name", OVERLAP)
def test_the_order_of_the_pixels_does_not_matter(name):
    logits, labels = example(9, (2, 4, 5))
    order = np.random.default_rng(0).permutation(20)
    mixed = logits.reshape(2, 20, C)[:, order].reshape(logits.shape)
    mixed_labels = labels.reshape(2, 20)[:, order].reshape(labels.shape)
    expected = run(name, logits, labels)
    np.testing.assert_allclose(run(name, mixed, mixed_labels), expected, rtol=1e-6)


@pytest.mark.parametrize("name", OVERLAP)
def test_extreme_and_coarse_logits(name):
    """Probabilities of exactly 0 and 1, and a smoothing of 0, give no NaN; bfloat16 is read."""
    logits, labels = example(10)
    options = {} if name == "lovasz_softmax" else dict(smooth=0.0)

    def loss(logits):
        return run(name, logits, labels, **options)[0]

    value, grad = jax.value_and_grad(loss)(1e4 * logits)
    assert np.isfinite(value) and np.isfinite(grad).all()
    low = jnp.asarray(logits, jnp.bfloat16)
    np.testing.assert_allclose(loss(low), loss(low.astype(jnp.float32)), rtol=1e-6)
    assert jax.grad(loss)(low).dtype == jnp.bfloat16


@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("name", OVERLAP)
def test_eight_devices_give_the_loss_of_one(name, per_image):
    logits, labels = example(11, (8, 4, 5))
    labels[2] = 255
    mask = np.arange(8) != 5

    def loss(logits, labels, mask):
        value, count = losses.LOSSES[name](
            logits, labels, ignore_label=255, mask=mask, per_image=per_image
        )
        return value / count

    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    over_batch = NamedSharding(mesh, PartitionSpec("data"))
    arguments = jax.device_put((logits, labels, mask), over_batch)
    step = jax.jit(jax.value_and_grad(loss)).lower(*arguments).compile()
    # Only the sort of the whole batch has to see the pixels of other devices.
    assert ("all-gather" in step.as_text()) == (name == "lovasz_softmax" and not per_image)
    value, grad = step(*arguments)
    one_value, one_grad = jax.jit(jax.value_and_grad(loss))(logits, labels, mask)
    np.testing.assert_allclose(value, one_value, rtol=1e-6)
    np.testing.assert_allclose(grad, one_grad, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "options", "messages"),
    [
        ("dice", dict(smooth=-1.0), ["smooth=-1.0", "at least 0"]),
        ("dice", dict(exponent=0.5), ["exponent=0.5", "at least 1"]),
        ("dice", dict(activation="softmx"), ["activation", "mean 'softmax'"]),
        ("dice", dict(classes="some"), ["classes", "'some'", "together"]),
        ("tversky", dict(alpha=-0.1), ["alpha=-0.1"]),
        ("tversky", dict(gamma=0.0), ["gamma=0.0"]),
        ("tversky", dict(classes="together"), ["classes", "'together'"]),
        ("lovasz_softmax", dict(classes=(1, 4)), ["classes=(1, 4)", "0..3"]),
        ("lovasz_softmax", dict(classes=()), ["classes=()"]),
        ("lovasz_softmax", dict(class_weights=(1.0,)), ["class_weights has 1", "4 classes"]),
    ],
)
def test_a_mistake_in_the_options_is_named(name, options, messages):
    logits, labels = example(12)
    with pytest.raises(UserError) as caught:
        losses.LOSSES[name](logits, labels, ignore_label=255, **options)
    for message in messages:
        assert message in str(caught.value)
