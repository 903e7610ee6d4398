"""Cross-entropy and labels at image size: logits enlarged whole against band by band.

    PYTHONPATH=. python benchmarks/full_resolution.py [--batch 8] [--size 512 512] [--classes 150]

For each it prints milliseconds (the least of several calls, the two forms in turn) and the compiled
program's temporary memory: of cross-entropy's value and gradient from logits at a quarter of the
size; of the labels that have the largest score; and of these with their probability, as evaluation
wants them, where the pictures are half as large as the labels. The defaults suit the device.
"""

import argparse
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg import links, losses
from jaxseg.ops import bands

STRIDE = 4


def cross_entropy(enlarge, logits, labels):
    """Value and gradient of the mean over the pixels."""

    def loss(logits):
        scores = enlarge(bands.Enlarged(logits, labels.shape[1:]))
        return jnp.divide(*losses.cross_entropy(scores, labels, ignore_label=255))

    return jax.value_and_grad(loss)(logits)


def labels_of(enlarge, logits, labels):
    return links.to_labels(enlarge(bands.Enlarged(logits, labels.shape[1:])))


def confidence(enlarge, logits, labels):
    small = tuple(n // 2 for n in labels.shape[1:])
    scores = bands.Enlarged(bands.Enlarged(logits, small), labels.shape[1:])
    return links.to_labels_and_highest(enlarge(bands.Combined(jax.nn.softmax, (scores,))))


FORMS = {"whole": bands.whole, "in bands": lambda scores: scores}
TASKS = (cross_entropy, labels_of, confidence)


def compiled_forms(task, logits, labels) -> dict:
    """The programs of the two forms."""
    return {
        name: jax.jit(functools.partial(task, enlarge)).lower(logits, labels).compile()
        for name, enlarge in FORMS.items()
    }


def least_ms(programs: dict, arguments: tuple, repeats: int) -> dict[str, float]:
    """Least milliseconds of each, called in turn."""
    times = {name: [] for name in programs}
    for _ in range(repeats + 1):
        for name, program in programs.items():
            began = time.perf_counter()
            jax.block_until_ready(program(*arguments))
            times[name].append(1e3 * (time.perf_counter() - began))
    return {name: min(values[1:]) for name, values in times.items()}  # the first one warms up


def main() -> None:
    device = jax.devices()[0]
    on_cpu = device.platform == "cpu"
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batch", type=int, default=2 if on_cpu else 8)
    parser.add_argument("--size", type=int, nargs=2, default=(256, 256) if on_cpu else (512, 512))
    parser.add_argument("--classes", type=int, nargs="+", default=(19, 150))
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    dtype = jnp.float32 if on_cpu else jnp.bfloat16
    rng = np.random.default_rng(0)
    coarse = [-(-n // STRIDE) for n in options.size]
    print(f"{device.device_kind}, jax {jax.__version__}, {np.dtype(dtype).name} logits")
    print(f"batch {options.batch}, {coarse[0]}x{coarse[1]} -> {'x'.join(map(str, options.size))}")
    print(f"{'':14} {'classes':>7} {'ms whole':>9} {'in bands':>9} {'MB whole':>9} {'in bands':>9}")
    for classes in options.classes:
        shape = options.batch, *coarse, classes
        logits = jnp.asarray(rng.normal(0, 3, shape), dtype)
        labels = rng.integers(0, classes, (options.batch, *options.size))
        labels = jnp.asarray(np.where(rng.random(labels.shape) < 0.1, 255, labels), jnp.int32)
        for task in TASKS:
            programs = compiled_forms(task, logits, labels)
            ms = least_ms(programs, (logits, labels), options.repeats)
            mb = [p.memory_analysis().temp_size_in_bytes / 1e6 for p in programs.values()]
            numbers = " ".join(f"{x:9.1f}" for x in (*ms.values(), *mb))
            print(f"{task.__name__:14} {classes:7} {numbers}")


if __name__ == "__main__":
    main()
