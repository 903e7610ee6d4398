"""A model as one file that needs no model code: uint8 images in, labels out, the weights inside.

`jaxseg.exported` describes the folder and reads it back. The program is the whole test-time chain,
for several kinds of devices at once. Its normalisations are folded into the convolutions before
them. It takes images of any size where the model and the chain can be traced for that, see `forms`.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import export as jax_export
from ml_collections import ConfigDict

from jaxseg import api, checkpoint, export_tf, fold, predict, stored
from jaxseg.console import say
from jaxseg.errors import UserError
from jaxseg.exported import DESCRIPTION, FORMAT, PROGRAM, Axis, Form
from jaxseg.models import segmenter
from jaxseg.segmentation import Segmentation
from jaxseg.writer import dumps

PLATFORMS = ("cpu", "cuda", "tpu")
KNOWN_PLATFORMS = (*PLATFORMS, "rocm")
MULTIPLE = 32  # the coarsest stride of the backbones: such sizes are halved without remainder


def forms(size: tuple[int, int] | None, usual: tuple[int, int] | None) -> list[Form]:
    """What to try, the first best: the more sizes the better.

    Without `size`: images of any size; of any from the usual one on, its short edge both ways;
    multiples of 32; those from the usual size on. Then, with `size` in the place of the usual one:
    that size alone, in a batch of any size; and one such image at a time.
    """
    some, tried = Axis(1, 1), []
    if size is None:
        for step in (1, MULTIPLE):
            least = [step] + ([-(-min(usual) // step) * step] if usual else [])
            tried += [Form(some, *(Axis(n, step),) * 2) for n in least]
    if fixed := size or usual:
        edges = [Axis(n, 0) for n in fixed]
        tried += [Form(some, *edges), Form(Axis(1, 0), *edges)]
    return list(dict.fromkeys(tried))


def export(
    segmentation: Segmentation,
    output: str | os.PathLike,
    *,
    probabilities: bool = False,
    size: tuple[int, int] | None = None,
    usual: tuple[int, int] | None = None,
    platforms: Sequence[str] = PLATFORMS,
    formats: Sequence[str] = (),
    source: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes a segmentation's test-time chain as a program with its weights, see the module.

    Args:
      segmentation: what to export. A dtype of 'auto' becomes float32.
      output: folder to make.
      probabilities: whether the program answers those too, float32 [b, h, w, C].
      size: height and width of the images; None for as many sizes as possible.
      usual: a size that the model was made for: what is to be possible at least, see `forms`.
      platforms: of `KNOWN_PLATFORMS`; none of them needs to be there.
      formats: others to write beside it, of `export_tf.FORMATS`.
      source: more for model.json: 'config', 'step', 'metrics'.

    Returns:
      What model.json holds.

    Raises:
      UserError: `output` holds something or cannot be written, a platform or format is unknown, a
        format's package is absent, or the chain cannot be traced or converted.
    """
    folder = pathlib.Path(output).expanduser().absolute()
    _refuse(folder, platforms)
    export_tf.check(formats, size)
    if segmentation.base_size and size is None:
        raise UserError(
            f"config.eval.base_size={tuple(segmentation.base_size)}: how much an image is resized "
            "depends on its size; give that by --size=HEIGHTxWIDTH, or leave resizing to those who "
            "call the program, by --config.eval.base_size='()'"
        )
    if segmentation.dtype == "auto":
        segmentation = dataclasses.replace(segmentation, dtype="float32")
    folds = fold.find(segmentation.model)
    scores = make_scores(segmentation, folds, probabilities)

    def program(images):
        values = scores(images)
        return (predict.to_labels(values), values)[: len(outputs)]

    outputs = ("labels", "probabilities")[: 1 + probabilities]
    with _no_paths_in_programs():
        form, exported = _trace(program, forms(size, usual), platforms)
    artefact = bytes(exported.serialize())
    description = {
        "format": FORMAT,
        "sha256": hashlib.sha256(artefact).hexdigest(),
        "images": {name: axis._asdict() for name, axis in form._asdict().items()},
        "outputs": outputs,
        "classes": segmentation.classes,
        "palette": segmentation.palette,
        "dtype": segmentation.dtype,
        "predict": segmentation.chain,
        "base_size": segmentation.base_size,
        "folded_norms": len(folds),
        "jax": jax.__version__,
        "calling_convention": exported.calling_convention_version,
        "platforms": exported.platforms,
        "formats": formats,
        **(source or {}),
    }
    text = dumps(_plain(description), indent=1) + "\n"
    with _made(folder) as unfinished:
        (unfinished / PROGRAM).write_bytes(artefact)
        (unfinished / DESCRIPTION).write_text(text, encoding="utf-8")
        export_tf.write(unfinished, formats, exported, form, outputs, scores)
    say(
        f"{folder}: {len(artefact) / 1e6:.1f} MB for {', '.join(exported.platforms)}; takes uint8 "
        f"RGB [b, h, w, 3] with {form.words()}; answers {' and '.join(outputs)}"
    )
    return json.loads(text)


