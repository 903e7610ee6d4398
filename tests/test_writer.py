"""metrics.jsonl and TensorBoard's event files, read back without the code that wrote them."""

import builtins
import io
import json
import struct

import jax.numpy as jnp
import numpy as np
import pytest

from jaxseg.writer import Writer, dumps, read_metrics


def lines_of(workdir) -> list[dict]:
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    text = (workdir / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def events_of(workdir) -> list:
    """Every event of every file: TFRecord framing is length, CRC, data, CRC (8, 4, n, 4 bytes)."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    events = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (size,) = struct.unpack("<Q", data[:8])
            event = event_pb2.Event()
            event.ParseFromString(data[12 : 12 + size])
            events.append(event)
            data = data[16 + size :]
    return events


def test_scalars_of_every_kind_are_numbers(tmp_path):
    with Writer(tmp_path) as writer:
        writer.write_scalars(1, {"loss": jnp.float32(0.5), "n": np.int64(3), "lr": 1e-3})
        assert len(lines_of(tmp_path)) == 1  # on disk at once, for a kill may come
        writer.write_scalars(np.int32(2), {"loss": float("nan"), "norm": np.float32(np.inf)})
    first, second = lines_of(tmp_path)
    assert isinstance(first.pop("time"), float)
    assert first == {"step": 1, "loss": 0.5, "n": 3, "lr": 1e-3}
    assert (second["step"], second["loss"], second["norm"]) == (2, None, None)
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]


def test_resume_drops_later_steps_and_a_torn_line(tmp_path):
    with Writer(tmp_path) as writer:
        for step in (0, 10, 20, 30):
            writer.write_scalars(step, {"loss": step / 10})
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 15, "ti')  # a kill within a write
    with Writer(tmp_path, resume_step=20) as writer:
        writer.write_scalars(21, {"loss": 9.0})
    assert [(r["step"], r["loss"]) for r in lines_of(tmp_path)] == [
        (0, 0.0),
        (10, 1.0),
        (20, 2.0),
        (21, 9.0),
    ]
    path.write_text(path.read_text()[:-5])
    Writer(tmp_path).close()  # without a step only the torn line goes
    assert [r["step"] for r in lines_of(tmp_path)] == [0, 10, 20]
    Writer(tmp_path, resume_step=0).close()
    assert [r["step"] for r in lines_of(tmp_path)] == [0]
    assert not list(tmp_path.glob("*.tmp"))


def test_a_kill_while_dropping_loses_nothing(tmp_path, monkeypatch):
    with Writer(tmp_path) as writer:
        writer.write_scalars(1, {"loss": 1.0})
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        Writer(tmp_path, resume_step=0)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_tensorboard_holds_the_same(tmp_path):
    image_module = pytest.importorskip("PIL.Image")
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    with Writer(tmp_path, resume_step=0) as writer:
        writer.write_scalars(3, {"val/mIoU": 0.25})
        writer.write_images(3, {"one": picture, "two": np.stack([picture, 255 - picture])})
        writer.write_text(3, {"config": "batch_size=8"})
    values = {v.tag: v for event in events_of(tmp_path) for v in event.summary.value}
    assert values["val/mIoU"].simple_value == 0.25
    for tag, expected in [("one", picture), ("two/0", picture), ("two/1", 255 - picture)]:
        decoded = image_module.open(io.BytesIO(values[tag].image.encoded_image_string))
        np.testing.assert_array_equal(np.asarray(decoded), expected)
    (text,) = [v for tag, v in values.items() if tag.startswith("config")]
    assert text.tensor.string_val == [b"batch_size=8"]


def test_resume_tells_tensorboard_which_steps_are_void(tmp_path):
    with Writer(tmp_path, resume_step=0) as writer:
        writer.write_scalars(5, {"loss": 1.0})
    assert not any(event.HasField("session_log") for event in events_of(tmp_path))
    with Writer(tmp_path, resume_step=3) as writer:
        writer.write_scalars(4, {"loss": 2.0})
    (start,) = [event for event in events_of(tmp_path) if event.HasField("session_log")]
    assert start.step == 4
    assert start.session_log.status == start.session_log.START


def test_without_tensorboardx_metrics_are_kept(tmp_path, monkeypatch, caplog):
    real = builtins.__import__

    def without(name, *args, **kw):
        if name.startswith("tensorboardX"):
            raise ImportError(name)
        return real(name, *args, **kw)

    monkeypatch.setattr(builtins, "__import__", without)
    with Writer(tmp_path) as writer:
        writer.write_scalars(1, {"loss": 1.0})
        writer.write_images(1, {"a": np.zeros((2, 2, 3), np.uint8)})
        writer.write_text(1, {"a": "b"})
        writer.flush()
    assert len(lines_of(tmp_path)) == 1
    assert caplog.text.count("tensorboardX is not installed") == 1


def test_only_process_0_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_index", lambda: 1)
    with Writer(tmp_path, resume_step=2) as writer:
        writer.write_scalars(1, {"loss": 1.0})
        writer.write_images(1, {"a": np.zeros((2, 2, 3), np.uint8)})
        writer.write_text(1, {"a": "b"})
        writer.flush()
    assert not list(tmp_path.iterdir())


def test_json_of_arrays_and_other_values(tmp_path):
    values = {"iou": np.array([0.5, np.nan]), 3: (jnp.int32(1), True, None), "path": tmp_path}
    assert json.loads(dumps(values)) == {
        "iou": [0.5, None],
        "3": [1, True, None],
        "path": str(tmp_path),
    }
