"""What ends a command other than a defect, and how texts reach a terminal."""

import os
import sys


class UserError(Exception):
    """A bad input: the message names the file or value, what was expected and how to mend it.

    `jaxseg.main` prints the message without a traceback and exits with status 2. Raise anything
    else for a defect of jaxseg's own.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class Preempted(Exception):
    """The process was asked to end, by SIGTERM; what there was to save is saved.

    `jaxseg.main` exits with status 42: saved, start me again. See `jaxseg.preemption`.
    """


def printable(text: str) -> str:
    r"""`text` with '\x1b' and the like in place of characters that a terminal obeys.

    Names of classes and files come from strangers, and the answers to some escape sequences are
    typed into the shell. Line breaks and tabs stay. What no encoding has (halves of surrogate
    pairs, for file names that are no UTF-8) is replaced as well, or it could not be printed.
    """
    return "".join(
        char if char in "\n\t" or not _is_control(ord(char)) else ascii(char)[1:-1] for char in text
    )


def show(text: str) -> None:
    """Prints what is `printable` of a text; whoever reads it may stop early, as `head` does."""
    try:
        print(printable(text), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_control(code: int) -> bool:
    """Whether it is C0, DEL, C1, turns the direction of what follows, or is half a pair."""
    turns = 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069
    return code < 32 or 127 <= code < 160 or turns or 0xD800 <= code <= 0xDFFF
