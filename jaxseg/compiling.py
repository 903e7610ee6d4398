"""Compiling a program ahead of its first call, and saying what that took."""

import contextlib
import functools
import time
from collections.abc import Iterator

import jax
from jax.sharding import Mesh

from jaxseg.console import duration, say
from jaxseg.sharding import replicated

_HIT = "/jax/compilation_cache/cache_hits"  # jax's name for a program found in the cache on disk

# Where a chip has fewer than eight images, XLA's TPU compiler puts a part of their width into the
# batch, and takes it out again around paddings, dilation and resizing, which costs more than
# convolutions gain: benchmarks/RESULTS.md.
_OPTIONS = {
    "tpu": {
        "xla_tpu_run_space_to_batch": False,
        "xla_tpu_run_space_to_batch_on_new_platforms": False,
    }
}


@functools.cache
def training_options(mesh: Mesh) -> dict[str, bool]:
    """What the compiler of these devices is told about a training step, for `jax.jit`.

    They are options of its own, which come and go: {} where it does not know them.
    """
    options = _OPTIONS.get(mesh.devices.flat[0].platform, {})
    if options:
        whole = replicated(mesh)
        trial = jax.jit(lambda x: x, in_shardings=whole, out_shardings=whole)
        try:
            trial.lower(jax.ShapeDtypeStruct((), "float32")).compile(options)
        except jax.errors.JaxRuntimeError as error:
            if "No such compile option" not in str(error):
                raise
            return {}
    return options


def compile_lowered(lowered: jax.stages.Lowered, what: str) -> jax.stages.Compiled:
    """`lowered.compile()`, and a line: how long it took, and the memory that `what` needs."""
    hits = []

    def listen(event: str, **_) -> None:
        if event == _HIT:
            hits.append(event)

    began = time.monotonic()
    jax.monitoring.register_event_listener(listen)
    try:
        compiled = lowered.compile()
    finally:
        jax.monitoring.unregister_event_listener(listen)
    took = duration(time.monotonic() - began)
    done = f"compiled {what} in {took}" if not hits else f"read {what} from the cache in {took}"
    say(f"{done}; it needs {needed_bytes(compiled) / 2**20:,.0f} MiB on each device")
    return compiled


@contextlib.contextmanager
def without_cache() -> Iterator[None]:
    """While this lasts, no program is read from the cache on disk or written to it."""
    enabled = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)


def needed_bytes(compiled: jax.stages.Compiled) -> int:
    """Memory of one device while a program runs: arguments, results and what is in between."""
    memory = compiled.memory_analysis()
    own = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    return own - memory.alias_size_in_bytes  # donated arguments hold results
