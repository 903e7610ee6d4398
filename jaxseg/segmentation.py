"""A model with its weights, and the recipe that turns images into labels."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxseg import fold, large, predict
from jaxseg.errors import UserError


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
        images, _ = _checked(images)
        return self._logits(self.variables, images)

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
        images, size = _checked(images)
        if large.is_large(size, len(self.classes)):
            return np.stack([self._large(np.asarray(x), size) for x in images])
        return self._predict(images, size)

    def probabilities(self, images: np.ndarray | jax.Array) -> jax.Array:
        """What `segment` takes the largest of: how probable each class is, by the same chain.

        Args:
          images: uint8 RGB [b, h, w, 3].

        Returns:
          float32 [b, h, w, classes], at the images' size; they sum to 1.

        Raises:
          UserError: `images` has another shape or dtype.
        """
        images, size = _checked(images)
        return self._probabilities(images, size)

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
        images, size = _checked(images)
        return self._moments(samples)(images, size)

    @functools.cached_property
    def _logits(self):
        return jax.jit(predict.whole(predict.forward(self.model, self.dtype)))

    @functools.cached_property
    def _folded(self):
        return fold.folded(self.model, self.variables)

    @functools.cached_property
    def _predict(self):
        model, variables = self._folded
        function = predict.make_predict(model, self.chain, **self._how)
        return functools.partial(function, variables)

    @functools.cached_property
    def _probabilities(self):
        model, variables = self._folded
        function = predict.make_probabilities(model, self.chain, **self._how)
        return functools.partial(jax.jit(function, static_argnums=2), variables)

    @functools.cached_property
    def _large(self):
        model, variables = self._folded
        function = large.make_segment(model, self.chain, len(self.classes), **self._how)
        return functools.partial(function, variables)

    @functools.cached_property
    def _moments(self):
        model, variables = self._folded

        @functools.cache
        def moments(samples):
            function = predict.make_moments(model, self.chain, samples, **self._how)
            return functools.partial(jax.jit(function, static_argnums=2), variables)

        return moments

    @property
    def _how(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "base_size": self.base_size}


def _checked(images: Any) -> tuple[Any, tuple[int, int]]:
    """The images, and their (height, width)."""
    dtype, shape = getattr(images, "dtype", type(images).__name__), np.shape(images)
    if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
        hint = "; put one image in a batch by image[None]" if len(shape) == 3 else ""
        raise UserError(
            f"images: {dtype} {list(shape)}; expected uint8 RGB [b, h, w, 3], values 0..255{hint}"
        )
    return images, shape[1:3]
