"""What each training step and each evaluation batch reads: a pure function, without any state.

Every number here follows from (seed, number of records, step) alone, so a run that starts at step
s reads exactly what a run from step 0 reads from s on, on any number of hosts, and whichever back
end (`tfdata`, `threads`) executes the plan. The augmentation is the usual one of the field: a
random scale, a crop that no single class fills, a horizontal flip (MMSegmentation's RandomResize,
RandomCrop with cat_max_ratio, and RandomFlip).
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxseg.errors import UserError

# MMSegmentation's RandomCrop looks at ten windows and, when none will do, takes one more unseen.
TRIES = 10

# Streams of random words: the epochs' orders, the samples' augmentation; 2 is `bad_samples`'.
_ORDER, _SAMPLE = 0, 1


@dataclasses.dataclass(frozen=True)
class Row:
    """What happens to one training sample.

    Attributes:
      index: which record of the split.
      ratio: scale ratio.
      offsets: float64 [TRIES + 1, 2], where candidate windows begin (vertical, horizontal), as
        fractions in [0, 1) of the room that a window has.
      flip: mirror the sample left to right.
    """

    index: int
    ratio: float
    offsets: np.ndarray
    flip: bool


@dataclasses.dataclass(frozen=True)
class Cut:
    """One sample's crop in pixels of the rescaled image; smaller than the crop where that ends.

    Attributes:
      scaled: (height, width) of the whole image after rescaling.
      top, left: where the window begins.
      height, width: its size; the rest of the crop, at the bottom and right, is padding.
      flip: mirror the window before it is padded.
    """

    scaled: tuple[int, int]
    top: int
    left: int
    height: int
    width: int
    flip: bool = False


@dataclasses.dataclass(frozen=True)
class Group:
    """One evaluation batch: indices of records of one (height, width), -1 in padding rows."""

    indices: tuple[int, ...]
    size: tuple[int, int]


def words(seed: int, stream: int, number: int, count: int) -> np.ndarray:
    """`count` random uint64 that depend on (seed, stream, number) alone.

    Raw words of Philox: NumPy guarantees these across versions, but not what `Generator` makes of
    them.
    """
    key = np.array([seed, stream], np.uint64)
    counter = np.array([0, number, 0, 0], np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(count)


@functools.lru_cache(maxsize=8)
def permutation(seed: int, epoch: int, num_records: int) -> np.ndarray:
    """The order of an epoch: int64 [num_records], read-only."""
    order = np.argsort(words(seed, _ORDER, epoch, num_records), kind="stable")
    order.flags.writeable = False
    return order


def row(seed: int, num_records: int, position: int, augment: Any) -> Row:
    """The sample at `position` in the endless sequence of epochs.

    Args:
      seed: 0 <= seed < 2**64.
      num_records: size of the split.
      position: step * global batch size + place in the batch.
      augment: `scale` = (least, greatest) ratio and `flip` = whether to mirror half of the samples.
    """
    epoch, place = divmod(position, num_records)
    index = int(permutation(seed, epoch, num_records)[place])
    # The upper 53 bits of a word make a float64 in [0, 1).
    random = words(seed, _SAMPLE, position, 2 + 2 * (TRIES + 1))
    uniform = (random >> np.uint64(11)) * 2.0**-53
    low, high = augment.scale
    return Row(
        index=index,
        ratio=float(low + (high - low) * uniform[0]),
        offsets=uniform[2:].reshape(TRIES + 1, 2),
        flip=bool(augment.flip and uniform[1] < 0.5),
    )


def train_positions(
    step: int, batch_size: int, process_index: int = 0, process_count: int = 1
) -> range:
    """Positions of the samples that one process reads for one step.

    Raises:
      UserError: the global batch does not divide over the processes.
    """
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"batch_size={batch_size} is the global batch: it must be positive and divide evenly "
            f"over the {process_count} process(es)"
        )
    share = batch_size // process_count
    first = step * batch_size + process_index * share
    return range(first, first + share)


def train_rows(
    seed: int,
    num_records: int,
    step: int,
    batch_size: int,
    augment: Any,
    process_index: int = 0,
    process_count: int = 1,
) -> list[Row]:
    """The rows of one process for one training step; see `row`."""
    positions = train_positions(step, batch_size, process_index, process_count)
    return [row(seed, num_records, position, augment) for position in positions]


def check_augment(augment: Any, seed: int) -> None:
    """Raises `UserError` for augmentation settings that make no sense."""

    def fail(key: str, expected: str) -> None:
        raise UserError(f"config.augment.{key}={augment[key]!r}: expected {expected}")

    if len(augment.crop) != 2 or min(augment.crop) < 1:
        fail("crop", "(height, width), both positive")
    if len(augment.scale) != 2 or not 0 < augment.scale[0] <= augment.scale[1]:
        fail("scale", "(least, greatest) with 0 < least <= greatest")
    check_base_size(augment.base_size, "config.augment.base_size")
    if augment.cat_max_ratio is not None and not 0 < augment.cat_max_ratio <= 1:
        fail("cat_max_ratio", "a share in (0, 1], or None")
    if not 0 <= seed < 2**64:
        raise UserError(f"config.seed={seed}: expected 0 <= seed < 2**64")


def check_base_size(base_size: tuple[int, ...], where: str) -> None:
    """Raises `UserError` that names the setting `where` unless it is two edges or empty."""
    if base_size and (len(base_size) != 2 or min(base_size) < 1):
        raise UserError(f"{where}={base_size!r}: expected (long edge, short edge), or ()")


def scaled_size(
    size: tuple[int, int], ratio: float = 1.0, base_size: tuple[int, ...] = ()
) -> tuple[int, int]:
    """The size an image is rescaled to, its aspect kept.

    Args:
      size: (height, width) as stored.
      ratio: scale ratio.
      base_size: (long edge, short edge) of a box: the image fills `ratio` times the box as far as
        its aspect lets it. Empty: `ratio` applies to the stored size.

    Returns:
      (height, width), each at least 1; box and sizes are rounded as MMCV rounds them.
    """
    factor = ratio
    if base_size:
        long_edge, short_edge = (int(edge * ratio) for edge in sorted(base_size, reverse=True))
        factor = min(long_edge / max(size), short_edge / min(size))
    height, width = (max(int(edge * factor + 0.5), 1) for edge in size)
    return height, width


def windows(offsets: np.ndarray, scaled: tuple[int, int], crop: tuple[int, int]) -> list[Cut]:
    """The candidate windows of a rescaled image; uniform over all places where the crop fits.

    Args:
      offsets: `Row.offsets`.
      scaled: (height, width) of the rescaled image.
      crop: (height, width) to cut out; an edge longer than the image's takes all of it.
    """
    height, width = min(crop[0], scaled[0]), min(crop[1], scaled[1])
    room = np.array([scaled[0] - height + 1, scaled[1] - width + 1])
    return [
        Cut(scaled, int(top), int(left), height, width)
        for top, left in np.floor(offsets * room).astype(np.int64)
    ]


def nearest_index(start: int, length: int, scaled: int, source: int) -> np.ndarray:
    """Which source pixel a rescaled one shows: the one that its centre falls into.

    floor((i + 1/2) * source / scaled) in integers, for i = start .. start + length - 1; a centre
    between two pixels takes the later one. int64 [length].
    """
    i = np.arange(start, start + length, dtype=np.int64)
    return (2 * i + 1) * source // (2 * scaled)


def crop_label(label: np.ndarray, cut: Cut) -> np.ndarray:
    """The window of the rescaled label, nearest: [h, w] -> [cut.height, cut.width], not flipped."""
    rows = nearest_index(cut.top, cut.height, cut.scaled[0], label.shape[0])
    columns = nearest_index(cut.left, cut.width, cut.scaled[1], label.shape[1])
    # Nothing is out of range; without that check `take` is several times as fast.
    return label.take(rows, 0, mode="clip").take(columns, 1, mode="clip")


def choose_window(
    label: np.ndarray, candidates: Sequence[Cut], cat_max_ratio: float | None, ignore_label: int
) -> Cut:
    """The first window that no class fills: two classes or more, none with too large a share.

    Args:
      label: integers [h, w], the whole label as stored, class indices and `ignore_label`.
      candidates: from `windows`; the last is taken unseen when no other will do.
      cat_max_ratio: a class's share of the window's labelled pixels must stay below this; None
        or 1 takes the first window.
      ignore_label: value of unlabelled pixels.
    """
    if cat_max_ratio is None or cat_max_ratio >= 1:
        return candidates[0]
    for cut in candidates[:-1]:
        if not _is_filled(crop_label(label, cut), cat_max_ratio, ignore_label):
            return cut
    return candidates[-1]


def _is_filled(window: np.ndarray, ratio: float, ignore_label: int) -> bool:
    """Whether the labelled pixels are of one class only, or a class's share of them is too large.

    To count every class takes ten times as long as to count one, and the commonest of every eighth
    row and column mostly decides: what it leaves is too little for any other class.
    """
    sparse = window[::8, ::8]
    likely = np.bincount(sparse[sparse != ignore_label], minlength=1).argmax()
    labelled = window.size - np.count_nonzero(window == ignore_label)
    most = np.count_nonzero(window == likely)
    if most < ratio * labelled <= labelled - most:
        counts = np.bincount(window[window != ignore_label])
        return np.count_nonzero(counts) < 2 or counts.max() >= ratio * labelled
    return most >= ratio * labelled


def cut(row: Row, label: np.ndarray, augment: Any, ignore_label: int) -> Cut:
    """Where the sample of `row`, whose label is [h, w], is cut."""
    scaled = scaled_size(label.shape, row.ratio, augment.base_size)
    candidates = windows(row.offsets, scaled, augment.crop)
    window = choose_window(label, candidates, augment.cat_max_ratio, ignore_label)
    return dataclasses.replace(window, flip=row.flip)


def eval_groups(
    sizes: Sequence[tuple[int, int]],
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> list[Group]:
    """Batches of equally large samples, each sample in exactly one; all processes agree on them.

    Args:
      sizes: per record, its (height, width).
      batch_size: global; batches that a size does not fill end with rows of index -1.
      process_index, process_count: this process gets its contiguous share of every batch, so
        each one sees the same number of batches of the same shapes.

    Returns:
      The groups in order of each size's first record, within a size in the records' order.

    Raises:
      UserError: the batch does not divide over the processes.
    """
    share = train_positions(0, batch_size, process_index, process_count)
    by_size: dict[Any, list[int]] = {}
    for index, size in enumerate(sizes):
        by_size.setdefault(size, []).append(index)
    groups = []
    for size, members in by_size.items():
        members += [-1] * (-len(members) % batch_size)
        for first in range(0, len(members), batch_size):
            indices = tuple(members[first + i] for i in share)
            groups.append(Group(indices, size))
    return groups
