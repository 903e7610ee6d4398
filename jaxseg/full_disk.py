"""What a run does on a full disk: one line says so, training goes on, the logs catch up later."""

import errno
import os

from absl import logging

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
KEEP = 2**26  # bytes of a log that wait in memory for room on the disk


def is_full(error: OSError) -> bool:
    """Whether it says that no more fits: of the disk, of the user's quota, of a file's limit."""
    return error.errno in _FULL


class PatientFile:
    """A file for a log, whose `write` never fails: what does not fit waits for the next `write`.

    It is not buffered, and holds no half of a record once it has caught up. After `KEEP` waiting
    bytes it takes no more.

    Args:
      path: the file.
      mode: 'ab' or 'wb'.
    """

    def __init__(self, path: str | os.PathLike, mode: str):
        self._path = path
        self._file = open(path, mode, buffering=0)
        self._waiting = bytearray()
        self._failing = self._gave_up = False

    def write(self, data: bytes) -> None:
        """Appends to what is waiting, and writes as much of it as fits."""
        if self._gave_up:
            return
        self._waiting += data
        try:
            while self._waiting:
                del self._waiting[: self._file.write(self._waiting)]
            self._failing = False
        except OSError as error:
            self._gave_up = len(self._waiting) > KEEP
            if self._gave_up or not self._failing:
                then = "its end is lost" if self._gave_up else "kept in memory until there is room"
                logging.error("could not write %s: %s; %s", self._path, error.strerror, then)
            self._failing = True

    def flush(self) -> None:
        """Tries again to write what is waiting."""
        self.write(b"")

    def close(self) -> None:
        """Tries once more, and closes the file."""
        self.flush()
        if self._waiting:
            logging.error("%s: its last %d bytes are lost", self._path, len(self._waiting))
        try:
            self._file.close()
        except OSError as error:  # network file systems tell here what did not arrive
            logging.error("could not write %s: %s", self._path, error.strerror)
