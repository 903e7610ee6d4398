"""What a run says on the screen: plain lines, from one process only."""

import jax

from jaxseg import full_disk
from jaxseg.errors import printable


def say(text: str = "") -> None:
    """Prints a line at once, on process 0 of a multi-process run only."""
    if jax.process_index() == 0:
        try:
            print(printable(text), flush=True)
        except OSError as error:  # of a file that the output goes to
            if not full_disk.is_full(error):
                raise


def duration(seconds: float) -> str:
    """Seconds as '42s', '3m05s' or '2h07m'."""
    seconds = int(round(seconds))
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"
