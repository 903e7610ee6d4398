"""`--deterministic`: the same command on the same machine gives the same bits again.

What that takes, and where it ends:

    GPU   XLA is told to use no operation that adds up in the order in which threads happen to
          finish, and to choose no algorithm by timing it: `FLAG` in XLA_FLAGS. It costs speed.
    CPU   nothing is to be set: XLA divides work by its size and the number of threads, not by time.
    TPU   nothing is to be set: a compiled program has one order.

Data, augmentation, dropout and initial weights are functions of (seed, step) with and without it.
It does not span machines: another number of devices, kind of device, number of processor cores or
version of jax changes last bits, and what grows out of these; the manifest records them all.
XLA reads its flags when jax starts it, so they are set before jax is imported.
"""

import os
import re
import sys

from jaxseg.errors import UserError

FLAG = "xla_gpu_deterministic_ops"
# It implies the second one, which alone would leave timed choices.
_CONTRADICTED_BY = (FLAG, "xla_gpu_exclude_nondeterministic_ops")
_TRUE = ("", "=true", "=1")


def switch_on() -> None:
    """Adds `FLAG` to the environment variable XLA_FLAGS, unless it is there.

    Raises:
      UserError: XLA_FLAGS says the opposite or names a file of flags, or jax is imported already.
    """
    flags = os.environ.get("XLA_FLAGS", "").strip()
    if flags and not flags.startswith("-"):
        raise UserError(
            f"--deterministic adds to XLA_FLAGS, but XLA_FLAGS={flags} names a file of flags; "
            "write the flags into the variable itself"
        )
    for name in _CONTRADICTED_BY:
        if _setting(flags, name) is False:
            raise UserError(
                f"--deterministic and XLA_FLAGS={flags} contradict each other: take --{name}=false "
                "out of the variable, or leave out --deterministic"
            )
    if is_on():
        return
    if "jax" in sys.modules:
        raise UserError(
            "--deterministic comes too late: jax is imported already; start the process with "
            f"XLA_FLAGS=--{FLAG}=true"
        )
    os.environ["XLA_FLAGS"] = f"{flags} --{FLAG}=true".strip()


def is_on() -> bool:
    """Whether XLA_FLAGS asks for determinism on GPUs."""
    return _setting(os.environ.get("XLA_FLAGS", ""), FLAG) is True


def _setting(flags: str, name: str) -> bool | None:
    """What the last of the flags of that name says; None where there is none."""
    found = [
        match[1] for word in flags.split() if (match := re.fullmatch(rf"--{name}(|=.*)", word))
    ]
    return found[-1].lower() in _TRUE if found else None
