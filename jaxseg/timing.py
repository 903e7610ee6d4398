"""How long compiled work takes, and how fast the machine could go."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

WARM_UP = 3  # calls that are not counted
BUDGET = 10.0  # seconds that are measured where the number of calls is not given
BLOCK = 0.2  # seconds between two looks at the clock, at least: a look waits for the device
LEAST_BLOCKS = 5


class Times(NamedTuple):
    """Milliseconds per call over the blocks of calls that were timed, and how many calls."""

    least: float
    median: float
    calls: int


def per_call(run: Callable[[], Any], calls: int = 0) -> Times:
    """Times `run`, which enqueues work and returns arrays of its result.

    Calls are enqueued in blocks and waited for at a block's end, as a training loop does, so that
    the host's part is hidden behind the device's where that is possible.

    Args:
      run: called again and again.
      calls: how many to time; 0 takes what fits into `BUDGET`, and `LEAST_BLOCKS` at least.
    """
    for _ in range(WARM_UP - 1):
        jax.block_until_ready(run())
    began = time.perf_counter()
    jax.block_until_ready(run())
    took = time.perf_counter() - began
    block = max(1, math.ceil(BLOCK / took))
    if calls:
        block = min(block, max(1, calls // LEAST_BLOCKS))
    blocks = math.ceil(calls / block) if calls else max(LEAST_BLOCKS, int(BUDGET / took / block))
    times = []
    for _ in range(blocks):
        began = time.perf_counter()
        for _ in range(block):
            result = run()
        jax.block_until_ready(result)
        times.append(1e3 * (time.perf_counter() - began) / block)
    return Times(min(times), statistics.median(times), blocks * block)


def peaks(dtype: Any, so_far: Mapping[str, float]) -> dict[str, float]:
    """What one device does at its best, measured: 'flops' and 'bandwidth'.

    FLOP/s in a product of large square matrices in `dtype`; bytes per second, read and written, in
    the scaling of an array that no cache holds. Never below those of `so_far`, an earlier call's.
    """
    small = jax.default_backend() == "cpu"
    size, length = (1024, 2**25) if small else (8192, 2**28)
    square = jax.random.normal(jax.random.key(0), (size, size), dtype)
    product = jax.jit(jnp.matmul)
    array = jnp.ones(length, jnp.float32)
    scale = jax.jit(lambda x: 1.5 * x)
    found = {
        "flops": 2e3 * size**3 / per_call(lambda: product(square, square), calls=20).least,
        "bandwidth": 2e3 * array.nbytes / per_call(lambda: scale(array), calls=20).least,
    }
    return {name: max(value, so_far.get(name, 0.0)) for name, value in found.items()}
