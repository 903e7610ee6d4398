"""Training: one pure step, and a run of it, whose loop is `jaxseg.loop`. Reads top to bottom."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxseg import (
    augment,
    checkpoint,
    data,
    evaluate,
    init_from,
    loop,
    losses,
    models,
    optim,
    preemption,
    profiling,
    remat,
    results,
    stored,
)
from jaxseg import state as states
from jaxseg.compiling import training_options
from jaxseg.console import say
from jaxseg.data import bad_samples, balance
from jaxseg.data.base import Description
from jaxseg.data.fingerprint import fingerprint
from jaxseg.models import segmenter
from jaxseg.sharding import (
    check_divides,
    make_mesh,
    over_devices,
    over_images,
    replicated,
)
from jaxseg.workdir import Workdir, open_workdir


def make_train_step(
    model: segmenter.Segmenter,
    tx: optax.GradientTransformation,
    schedule: Callable,
    config: ConfigDict,
    description: Description,
    mesh: Mesh | None = None,
) -> Callable:
    """Returns the pure `(state, batch) -> (state, scalars)`.

    `batch` is a global batch {'image': uint8 [b, h, w, 3], 'label': [b, h, w] of any integer dtype,
    'mask': bool [b]}. Where the loss or a gradient is not finite the whole state stays as it was
    but for the step, and scalars['finite'] is 0. All randomness comes from (config.seed,
    state.step). The backward pass computes again what `config.remat` says. With
    `config.shard.state`, the state is split over the devices of `mesh`.

    Raises:
      UserError: there is no such `config.remat`.
    """
    forward = remat.recompute(segmenter.forward, config.remat)
    split = config.shard.state and mesh is not None

    def train_step(state: states.TrainState, batch) -> tuple[states.TrainState, dict[str, Any]]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        batch = augment.distort(key, batch, config.augment, description.ignore_label)

        def loss_of(params):
            outputs, model_state = forward(
                model,
                {"params": params, **state.model_state},
                batch["image"],
                train=True,
                dtype=config.dtype,
                rngs={
                    "dropout": jax.random.fold_in(key, 1),
                    "points": jax.random.fold_in(key, 2),  # where PointRend looks
                },
            )
            loss, parts = losses.total(
                outputs,
                batch,
                config.losses,
                ignore_label=description.ignore_label,
                align_corners=model.align_corners,
            )
            return loss, (parts, model_state)

        params = state.params
        if split:
            params = jax.lax.with_sharding_constraint(params, replicated(mesh))
        (loss, (parts, model_state)), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        if split:
            grads = jax.lax.with_sharding_constraint(grads, over_devices(grads, mesh))
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if config.ema:
            ema = optim.update_ema(ema, params, config.ema)
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        new = state.replace(params=params, model_state=model_state, opt_state=opt_state, ema=ema)
        new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
        scalars = {
            "loss": loss,
            **parts,
            "lr": schedule(state.step),
            "grad_norm": grad_norm,
            "finite": finite.astype(jnp.float32),
        }
        return new.replace(step=state.step + 1), scalars

    return train_step


def jitted(train_step: Callable, mesh: Mesh, state: states.TrainState) -> Callable:
    """The step compiled for a batch split over the mesh, and a state as large and as laid out as
    `state`; what goes in of it is donated."""
    layout = jax.tree.map(lambda leaf: leaf.sharding, state)
    return jax.jit(
        train_step,
        in_shardings=(layout, over_images(mesh)),
        out_shardings=(layout, replicated(mesh)),
        donate_argnums=0,
        compiler_options=training_options(mesh) or None,
    )


def run(
    config: ConfigDict,
    folder: str,
    argv: Sequence[str] = (),
    force: bool = False,
    profile: str | None = None,
    rescaled: Sequence[str] = (),
) -> dict[str, Any]:
    """Trains to `config.steps`, evaluating and saving on the way; everything is left in `folder`.

    Continues from the newest good checkpoint there; the continuation is bit-identical to a run that
    was never stopped on the same machine.

    Args:
      config: see configs/.
      folder: the run's workdir.
      argv: the command line, for the manifest.
      force: continue a run though what is being trained has changed since it was started.
      profile: which steps to trace, see `profiling.parse`.
      rescaled: how the config differs from its recipe, of `rescale.rescaled`; for the manifest.

    Returns:
      The summary (`metrics.summarize`) of the best checkpoint on `config.eval.final_split`.

    Raises:
      UserError: data, config and checkpoint do not fit together, the loss diverged, or the last
        checkpoint could not be saved.
      Preempted: SIGTERM came, and what was learnt is saved.
    """
    with preemption.watch():
        with open_workdir(folder, config, argv, force=force) as workdir:
            if rescaled:
                workdir.note(rescaled=list(rescaled))
            _run(config, workdir, profile)
            result = _finish(config, folder)
            workdir.note(final=results.in_short(result), checkpoints=stored.checksums(folder))
            workdir.event("finished", step=config.steps)
        return result


def _run(config: ConfigDict, workdir: Workdir, profile: str | None) -> None:
    # ---- What to train, and on what: every mistake that can be seen is seen here. ----
    description = data.get(config.data)
    config = balance.resolve(config, description)
    splits = {config.train_split, config.eval.split, config.eval.final_split}
    records = {split: description.records(split) for split in sorted(splits)}
    sizes = {split: len(records[split]) for split in records}
    mesh = make_mesh(config.devices, config.shard.height)
    crop = tuple(config.augment.crop)
    check_divides(config.batch_size, crop, mesh)
    model = models.get(config.model, num_classes=description.num_classes)
    abstract_params = states.abstract_variables(model, crop)["params"]
    tx, schedule = optim.make(config.optimizer, config.schedule, config.steps, abstract_params)
    train_step = make_train_step(model, tx, schedule, config, description, mesh)
    say(
        f"{config.model.name}: {states.count(abstract_params) / 1e6:.1f} M parameters, "
        f"{description.num_classes} classes of {description.name}; "
        f"{mesh.devices.size} x {mesh.devices.flat[0].device_kind}, "
        f"{segmenter.compute_dtype(config.dtype)}"
    )

    # ---- Where to start: the newest checkpoint here, weights from elsewhere, or scratch. ----
    init = states.make_init(model, tx, crop, bool(config.ema), config.seed)
    state, abstract_state = states.create(init, mesh, config.shard.state)
    checkpointer = checkpoint.Checkpointer(workdir.path)
    restored = checkpointer.restore(abstract_state)
    if restored is not None:
        state, _ = restored
        say(f"continuing from step {int(state.step)} of {workdir.path}")
    elif config.init_from:
        variables = {"params": state.params, **state.model_state}
        variables, note = init_from.start(config, variables, description.num_classes)
        state = states.with_variables(state, variables)
        workdir.note(init_from=note)
    past = loop.Past() if restored is None else loop.Past.of(restored[1])
    start = int(state.step)
    tracer = profiling.Tracer(profiling.parse(profile, start, config.steps), workdir.path)
    workdir.note(dataset={"name": description.name, "images": sizes})
    read_by = data.resolve_backend(config.data_backend)  # which decides grey levels, caches too
    read_by = read_by if config.data_cache == "none" else f"{config.data_cache} cache"
    workdir.note(mesh=dict(mesh.shape), data_backend=read_by)
    if jax.process_index() == 0:  # the others need not look at every file
        found = {split: fingerprint(description, records[split]) for split in records}
        workdir.note(fingerprints=found)

    train_step = jitted(train_step, mesh, abstract_state)
    eval_step = evaluate.make_eval_step(model, config, description, mesh)
    training = loop.Loop(
        config=config,
        description=description,
        mesh=mesh,
        workdir=workdir,
        checkpointer=checkpointer,
        tracer=tracer,
        train_step=train_step,
        eval_step=eval_step,
        abstract_state=abstract_state,
        state=state,
        past=past,
    )
    try:
        training.run()
    finally:
        bad = bad_samples.listed(workdir.path)
        if bad:
            workdir.note(bad_samples=bad)


def _finish(config: ConfigDict, folder: str) -> dict[str, Any]:
    """The result: the best checkpoint on the final split, and where everything is."""
    summary = evaluate.evaluate_checkpoint(config, folder, config.eval.final_split)
    say(
        f"""
In {folder}:
  results-{config.eval.final_split}.json   the figures above and all others, the confusion matrix
  reliability-{config.eval.final_split}.png   how far its confidence can be trusted
  predictions/        overlays of images of the {config.eval.final_split} split; the worst, the best
  checkpoints/        the best and the latest weights
  metrics.jsonl       every step's loss; tensorboard/ the same as curves, with pictures
Next:
  python -m jaxseg.main predict --workdir {folder} --input 'photos/*.jpg' --output out/
  python -m jaxseg.main eval --workdir {folder} --split {config.eval.split}"""
    )
    return summary
