"""Where jaxseg keeps what it need not make or fetch again.

In the folder: downloaded weights; and in `xla/` the compiled programs of all runs, for the next
time, those that took a second or more to compile. JAX_COMPILATION_CACHE_DIR=FOLDER puts the
programs elsewhere, where many machines find them, say; JAX_ENABLE_COMPILATION_CACHE=0 keeps none.
On a GPU the choices of algorithms that were timed are kept beside them. Nothing is ever deleted.
"""

import os
import pathlib


def folder() -> pathlib.Path:
    """The environment variable JAXSEG_CACHE, or ~/.cache/jaxseg; need not exist yet."""
    return pathlib.Path(os.environ.get("JAXSEG_CACHE") or "~/.cache/jaxseg").expanduser()
