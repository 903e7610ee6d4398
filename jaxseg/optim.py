"""Optimisation: learning-rate schedules, and the optax chain that a config describes."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxseg import named
from jaxseg.errors import UserError

Rules = Sequence[tuple[str, float]]  # (regex over a parameter's path, multiplier)
Schedule = Callable[[Any], jax.Array]  # step -> learning rate

_COMMON = ("lr", "weight_decay", "lr_multipliers", "decay_multipliers", "clip_norm", "accumulate")


def poly(progress: jax.Array, lr: float, *, power: float = 0.9, end: float = 0.0) -> jax.Array:
    """(lr - end) (1 - progress)^power + end: DeepLab's policy (arXiv:1606.00915, section 4.1).

    `end` is MMSegmentation's eta_min.
    """
    return (lr - end) * (1 - progress) ** power + end


def cosine(progress: jax.Array, lr: float, *, end: float = 0.0) -> jax.Array:
    """Half a cosine from lr to end (SGDR, arXiv:1608.03983, section 3, without restarts)."""
    return end + (lr - end) * 0.5 * (1 + jnp.cos(jnp.pi * progress))


def constant(progress: jax.Array, lr: float) -> jax.Array:
    """lr throughout."""
    return jnp.full_like(progress, lr)


def sgd(
    decay: optax.GradientTransformation, *, momentum: float = 0.9, nesterov: bool = False
) -> optax.GradientTransformation:
    """PyTorch's SGD: v = momentum v + (g + weight_decay p), then p -= lr v.

    With `nesterov`, p -= lr (g + weight_decay p + momentum v).
    """
    trace = optax.trace(momentum, nesterov=nesterov) if momentum else optax.identity()
    return optax.chain(decay, trace)


def adamw(
    decay: optax.GradientTransformation, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay (arXiv:1711.05101, algorithm 2)."""
    return optax.chain(optax.scale_by_adam(b1, b2, eps), decay)


SCHEDULES = {"constant": constant, "cosine": cosine, "poly": poly}
OPTIMIZERS = {"adamw": adamw, "sgd": sgd}


def schedule(spec: Mapping[str, Any], lr: float, steps: int) -> Schedule:
    """The learning rate as a function of the step, counted from 0.

    Args:
      spec: config.schedule: 'name' (one of `SCHEDULES`) and that function's keywords; 'warmup',
        the number of steps (0) over which the rate first rises linearly from 'warmup_factor'
        (1e-6) times lr to lr. The schedule proper begins where the warm-up ends.
      lr: the base learning rate.
      steps: the length of the run, warm-up included; the rate stays at its end after it.

    Raises:
      UserError: unknown names, or a warm-up that does not fit into the run.
    """
    options = dict(spec)
    name = options.pop("name", None)
    named.check("config.schedule.name", "schedule", name, SCHEDULES)
    decay = SCHEDULES[name]
    for option in options:
        known = (*named.keywords(decay), "warmup", "warmup_factor")
        named.check("config.schedule", f"option of {name!r}", option, known)
    warmup, factor = options.pop("warmup", 0), options.pop("warmup_factor", 1e-6)
    if not 0 <= warmup < steps:
        raise UserError(
            f"config.schedule.warmup={warmup}: expected 0 or more steps, and fewer than "
            f"config.steps={steps}"
        )

    def rate(step):
        step = jnp.asarray(step, jnp.float32)
        progress = jnp.clip((step - warmup) / (steps - warmup), 0, 1)
        rising = lr * (factor + (1 - factor) * step / max(warmup, 1))
        return jnp.where(step < warmup, rising, decay(progress, lr, **options))

    return rate


