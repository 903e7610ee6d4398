"""What jaxseg knows of a dataset: one frozen description, made by one `describe` per module.

The same description serves training, evaluation, the colours of predictions and reports.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from jaxseg.errors import UserError

# A path, or a function without arguments that returns encoded bytes (PNG, JPEG) or the decoded
# array itself: uint8 RGB [h, w, 3] for an image, integers [h, w] (or RGB [h, w, 3]) for a label.
Source = str | Callable[[], "bytes | np.ndarray"]


@dataclasses.dataclass(frozen=True)
class Record:
    """One sample before it is read.

    Attributes:
      id: unique within its split, a relative path without suffix; names predictions and errors.
      image: where the image is.
      label: where the mask is, or None when the split has none.
    """

    id: str
    image: Source
    label: Source | None = None

    def __post_init__(self):
        # Prepared data sets bring names of their own.
        if self.id[:1] in ("/", "\\") or ":" in self.id[:2] or "\0" in self.id:
            self._refuse()
        if ".." in self.id and ".." in self.id.replace("\\", "/").split("/"):
            self._refuse()

    def _refuse(self) -> None:
        raise UserError(
            f"a sample is called {self.id!r}, which leads out of the folders where predictions are "
            "written by that name; expected a relative path without '..'. Rename it"
        )


@dataclasses.dataclass(frozen=True)
class Description:
    """A dataset: its classes and how stored masks become class indices, and where its samples are.

    Attributes:
      name: short name, for messages and manifests.
      classes: class names; a label value is an index into them.
      palette: one RGB colour per class.
      splits: the names to choose from; `records` may take more, as 'test' of images alone.
      records: split name -> the records, in a stable order. Raises `UserError` when files are
        missing or the split is empty.
      ignore_label: value of pixels that count nowhere, after `label_map`; not negative.
      label_map: int32 [n], stored value -> class index or ignore label; -1 marks a stored value
        that must not occur. None: stored values are class indices already.
      label_colors: for RGB masks, colour -> class index or ignore label; `label_map` is unused.
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    splits: tuple[str, ...]
    records: Callable[[str], Sequence[Record]]
    ignore_label: int = 255
    label_map: np.ndarray | None = None
    label_colors: Mapping[tuple[int, int, int], int] | None = None

    def __post_init__(self):
        if self.ignore_label < 0:  # labels are stored without signs, and -1 means 'must not occur'
            raise UserError(
                f"{self.name}: ignore_label={self.ignore_label}: expected 0 or more, usually 255"
            )

    @property
    def num_classes(self) -> int:
        return len(self.classes)
