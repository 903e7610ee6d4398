"""Image files to label files: what the inputs mean, where the results go, and the loop between.

Images go through the model one at a time; threads read ahead and write meanwhile.
"""

import collections
import glob
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from jaxseg import predict, visualize
from jaxseg.console import duration, say
from jaxseg.data import reading
from jaxseg.data.files import IMAGE_SUFFIXES
from jaxseg.errors import UserError

# What stands behind an image's name in the names of its results.
LABEL, OVERLAY, UNCERTAINTY = ".png", "_overlay.png", "_uncertainty.png"


def find_images(
    inputs: Sequence[str], output: str, endings: Sequence[str] = (LABEL, OVERLAY)
) -> dict[str, pathlib.Path]:
    """The images that `inputs` stand for, by the name that their results get.

    Args:
      inputs: files, folders (searched with all sub-folders) and globs ('**' included).
      output: the folder of results; where it lies within a searched folder, it is left out.
      endings: of the files that will be written for each image.

    Returns:
      Name -> path. The name has no suffix, and keeps the sub-folders below a given folder or
      below the part of a glob that has no wildcard.

    Raises:
      UserError: an input matches no image, or two files would be written under one name.
    """
    inside = pathlib.Path(output).resolve()
    found, seen = {}, set()
    for given in inputs:
        new = 0
        for path, root in _matches(given):
            real = path.resolve()
            if root.resolve() in inside.parents and inside in real.parents:
                continue  # a result of an earlier call
            new += 1
            if real in seen:
                continue
            seen.add(real)
            name = path.relative_to(root).with_suffix("").as_posix()
            found.setdefault(name, []).append(path)
        if not new:
            raise UserError(
                f"--input {given}: no image found. Expected a file, a folder or a glob in quotes; "
                f"folders and globs are searched for {' '.join(IMAGE_SUFFIXES)}"
            )
    _refuse_collisions(found, inside, endings, seen)
    return {name: paths[0] for name, paths in sorted(found.items())}


def _matches(given: str) -> list[tuple[pathlib.Path, pathlib.Path]]:
    """(path, the folder that its name is relative to) of one input."""
    path = pathlib.Path(given)
    if path.is_file():
        return [(path, path.parent)]
    if path.is_dir():
        root, candidates = path, sorted(path.rglob("*"))
    else:
        wild = (i for i, part in enumerate(path.parts) if any(c in part for c in "*?["))
        root = pathlib.Path(*path.parts[: next(wild, 0)])
        candidates = sorted(map(pathlib.Path, glob.glob(given, recursive=True)))
    return [
        (candidate, root)
        for candidate in candidates
        if candidate.suffix.lower() in IMAGE_SUFFIXES
        and not candidate.name.startswith(".")
        and candidate.is_file()
    ]


def _refuse_collisions(
    found: Mapping[str, list], output: pathlib.Path, endings: Sequence[str], inputs: set
) -> None:
    """`found`: name -> paths. `inputs`: every input, resolved, as is `output`."""
    writers = collections.defaultdict(list)
    for name, paths in found.items():
        for ending in endings:
            writers[output / f"{name}{ending}"] += paths
    for result, paths in writers.items():
        if len(paths) > 1:
            raise UserError(
                f"{paths[0]} and {paths[1]} would both be written to {result}: rename one, give "
                "the folder above both (sub-folders are kept), or use two --output folders"
            )
        if result in inputs:
            raise UserError(
                f"{paths[0]}: its result would overwrite the input {result}; "
                "give another --output folder"
            )


