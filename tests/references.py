"""Reference outputs of MMSegmentation's models: where they are, and the weights that made them.

A file holds an image, the names and shapes of the state dict, and some of the logits. The weights
are not stored: each tensor is drawn from its own name. `golden/` has a few of them; the rest lie
beside the checkout, where they are at hand.
"""

import pathlib
import zlib

import numpy as np

GOLDEN = pathlib.Path(__file__).with_name("golden")


def state_dict(npz) -> dict[str, np.ndarray]:
    """The PyTorch-named weights of a reference file."""
    drawn = {}
    for line in npz["keys"]:
        name, shape = str(line).split("|")
        drawn[name] = draw(name, [int(n) for n in shape.split(",") if n], float(npz["gain"]))
    return drawn


def draw(name: str, shape: list[int], gain: float) -> np.ndarray:
    rng, leaf = np.random.default_rng(zlib.crc32(name.encode())), name.split(".")[-1]
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if leaf == "running_var":
        value = rng.uniform(0.6, 1.4, shape)
    elif len(shape) > 1:
        value = rng.normal(0, 1, shape) * gain * np.sqrt(2 / np.prod(shape[1:]))
    elif leaf == "weight" or leaf.endswith("gamma"):
        value = rng.uniform(0.7, 1.3, shape)
    else:
        value = rng.normal(0, 0.2, shape)
    return value.astype(np.float32)


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    """Root mean square of the error, over the mean of each class's deviation over the pixels."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    return float(np.sqrt(np.square(got - want).mean()) / want.std(0).mean())
