"""Mean-field inference in a fully connected CRF.

Kraehenbuehl and Koltun 2011, "Efficient Inference in Fully Connected CRFs with Gaussian Edge
Potentials", arXiv:1210.5644.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.errors import UserError
from jaxseg.ops import permutohedral

METHODS = ("lattice", "exact")
DIMS = (2, 5)  # features of the smoothness and of the bilateral kernel
CORNERS = sum(d + 1 for d in DIMS)  # lattice vertices of a pixel
# Classes that a CPU filters together: rows of 8 are added by one instruction, the vertices of a
# group stay in its cache, and two groups keep two cores busy.
GROUP = 8

Width = float | jax.Array | Sequence[float]


def dense_crf(
    probabilities: jax.Array,
    image: jax.Array,
    *,
    iterations: int = 10,
    smooth_sxy: Width = 3.0,
    smooth_weight: float | jax.Array = 3.0,
    bilateral_sxy: Width = 67.0,
    bilateral_srgb: float | jax.Array = 3.0,
    bilateral_weight: float | jax.Array = 4.0,
    compatibility: jax.Array | None = None,
    method: str = "lattice",
) -> jax.Array:
    """Class probabilities that agree with the image's edges.

    The energy of a labelling x is a sum over pixels of -log(probability), with probabilities below
    1e-8 taken as that, and over pairs of pixels of compatibility[x_i, x_j] k(i, j), with

        k = smooth_weight k_s(position) + bilateral_weight k_b(position, colour),

    Gaussian kernels, each normalised from both sides: k(i, j) / sqrt(sum_m k(i, m) sum_m k(m, j)).
    Pixels are their own neighbours, as in the authors' code and in pydensecrf, whose marginals
    `method="lattice"` reproduces to 1e-4. The defaults are DeepLab's: the smoothness kernel as in
    Chen et al. 2016, arXiv:1606.00915, section 4.1, the other within the ranges searched there.

    Weights, widths and the compatibility may be traced: other values need no new compilation.
    Gradients reach the probabilities, the weights and the compatibility; to the image and to the
    widths they are zero.

    Args:
      probabilities: [b, h, w, C], C >= 2.
      image: [b, h, w, 3], 0 to 255, of any dtype.
      iterations: of the mean field; 0 returns the probabilities, normalised.
      smooth_sxy: the smoothness kernel's standard deviation in pixels, or a pair (x, y).
      smooth_weight: pydensecrf's `compat`.
      bilateral_sxy: as `smooth_sxy`, of the bilateral kernel.
      bilateral_srgb: its standard deviation in colour, in levels of 255.
      bilateral_weight: as `smooth_weight`.
      compatibility: [C, C], the cost of label l beside label m in row l; None is Potts', 1 but for
        equal labels.
      method: "lattice" filters on a permutohedral lattice, in time and memory linear in the number
        of pixels. "exact" takes every pair of pixels: for small images, or as a measure.

    Returns:
      float32 [b, h, w, C], the marginals.

    Raises:
      UserError: an argument out of its range, or shapes that do not belong together.
    """
    _check(probabilities, image, iterations, compatibility, method)
    widths = []
    for name, width in (("smooth_sxy", smooth_sxy), ("bilateral_sxy", bilateral_sxy)):
        pair = width if isinstance(width, Sequence) or np.ndim(width) else (width, width)
        if len(pair) != 2:
            raise UserError(f"dense_crf: {name}={width}: expected a number or a pair (x, y)")
        widths += [_width(name, w, max(image.shape[1:3])) for w in pair]
    widths.append(_width("bilateral_srgb", bilateral_srgb, 255))
    weights = jnp.stack([jnp.asarray(w, jnp.float32) for w in (smooth_weight, bilateral_weight)])
    if compatibility is not None:
        compatibility = jnp.asarray(compatibility, jnp.float32)
    return _dense_crf(
        jnp.asarray(probabilities), jnp.asarray(image), jnp.stack(widths), weights, compatibility,
        iterations=iterations, method=method,
    )  # fmt: skip


def _check(probabilities, image, iterations, compatibility, method):
    """Raises UserError for what needs no look at the values."""
    shape = tuple(probabilities.shape)
    if len(shape) != 4 or shape[-1] < 2 or 0 in shape:
        raise UserError(
            f"dense_crf: probabilities of shape {shape}: expected [b, h, w, classes] with two or "
            "more classes"
        )
    if tuple(image.shape) != (*shape[:3], 3):
        raise UserError(
            f"dense_crf: an image of shape {tuple(image.shape)} for probabilities of shape "
            f"{shape}: expected {(*shape[:3], 3)}; resize one of them"
        )
    if not isinstance(iterations, int | np.integer) or iterations < 0:
        raise UserError(f"dense_crf: iterations={iterations}: expected a whole number, 0 or more")
    if method not in METHODS:
        raise UserError(f"dense_crf: method={method!r}: expected one of {', '.join(METHODS)}")
    if compatibility is not None and tuple(np.shape(compatibility)) != (shape[-1],) * 2:
        raise UserError(
            f"dense_crf: compatibility of shape {tuple(np.shape(compatibility))} for {shape[-1]} "
            f"classes: expected {(shape[-1],) * 2}"
        )


def _width(name, value, extent):
    """A standard deviation as float32 [], checked where its value is known."""
    if np.ndim(value):
        raise UserError(f"dense_crf: {name}={value}: expected a number")
    # A cell number is at most 0.9 of the positions' and 1.1 of the colours' spread together.
    least = 2.5 * extent / permutohedral.MAX_CELL
    if not isinstance(value, jax.core.Tracer) and not least <= float(value) < np.inf:
        raise UserError(
            f"dense_crf: {name}={value}: expected a number above 0"
            + (f", for these images at least {least:.2g}" if float(value) > 0 else "")
        )
    return jnp.asarray(value, jnp.float32)


@functools.partial(jax.jit, static_argnames=("iterations", "method"))
def _dense_crf(probabilities, image, widths, weights, compatibility, *, iterations, method):
    b, h, w, c = probabilities.shape
    y, x = jnp.mgrid[:h, :w].astype(jnp.float32)
    place = jnp.broadcast_to(jnp.stack([x, y], -1).reshape(h * w, 2), (b, h * w, 2))
    colour = image.reshape(b, h * w, 3).astype(jnp.float32)
    widths = jax.lax.stop_gradient(widths)
    smooth = place / widths[:2]
    bilateral = jnp.concatenate([place / widths[2:4], colour / widths[4]], -1)
    features = jax.lax.stop_gradient((smooth, bilateral))
    unary = -jnp.log(jnp.maximum(probabilities.astype(jnp.float32).reshape(b, h * w, c), 1e-8))
    if not iterations:
        q = jax.nn.softmax(-unary)
    elif method == "exact":
        q = _mean_field(_exact(features), unary, weights, compatibility, iterations)
    else:
        lattice = permutohedral.build(features)
        q = _in_bucket(iterations, lattice, unary, weights, compatibility)
    return q.reshape(b, h, w, c)


def _mean_field(
    message: Callable[[jax.Array, jax.Array], jax.Array], unary, weights, compatibility, iterations
):
    """Algorithm 1 of the paper: the marginals [b, n, C] after some steps of parallel updates.

    `message(q, weights)` is the sum over pixels and kernels of k(i, j) q(j), [b, n, C].
    """

    # Steps hand on logits, not marginals: the compiler would repeat the reading of the message
    # for each pass that softmax makes over it.
    def step(logits, _):
        passed = message(jax.nn.softmax(logits), weights)
        if compatibility is None:
            # 1 - identity: the 1 adds the same to all classes.
            return passed - unary, None
        cost = jnp.einsum("bnm,lm->bnl", passed, compatibility, precision="highest")
        return -unary - cost, None

    logits, _ = jax.lax.scan(step, -unary, length=iterations)
    return jax.nn.softmax(logits)


def _capacities(pixels: int) -> tuple[int, ...]:
    """Numbers of lattice vertices to compile for; the last suffices for any image."""
    most = CORNERS * pixels
    if pixels < 8192:
        return (most,)
    return (pixels // 4, pixels // 2, pixels, 2 * pixels, most)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _in_bucket(iterations, lattice, *arguments):
    """`_on_lattice` with arrays for no more vertices than the fullest image of the batch needs."""
    bucket, branches = _branches(iterations, lattice)
    return jax.lax.switch(bucket, branches, *arguments)


def _branches(iterations, lattice):
    capacities = _capacities(lattice.vertices.shape[-1])
    # Of the whole batch: were it of each image, they would go through every branch.
    bucket = jnp.searchsorted(np.int32(capacities), lattice.count.max())
    return bucket, [
        functools.partial(_on_lattice, capacity, iterations, lattice) for capacity in capacities
    ]


def _in_bucket_forward(iterations, lattice, *arguments):
    return _in_bucket(iterations, lattice, *arguments), (lattice, arguments)


def _in_bucket_backward(iterations, residuals, g):
    # By computing again inside a branch: what a switch keeps for the way back is everything that
    # any of its branches would keep.
    lattice, arguments = residuals
    bucket, branches = _branches(iterations, lattice)
    back = [lambda g, *a, run=run: jax.vjp(run, *a)[1](g) for run in branches]
    return (None, *jax.lax.switch(bucket, back, g, *arguments))


_in_bucket.defvjp(_in_bucket_forward, _in_bucket_backward)


def _on_lattice(capacity, iterations, lattice, unary, weights, compatibility):
    """Mean field with both kernels on their lattices, of `capacity` vertices at most."""
    near = permutohedral.neighbours(lattice, capacity)
    # What the loops run over in front, once: else each iteration would lay it out anew.
    vertices, shares = (jnp.moveaxis(x, 1, 0) for x in (lattice.vertices, lattice.weights))
    split = DIMS[0] + 1
    parts = slice(None, split), slice(split, None)

    def on_vertices(scale, x, unroll=False):
        total = permutohedral.splat(vertices, scale, x, capacity, unroll)
        return permutohedral.blur(near, total, unroll)

    ones = on_vertices(shares, jnp.ones((*unary.shape[:2], 1)))
    norms = [permutohedral.slice_at(vertices[p], shares[p], ones)[..., 0] for p in parts]
    scales = [shares[p] * jax.lax.rsqrt(n + 1e-20) for p, n in zip(parts, norms, strict=True)]
    scale = jnp.concatenate(scales)

    def in_groups(q, ours):
        c = q.shape[-1]
        q = jnp.pad(q, ((0, 0), (0, 0), (0, -c % GROUP)))
        groups = [on_vertices(scale, g) for g in jnp.split(q, q.shape[-1] // GROUP, -1)]
        return permutohedral.slice_at(vertices, ours, jnp.concatenate(groups, -1))[..., :c]

    def at_once(q, ours):
        return permutohedral.slice_at(vertices, ours, on_vertices(scale, q, unroll=True))

    def message(q, weights):
        ours = jnp.concatenate([s * w for s, w in zip(scales, weights, strict=True)])
        return jax.lax.platform_dependent(q, ours, cpu=in_groups, default=at_once)

    return _mean_field(message, unary, weights, compatibility, iterations)


def _exact(features):
    """`message` of `_mean_field` over all pairs of pixels, a few rows of the kernel at a time."""

    def apply(f, x):
        rows = max(1, 2**22 // f.shape[1])

        @jax.checkpoint
        def row(point):  # [b, d]: one pixel of each image
            distance = jnp.square(point[:, None] - f).sum(-1)
            return jnp.einsum("bn,bnc->bc", jnp.exp(-0.5 * distance), x, precision="highest")

        return jnp.moveaxis(jax.lax.map(row, jnp.moveaxis(f, 1, 0), batch_size=rows), 0, 1)

    norms = [jax.lax.rsqrt(apply(f, jnp.ones((*f.shape[:2], 1))) + 1e-20) for f in features]

    def message(q, weights):
        return sum(
            w * n * apply(f, n * q) for f, n, w in zip(features, norms, weights, strict=True)
        )

    return message
