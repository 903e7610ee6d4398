"""Random damage to whatever is read: the answer is right in form, or a `UserError`; nothing else.

Each property is tried with a few examples, and with thousands under `-m slow`. Examples are drawn
the same way every time.
"""

import struct

import hypothesis
import pytest
from hypothesis import strategies as st

QUICK, SLOW = 40, 3000


def fuzz(test):
    """The test with few examples, and as `slow` with many; in a folder of its own."""

    def tried(examples):
        return hypothesis.settings(
            max_examples=examples,
            derandomize=True,
            deadline=None,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )

    @pytest.mark.parametrize(
        "examples", [QUICK, pytest.param(SLOW, marks=pytest.mark.slow)], ids=["few", "many"]
    )
    def run(examples, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        tried(examples)(test)()

    run.__doc__ = test.__doc__
    return run


@st.composite
def damaged(draw, contents):
    """One of `contents` with a few bytes altered, dropped, repeated, or its end cut off."""
    data = bytearray(draw(st.sampled_from(contents)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        count = draw(st.sampled_from([1, 1, 2, 4, 30]))
        match draw(st.sampled_from(["flip", "set", "number", "drop", "repeat", "zero", "cut"])):
            case "flip":
                data[at : at + 1] = bytes(b ^ 1 << draw(st.integers(0, 7)) for b in data[at:][:1])
            case "set":
                data[at : at + count] = draw(st.binary(min_size=1, max_size=count))
            case "number":
                data[at : at + 4] = draw(st.sampled_from(NUMBERS))
            case "drop":
                del data[at : at + count]
            case "repeat":
                data[at:at] = data[at : at + count] * draw(st.integers(1, 3))
            case "zero":
                data[at : at + count] = bytes(len(data[at : at + count]))
            case "cut":
                del data[at:]
    return bytes(data)


NUMBERS = [
    struct.pack(layout, value)
    for layout in ("<I", ">I")
    for value in (0, 1, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1)
]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(max_size=6) | st.sampled_from(["model", "name"]), inner, max_size=3
        )
    ),
    max_leaves=12,
)
