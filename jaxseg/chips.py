"""What accelerators hold and can do, as their makers state it; nothing here is measured.

TPUs: the tables of key specifications at docs.cloud.google.com/tpu/docs/v5e, v5p and v6e (read in
November 2026). GPUs: NVIDIA's data sheets of the H100 SXM and the H200 SXM, dense rates; their
memory as the driver reports it, in `targets/`.

The clock of a TPU is what its peak implies with the multipliers that it has: four units of 128 x
128 (v5e), eight of them (v5p), and as many as four of 256 x 256 (v6e; its documentation counts two,
and its compiler more work in a cycle than these can do). With these clocks the compiler (libtpu
0.0.42) expects 88, 90 and 70 % of the peak of a product of matrices of 8192 x 8192, and 81, 72 and
81 % of the bandwidth of the scaling of 1 GB.

There is no TPU v4: `jaxseg.deviceless` gets it as single cores, which is not how JAX runs on it.
"""

import dataclasses
import os

from jaxseg.errors import UserError

# The part of a GPU's memory that JAX takes: docs.jax.dev, "GPU memory allocation".
FRACTION, DEFAULT = "XLA_CLIENT_MEM_FRACTION", "0.75"


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator, as one JAX device.

    Attributes:
      name: the maker's.
      memory: bytes.
      usable: bytes of them that programs and their data can have.
      flops: multiplications and additions per second in bfloat16.
      flops_float32: the same as a program in float32 has them: TF32 on GPUs. A TPU's compiler
        knows, and says it in cycles.
      bandwidth: bytes per second, to and from its memory.
      link: bytes per second that it can send to the chips of its host (GPU) or slice (TPU).
      clock: Hz of the cycles that a TPU's compiler counts; 0 for a GPU.
    """

    name: str
    memory: int
    usable: int
    flops: float
    flops_float32: float
    bandwidth: float
    link: float
    clock: float = 0.0


def _tpu(name, memory, usable, teraflops, gigabytes, link, multipliers) -> Chip:
    """Memory in GiB; link both ways in GB/s."""
    clock = teraflops * 1e12 / (2 * multipliers)
    peak, rate = teraflops * 1e12, gigabytes * 1e9
    sizes = int(memory * 2**30), int(usable * 2**30)
    return Chip(name, *sizes, peak, peak / 2, rate, link / 2 * 1e9, clock)


def _gpu(name, memory, gigabytes) -> Chip:
    usable = int(memory * fraction())
    return Chip(name, memory, usable, 989e12, 494e12, gigabytes * 1e9, 450e9)


def fraction() -> float:
    """The part of a GPU's memory that a run may take, by the environment of this one.

    Raises:
      UserError: what is set is no part.
    """
    text = os.environ.get(FRACTION) or DEFAULT
    try:
        part = float(text)
    except ValueError:
        part = 0.0
    if not 0 < part <= 1:
        raise UserError(f"{FRACTION}={text}: expected the part of a GPU's memory to use, as 0.9")
    return part


def of(target: str) -> Chip:
    """The chip of a target of `jaxseg.deviceless`, 'h200:8' or 'v5e:2x2'.

    Raises:
      UserError: its figures are not known.
    """
    kind = target.partition(":")[0]
    if kind not in CHIPS:
        raise UserError(
            f"target {target!r}: known are {', '.join(CHIPS)}; h200:8 for eight of them, "
            "v5e:4x4 for a slice of a TPU pod"
        )
    make, *figures = CHIPS[kind]
    return make(*figures)


# What the compiler grants of a TPU's memory is in its refusal of programs that do not fit.
CHIPS = {
    "h100": (_gpu, "H100 SXM", 84_929_347_584, 3350),
    "h200": (_gpu, "H200 SXM", 150_000_000_000, 4800),
    "v5e": (_tpu, "TPU v5e", 16, 15.75, 197, 819, 400, 4 * 128**2),
    "v5p": (_tpu, "TPU v5p", 95.74, 95.74, 459, 2765, 1200, 8 * 128**2),
    "v6e": (_tpu, "TPU v6e", 32, 31.25, 918, 1638, 800, 4 * 256**2),
}
