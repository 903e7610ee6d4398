"""Maps of scores that need not exist whole: a few rows are made at a time, and used up at once.

Scores of every class at the size of an image are the largest array of all: those of 8 images of
512x512 pixels and 150 classes take 1.3 GB in float32, and a loss written plainly holds three such
arrays. What is wanted of them is small: a sum, or a label per pixel. So they are only described
(`Enlarged`, `Combined`) and `total` and `each` go over them by bands of rows, which stay in the
cache. A batch that is split over devices stays split: every device makes the rows of its images.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim

from jaxseg.ops.resize import mix_rows, resize, row_taps, row_window

# Numbers of a band, 4 bytes each: what a CPU's cache holds, and elsewhere enough work to hide what
# it costs to start a kernel.
CPU_BAND = 2**17
BAND = 2**24
IMAGES = 8  # of a batch, that a device usually holds; a band of a larger batch is larger
static_field = functools.partial(dataclasses.field, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Enlarged:
    """`resize(scores, size)`, bilinear and in float32, of any scores.

    Attributes:
      scores: [b, h, w, C], of any float dtype, or such a description.
      size: (H, W).
      align_corners: as in `resize`.
    """

    scores: Any
    size: tuple[int, int] = static_field()
    align_corners: bool = static_field(default=False)

    @property
    def shape(self) -> tuple[int, ...]:
        b, _, _, c = self.scores.shape
        return (b, *self.size, c)

    def whole(self) -> jax.Array:
        coarse = whole(self.scores).astype(jnp.float32)
        return resize(coarse, self.size, align_corners=self.align_corners)

    def rows(self, start: jax.Array, number: int) -> jax.Array:
        first, needed = self.window(start, number)
        return self.of_window(rows(self.scores, first, needed), first, start, number)

    def window(self, start: jax.Array, number: int) -> tuple[jax.Array, int]:
        """The first row and the number of rows of `scores` that those rows are made of."""
        return row_window(self.scores.shape[1], self.size[0], start, number, self.align_corners)

    def of_window(
        self, window: jax.Array, first: jax.Array, start: jax.Array, number: int
    ) -> jax.Array:
        """`rows(start, number)`, of the rows of `scores` from `first` on."""
        window = window.astype(jnp.float32)
        if self.scores.shape[1] != self.size[0]:
            heights = self.scores.shape[1], self.size[0]
            low, high, weight = row_taps(*heights, start, number, self.align_corners)
            window = mix_rows(window, low - first, high - first, weight)
        return resize(window, (number, self.size[1]), align_corners=self.align_corners)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Combined:
    """`function(*scores)` of scores of one size, where each row depends on the same row of each."""

    function: Callable[..., jax.Array] = static_field()
    scores: tuple[Any, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.scores[0].shape

    def whole(self) -> jax.Array:
        return self.function(*map(whole, self.scores))

    def rows(self, start: jax.Array, number: int) -> jax.Array:
        return self.function(*(rows(x, start, number) for x in self.scores))


# [b, H, W, C]: an array, or the description of one
Scores = jax.Array | Enlarged | Combined


def whole(scores: Scores) -> jax.Array:
    """The scores as an array; an array as it is."""
    return scores.whole() if isinstance(scores, Enlarged | Combined) else scores


def rows(scores: Scores, start: jax.Array | int, number: int) -> jax.Array:
    """Rows `start` to `start + number` of the scores, [b, number, W, C]; `start` may be traced."""
    if isinstance(scores, Enlarged | Combined):
        return scores.rows(start, number)
    return jax.lax.dynamic_slice_in_dim(scores, start, number, axis=1)


def each(function: Callable[..., Any], scores: Scores, *maps: jax.Array) -> Any:
    """`function(scores, *maps)`, which says something of each pixel, band by band.

    Args:
      function: (scores [b, r, W, C], maps [b, r, W]) -> maps [b, r, W, ...], a tree of them.
      scores: of size [b, H, W, C]; an array needs no bands.
      *maps: [b, H, W].

    Returns:
      What `function` returns, with H in the place of r. It has no gradient.
    """
    scores, maps = jax.lax.stop_gradient((scores, maps))
    if not isinstance(scores, Enlarged | Combined) or any(map(is_symbolic_dim, scores.shape)):
        return function(whole(scores), *maps)
    b, height, _, _ = scores.shape

    def in_bands(band, scores, *maps):
        number = _rows_of_a_band(scores.shape, band)

        def of_band(start):
            return function(*(rows(x, start, number) for x in (scores, *maps)))

        def body(found, start):
            def update(x, part):
                return jax.lax.dynamic_update_slice_in_dim(x, part, start, axis=1)

            return jax.tree.map(update, found, of_band(start)), None

        like = jax.eval_shape(of_band, 0)
        found = jax.tree.map(lambda x: jnp.zeros((b, height, *x.shape[2:]), x.dtype), like)
        return jax.lax.scan(body, found, _starts(height, number))[0]

    return _by_platform(in_bands, scores, *maps)


def total(
    function: Callable[..., jax.Array], scores: jax.Array | Enlarged, weight: jax.Array, *maps: Any
) -> jax.Array:
    """sum(weight * function(scores, *maps)), band by band; float32 [].

    The gradient, that of the scores alone, is made along with the sum as the bands go by: nothing
    of their size is kept, and nothing is computed twice.

    Args:
      function: (scores [b, r, W, C], maps [b, r, W]) -> what each pixel costs, [b, r, W].
      scores: of size [b, H, W, C], an enlarged array; any other array needs no bands.
      weight: float or bool [b, H, W].
      *maps: [b, H, W].
    """
    if not isinstance(scores, Enlarged):
        return jnp.sum(weight * function(scores, *maps))
    fixed = jax.lax.stop_gradient((scores, weight, *maps))
    value, gradient = _by_platform(functools.partial(_sum_and_gradient, function), *fixed)
    return _with_gradient(scores.scores, value, gradient)


def _sum_and_gradient(function, band, scores, weight, *maps):
    coarse, height = scores.scores, scores.shape[1]
    number = _rows_of_a_band(scores.shape, band)

    def body(sums, start):
        value, gradient, done = sums
        first, needed = scores.window(start, number)
        w, *others = (rows(x, start, number) for x in (weight, *maps))
        fresh = start + jnp.arange(number) >= done  # the last band goes back over some rows

        def sum_of(window):
            part = scores.of_window(window, first, start, number)
            # Of each image: the sum over a batch that is split waits until all bands are done.
            return jnp.sum(jnp.where(fresh[:, None], w, 0) * function(part, *others), (1, 2))

        window = rows(coarse, first, needed).astype(jnp.float32)
        part, pull_back = jax.vjp(sum_of, window)
        update = rows(gradient, first, needed) + pull_back(jnp.ones_like(part))[0]
        gradient = jax.lax.dynamic_update_slice_in_dim(gradient, update, first, axis=1)
        return (value + part, gradient, start + number), None

    zeros = jnp.zeros(coarse.shape[0], jnp.float32), jnp.zeros(coarse.shape, jnp.float32)
    sums, _ = jax.lax.scan(body, (*zeros, jnp.int32(0)), _starts(height, number))
    return jnp.sum(sums[0]), sums[1]


@jax.custom_vjp
def _with_gradient(x, value, gradient):
    """`value`, as a function of `x` that has that gradient."""
    return value


def _forward(x, value, gradient):
    return value, (gradient, jnp.zeros(0, x.dtype))


def _backward(residuals, g):
    gradient, like = residuals
    return (g * gradient).astype(like.dtype), None, None


_with_gradient.defvjp(_forward, _backward)


def _by_platform(function: Callable, *operands: Any) -> Any:
    """`function(band, *operands)` with the band that suits the device."""
    return jax.lax.platform_dependent(
        *operands,
        cpu=functools.partial(function, CPU_BAND),
        default=functools.partial(function, BAND),
    )


def _rows_of_a_band(shape: tuple[int, ...], band: int) -> int:
    """How many rows of [b, H, W, C] are made at once, for about `band` numbers."""
    b, height, width, classes = shape
    bands = -(-min(b, IMAGES) * height * width * classes // band)
    return -(-height // min(bands, height))


def _starts(height: int, number: int) -> jax.Array:
    """Where bands begin; the last one ends with the map."""
    bands = jnp.arange(-(-height // number), dtype=jnp.int32)
    return jnp.minimum(bands * number, height - number)
