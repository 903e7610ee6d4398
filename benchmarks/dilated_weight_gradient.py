"""Times the weight gradient of a dilated 3x3 convolution: the compiler's form against jaxseg's two.

    python benchmarks/dilated_weight_gradient.py [--size 64 128] [--channels 256] [--batch 8]

Prints milliseconds and ratios per dilation rate. XLA:GPU compiles the plain form into a forward
convolution with a filter as large as the image (jax-ml/jax#31662); `ops/conv.py` has two forms that
stay native, and changes from one to the other at SPACE_TO_BATCH_RATE.
"""

import argparse
import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.ops import conv


def median_ms(function, *arguments, repeats: int) -> float:
    """Median milliseconds of a compiled function, after two calls to warm up."""
    for _ in range(2):
        jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, nargs=2, default=(64, 128), help="height and width")
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rates", type=int, nargs="+", default=(2, 4, 6, 12, 18, 24, 36))
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    device = jax.devices()[0]
    dtype = jnp.float32 if device.platform == "cpu" else jnp.bfloat16
    rng = np.random.default_rng(0)
    shape = (options.batch, *options.size, options.channels)
    x = jnp.asarray(rng.normal(size=shape), dtype)
    g = jnp.asarray(rng.normal(size=shape), dtype)
    kernel = jnp.asarray(rng.normal(size=(3, 3, options.channels, options.channels)), dtype)
    print(f"{device.device_kind}, jax {jax.__version__}, {dtype.__name__}, x {shape}")
    print(f"{'rate':>4}  {'plain':>9}  {'phases':>9}  {'taps':>9}  plain/phases  plain/taps")

    def plain(x, kernel, g, geometry):
        return jax.vjp(lambda k: conv.conv_plain(x, k, geometry), kernel)[1](g)[0]

    for rate in options.rates:
        geometry = ((1, 1), (rate, rate), (rate, rate))
        ms = {}
        for form in (plain, conv.kernel_gradient_by_phases, conv.kernel_gradient_by_taps):
            function = jax.jit(functools.partial(form, geometry=geometry))
            ms[form] = median_ms(function, x, kernel, g, repeats=options.repeats)
        base, phases, taps = ms.values()
        print(
            f"{rate:>4}  {base:>6.2f} ms  {phases:>6.2f} ms  {taps:>6.2f} ms"
            f"  {base / phases:>12.2f}  {base / taps:>10.2f}"
        )


if __name__ == "__main__":
    main()
