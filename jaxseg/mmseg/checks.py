"""Refusing what a description says and jaxseg does not have; and what the translations share."""

from collections.abc import Mapping
from typing import Any

from jaxseg.errors import UserError

Section = Mapping[str, Any]

# Options of any part that do not shape it, or follow from its input.
NOT_SHAPING = (
    "type", "in_channels", "norm_cfg", "loss_decode", "sampler", "init_cfg", "pretrained",
    "with_cp",
)  # fmt: skip


def known(key: str, value: str, table: Mapping[str, Any]) -> Any:
    if value not in table:
        raise unsupported(key, value, ", ".join(table))
    return table[value]


def only(where: str, section: Section, known: tuple[str, ...], epsilon: float = 1e-5) -> None:
    """Refuses options that are not understood, and norms but batch norms with that epsilon."""
    for key in section:
        if key not in (*known, *NOT_SHAPING):
            raise unsupported(f"{where}.{key}", section[key], f"only {', '.join(sorted(known))}")
    norm = section.get("norm_cfg") or {"type": "BN"}
    if norm["type"] not in ("BN", "SyncBN") or norm.get("eps", 1e-5) != epsilon:
        raise unsupported(f"{where}.norm_cfg", norm, f"batch normalisation with eps={epsilon}")


def expect(where: str, section: Section, **expected: Any) -> None:
    for key, value in expected.items():
        if section.get(key, value) != value:
            raise unsupported(f"{where}.{key}", section[key], repr(value))


def unsupported(key: str, value: Any, expected: str) -> UserError:
    return UserError(f"MMSegmentation model with {key}={value!r}: jaxseg supports {expected}")