def predict_files(
    inputs: Sequence[str],
    output: str,
    segmentation: Any,
    *,
    overlays: bool = True,
    threads: int = 4,
) -> int:
    """Segments image files; `<name>.png` holds class indices, `<name>_overlay.png` is to look at.

    Where the chain samples (config.predict.samples), `<name>_uncertainty.png` shows how much the
    samples differ, see `_uncertainty_picture`.

    Each image goes through at its own size, so each size is compiled once. An image that cannot be
    read is reported, and the others are done all the same.

    Args:
      inputs: files, folders and globs, see `find_images`.
      output: folder to write to; made when absent.
      segmentation: a `jaxseg.api.Segmentation`.
      overlays: whether to write the overlays too.
      threads: readers, and as many writers.

    Returns:
      The number of images segmented.

    Raises:
      UserError: as `find_images`; a result cannot be written; or, after all others are done, lists
        the images that could not be read.
    """
    sampled = bool(segmentation.chain.get("samples"))
    endings = (LABEL, OVERLAY, UNCERTAINTY) if sampled else (LABEL, OVERLAY)
    images = find_images(inputs, output, endings)
    folder = pathlib.Path(output)

    def segment(image):
        """Labels [1, h, w], and the variance averaged over classes [1, h, w] or None."""
        if not sampled:
            return segmentation.segment(image), None
        mean, variance = segmentation.uncertainty(image)
        return predict.to_labels(mean), variance.mean(-1)

    def write(name, image, labels, variance):
        labels = np.asarray(labels)[0]
        path = folder / f"{name}{LABEL}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            visualize.save_label_png(path, labels, segmentation.palette)
            if overlays:
                picture = visualize.overlay(
                    image, labels, segmentation.palette, segmentation.classes
                )
                visualize.save_png(folder / f"{name}{OVERLAY}", picture)
            if variance is not None:
                picture = _uncertainty_picture(np.asarray(variance)[0])
                visualize.save_png(folder / f"{name}{UNCERTAINTY}", picture)
        except OSError as error:
            raise UserError(f"cannot write the results of {images[name]}: {error}") from error

    failures, sizes, writing = [], set(), collections.deque()
    done, began = 0, time.monotonic()
    told = began
    with ThreadPoolExecutor(threads) as readers, ThreadPoolExecutor(threads) as writers:
        for name, image in _read_ahead(readers, images, 2 * threads):
            if isinstance(image, UserError):
                failures.append(str(image))
                say(f"left out: {image}")
                continue
            if image.shape not in sizes:
                sizes.add(image.shape)
                say(f"compiling for {image.shape[1]}x{image.shape[0]} ({images[name]})")
            writing.append(writers.submit(write, name, image, *segment(image[None])))
            if len(writing) > 2 * threads:
                writing.popleft().result()
            done += 1
            if time.monotonic() - told > 5:
                told = time.monotonic()
                say(f"{done + len(failures)} of {len(images)} images, at {images[name]}")
        for future in writing:
            future.result()
    seconds = time.monotonic() - began
    say(
        f"{done} of {len(images)} images segmented into {folder} in {duration(seconds)}: "
        f"{done / seconds:.2f} images/s, compilation for {len(sizes)} sizes included"
    )
    if failures:
        shown = "".join(f"\n  {failure}" for failure in failures[:10])
        more = f"\n  and {len(failures) - 10} more, named above" if len(failures) > 10 else ""
        raise UserError(f"{len(failures)} of {len(images)} images could not be read:{shown}{more}")
    return done


def _uncertainty_picture(variance: np.ndarray) -> np.ndarray:
    """White where all samples agree, black where they differ most: uint8 RGB [h, w, 3].

    As in the paper's figures (arXiv:1511.02680, figure 1) and in the authors' program, black is
    the largest value of this very image, so that two images' shades cannot be compared;
    `Segmentation.uncertainty` gives the values.
    """
    share = variance / max(float(variance.max()), np.finfo(np.float32).tiny)
    grey = np.rint(255 * (1 - share)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def _read_ahead(
    pool: ThreadPoolExecutor, images: Mapping[str, pathlib.Path], depth: int
) -> Iterator:
    """Yields (name, uint8 RGB [h, w, 3] or the UserError that reading raised), in order."""

    def read(path):
        try:
            return reading.decode_image(path.read_bytes(), str(path))
        except OSError as error:
            return UserError(f"{path}: {error.strerror}")
        except UserError as error:
            return error

    queue = collections.deque()
    for name, path in images.items():
        queue.append((name, pool.submit(read, path)))
        if len(queue) > depth:
            name, future = queue.popleft()
            yield name, future.result()
    for name, future in queue:
        yield name, future.result()