def export_run(
    config: ConfigDict,
    workdir: str | os.PathLike,
    output: str | os.PathLike,
    *,
    step: int | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Exports a run's checkpoint, the best without `step`; `options` and errors as in `export`."""
    segmentation = api.from_run(workdir, config=config, step=step)
    saved = stored.read_envelope(checkpoint.find_step(workdir, step))
    source = {
        "step": saved["step"],
        "metrics": saved["meta"].get("metrics"),
        "config": json.loads(config.to_json_best_effort()),
    }
    usual = tuple(config.augment.crop)
    return export(segmentation, output, usual=usual, source=source, **options)


def export_released(
    config: ConfigDict,
    name: str,
    checkpoint: str | os.PathLike | None,
    output: str | os.PathLike,
    **options: Any,
) -> dict[str, Any]:
    """Exports a released model; `config`, `name`, `checkpoint` as in `api.from_zoo`."""
    segmentation = api.from_zoo(name, config, checkpoint)
    source = {"model": name, "config": json.loads(config.to_json_best_effort())}
    return export(segmentation, output, source=source, **options)


def make_scores(
    segmentation: Segmentation, folds: Mapping[fold.Path, fold.Fold], probabilities: bool
) -> Callable[[jax.Array], jax.Array]:
    """The chain with its weights: images uint8 [b, h, w, 3] -> scores float32 [b, h, w, C].

    Args:
      segmentation: as in `export`.
      folds: what `fold.find` says of its model.
      probabilities: whether that is what the scores are to be; else, whatever the chain makes.
    """
    chain = predict.make_probabilities if probabilities else predict.make_scores
    scores = chain(
        segmentation.model,
        segmentation.chain,
        dtype=segmentation.dtype,
        base_size=segmentation.base_size,
    )
    variables = fold.fold(segmentation.variables, folds)
    # The chain casts them too: cast already, they take half the place in a file of bfloat16.
    params = segmenter.cast_params(variables["params"], segmentation.dtype)
    variables = {**variables, "params": params}

    def of_images(images):
        with fold.applied(folds):
            return scores(variables, images, images.shape[1:3])

    return of_images


def _trace(
    program: Callable, tried: Sequence[Form], platforms: Sequence[str]
) -> tuple[Form, jax_export.Exported]:
    """The first form that works, and the exported program; says which ones do not."""
    failure = None
    for form in tried:
        images = jax.ShapeDtypeStruct(form.symbolic_shape(), jnp.uint8)
        try:
            return form, jax_export.export(jax.jit(program), platforms=tuple(platforms))(images)
        except Exception as error:  # of many types: whatever a model asks of a size without number
            reason, failure = " ".join(str(error).split())[:100], error
            say(f"cannot be exported for {form.words()}: {type(error).__name__}: {reason}")
    if tried[-1].height.step:
        raise UserError(
            "export: this model or its chain cannot be traced for images of any size; give one by "
            "--size=HEIGHTxWIDTH"
        ) from failure
    if isinstance(failure, UserError):
        raise failure
    raise UserError(
        "export: this model, or the chain of config.predict, cannot be one program: "
        f"{type(failure).__name__}: {failure}"
    ) from failure


def _refuse(folder: pathlib.Path, platforms: Sequence[str]) -> None:
    """Raises `UserError` for what cannot succeed, before anything is computed."""
    unknown = [name for name in platforms if name not in KNOWN_PLATFORMS]
    if unknown or not platforms:
        raise UserError(
            f"--platforms={','.join(platforms)}: expected one or more of "
            f"{', '.join(KNOWN_PLATFORMS)}, with commas between them"
        )
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"--output={folder}: is there already; remove it, or give another folder")


def _plain(value: Any) -> Any:
    """Mappings of ml_collections as dictionaries."""
    if isinstance(value, ConfigDict):
        return value.to_dict()
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, Mapping) else value


@contextlib.contextmanager
def _no_paths_in_programs() -> Iterator[None]:
    """Operations then name the files they come from without folders, which differ elsewhere."""
    settings = {
        "jax_include_full_tracebacks_in_locations": False,
        "jax_hlo_source_file_canonicalization_regex": ".*/",
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


@contextlib.contextmanager
def _made(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to write to that becomes `folder` at the end, or vanishes if something fails."""
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        unfinished.rename(folder)  # fails where there is more than an empty folder
    except OSError as error:
        raise UserError(f"--output={folder}: cannot be written ({error.strerror})") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
