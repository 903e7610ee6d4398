"""Batches on their way to the devices: order, bounds, errors and the end of the thread."""

import signal
import threading
import types

import jax
import numpy as np
import pytest

from jaxseg import feed
from jaxseg.data import labels
from jaxseg.errors import UserError
from jaxseg.sharding import make_mesh, over_batch


def batch(i: int, label: int = 3) -> dict:
    return {
        "image": np.full((8, 4, 6, 3), i, np.uint8),
        "label": np.full((8, 4, 6), label, np.int32),
        "mask": np.arange(8) < i,
        "id": [f"{i}-{row}" for row in range(8)],
    }


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("jaxseg-transfer")]


@pytest.mark.parametrize("devices", [1, 8])
def test_batches_arrive_in_order_on_every_device(devices):
    mesh = make_mesh(devices)
    taken = []

    def source():
        for i in range(7):
            taken.append(i)
            yield batch(i, label=200 + i)

    got = []
    for i, arrays in enumerate(feed.prefetch(source(), mesh, np.uint8)):
        assert len(taken) <= i + 1 + feed.AHEAD
        got.append(arrays)
    assert not threads()
    assert len(got) == 7
    for i, arrays in enumerate(got):
        want = batch(i, label=200 + i)
        assert arrays.pop("id") == want.pop("id")
        assert arrays["label"].dtype == np.uint8
        for name in want:
            assert arrays[name].sharding.is_equivalent_to(over_batch(mesh), arrays[name].ndim)
            np.testing.assert_array_equal(arrays[name], want[name])


def test_an_error_comes_after_the_batches_before_it():
    def source():
        yield from (batch(i) for i in range(3))
        raise UserError("no such file")

    batches = feed.prefetch(source(), make_mesh(1))
    assert [next(batches)["id"][0] for _ in range(3)] == ["0-0", "1-0", "2-0"]
    with pytest.raises(UserError, match="no such file"):
        next(batches)
    assert not threads()


def test_the_thread_ends_with_the_loop():
    ended = []

    def source():
        try:
            for i in range(100):
                yield batch(i)
        finally:
            ended.append(True)

    batches = feed.prefetch(source(), make_mesh(1))
    next(batches)
    assert threads()
    batches.close()
    assert not threads() and ended


def test_an_interrupt_reaches_a_loop_that_waits():
    def source():
        yield batch(0)
        # The main thread is waiting for the next batch, as it is when a user loses patience.
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        yield batch(1)

    batches = feed.prefetch(source(), make_mesh(1))
    with pytest.raises(KeyboardInterrupt):
        for _ in batches:
            pass
    assert not threads()


@pytest.mark.parametrize(
    ("classes", "ignore", "want"),
    [
        (19, 255, np.uint8),
        (255, 254, np.uint8),
        (256, 0, np.uint16),
        (19, 256, np.uint16),
        (70_000, 255, np.uint32),
    ],
)
def test_labels_travel_as_narrow_as_their_values_allow(classes, ignore, want):
    description = types.SimpleNamespace(num_classes=classes, ignore_label=ignore)
    dtype = labels.dtype(description)
    assert dtype == want
    values = np.array([0, classes - 1, ignore])
    np.testing.assert_array_equal(values.astype(dtype), values)


def test_labels_that_are_not_narrow_stay_as_they_are():
    arrays = next(feed.prefetch(iter([batch(0, label=70_000)]), make_mesh(1)))
    assert arrays["label"].dtype == np.int32 and jax.device_get(arrays["label"]).max() == 70_000
