"""From image and video files to results: the loop between.

What the inputs stand for is in `jaxseg.inputs`, what is written in `jaxseg.outputs`. Images go
through the model one at a time, frames of a video a few at a time; threads read ahead and write
meanwhile.
"""

import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from jaxseg import inputs, outputs, video
from jaxseg.console import duration, say
from jaxseg.data import reading
from jaxseg.errors import UserError
from jaxseg.ordered import in_order

THREADS = 8
# Images that are read before their turn, and whose results wait or are being written.
READ_AHEAD, WRITE_BEHIND = 4, 8
# Results of an image of more pixels are written before the next image goes through: those of
# 8,000 x 8,000 pixels take more than 1 GB while they are made.
LARGE = 2**24


def predict_files(
    given: Sequence[str],
    output: str,
    segmentation: Any,
    *,
    write: Sequence[str] = outputs.DEFAULT,
) -> int:
    """Segments image and video files; `jaxseg.outputs` says what is written and how it is called.

    Each image goes through at its own size, so each size is compiled once. The frames of a video
    NAME.mp4 are images called NAME/000000, NAME/000001 and so on; their overlays become the film
    NAME_overlay.mp4 of the same frame rate and size, without legend.

    An image that cannot be read is reported, and the others are done all the same; of a video that
    breaks off, the frames before that.

    Args:
      given: files, folders and globs, see `jaxseg.inputs.find`.
      output: folder to write to; made when absent.
      segmentation: a `jaxseg.segmentation.Segmentation`.
      write: what to write, of `jaxseg.outputs.KNOWN`.

    Returns:
      The number of images segmented, each frame of a video being one.

    Raises:
      UserError: as `find`; `write` names something unknown; a package is missing; a result
        cannot be written; or, after all others are done, lists what could not be segmented.
    """
    write = outputs.known(write)
    if segmentation.chain.get("samples"):
        write += ("uncertainty",)
    images, videos = inputs.find(given, output, write)
    for path in videos.values():
        video.pyav(path)
    maps = outputs.make_maps(segmentation, write)
    folder = make_folder(output)
    done, failures = 0, []
    with (
        outputs.Results(folder, segmentation, write) as results,
        ThreadPoolExecutor(THREADS) as pool,
    ):

        def save(name, image, batch):
            results.save(name, name + images[name].suffix, image, outputs.of_one(batch, 0))

        if images:
            reads = {name: partial(_read, path) for name, path in images.items()}
            failures += each_image(reads, maps, save, pool, f"into {folder}")
            done += len(images) - len(failures)
        for name, path in videos.items():
            done += _video(name, path, maps, results, pool, failures)
    if failures:
        what = "images and videos" if videos else "images"
        number = len(images) + len(videos)
        raise UserError(f"{len(failures)} of {number} {what} {undone(failures)}")
    return done


def make_folder(output: str) -> pathlib.Path:
    """The folder of --output, made when absent; raises `UserError` where that is impossible."""
    folder = pathlib.Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--output {output}: the folder cannot be made ({error.strerror}); give one that you "
            "may write to"
        ) from error
    return folder


def undone(failures: Sequence[str]) -> str:
    """'could not be segmented:' and up to ten failures, a line each."""
    shown = "".join(f"\n  {failure}" for failure in failures[:10])
    more = f"\n  and {len(failures) - 10} more, named above" if len(failures) > 10 else ""
    return f"could not be segmented:{shown}{more}"


