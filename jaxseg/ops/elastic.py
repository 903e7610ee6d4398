"""Elastic deformation of training images and their labels on the device.

Ronneberger et al. 2015, arXiv:1505.04597, section 3.1: random displacement vectors on a coarse 3x3
grid, each component normal with a spread of 10 pixels, become a displacement of every pixel by
bicubic interpolation.
"""

import jax
import jax.numpy as jnp
import numpy as np

GRID = (3, 3)


def draw(key: jax.Array, batch_size: int, spread: float = 10.0) -> jax.Array:
    """Random displacements on the coarse grid, pixels (down, right): float32 [b, 3, 3, 2].

    Those of image i depend on (key, i) only.
    """
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(batch_size))
    return spread * jax.vmap(lambda k: jax.random.normal(k, (*GRID, 2)))(keys)


def field(coarse: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Displacements [b, gh, gw, 2] of a grid that spans the image -> of every pixel, [b, *size, 2].

    Bicubic: the outer nodes lie on the outermost pixels and are repeated beyond. The field takes
    the given values at the nodes, and has a continuous derivative between them.
    """
    rows, cols = (_cubic(g, n) for g, n in zip(coarse.shape[1:3], size, strict=True))
    precise = jax.lax.Precision.HIGHEST
    fine = jnp.einsum("yg,bghd->byhd", rows, coarse, precision=precise)
    return jnp.einsum("xh,byhd->byxd", cols, fine, precision=precise)


def _cubic(nodes: int, n: int) -> np.ndarray:
    """Cubic convolution (Keys 1981, doi:10.1109/TASSP.1981.1163711, a = -1/2) as [n, nodes]."""
    position = np.arange(n) * ((nodes - 1) / max(n - 1, 1))
    low = np.floor(position).astype(int)
    matrix = np.zeros((n, nodes))
    for node in range(-1, 3):
        t = np.abs(position - (low + node))
        near = (1.5 * t - 2.5) * t**2 + 1
        far = ((-0.5 * t + 2.5) * t - 4) * t + 2
        weight = np.where(t <= 1, near, np.where(t < 2, far, 0))
        np.add.at(matrix, (np.arange(n), np.clip(low + node, 0, nodes - 1)), weight)
    return matrix.astype(np.float32)


def apply(
    images: jax.Array, labels: jax.Array, displacement: jax.Array, ignore_label: int
) -> tuple[jax.Array, jax.Array]:
    """Gives each pixel what lies at its own place plus its displacement.

    Images are interpolated bilinearly and go on beyond their border as their mirror image (as
    U-Net's tiles do). Labels are those of the nearest pixel; beyond the border they are ignored:
    what is seen there was made up.

    Args:
      images: uint8 or float [b, h, w, 3].
      labels: int32 [b, h, w].
      displacement: float32 [b, h, w, 2], pixels (down, right).
      ignore_label: label of pixels that do not count.

    Returns:
      (float32 [b, h, w, 3], int32 [b, h, w]).
    """
    h, w = labels.shape[1:]
    y = jnp.arange(h, dtype=jnp.float32)[:, None] + displacement[..., 0]  # [b, h, w]
    x = jnp.arange(w, dtype=jnp.float32) + displacement[..., 1]

    row, col = jnp.round(y).astype(jnp.int32), jnp.round(x).astype(jnp.int32)
    inside = (row >= 0) & (row < h) & (col >= 0) & (col < w)
    labels = jnp.where(inside, _take(labels, row, col), ignore_label)

    y, x = _mirror(y, h), _mirror(x, w)
    top, left = jnp.floor(y), jnp.floor(x)
    down, right = (y - top)[..., None], (x - left)[..., None]
    row, col = top.astype(jnp.int32), left.astype(jnp.int32)
    upper = _take(images, row, col) * (1 - right) + _take(images, row, col + 1) * right
    lower = _take(images, row + 1, col) * (1 - right) + _take(images, row + 1, col + 1) * right
    return upper * (1 - down) + lower * down, labels


def _mirror(position: jax.Array, n: int) -> jax.Array:
    """A position anywhere -> where it is in 0..n-1, reflected at the outermost pixels' centres."""
    period = max(2 * (n - 1), 1)
    position = jnp.mod(position, period)
    return jnp.clip(jnp.minimum(position, period - position), 0, n - 1)


def _take(x: jax.Array, row: jax.Array, col: jax.Array) -> jax.Array:
    """Each image's pixels at [b, h, w] rows and columns, the nearest for those outside."""
    return jax.vmap(lambda x, row, col: x.at[row, col].get(mode="clip"))(x, row, col)


def deform(
    key: jax.Array, images: jax.Array, labels: jax.Array, spread: float, ignore_label: int
) -> tuple[jax.Array, jax.Array]:
    """A random deformation of each image and its labels; see `apply` for shapes and dtypes.

    Args:
      key: that of image i is (key, i), wherever it is computed.
      spread: standard deviation of the displacements on the coarse grid, pixels; the paper has 10
        for images of 512x512.
    """
    displacement = field(draw(key, len(labels), spread), labels.shape[1:])
    return apply(images, labels, displacement, ignore_label)