def make(
    optimizer: Mapping[str, Any], schedule_spec: Mapping[str, Any], steps: int, params: Any
) -> tuple[optax.GradientTransformation, Schedule]:
    """The optimizer and the schedule of a run.

    A step is one call of `update`, hence one batch. With accumulate=k the parameters change at
    every k-th step only, by the mean of the last k gradients and at the learning rate of the
    first of the k steps: the run equals one of steps / k steps (and warmup / k) with batches
    k times as large, BatchNorm and unequal numbers of valid pixels aside. Steps left over at
    the end change nothing.

    Args:
      optimizer: config.optimizer: 'name' (one of `OPTIMIZERS`) and that function's keywords; 'lr';
        'weight_decay' (0); 'clip_norm', the largest global norm of the gradient (0: no
        clipping); 'accumulate' (1); 'lr_multipliers' and 'decay_multipliers' (none), see
        `multipliers`. An lr multiplier of 0 freezes: such parameters never change, have no
        moments, and stay out of the gradient's norm. Weight decay acts before the momentum in
        'sgd', and on the parameter itself in 'adamw', in both times the learning rate.
      schedule_spec: config.schedule, see `schedule`.
      steps: config.steps.
      params: the parameters, or their shapes.

    Returns:
      An optax transformation, whose state holds nothing but arrays, and the learning rate (before
      multipliers) as a function of the step.

    Raises:
      UserError: an unknown name, a value out of range, or a regex that matches no parameter.
    """
    options = dict(optimizer)
    name = options.pop("name", None)
    named.check("config.optimizer.name", "optimizer", name, OPTIMIZERS)
    core = OPTIMIZERS[name]
    known = (*named.keywords(core), *_COMMON)
    for option in options:
        named.check("config.optimizer", f"option of {name!r}", option, known)
    lr = options.pop("lr", None)
    if lr is None:
        raise UserError("config.optimizer.lr is missing: give the base learning rate")
    weight_decay = options.pop("weight_decay", 0.0)
    clip_norm = options.pop("clip_norm", 0.0)
    accumulate = options.pop("accumulate", 1)
    if clip_norm < 0:
        raise UserError(f"config.optimizer.clip_norm={clip_norm}: expected 0 (off) or more")
    if not isinstance(accumulate, int) or accumulate < 1:
        raise UserError(f"config.optimizer.accumulate={accumulate}: expected an integer above 0")
    lr_multipliers, decay_multipliers = (
        multipliers(f"config.optimizer.{key}", options.pop(key, ()), params)
        for key in ("lr_multipliers", "decay_multipliers")
    )

    # Frozen parameters are hidden from the chain: no moments, no decay, no share in the norm.
    learns = jax.tree.map(lambda m: m != 0, lr_multipliers)
    decay_multipliers = jax.tree.map(
        lambda m, learns: m if learns else optax.MaskedNode(), decay_multipliers, learns
    )
    decay = _decay(weight_decay, decay_multipliers) if weight_decay else optax.identity()
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    tx = optax.chain(clip, core(decay, **options))
    if not all(jax.tree.leaves(learns)):
        tx = optax.masked(tx, learns)

    rate = schedule(schedule_spec, lr, steps)
    tx = optax.chain(
        tx,
        _scale(lr_multipliers),
        optax.scale_by_learning_rate(lambda count: rate(count * accumulate)),
    )
    if accumulate > 1:
        tx = optax.MultiSteps(tx, accumulate).gradient_transformation()
    return tx, lambda step: rate(step // accumulate * accumulate)


def multipliers(key: str, rules: Rules, params: Any) -> Any:
    """A factor for each parameter, found by its path.

    Args:
      key: the config key of the rules, for messages.
      rules: (regex, factor) pairs, (('head/.*', 10.0), ('.*/(bias|scale)', 0.0)). A regex must
        match the whole path 'backbone/stage1/.../kernel'; the first that does decides, and
        parameters that none matches get 1.
      params: the parameters, or their shapes.

    Returns:
      The tree of `params` with a float in place of each leaf.

    Raises:
      UserError: a rule is malformed, or its regex matches no parameter.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    factors = dict.fromkeys(paths, 1.0)
    for rule in reversed(rules):  # the first rule is applied last, and wins
        try:
            pattern, factor = rule
            factor, regex = float(factor), re.compile(pattern)
        except (TypeError, ValueError, re.error) as error:
            raise UserError(
                f"{key}: {rule!r} is not a rule ({error}): expected (regex, number)"
            ) from error
        matched = [path for path in paths if regex.fullmatch(path)]
        if factor < 0 or not matched:
            wrong = "is negative" if factor < 0 else "matches no parameter"
            raise UserError(
                f"{key}: {rule!r} {wrong}. A regex must match a whole path, such as "
                f"{', '.join(paths[:: max(1, len(paths) // 4)][:5])}; a factor must be 0 or more"
            )
        factors.update(dict.fromkeys(matched, factor))
    return jax.tree.unflatten(structure, [factors[path] for path in paths])


def update_ema(ema: Any, params: Any, decay: float) -> Any:
    """The next exponential moving average: decay ema + (1 - decay) params, leaf by leaf."""
    return jax.tree.map(lambda e, p: e + (1 - decay) * (p - e), ema, params)


def _decay(weight_decay: float, factors: Any) -> optax.GradientTransformation:
    """Adds weight_decay * factor * parameter to each update."""

    def add(updates, params):
        return jax.tree.map(
            lambda u, p, f: u + weight_decay * f * p if f else u, updates, params, factors
        )

    return optax.stateless(add)


def _scale(factors: Any) -> optax.GradientTransformation:
    """Multiplies each update by its factor; 0 gives zeros even of updates that are not finite."""

    def scale(updates, params):
        del params
        return jax.tree.map(lambda u, f: u * f if f else jnp.zeros_like(u), updates, factors)

    return optax.stateless(scale)
