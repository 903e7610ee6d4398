"""Training: one pure step, and the loop that calls it. Reads top to bottom."""

import json
import time
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
    feed,
    figures,
    init_from,
    losses,
    metrics,
    models,
    optim,
    profiling,
    remat,
    visualize,
)
from jaxseg import state as states
from jaxseg.compiling import compile_lowered
from jaxseg.console import duration, say
from jaxseg.data import balance
from jaxseg.data.base import Description
from jaxseg.errors import UserError
from jaxseg.models import segmenter
from jaxseg.progress import Progress
from jaxseg.sharding import check_divides, make_mesh, over_batch, replicated
from jaxseg.workdir import Workdir, open_workdir
from jaxseg.writer import Writer

PICTURES = 4  # evaluated samples shown in TensorBoard


def make_train_step(
    model: segmenter.Segmenter,
    tx: optax.GradientTransformation,
    schedule: Callable,
    config: ConfigDict,
    description: Description,
) -> Callable:
    """Returns the pure `(state, batch) -> (state, scalars)`.

    `batch` is a global batch {'image': uint8 [b, h, w, 3], 'label': [b, h, w] of any integer dtype,
    'mask': bool [b]}. Where the loss or a gradient is not finite the whole state stays as it was
    but for the step, and scalars['finite'] is 0. All randomness comes from (config.seed,
    state.step). The backward pass computes again what `config.remat` says.

    Raises:
      UserError: there is no such `config.remat`.
    """
    forward = remat.recompute(segmenter.forward, config.remat)

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

        (loss, (parts, model_state)), grads = jax.value_and_grad(loss_of, has_aux=True)(
            state.params
        )
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


def jitted(train_step: Callable, mesh: Mesh) -> Callable:
    """The step compiled for a batch split over the mesh; the state that goes in is donated."""
    return jax.jit(
        train_step,
        in_shardings=(replicated(mesh), over_batch(mesh)),
        out_shardings=replicated(mesh),
        donate_argnums=0,
    )


def run(
    config: ConfigDict,
    folder: str,
    argv: Sequence[str] = (),
    force: bool = False,
    profile: str | None = None,
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

    Returns:
      The summary (`metrics.summarize`) of the best checkpoint on `config.eval.final_split`.

    Raises:
      UserError: data, config and checkpoint do not fit together, or the loss diverged.
    """
    with open_workdir(folder, config, argv, force=force) as workdir:
        _run(config, workdir, profile)
    return _finish(config, folder)


def _run(config: ConfigDict, workdir: Workdir, profile: str | None) -> None:
    # ---- What to train, and on what: every mistake that can be seen is seen here. ----
    description = data.get(config.data)
    config = balance.resolve(config, description)
    splits = {config.train_split, config.eval.split, config.eval.final_split}
    sizes = {split: len(description.records(split)) for split in sorted(splits)}
    mesh = make_mesh(config.devices)
    check_divides(config.batch_size, mesh)
    model = models.get(config.model, num_classes=description.num_classes)
    crop = tuple(config.augment.crop)
    abstract_params = states.abstract_variables(model, crop)["params"]
    tx, schedule = optim.make(config.optimizer, config.schedule, config.steps, abstract_params)
    train_step = make_train_step(model, tx, schedule, config, description)
    say(
        f"{config.model.name}: {states.count(abstract_params) / 1e6:.1f} M parameters, "
        f"{description.num_classes} classes of {description.name}; "
        f"{mesh.devices.size} x {mesh.devices.flat[0].device_kind}, "
        f"{segmenter.compute_dtype(config.dtype)}"
    )

    # ---- Where to start: the newest checkpoint here, weights from elsewhere, or scratch. ----
    init = states.make_init(model, tx, crop, bool(config.ema), config.seed)
    state, abstract_state = states.create(init, mesh)
    checkpointer = checkpoint.Checkpointer(workdir.path)
    restored = checkpointer.restore(abstract_state)
    if restored is not None:
        state, _ = restored
        say(f"continuing from step {int(state.step)} of {workdir.path}")
    elif config.init_from:
        variables = {"params": state.params, **state.model_state}
        variables, note = init_from.start(config, variables, description.num_classes)
        state = states.with_variables(state, jax.device_put(variables, replicated(mesh)))
        workdir.note(init_from=note)
    start = int(state.step)
    tracer = profiling.Tracer(profiling.parse(profile, start, config.steps), workdir.path)
    workdir.note(dataset={"name": description.name, "images": sizes})

    # ---- The functions and the files of the run. ----
    train_step = jitted(train_step, mesh)
    eval_step = evaluate.make_eval_step(model, config, description, mesh)
    writer = Writer(workdir.path, resume_step=start)
    progress = Progress(config.steps, config.batch_size, writer, workdir.path)

    def meta(step: int, summary: dict[str, Any] | None = None) -> dict[str, Any]:
        return {
            "step": step,
            "config": json.loads(config.to_json_best_effort()),
            "classes": list(description.classes),
            "palette": [list(color) for color in description.palette],
            "metrics": summary,
        }

    def validate(step: int) -> None:
        began = time.monotonic()
        counts, kept = evaluate.run(
            eval_step,
            state.variables(),
            evaluate.batches(config, description, config.eval.split, mesh),
            description.num_classes,
            mesh,
            keep=PICTURES,
        )
        summary = figures.summarize(counts, description, config.eval.split)
        prefix = config.eval.split
        scalars = metrics.scalars(summary)
        writer.write_scalars(step, {f"{prefix}/{name}": scalars[name] for name in scalars})
        pictures = {
            f"{prefix}/{name}": visualize.side_by_side(image, truth, labels, description.palette)
            for name, image, truth, labels in kept
        }
        writer.write_images(step, pictures)
        best = checkpointer.save_best(step, state, meta(step, summary), summary["mIoU"])
        say(
            f"step {step}: {prefix} mIoU {summary['mIoU']:.4f}, pixel accuracy "
            f"{summary['pixel_accuracy']:.4f} ({duration(time.monotonic() - began)})"
            + (", the best so far" if best else "")
        )

    # ---- The loop. A batch is a function of the step alone: resuming needs no iterator state. ----
    batches = feed.train_batches(config, description, mesh, start)
    step = start
    try:
        for step, batch in enumerate(progress.timed(batches), start + 1):
            ids = batch.pop("id")
            first = step == start + 1
            if first:
                train_step = compile_lowered(train_step.lower(state, batch), "the training step")
                began = time.monotonic()
            with tracer.step(step):
                state, scalars = train_step(state, batch)
            progress.add(step, scalars, ids)
            if first or tracer.is_last(step):
                jax.block_until_ready(scalars)
                tracer.close()
                progress.restart_clock()
            if first:
                say(f"the first step took {time.monotonic() - began:.1f}s")
            last = step == config.steps
            if last or step % config.log_every == 0:
                progress.write()
            # Evaluated before it is saved: a run killed in between repeats the evaluation.
            if last or step % config.eval_every == 0:
                progress.write()
                validate(step)
                progress.restart_clock()
            if last or step % config.checkpoint_every == 0:
                progress.write()
                checkpointer.save(step, state, meta(step))
    except UserError:  # a sample that cannot be read, a loss that diverged: keep what was learnt
        progress.write()
        if step > start:
            checkpointer.save(step, state, meta(step))
            say(f"stopped; step {step} is saved, and the same command continues from there")
        raise
    finally:
        batches.close()
        tracer.close()
        writer.close()
        checkpointer.close()


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
