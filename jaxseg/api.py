"""`jaxseg.load`: a model with its weights, ready for images, in one call."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from jaxseg import checkpoint as checkpoint_lib
from jaxseg import convert, data, download, exported, large, models, predict, torch_file, trees, zoo
from jaxseg.config import from_file
from jaxseg.data import crop, plan
from jaxseg.errors import UserError
from jaxseg.state import abstract_variables
from jaxseg.workdir import read_config

_SIZE = (64, 64)  # of the image that shapes are found with; parameters do not depend on it


@dataclasses.dataclass(frozen=True, eq=False)
class Segmentation:
    """A model with weights, and how its recipe turns an image into labels.

    Attributes:
      model: the Linen module; `jaxseg.models.segmenter.forward` runs it.
      variables: {'params': ..., 'batch_stats': ...}, float32.
      classes: class names; a label is an index into them.
      palette: one RGB colour per class.
      chain: `config.predict`, see `jaxseg.predict.make_scores`.
      base_size: (long, short) edge of the box that `segment` fits an image into first, its aspect
        kept; empty for the image as it is.
      dtype: of the computation, 'float32', 'bfloat16' or 'auto'.
    """

    model: nn.Module
    variables: Any
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    chain: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    base_size: tuple[int, ...] = ()
    dtype: str = "float32"

    def logits(self, images: np.ndarray | jax.Array) -> jax.Array:
        """The plain forward of the images as given: no test-time resize, slide or flip.

        Compiled once per shape. Returns as soon as the work is enqueued, as JAX does.

        Args:
          images: uint8 RGB [b, h, w, 3].

        Returns:
          float32 [b, h, w, classes], at the images' size.

        Raises:
          UserError: `images` has another shape or dtype.
        """
        return self._logits(self.variables, _checked(images))

    def segment(self, images: np.ndarray | jax.Array) -> jax.Array:
        """Labels by the recipe's test-time chain.

        Args:
          images: uint8 RGB [b, h, w, 3].

        Returns:
          int32 [b, h, w], class indices at the images' size; a NumPy array where the scores of one
          image are more than 2 GiB, which are then made band by band.

        Raises:
          UserError: `images` has another shape or dtype, or is too large for the chain, see
            `jaxseg.large`.
        """
        images, size = self._fitted(images)
        if large.is_large(size, len(self.classes)):
            return np.stack([self._large(self.variables, np.asarray(x), size) for x in images])
        return self._predict(self.variables, images, size)

    def probabilities(self, images: np.ndarray | jax.Array) -> jax.Array:
        """What `segment` takes the largest of: how probable each class is, by the same chain.

        Args:
          images: uint8 RGB [b, h, w, 3].

        Returns:
          float32 [b, h, w, classes], at the images' size; they sum to 1.

        Raises:
          UserError: `images` has another shape or dtype.
        """
        images, size = self._fitted(images)
        return self._probabilities(self.variables, images, size)

    def uncertainty(
        self, images: np.ndarray | jax.Array, samples: int | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """What the model says and how sure it is, by Monte-Carlo dropout in the test-time chain.

        Args:
          images: uint8 RGB [b, h, w, 3].
          samples: forward passes, each with its own draw of the model's dropout; None takes the
            recipe's, `chain["samples"]`. The draws are the same at every call.

        Returns:
          float32 [b, h, w, classes] twice, at the images' size: the mean of the probabilities over
          the passes, whose largest is what `segment` answers where the recipe samples as often,
          and their variance; see `jaxseg.predict.make_moments`.

        Raises:
          UserError: `images` has another shape or dtype, `samples` is below 1, or the model has no
            dropout.
        """
        if samples is None:
            samples = self.chain.get("samples", 0)
        if samples < 1:
            raise UserError(
                f"samples={samples}: give the number of forward passes, as uncertainty(images, "
                "samples=20), or set config.predict.samples"
            )
        images, size = self._fitted(images)
        return self._moments(samples)(self.variables, images, size)

    def _fitted(self, images: Any) -> tuple[Any, tuple[int, int]]:
        """The images scaled to fit `base_size`, and the size that they had."""
        images = _checked(images)
        size = images.shape[1:3]
        scaled = plan.scaled_size(size, base_size=self.base_size)
        if scaled != size:  # on the host, by the code that resizes for evaluation
            images = np.stack([crop.resize_image(x, scaled) for x in np.asarray(images)])
        return images, size

    @functools.cached_property
    def _logits(self):
        return jax.jit(predict.forward(self.model, self.dtype))

    @functools.cached_property
    def _predict(self):
        return predict.make_predict(self.model, self.chain, dtype=self.dtype)

    @functools.cached_property
    def _probabilities(self):
        function = predict.make_probabilities(self.model, self.chain, dtype=self.dtype)
        return jax.jit(function, static_argnums=2)

    @functools.cached_property
    def _large(self):
        return large.make_segment(self.model, self.chain, len(self.classes), dtype=self.dtype)

    @functools.cached_property
    def _moments(self):
        @functools.cache
        def moments(samples):
            function = predict.make_moments(self.model, self.chain, samples, dtype=self.dtype)
            return jax.jit(function, static_argnums=2)

        return moments


def _checked(images: Any) -> Any:
    dtype, shape = getattr(images, "dtype", type(images).__name__), np.shape(images)
    if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
        hint = "; put one image in a batch by image[None]" if len(shape) == 3 else ""
        raise UserError(
            f"images: {dtype} {list(shape)}; expected uint8 RGB [b, h, w, 3], values 0..255{hint}"
        )
    return images


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
        'deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024' (see `jaxseg.zoo`).
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
    if name.partition(":")[0].endswith(".py"):
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
        checkpoint = download.fetch(zoo.entry(name)["weights"])
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
    if not isinstance(weights, Mapping) and os.path.isfile(weights):
        weights = torch_file.read(weights)
    if isinstance(weights, Mapping):
        description = data.get(config.data)
        classes, palette = description.classes, description.palette
        model = models.get(config.model, num_classes=len(classes))
        names = convert.torch_names(model)
        variables = convert.from_torch(weights, abstract_variables(model, _SIZE), names)
    else:
        variables, meta = checkpoint_lib.load_model(weights, step=step)
        # The classes that the weights were trained for: the data need not be there any more.
        classes, palette = meta["classes"], meta["palette"]
        model = models.get(config.model, num_classes=len(classes))
        wanted = trees.named_leaves(abstract_variables(model, _SIZE))
        differences = trees.mismatches(wanted, trees.named_leaves(variables))
        if differences:
            raise UserError(
                f"{os.fspath(weights)}: the checkpoint is of another model, {len(differences)} "
                f"arrays differ:{trees.listed(differences)}"
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
