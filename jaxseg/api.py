"""`jaxseg.load`: a model with its weights, ready for images, in one call."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from jaxseg import checkpoint as checkpoint_lib
from jaxseg import (
    convert,
    data,
    dialects,
    download,
    exported,
    misfit,
    models,
    torch_file,
    trees,
    zoo,
)
from jaxseg.config import from_file
from jaxseg.errors import UserError
from jaxseg.segmentation import Segmentation
from jaxseg.state import abstract_variables
from jaxseg.workdir import read_config


def load(
    name: str | os.PathLike,
    checkpoint: str | os.PathLike | Mapping[str, Any] | None = None,
    *,
    dtype: str = "float32",
) -> Segmentation | exported.Exported:
    """Builds a model and loads its weights, or loads a program that has both.

    Args:
      name: the workdir of a run; the folder of an exported model (see `jaxseg.exported`); a config
        file with its argument behind a colon, as in 'configs/deeplabv3p.py:camvid'; or the name of
        a released model of MMSegmentation, as in
        'deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024' (see `jaxseg.zoo`; names of older
        releases and paths of MMSegmentation's configs are understood, too).
      checkpoint: a workdir, its checkpoints folder, or the folder of one step; a PyTorch or
        safetensors file, see `jaxseg.torch_file`; or a mapping from the names of a PyTorch state
        dict to arrays. None takes the best checkpoint of the workdir `name`, or downloads the
        published weights of a released model once, see `jaxseg.download`; a config file needs one.
      dtype: of the computation: 'float32', 'bfloat16', or 'auto', the faster one. An exported model
        has its own.

    Raises:
      UserError: there is no such model, or the weights are not of this model.
    """
    name = os.fspath(name)
    path = pathlib.Path(name).expanduser()
    if exported.is_exported(path):
        exported.refuse_settings(path, checkpoint)
        return exported.load(path)
    if path.is_dir():
        weights = path if checkpoint is None else checkpoint
        return from_config(read_config(path), weights, dtype=dtype)
    if name.partition(":")[0].endswith(".py") and not zoo.has(name):
        if checkpoint is None:
            raise UserError(
                f"load({name!r}): a config file has no weights; give checkpoint=, a workdir, a "
                "checkpoint's folder or file, or a mapping of PyTorch names to arrays"
            )
        return from_config(from_file(name), checkpoint, dtype=dtype)
    return from_zoo(name, checkpoint=checkpoint, dtype=dtype)


def from_run(
    workdir: str | os.PathLike, config: ConfigDict | None = None, step: int | None = None
) -> Segmentation:
    """A run's segmentation, computed in its config's dtype.

    Args:
      workdir: the run.
      config: its config with other settings for prediction; None takes the run's own.
      step: which checkpoint; None takes the best.

    Raises:
      UserError: there is no such run or step, or `config` is of another model.
    """
    config = read_config(workdir) if config is None else config
    return from_config(config, workdir, step=step)


def from_zoo(
    name: str,
    config: ConfigDict | None = None,
    checkpoint: str | os.PathLike | Mapping[str, Any] | None = None,
    *,
    dtype: str | None = None,
) -> Segmentation:
    """A released model; without `checkpoint` its published weights are downloaded once.

    Args:
      name: of `jaxseg.zoo`.
      config: that of `zoo.config` with other settings for prediction; None takes it as it is.
      checkpoint: see `load`.
      dtype: of the computation; None takes `config.dtype`.

    Raises:
      UserError: there is no such model, its weights cannot be had, or are not of this model.
    """
    config = zoo.config(name) if config is None else config
    if checkpoint is None:
        checkpoint = download.fetch(zoo.weights(name))
    return from_config(config, checkpoint, dtype=dtype)


def from_config(
    config: ConfigDict,
    weights: str | os.PathLike | Mapping[str, Any],
    *,
    step: int | None = None,
    dtype: str | None = None,
) -> Segmentation:
    """The segmentation that a config describes, with these weights.

    Args:
      config: model, data (for the classes), predict and eval.base_size are read.
      weights: see `load`.
      step: which checkpoint of `weights`, when that is a folder of several; None takes the best.
      dtype: of the computation; None takes `config.dtype`.

    Raises:
      UserError: the weights are not of this model.
    """
    source = ""
    if not isinstance(weights, Mapping) and os.path.isfile(weights):
        source, weights = os.fspath(weights), torch_file.read(weights)
    if isinstance(weights, Mapping):
        description = data.get(config.data)
        classes, palette = description.classes, description.palette
        model = models.get(config.model, num_classes=len(classes))
        weights, names = dialects.read(model, weights)

        def advise(found):
            spec = config.model.to_dict()
            return misfit.advice(found, weights, spec, len(classes), source)

        wanted = abstract_variables(model)
        variables = convert.from_torch(weights, wanted, names, source, advise)
    else:
        variables, meta = checkpoint_lib.load_model(weights, step=step)
        if missing := [name for name in ("classes", "palette") if name not in meta]:
            raise UserError(
                f"{os.fspath(weights)}: the checkpoint's meta lacks {' and '.join(missing)}; save "
                "it by Checkpointer.save(..., meta={'classes': names, 'palette': RGB colours})"
            )
        # The classes that the weights were trained for: the data need not be there any more.
        classes, palette = meta["classes"], meta["palette"]
        model = models.get(config.model, num_classes=len(classes))
        wanted = trees.named_leaves(abstract_variables(model))
        differences = trees.mismatches(wanted, trees.named_leaves(variables))
        if differences:
            raise UserError(
                f"{os.fspath(weights)}: the checkpoint is of another model, {len(differences)} "
                f"arrays differ:{trees.listed(differences)}\n{trees.parts(wanted, differences)}"
            )
    return Segmentation(
        model=model,
        variables=jax.device_put(variables),
        classes=tuple(classes),
        palette=tuple(tuple(color) for color in palette),
        chain=config.get("predict") or {},
        base_size=config.get("eval", {}).get("base_size", ()),
        dtype=dtype or config.dtype,
    )
