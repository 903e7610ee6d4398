"""Where jaxseg keeps what it need not make or fetch again."""

import os
import pathlib


def folder() -> pathlib.Path:
    """The environment variable JAXSEG_CACHE, or ~/.cache/jaxseg; need not exist yet."""
    return pathlib.Path(os.environ.get("JAXSEG_CACHE") or "~/.cache/jaxseg").expanduser()
