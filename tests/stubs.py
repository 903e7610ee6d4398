"""Stand-ins for a `jaxseg.segmentation.Segmentation`, with answers that follow from the pixels."""

import dataclasses
from collections.abc import Mapping

import numpy as np

CLASSES = ("dark", "middle", "bright")
PALETTE = ((10, 0, 0), (0, 120, 0), (200, 200, 250))


def pictures(*shape):
    """Random uint8 RGB [*shape, 3], the same at every call."""
    return np.random.default_rng(sum(shape)).integers(0, 256, (*shape, 3), dtype=np.uint8)


@dataclasses.dataclass
class ByBrightness:
    """The class is the third of the range that green falls in; without probabilities."""

    classes: tuple = CLASSES
    palette: tuple = PALETTE
    chain: Mapping = dataclasses.field(default_factory=dict)

    def segment(self, images):
        assert images.dtype == np.uint8 and images.ndim == 4
        return images[..., 1].astype(np.int32) // 86


@dataclasses.dataclass
class Channels:
    """A class per colour: its probability is the colour's share of the pixel."""

    classes: tuple = ("red", "green", "blue")
    palette: tuple = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
    chain: Mapping = dataclasses.field(default_factory=dict)

    def probabilities(self, images):
        assert images.dtype == np.uint8 and images.ndim == 4
        shares = images.astype(np.float64) + 1e-3
        return (shares / shares.sum(-1, keepdims=True)).astype(np.float32)

    def segment(self, images):
        return np.argmax(self.probabilities(images), -1).astype(np.int32)
