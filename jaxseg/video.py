"""Video files, through PyAV: frames in, a film out, one frame after the other in memory.

PyAV's wheels bring FFmpeg's libraries with them; no `ffmpeg` program is needed.
"""

import os
import pathlib
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from jaxseg import named, tables
from jaxseg.errors import UserError

SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm")
BATCH, PIXELS = 8, 2**21  # of frames that go through the model at once, at most


def is_video(path: pathlib.Path) -> bool:
    """By its name."""
    return path.suffix.lower() in SUFFIXES


def pyav(path: pathlib.Path) -> Any:
    """The package `av`; raises `UserError` where it is not installed, for the sake of `path`."""
    named.imported(f"{path} is a video", "av", "open", "the package PyAV (pip install av)")
    import av

    return av


def batch_size(frame: np.ndarray) -> int:
    """How many frames as large as this go through the model at once.

    As many pixels as one frame of Cityscapes has, so that memory does not depend on the video.
    """
    return max(1, min(BATCH, PIXELS // (frame.shape[0] * frame.shape[1])))


def probe(path: pathlib.Path) -> tuple[Fraction, int]:
    """(frames per second, number of frames or 0 where the file does not say) of a video.

    Raises:
      UserError: not a readable video, or PyAV is missing.
    """
    av = pyav(path)
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise UserError(f"{path}: has no pictures, only sound or text; leave it out")
            stream = container.streams.video[0]
            # Files without a sensible rate have 0 or None.
            rate = stream.average_rate or stream.guessed_rate or Fraction(25)
            return Fraction(rate), stream.frames
    except (av.error.FFmpegError, OSError) as error:
        raise UserError(
            f"{path}: not a readable video ({error.strerror}); see whether a player shows it, "
            "fetch it again or leave it out"
        ) from error


def read(path: pathlib.Path) -> Iterator[np.ndarray]:
    """Yields a video's frames, upright, all of the first one's size: uint8 RGB [h, w, 3].

    Raises:
      UserError: as `probe`; or when its turn comes, a frame that cannot be decoded, or that is
        missing though the file's header counts it.
    """
    av = pyav(path)
    _, promised = probe(path)
    number, size = 0, {}
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                size = size or {"width": frame.width, "height": frame.height}
                picture = frame.to_ndarray(format="rgb24", **size)
                # Telephones store what the camera saw and by how much it was held turned.
                yield np.ascontiguousarray(np.rot90(picture, round(frame.rotation / 90)))
                number += 1
    except (av.error.FFmpegError, OSError) as error:
        raise UserError(
            f"{path}: frame {number} cannot be decoded ({error.strerror}); {_done(number)}. Fetch "
            "the file again, or have it repaired by encoding it anew"
        ) from error
    # Headers may count a few frames that an edit list or a lazy camera leaves out.
    if number < 0.95 * promised or not number:
        raise UserError(
            f"{path}: ends before frame {number}"
            + (f" of {promised}" if promised else "")
            + f", as if cut off; {_done(number)}. Fetch the file again"
        )


def batches(path: pathlib.Path) -> Iterator[list[np.ndarray]]:
    """Yields a video's frames in lists of `batch_size`, the last of which may be shorter.

    Raises:
      UserError: as `read`, after the frames before the one at fault.
    """
    batch = []
    try:
        for frame in read(path):
            batch.append(frame)
            if len(batch) == batch_size(frame):
                yield batch
                batch = []
    except UserError:
        if batch:
            yield batch
        raise
    if batch:
        yield batch


def _done(number: int) -> str:
    return f"frames 0 to {number - 1} were segmented" if number else "nothing of it was segmented"


class Film:
    """Pictures made into an H.264 MP4; a context, at whose end the file is complete.

    Until then it is called NAME.mp4.part, so that a NAME.mp4 can always be played: it is whole, or
    holds the pictures before an error or an interruption. Without any picture there is no file.

    Args:
      path: the file to write.
      rate: frames per second.
    """

    def __init__(self, path: pathlib.Path, rate: Fraction):
        self.path, self.rate = path, rate
        self.part = path.with_name(path.name + ".part")
        self.container = None

    def add(self, picture: np.ndarray) -> None:
        """Takes uint8 RGB [h, w, 3], always of one size.

        An odd height or width, which the colour format cannot have, is made even by repeating the
        last row or column.

        Raises:
          UserError: the file cannot be written.
        """
        import av

        picture = np.pad(picture, [(0, n % 2) for n in picture.shape[:2]] + [(0, 0)], "edge")
        try:
            if self.container is None:
                self.part.parent.mkdir(parents=True, exist_ok=True)
                self.container = av.open(str(self.part), "w", format="mp4")
                self.stream = self.container.add_stream("libx264", rate=self.rate)
                self.stream.height, self.stream.width = picture.shape[:2]
                self.stream.pix_fmt = "yuv420p"  # the one that every player and browser shows
                self.stream.options = {"crf": "20"}
            self._write(av.VideoFrame.from_ndarray(picture, format="rgb24"))
        except (av.error.FFmpegError, OSError) as error:
            raise tables.unwritable(self.path, error) from error

    def _write(self, frame: Any) -> None:
        for packet in self.stream.encode(frame):
            self.container.mux(packet)

    def __enter__(self) -> "Film":
        return self

    def __exit__(self, *exception: Any) -> None:
        if self.container is None:
            return
        import av

        try:
            self._write(None)
            self.container.close()
            os.replace(self.part, self.path)
        except (av.error.FFmpegError, OSError) as error:
            self.part.unlink(missing_ok=True)
            raise tables.unwritable(self.path, error) from error
