"""The one pass over a split that every figure comes from: integer counts of each image.

The device predicts and counts what it counts well; threads beside it count what needs connected
components or other files. Padding rows are dropped where a batch's rows become images, so they
enter nothing, and sums are int64 on the host: neither the batch size nor the number of devices or
processes can be seen in them.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxseg import links, predict
from jaxseg.data.base import Description
from jaxseg.data.threads import num_threads
from jaxseg.distributed import gathered
from jaxseg.metrics import boundaries, calibration, cityscapes, images, sizes
from jaxseg.ordered import in_order
from jaxseg.sharding import local_rows, over_batch, shard_batch

TRIMAP = 2  # pixels: the width of the trimap whose mIoU stands in tables, of `boundaries.WIDTHS`


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """One image that went through, by one or several variants of the predict chain.

    Attributes:
      id: of the record.
      image: uint8 [H, W, 3].
      truth: int32 [H, W].
      labels: variant -> int32 [H, W].
      counts: variant -> its counts, a tree of integer arrays for `Total.add`.
    """

    id: str
    image: np.ndarray
    truth: np.ndarray
    labels: Mapping[str, np.ndarray]
    counts: Mapping[str, dict[str, Any]]


def make_step(model, config: ConfigDict, description: Description, mesh: Mesh) -> Callable:
    """Returns the `(variables, batch) -> (counts of each image, labels int32 [b, H, W])`.

    Counts are int32 with the images along the first axis: 'confusion' [b, C, C], 'calibration'
    [b, 2, FINE] and the tree 'boundaries'.

    Raises:
      UserError: `config.predict` or `config.eval.base_size` is wrong, see `predict.make_scores`.
    """
    probabilities = predict.probabilities_in_bands(
        model, config.predict, dtype=config.dtype, base_size=config.eval.base_size
    )
    return counted(probabilities, description, mesh)


def counted(probabilities: predict.Scores, description: Description, mesh: Mesh) -> Callable:
    """What `make_step` returns, for any function that gives probabilities."""

    def labels_of(variables, batch):
        scores = probabilities(variables, batch["image"], batch["label"].shape[1:3])
        return links.to_labels_and_highest(scores)

    labels_of = jax.jit(labels_of, out_shardings=over_batch(mesh))
    # A program of its own, which does not know the model: compiled once for all variants.
    count = _make_count(description.num_classes, description.ignore_label, mesh)

    def step(variables, batch):
        labels, confidence = labels_of(variables, batch)
        return count(labels, confidence, batch["label"]), labels

    return step


@functools.cache
def _make_count(num_classes: int, ignore_label: int, mesh: Mesh) -> Callable:
    def count(predictions, confidence, labels):
        pair = (predictions, labels, num_classes, ignore_label)
        return {
            "confusion": images.confusion_matrices(*pair),
            "calibration": calibration.counts(confidence, *pair),
            "boundaries": boundaries.counts(*pair),
        }

    return jax.jit(count, out_shardings=over_batch(mesh))


def samples(
    steps: Mapping[str, Callable],
    variables: Any,
    batches: Iterator[Mapping[str, Any]],
    mesh: Mesh,
    examine: Callable[[Sample], None],
) -> Iterator[Sample]:
    """Yields every image of this host's batches once, in order, with all its counts.

    Args:
      steps: variant -> what `make_step` returns; each sees each batch.
      variables: the model's variables, common to all variants.
      batches: of `data.eval_batches`.
      mesh: the devices.
      examine: adds to `sample.counts`; called in threads, while the device goes on.
    """

    def computed():
        waiting = None
        for batch in batches:
            arrays = shard_batch(batch, mesh)
            results = {name: step(variables, arrays) for name, step in steps.items()}
            if waiting is not None:
                yield from _rows(*waiting)
            waiting = batch, results
        if waiting is not None:
            yield from _rows(*waiting)

    def examined(sample):
        examine(sample)
        return sample

    threads = num_threads()
    with ThreadPoolExecutor(threads, thread_name_prefix="jaxseg-measure") as pool:
        tasks = (functools.partial(examined, sample) for sample in computed())
        yield from in_order(tasks, pool, ahead=threads)


def _rows(batch: Mapping[str, Any], results: Mapping[str, Any]) -> Iterator[Sample]:
    """The images of a batch; here the padding ends."""
    results = jax.tree.map(local_rows, results)
    for i in np.flatnonzero(batch["mask"]):
        row = jax.tree.map(operator.itemgetter(i), results)
        yield Sample(
            id=batch["id"][i],
            image=batch["image"][i],
            truth=batch["label"][i],
            labels={name: labels for name, (_, labels) in row.items()},
            counts={name: counts for name, (counts, _) in row.items()},
        )


def make_examine(description: Description, instances: Mapping[str, str]) -> Callable:
    """What to count on the host: component sizes, and Cityscapes' instances where there are masks.

    Args:
      description: the dataset.
      instances: image id -> file of its instance ids; empty for none.
    """

    def examine(sample: Sample) -> None:
        if instances:
            mask = cityscapes.read_instances(sample.id, instances[sample.id], sample.truth.shape)
        for name, labels in sample.labels.items():
            sample.counts[name]["sizes"] = sizes.counts(
                labels, sample.truth, description.num_classes, description.ignore_label
            )
            if instances:
                sample.counts[name]["instances"] = cityscapes.instance_counts(labels, mask)

    return examine


@dataclasses.dataclass
class Total:
    """The counts of a split.

    Attributes:
      sums: a tree of int64 arrays, summed over the images; None before the first.
      images: id -> what figures of single images and of resamples need, see `summary_counts`.
      instances: id -> int64 [k, 4], see `metrics.cityscapes.instance_counts`; empty for none.
    """

    sums: Any = None
    images: dict[str, dict[str, np.ndarray]] = dataclasses.field(default_factory=dict)
    instances: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def add(self, id: str, counts: Mapping[str, Any]) -> None:
        """Adds the counts of one image."""
        counts = dict(counts)
        if "instances" in counts:
            self.instances[id] = counts.pop("instances")
        self.images[id] = summary_counts(counts)
        self._add_sums(counts)

    def _add_sums(self, sums: Any) -> None:
        if self.sums is None:
            self.sums = jax.tree.map(lambda x: np.array(x, np.int64), sums)
        else:
            self.sums = jax.tree.map(lambda a, b: a + np.asarray(b, np.int64), self.sums, sums)

    def rows(self) -> tuple[list[str], dict[str, np.ndarray]]:
        """The ids, sorted, and their counts stacked: name -> int64 [n, ...]."""
        ids = sorted(self.images)
        stacked = jax.tree.map(lambda *x: np.stack(x), *(self.images[id] for id in ids))
        return ids, stacked

    def of_all_hosts(self) -> "Total":
        """The total over all processes; every process must ask for it, and gets the same."""
        total = Total()
        for part in gathered(self):
            if part.sums is not None:  # a process whose rows were all padding has none
                total._add_sums(part.sums)
            total.images |= part.images
            total.instances |= part.instances
        return total


def summary_counts(counts: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Of an image's counts those that are kept for it: int64, 13 C + 3 * 15 numbers.

    'classes', 'boundary_IoU' and 'trimap' (of `TRIMAP` pixels) [3, C], see `images.sides`;
    'contour' [4, C], see `boundaries.counts`; 'confidence' [3, BINS], see `calibration.wide`; and
    'changes' [4] where a variant is compared, see `compare.changes`.
    """
    near = counts["boundaries"]
    kept = {
        "classes": images.sides(counts["confusion"]),
        "boundary_IoU": near["boundary_iou"],
        "trimap": near["trimap"][boundaries.WIDTHS.index(TRIMAP)],
        "contour": near["contour"],
        "confidence": calibration.wide(counts["calibration"]),
    }
    if "changes" in counts:
        kept["changes"] = counts["changes"]
    return {name: np.array(x, np.int64) for name, x in kept.items()}


class Shortlist:
    """The `size` samples of the highest keys among those offered; of equal keys, the first ids."""

    def __init__(self, size: int):
        self._size = size
        self._items: list[tuple[float, str, tuple]] = []

    def offer(self, key: float, id: str, arrays: tuple[np.ndarray, ...]) -> None:
        """Keeps copies of `arrays` if the sample is among the first so far."""
        place = (-key, id)
        if len(self._items) == self._size and place > self._items[-1][:2]:
            return
        self._items.append((*place, tuple(x.copy() for x in arrays)))
        self._items = sorted(self._items, key=lambda item: item[:2])[: self._size]

    def __iter__(self) -> Iterator[tuple]:
        """(id, *arrays), the highest key first."""
        return ((id, *arrays) for _, id, arrays in self._items)
