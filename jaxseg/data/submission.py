"""What the evaluation server of a dataset takes: a module with one defines `SUBMISSION`."""

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Submission:
    """The form in which a server takes label maps: a PNG per image in an archive.

    Attributes:
      server: where archives are uploaded.
      values: uint8 [C], the pixel value that stands for each class.
      path: record id -> the PNG's path within the archive.
      archive: 'zip' or 'tar.gz'.
      images: how many images the server's test set has.
      size: (height, width) of all of them, or None where each has its own.
      palette: the colours of the values 0..255, for PNGs with a palette; None for grey ones.
    """

    server: str
    values: np.ndarray
    path: Callable[[str], str]
    archive: str
    images: int
    size: tuple[int, int] | None = None
    palette: tuple[tuple[int, int, int], ...] | None = None
