"""Reading a feature map at points that need not be pixel centres."""

import jax
import jax.numpy as jnp


def sample(
    features: jax.Array,
    xy: jax.Array,
    method: str = "bilinear",
    align_corners: bool = False,
) -> jax.Array:
    """The features [b, h, w, c] at the points `xy` [b, n, 2]: [b, n, c], in the features' dtype.

    A point is (x, y) in units of the map's width and height. As in `ops.resize`, (0, 0) and (1, 1)
    are the outer corners of the corner pixels, or their centres where `align_corners`; so a point
    is the same place in maps of every size. "bilinear" takes the map to be zero outside, as
    PyTorch's `grid_sample` does with padding_mode="zeros". "nearest" takes the pixel that holds the
    point, zero for points outside.

    Raises:
      ValueError: another method.
    """
    if method not in ("bilinear", "nearest"):
        raise ValueError(f"sample: no method {method!r}")
    b, h, w, c = features.shape
    size = jnp.array([w, h], xy.dtype)
    position = xy * (size - 1) if align_corners else xy * size - 0.5  # of pixel centres
    if method == "nearest":
        # Pixels end half-way to the next centre; the map's far edge still belongs to the last one.
        pixel = jnp.where(xy == 1, size - 1, jnp.floor(position + 0.5))
        return _read(features, pixel.astype(jnp.int32))
    low = jnp.floor(position)
    high_share = position - low
    corners, shares = [], []
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        step = jnp.array([dx, dy])
        corners.append(low.astype(jnp.int32) + step)
        shares.append(jnp.where(step == 1, high_share, 1 - high_share).prod(-1))
    # Summed in float32 at least, on the way back too, where the gather becomes a scatter that adds.
    exact = features.astype(jnp.promote_types(features.dtype, jnp.float32))
    values = _read(exact, jnp.concatenate(corners, 1)).reshape(b, 4, -1, c)
    # Term by term: as a sum over an axis of four, XLA:CPU takes hundreds of times as long.
    terms = (values[:, i] * share[..., None] for i, share in enumerate(shares))
    return sum(terms).astype(features.dtype)


def _read(features: jax.Array, pixels: jax.Array) -> jax.Array:
    """The features [b, h, w, c] of `pixels` int32 [b, n, 2], (x, y), or zeros outside the map."""
    b, h, w, c = features.shape
    inside = ((pixels >= 0) & (pixels < jnp.array([w, h]))).all(-1, keepdims=True)  # [b, n, 1]
    x, y = jnp.moveaxis(jnp.where(inside, pixels, 0), -1, 0)
    # By vmap an image looks only at itself: a batch that is split over devices stays where it is.
    rows = jax.vmap(lambda image, index: image.at[index].get(mode="promise_in_bounds"))(
        features.reshape(b, h * w, c), y * w + x
    )
    return jnp.where(inside, rows, 0)
