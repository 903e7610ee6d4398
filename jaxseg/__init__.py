"""Semantic segmentation in JAX and Flax, for CPU, GPU and TPU.

    seg = jaxseg.load("runs/x")
    labels = seg.segment(images)  # uint8 RGB [b, h, w, 3] -> int32 [b, h, w]

`load` is imported on first use, so that `import jaxseg` costs nothing.
"""

__version__ = "0.1.0"
__all__ = ["load"]


def __getattr__(name: str):
    if name == "load":
        from jaxseg.api import load

        return load
    raise AttributeError(f"module 'jaxseg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