def each_image(
    images: Mapping[str, Callable[[], np.ndarray]],
    maps: Callable[[np.ndarray], Any],
    save: Callable[[str, np.ndarray, Any], Any],
    pool: ThreadPoolExecutor,
    where: str,
) -> list[str]:
    """Reads, segments and saves images; those that cannot be are left out.

    Args:
      images: name -> a function that returns uint8 RGB [h, w, 3], or raises `UserError`.
      maps: what is computed of images uint8 [1, h, w, 3]; may raise `UserError` too.
      save: called on a thread with name, image and what `maps` returned.
      pool: the threads.
      where: for the last message, 'into out'.

    Returns:
      What is wrong with the images that were left out.

    Raises:
      Whatever `save` raises.
    """
    failures, sizes = [], set()

    def attempt(function, *arguments):
        try:
            return function(*arguments)
        except UserError as error:
            return error

    def tasks():
        reads = in_order((partial(attempt, read) for read in images.values()), pool, READ_AHEAD)
        for name, image in zip(images, reads, strict=True):
            batch = image
            if not isinstance(image, UserError):
                if image.shape not in sizes:
                    sizes.add(image.shape)
                    say(f"compiling for {_size(image)} ({name})")
                batch = attempt(maps, image[None])
            if isinstance(batch, UserError):
                failures.append(str(batch) if batch is image else f"{name}: {batch}")
                say(f"left out: {failures[-1]}")
            elif image.shape[0] * image.shape[1] > LARGE:
                save(name, image, batch)
                yield lambda: None  # nothing is left to do
            else:
                yield partial(save, name, image, batch)

    began, done, tell = time.monotonic(), 0, _teller(f"of {len(images)} images")
    for done, _ in enumerate(in_order(tasks(), pool, WRITE_BEHIND), start=1):
        tell(done + len(failures))
    seconds = time.monotonic() - began
    say(
        f"{done} of {len(images)} images segmented {where} in {duration(seconds)}: "
        f"{done / seconds:.2f} images/s, compilation for {len(sizes)} sizes included"
    )
    return failures


def _video(
    name: str,
    path: pathlib.Path,
    maps: Callable[[np.ndarray], Any],
    results: outputs.Results,
    pool: ThreadPoolExecutor,
    failures: list[str],
) -> int:
    """Segments the frames of a video and returns their number; adds what is wrong to `failures`.

    `maps` sees batches of one shape: the last one is filled up with its last frame.
    """
    filmed = "overlay" in results.write

    def save(number, frame, batch, index):
        of_frame = outputs.of_one(batch, index)
        frame_name = f"{name}/{number:06d}"
        results.save(frame_name, frame_name, frame, of_frame, without=("overlay",))
        return results.overlay(frame, of_frame["labels"]) if filmed else None

    def tasks():
        number = 0
        try:
            for frames in video.batches(path):
                if not number:
                    say(f"compiling for {_size(frames[0])} ({path})")
                missing = video.batch_size(frames[0]) - len(frames)
                batch = maps(np.stack(frames + frames[-1:] * missing))
                for index, frame in enumerate(frames):
                    yield partial(save, number, frame, batch, index)
                    number += 1
        except UserError as error:
            failures.append(str(error))
            say(f"{'broken off' if number else 'left out'}: {error}")

    try:
        rate, total = video.probe(path)
    except UserError as error:
        failures.append(str(error))
        say(f"left out: {error}")
        return 0
    began, done = time.monotonic(), 0
    tell = _teller(f"of {total} frames of {path}" if total else f"frames of {path}")
    with video.Film(results.folder / f"{name}{inputs.FILM}", rate) as film:
        for done, picture in enumerate(in_order(tasks(), pool, WRITE_BEHIND), start=1):
            if filmed:
                film.add(picture)
            tell(done)
    seconds = time.monotonic() - began
    say(
        f"{done} frames of {path} segmented into {results.folder} in {duration(seconds)}: "
        f"{done / seconds:.2f} frames/s, compilation included"
    )
    return done


def _read(path: pathlib.Path) -> np.ndarray:
    try:
        return reading.decode_image(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"


def _teller(what: str) -> Callable[[int], None]:
    """Says how many are done, every five seconds at the most."""
    told = time.monotonic()

    def tell(done):
        nonlocal told
        if time.monotonic() - told > 5:
            told = time.monotonic()
            say(f"{done} {what}")

    return tell
