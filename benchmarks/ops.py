"""The ops of `jaxseg.ops` against the plain XLA forms that they replace.

    PYTHONPATH=. python benchmarks/ops.py [--only dilated resize] [--batch 8 --size 64 128]
    PYTHONPATH=. python benchmarks/ops.py --compile-for h200        # or v5e:2x2: no device needed
    PYTHONPATH=. python benchmarks/ops.py --only dilated --rates 2 4 6 12 18 24 36

Times both forms in turn on the device at hand, one call of each after the other, and prints the
least and the median of each in milliseconds with the ratio of the least: how many times jaxseg's
form is faster. The rows named dilated also have the two forms of the weight gradient that
`jaxseg.ops.conv` chooses from. With `--compile-for`, what the target's compiler makes of them is
printed in place of times: temporary memory, and kernels (GPU) or estimated cycles (TPU).
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg import deviceless, hlo
from jaxseg.metrics.confusion import confusion_matrix
from jaxseg.ops import conv, points, pool, resize

Forms = dict[str, Callable]  # the first is XLA's
Case = tuple[Forms, list[jax.ShapeDtypeStruct]]
CLASSES = 19


def cases(batch: int, size: tuple[int, int], channels: int, rates: list[int], dtype) -> dict:
    """{name: (forms, shapes of their arguments)}; `size` is that of features at stride 8."""
    h, w = size

    def shape(*dims, of=dtype):
        return jax.ShapeDtypeStruct(dims, of)

    x, square = shape(batch, h, w, channels), shape(3, 3, channels, channels)
    found: dict[str, Case] = {}
    for rate in rates:
        geometry = ((1, 1), (rate, rate), (rate, rate))
        found[f"dilated rate {rate}: kernel gradient"] = (
            {
                "xla": gradient(lambda x, k, r=geometry: conv.conv_plain(x, k, r), 1),
                "jaxseg": gradient(lambda x, k, r=rate: conv.conv2d(x, k, 1, r, r), 1),
                "phases": functools.partial(conv.kernel_gradient_by_phases, geometry=geometry),
                "taps": functools.partial(conv.kernel_gradient_by_taps, geometry=geometry),
            },
            [x, square, x],
        )

    def both(name: str, xla: Callable, ours: Callable, *shapes, out, gradients=(0, 1)):
        """A function and the gradients of some of its arguments."""
        found[f"{name}: forward"] = {"xla": xla, "jaxseg": ours}, list(shapes)
        for i in gradients:
            which = ("input", "kernel")[i] if len(gradients) > 1 else "input"
            forms = {"xla": gradient(xla, i), "jaxseg": gradient(ours, i)}
            found[f"{name}: {which} gradient"] = forms, [*shapes, out]

    for k, s in ((2, 2), (4, 2)):
        both(
            f"transposed {k}x{k}/{s}",
            functools.partial(transposed_plain, strides=s),
            lambda x, kernel, s=s, k=k: conv.conv_transpose2d(x, kernel, s, (k - s) // 2),
            x,
            shape(k, k, channels // 2, channels),
            out=shape(batch, s * h, s * w, channels // 2),
        )
    both(
        "depthwise 3x3",
        lambda x, k: conv.conv_plain(x, k, ((1, 1), (1, 1), (1, 1)), channels),
        lambda x, k: conv.conv2d(x, k, 1, 1, 1, channels),
        x,
        shape(3, 3, 1, channels),
        out=x,
    )
    wide = shape(batch, h, w, 4 * channels)
    for a, b in ((x, wide), (wide, x)):
        both(
            f"pointwise {a.shape[-1]} to {b.shape[-1]}",
            lambda x, k: conv.conv_plain(x, k, ((1, 1), (0, 0), (1, 1))),
            conv.conv2d,
            a,
            shape(1, 1, a.shape[-1], b.shape[-1]),
            out=b,
        )
    image = shape(batch, 8 * h, 8 * w, 3)
    for k, features in ((7, 64), (3, 32)):
        both(
            f"stem {k}x{k}/2",
            lambda x, kernel, p=k // 2: conv.conv_plain(x, kernel, ((2, 2), (p, p), (1, 1))),
            lambda x, kernel, p=k // 2: conv.conv2d(x, kernel, 2, p),
            image,
            shape(k, k, 3, features),
            out=shape(batch, 4 * h, 4 * w, features),
        )
    stem, pooled = shape(batch, 4 * h, 4 * w, 64), shape(batch, 2 * h, 2 * w, 64)
    both("max-pool 3x3/2", max_pool_plain, pool.max_pool, stem, out=pooled, gradients=(0,))
    found["max-pool with indices 2x2"] = (
        {"xla": indices_plain, "jaxseg": pool.max_pool_indices},
        [stem],
    )
    places = shape(batch, 2 * h, 2 * w, 64, of=jnp.int32)
    found["unpooling 2x2"] = (
        {
            "xla": lambda x, i: unpool_plain(x, i, (4 * h, 4 * w)),
            "jaxseg": lambda x, i: pool.unpool(x, (i % 4).astype(jnp.uint8), (4 * h, 4 * w)),
        },
        [pooled, places],
    )
    for aligned in (False, True):
        corners = "aligned" if aligned else "half-pixel"
        both(
            f"resize x4 {corners}",
            functools.partial(resize_plain, size=(4 * h, 4 * w), align_corners=aligned),
            lambda x, a=aligned: resize.resize(x, (4 * h, 4 * w), align_corners=a),
            x,
            out=shape(batch, 4 * h, 4 * w, channels),
            gradients=(0,),
        )
    labels = shape(batch, 8 * h, 8 * w, of=jnp.int32)
    found[f"confusion matrix, {CLASSES} classes"] = (
        {
            "xla": confusion_plain,
            "jaxseg": lambda p, t: confusion_matrix(p % CLASSES, t % CLASSES, CLASSES, 255),
        },
        [labels, labels],
    )
    xy = shape(batch, 2048, 2, of=jnp.float32)
    both(
        "2048 points",
        sample_plain,
        lambda x, xy: points.sample(x, xy / (1 + jnp.abs(xy))),
        x,
        xy,
        out=shape(batch, 2048, channels),
        gradients=(0,),
    )
    return found


def gradient(f: Callable, argument: int) -> Callable:
    """`(*arguments, g) -> ` the gradient of one argument, that of the result being g."""

    def of(*arguments):
        *arguments, g = arguments

        def of_one(value):
            return f(*arguments[:argument], value, *arguments[argument + 1 :])

        return jax.vjp(of_one, arguments[argument])[1](g)[0]

    return of


def transposed_plain(x, kernel, strides):
    crop = (kernel.shape[0] - strides) // 2
    before = kernel.shape[0] - 1 - crop
    return jax.lax.conv_transpose(
        x, kernel, (strides, strides), [(before, before)] * 2, transpose_kernel=True
    )


def max_pool_plain(x):
    outside = ((0, 0), (1, 1), (1, 1), (0, 0))
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), outside)


def indices_plain(x):
    """The maximum of each 2x2 window and the pixel it is at, by a reduction of pairs."""
    place = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1) * x.shape[2]
    place += jax.lax.broadcasted_iota(jnp.int32, x.shape, 2)

    def larger(a, b):
        first = a[0] >= b[0]
        return jnp.where(first, a[0], b[0]), jnp.where(first, a[1], b[1])

    start = jnp.array(-jnp.inf, x.dtype), jnp.int32(-1)
    return jax.lax.reduce_window((x, place), start, larger, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def unpool_plain(x, places, size):
    """Each pixel scattered to its place in its 2x2 window."""
    b, h, w, c = x.shape
    i, y, x_, k = (jax.lax.broadcasted_iota(jnp.int32, x.shape, axis) for axis in range(4))
    places = places % 4
    return (
        jnp.zeros((b, *size, c), x.dtype).at[i, 2 * y + places // 2, 2 * x_ + places % 2, k].set(x)
    )


def resize_plain(x, size, align_corners):
    shape = (x.shape[0], *size, x.shape[3])
    if not align_corners:
        return jax.image.resize(x, shape, "bilinear", antialias=False)
    scale = jnp.array([(m - 1) / (n - 1) for n, m in zip(x.shape[1:3], size, strict=True)])
    shift = 0.5 - 0.5 * scale
    return jax.image.scale_and_translate(
        x, shape, (1, 2), scale, shift, "bilinear", antialias=False
    )


def confusion_plain(predictions, labels):
    pairs = labels % CLASSES * CLASSES + predictions % CLASSES
    return jnp.bincount(pairs.ravel(), length=CLASSES**2).reshape(CLASSES, CLASSES)


def sample_plain(x, xy):
    def one(image, xy):
        xy = xy / (1 + jnp.abs(xy))  # into the image
        size = jnp.array([image.shape[1], image.shape[0]])
        y, x = (xy * size - 0.5).T[::-1]
        channel = functools.partial(jax.scipy.ndimage.map_coordinates, order=1)
        return jax.vmap(lambda plane: channel(plane, [y, x]), 2, 1)(image)

    return jax.vmap(one)(x, xy)


def arrays(shapes: list[jax.ShapeDtypeStruct]) -> list[jax.Array]:
    rng = np.random.default_rng(0)
    return [
        jnp.asarray(
            rng.integers(0, 255, s.shape)
            if jnp.issubdtype(s.dtype, jnp.integer)
            else rng.normal(size=s.shape),
            s.dtype,
        )
        for s in shapes
    ]


def times(forms: Forms, shapes, rounds: int) -> dict[str, tuple[float, float]]:
    """(least, median) milliseconds of each form, the forms taking turns."""
    arguments = arrays(shapes)
    compiled = {name: jax.jit(form) for name, form in forms.items()}
    measured: dict[str, list[float]] = {name: [] for name in forms}
    for turn in range(rounds + 2):
        for name, form in compiled.items():
            began = time.perf_counter()
            jax.block_until_ready(form(*arguments))
            if turn > 1:  # the first two warm up
                measured[name].append(1e3 * (time.perf_counter() - began))
    return {name: (min(ms), statistics.median(ms)) for name, ms in measured.items()}


def programs(forms: Forms, shapes, target: str) -> dict[str, tuple[float, float]]:
    """(MB of temporaries, kernels or thousands of cycles) of each form on a target."""
    rows = {}
    for name, form in forms.items():
        compiled = deviceless.compile_function(form, *shapes, target=target)
        executed = hlo.instructions(compiled.as_text())
        cycles = sum(each.cycles for each in executed) / 1e3
        cost = cycles or sum(each.times for each in executed)
        rows[name] = (compiled.memory_analysis().temp_size_in_bytes / 1e6, cost)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", default=[], help="parts of the names of ops")
    parser.add_argument("--compile-for", metavar="TARGET", help="h100, h200, v5e:2x2, ...")
    parser.add_argument("--batch", type=int, help="default 8; on a CPU 1")
    parser.add_argument("--size", type=int, nargs=2, help="default 64 128; on a CPU 32 64")
    parser.add_argument("--channels", type=int, help="default 256; on a CPU 64")
    parser.add_argument("--rates", type=int, nargs="+", default=[2, 4, 12, 24])
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    target = options.compile_for
    small = not target and jax.default_backend() == "cpu"
    dtype = jnp.float32 if small else jnp.bfloat16
    table = cases(
        options.batch or (1 if small else 8),
        tuple(options.size or ((32, 64) if small else (64, 128))),
        options.channels or (64 if small else 256),
        options.rates,
        dtype,
    )
    device = target or jax.devices()[0].device_kind
    print(f"{device}, jax {jax.__version__}, {dtype.__name__}")
    unit = "MB temporary, kernels or k cycles" if target else "ms least (median)"
    print(f"{'op':<34} {unit}")
    for name, (forms, shapes) in table.items():
        if options.only and not any(part in name for part in options.only):
            continue
        rows = programs(forms, shapes, target) if target else times(forms, shapes, options.rounds)
        show = "{0:.1f}, {1:.0f}" if target else "{0:.3f} ({1:.3f})"
        parts = [f"{form} {show.format(*row)}" for form, row in rows.items()]
        ratio = "" if target else f"   {rows['xla'][0] / rows['jaxseg'][0]:.2f}x"
        print(f"{name:<34} {'   '.join(parts)}{ratio}", flush=True)


if __name__ == "__main__":
    main()
