"""Schedules and optimizers against the papers' formulas, written out in NumPy."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from jaxseg import optim
from jaxseg.errors import UserError

CONSTANT = dict(name="constant")
PATHS = ("backbone/bn/scale", "backbone/conv/kernel", "head/conv/bias", "head/conv/kernel")


def parameters(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "backbone": {
            "bn": {"scale": rng.normal(size=3).astype(np.float32)},
            "conv": {"kernel": rng.normal(size=(2, 3)).astype(np.float32)},
        },
        "head": {
            "conv": {
                "bias": rng.normal(size=2).astype(np.float32),
                "kernel": rng.normal(size=(3, 2)).astype(np.float32),
            }
        },
    }


def flat(tree):
    """{path: float64 array}"""
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]
    return dict(zip(PATHS, leaves, strict=True))


def train(optimizer, schedule, steps, gradients, length=None):
    """Parameters after each of `steps` updates, by the transformation under test."""
    params = parameters()
    tx, _ = optim.make(optimizer, schedule, length or steps, params)
    state = tx.init(params)
    update = jax.jit(tx.update)
    history = []
    for t in range(steps):
        updates, state = update(gradients[t], state, params)
        params = optax.apply_updates(params, updates)
        history.append(flat(params))
    return history


def compare(history, expected):
    for t, (got, wanted) in enumerate(zip(history, expected, strict=True)):
        for path in PATHS:
            np.testing.assert_allclose(
                got[path], wanted[path], rtol=2e-5, atol=1e-6, err_msg=f"{path}, step {t}"
            )


def test_poly_is_mmsegmentations_recursion():
    """mmengine multiplies the rate step by step; here 40,000 of its factors in float64."""
    rate = optim.schedule(dict(name="poly", power=0.9, end=1e-4), 0.01, 40_000)
    expected = [0.01]
    for t in range(1, 40_001):
        factor = (1 - 1 / (40_000 - t + 1)) ** 0.9
        expected.append((expected[-1] - 1e-4) * factor + 1e-4)
    steps = np.array([0, 1, 2, 999, 20_000, 39_000, 39_999, 40_000])
    np.testing.assert_allclose(jax.jit(rate)(steps), np.array(expected)[steps], rtol=2e-5)
    np.testing.assert_allclose(rate(50_000), 1e-4, rtol=1e-6)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (dict(name="poly"), [0.2, 0.2 * 0.75**0.9, 0.2 * 0.5**0.9, 0.0]),
        (dict(name="poly", power=1.0, end=0.1), [0.2, 0.175, 0.15, 0.1]),
        (dict(name="cosine"), [0.2, 0.1 * (1 + np.cos(np.pi / 4)), 0.1, 0.0]),
        (dict(name="cosine", end=0.1), [0.2, 0.1 + 0.05 * (1 + np.cos(np.pi / 4)), 0.15, 0.1]),
        (CONSTANT, [0.2] * 4),
    ],
)
def test_schedules_at_start_quarter_half_and_end(spec, expected):
    rate = optim.schedule(spec, 0.2, 80)
    got = [rate(t) for t in (0, 20, 40, 80)]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-8)
    assert got[0].dtype == jnp.float32


def test_warm_up_is_a_line_and_the_schedule_follows_it():
    spec = dict(name="poly", power=1.0, warmup=10, warmup_factor=0.1)
    rate = optim.schedule(spec, 0.5, 30)
    got = [rate(t) for t in (0, 1, 5, 10, 20, 30)]
    np.testing.assert_allclose(got, [0.05, 0.095, 0.275, 0.5, 0.25, 0.0], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_sgd_is_pytorchs(nesterov, momentum):
    """Five steps: decay joins the gradient before the momentum, the rate comes after it."""
    gradients = [parameters(t + 1) for t in range(5)]
    history = train(
        dict(
            name="sgd",
            lr=0.1,
            momentum=momentum,
            nesterov=nesterov,
            weight_decay=0.05,
            lr_multipliers=(("head/.*/bias", 20.0), ("head/.*", 10.0)),
            decay_multipliers=((".*/(bias|scale)$", 0.0), ("head/.*", 0.5)),
        ),
        dict(name="poly", power=0.9, end=0.01),
        5,
        gradients,
    )
    factors = dict(zip(PATHS, [1, 1, 20, 10], strict=True))
    decays = dict(zip(PATHS, [0, 0.05, 0, 0.025], strict=True))
    params = flat(parameters())
    v = {path: 0.0 for path in PATHS}
    expected = []
    for t in range(5):
        lr = (0.1 - 0.01) * (1 - t / 5) ** 0.9 + 0.01
        for path, gradient in flat(gradients[t]).items():
            g = gradient + decays[path] * params[path]
            v[path] = momentum * v[path] + g
            direction = g + momentum * v[path] if nesterov else v[path]
            params[path] = params[path] - lr * factors[path] * direction
        expected.append(dict(params))
    compare(history, expected)


def test_adamw_is_the_papers():
    gradients = [parameters(t + 1) for t in range(5)]
    history = train(
        dict(
            name="adamw",
            lr=0.01,
            weight_decay=0.1,
            b2=0.99,
            lr_multipliers=(("backbone/.*", 0.1),),
            decay_multipliers=((".*/(bias|scale)", 0.0),),
        ),
        CONSTANT,
        5,
        gradients,
    )
    factors = dict(zip(PATHS, [0.1, 0.1, 1, 1], strict=True))
    decays = dict(zip(PATHS, [0, 0.1, 0, 0.1], strict=True))
    params = flat(parameters())
    m = {path: 0.0 for path in PATHS}
    v = {path: 0.0 for path in PATHS}
    expected = []
    for t in range(1, 6):
        for path, g in flat(gradients[t - 1]).items():
            lr = 0.01 * factors[path]
            m[path] = 0.9 * m[path] + 0.1 * g
            v[path] = 0.99 * v[path] + 0.01 * g**2
            params[path] = params[path] * (1 - lr * decays[path])
            step = m[path] / (1 - 0.9**t) / (np.sqrt(v[path] / (1 - 0.99**t)) + 1e-8)
            if t == 1:  # then the step does not depend on the size of the gradient
                np.testing.assert_allclose(abs(step), 1, rtol=1e-6)
            params[path] = params[path] - lr * step
        expected.append(dict(params))
    compare(history, expected)


def norm(gradient, paths):
    return np.sqrt(sum((flat(gradient)[path] ** 2).sum() for path in paths))


def test_frozen_parameters_neither_move_nor_count():
    """They keep their bits, have no moments, and the norm that is clipped leaves them out."""
    gradient = parameters(1)
    optimizer = dict(
        name="adamw",
        lr=0.1,
        weight_decay=0.1,
        lr_multipliers=(("backbone/.*", 0.0),),
    )
    params = parameters()
    tx, _ = optim.make(optimizer, CONSTANT, 3, params)
    state = tx.init(params)
    moments = [leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert sorted(moments) == [(2,), (2,), (3, 2), (3, 2)]
    gradient["backbone"]["conv"]["kernel"][0, 0] = np.nan
    updates, _ = tx.update(gradient, state, params)
    new = flat(optax.apply_updates(params, updates))
    for path in PATHS:
        assert np.array_equal(new[path], flat(params)[path]) == path.startswith("backbone")
        assert np.isfinite(new[path]).all()

    clipping = dict(
        name="sgd", lr=1.0, momentum=0.0, clip_norm=0.5, lr_multipliers=(("backbone/.*", 0.0),)
    )
    gradient = parameters(1)
    (new,) = train(clipping, CONSTANT, 1, [gradient])
    path = "head/conv/kernel"
    expected = flat(parameters())[path] - 0.5 * flat(gradient)[path] / norm(gradient, PATHS[2:])
    np.testing.assert_allclose(new[path], expected, rtol=1e-5)


@pytest.mark.parametrize("clip_norm", [0.5, 100.0])
def test_the_gradients_global_norm_is_clipped(clip_norm):
    """Before weight decay and multipliers; a smaller gradient passes unchanged."""
    gradient = parameters(1)
    (new,) = train(
        dict(name="sgd", lr=1.0, clip_norm=clip_norm, weight_decay=0.1), CONSTANT, 1, [gradient]
    )
    scale = min(1.0, clip_norm / norm(gradient, PATHS))
    for path, before in flat(parameters()).items():
        expected = before - (scale * flat(gradient)[path] + 0.1 * before)
        np.testing.assert_allclose(new[path], expected, rtol=1e-5, atol=1e-6)


def test_accumulating_four_batches_is_one_large_batch():
    """A linear model, 12 micro-batches of 4 against 3 batches of 16, poly schedule with warm-up."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(48, 5)).astype(np.float32), rng.normal(size=48).astype(np.float32)

    def loss(params, x, y):
        return jnp.mean((x @ params["w"] + params["b"] - y) ** 2)

    def run(size, optimizer, schedule, steps):
        params = {"w": np.ones(5, np.float32), "b": np.zeros((), np.float32)}
        tx, rate = optim.make(optimizer, schedule, steps, params)

        @jax.jit
        def step(params, state, x, y):
            updates, state = tx.update(jax.grad(loss)(params, x, y), state, params)
            return optax.apply_updates(params, updates), state

        state, history = tx.init(params), [params]
        for i in range(steps):
            batch = slice(i * size, (i + 1) * size)
            params, state = step(params, state, x[batch], y[batch])
            history.append(params)
        return history, [float(rate(i)) for i in range(steps)]

    common = dict(name="sgd", lr=0.05, weight_decay=0.1, clip_norm=1.0)
    poly = dict(name="poly", warmup_factor=0.5)
    small, rates = run(4, dict(common, accumulate=4), dict(poly, warmup=4), 12)
    large, large_rates = run(16, common, dict(poly, warmup=1), 3)
    np.testing.assert_allclose(rates, np.repeat(large_rates, 4), rtol=1e-6)
    for i, params in enumerate(small):
        for name in ("w", "b"):
            np.testing.assert_allclose(params[name], large[i // 4][name], rtol=1e-5, atol=1e-7)
    assert not np.allclose(large[0]["w"], large[3]["w"], atol=1e-3)


def test_the_moving_average_is_the_weighted_sum_of_all_parameters():
    values = np.array([3.0, -1.0, 4.0, 1.0, -5.0], np.float32)
    ema = {"w": values[0]}
    for value in values[1:]:
        ema = jax.jit(optim.update_ema)(ema, {"w": value}, 0.9)
    weights = 0.1 * 0.9 ** np.arange(4, -1, -1)
    weights[0] = 0.9**4
    np.testing.assert_allclose(ema["w"], (weights * values).sum(), rtol=1e-5)


@pytest.mark.parametrize(
    "optimizer",
    [
        dict(name="sgd", lr=0.1, weight_decay=0.1, clip_norm=1.0),
        dict(name="adamw", lr=0.1, lr_multipliers=(("backbone/.*", 0.0),), accumulate=2),
    ],
)
def test_the_state_is_arrays_that_orbax_stores(optimizer, tmp_path):
    """From shapes alone, saved and restored, it continues as if it had never stopped."""
    params = parameters()
    shapes = jax.eval_shape(parameters)
    tx, _ = optim.make(optimizer, dict(name="poly"), 10, shapes)
    update = jax.jit(tx.update)
    _, state = update(parameters(1), tx.init(params), params)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        restored = checkpointer.restore(tmp_path / "state", abstract)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    continued, _ = update(parameters(2), restored, params)
    expected, _ = update(parameters(2), state, params)
    jax.tree.map(np.testing.assert_array_equal, continued, expected)
    assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(expected))


def test_multipliers_take_the_first_rule_that_matches_the_whole_path():
    rules = (("head/conv/kernel", 2.0), (".*/kernel", 3.0), ("head/.*", 4.0))
    factors = optim.multipliers("key", rules, parameters())
    assert [float(f) for f in flat(factors).values()] == [1.0, 3.0, 4.0, 2.0]


@pytest.mark.parametrize(
    ("optimizer", "schedule", "messages"),
    [
        (dict(name="sdg"), CONSTANT, ["config.optimizer.name", "'sdg'", "mean 'sgd'"]),
        (dict(name="sgd"), CONSTANT, ["config.optimizer.lr is missing"]),
        (dict(name="adamw", momentum=0.9), CONSTANT, ["config.optimizer", "'momentum'", "b1"]),
        (dict(name="sgd", momemtum=0.9), CONSTANT, ["'momemtum'", "mean 'momentum'"]),
        (dict(name="sgd", lr=1.0, clip_norm=-1.0), CONSTANT, ["config.optimizer.clip_norm=-1.0"]),
        (dict(name="sgd", lr=1.0, accumulate=0), CONSTANT, ["config.optimizer.accumulate=0"]),
        (
            dict(name="sgd", lr=1.0, lr_multipliers=(("haed/.*", 10.0),)),
            CONSTANT,
            ["config.optimizer.lr_multipliers", "'haed/.*'", "matches no", "backbone/bn/scale"],
        ),
        (
            dict(name="sgd", lr=1.0, decay_multipliers=(("kernel", 0.0),)),
            CONSTANT,
            ["config.optimizer.decay_multipliers", "'kernel'", "whole path"],
        ),
        (
            dict(name="sgd", lr=1.0, lr_multipliers=(("(", 1.0),)),
            CONSTANT,
            ["config.optimizer.lr_multipliers", "'('", "not a rule"],
        ),
        (
            dict(name="sgd", lr=1.0, lr_multipliers=("head/.*", 10.0)),
            CONSTANT,
            ["config.optimizer.lr_multipliers", "expected (regex, number)"],
        ),
        (
            dict(name="sgd", lr=1.0, lr_multipliers=((".*", -1.0),)),
            CONSTANT,
            ["config.optimizer.lr_multipliers", "negative"],
        ),
        (dict(name="sgd", lr=1.0), dict(name="ploy"), ["config.schedule.name", "mean 'poly'"]),
        (
            dict(name="sgd", lr=1.0),
            dict(name="constant", power=0.9),
            ["config.schedule", "'power'", "'constant'"],
        ),
        (
            dict(name="sgd", lr=1.0),
            dict(name="poly", warmup=100),
            ["config.schedule.warmup=100", "config.steps=100"],
        ),
    ],
)
def test_a_mistake_in_the_config_is_named(optimizer, schedule, messages):
    with pytest.raises(UserError) as caught:
        optim.make(optimizer, schedule, 100, parameters())
    for message in messages:
        assert message in str(caught.value)


def test_config_dicts_are_read():
    config = ml_collections.ConfigDict(
        dict(
            optimizer=dict(name="sgd", lr=0.5, lr_multipliers=(("head/.*", 10.0),)),
            schedule=dict(name="constant", warmup=0),
        )
    )
    tx, rate = optim.make(config.optimizer, config.schedule, 10, parameters())
    params = parameters()
    updates, _ = tx.update(params, tx.init(params), params)
    np.testing.assert_allclose(updates["head"]["conv"]["bias"], -5 * params["head"]["conv"]["bias"])
    assert float(rate(3)) == 0.5
