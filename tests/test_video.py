"""Videos: frames in, a film and the results of each frame out, and videos that break off."""

import struct
import sys
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from jaxseg import predict_files, video
from jaxseg.errors import UserError
from tests.stubs import ByBrightness, Channels

av = pytest.importorskip("av")

RATE = Fraction(30000, 1001)
COLORS = np.array([(220, 30, 30), (30, 200, 30), (30, 30, 220)], np.uint8)


def scene(number, height=64, width=96):
    """A frame of two classes, of which the second grows by 8 pixels from frame to frame."""
    labels = np.full((height, width), number % 3)
    labels[:, : 8 * number] = (number + 1) % 3
    return labels


def make(path, frames=11, height=64, width=96, codec="libx264", **options):
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=RATE)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for number in range(frames):
            picture = COLORS[scene(number, height, width)]
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return path


def run(path, output, segmentation=None, **arguments):
    return predict_files.predict_files(
        [str(path)], str(output), segmentation or Channels(), **arguments
    )


def frames(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def assert_labels(labels, expected):
    """Equal but for what compression does to the edge between two colours."""
    assert labels.shape == expected.shape
    assert (labels == expected).mean() > 0.96


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [("mp4", "libx264"), ("mkv", "libx264"), ("avi", "mpeg4"), ("webm", "libvpx")],
)
def test_every_frame_is_segmented_and_the_film_runs_as_fast(tmp_path, suffix, codec, capsys):
    path = make(tmp_path / f"clip.{suffix}", codec=codec)
    output = tmp_path / "out"
    assert run(path, output) == 11
    assert sorted(p.name for p in output.iterdir()) == ["clip", "clip_overlay.mp4"]
    assert sorted(p.name for p in (output / "clip").iterdir()) == [
        f"{i:06d}.png" for i in range(11)
    ]
    for number in range(11):
        labels = np.asarray(Image.open(output / "clip" / f"{number:06d}.png"))
        assert_labels(labels, scene(number))
    with av.open(str(output / "clip_overlay.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == RATE and stream.codec_context.name == "h264"
    film, shot = frames(output / "clip_overlay.mp4"), frames(path)
    assert len(film) == 11
    for number, (overlaid, picture) in enumerate(zip(film, shot, strict=True)):
        assert overlaid.shape == (64, 96, 3)
        # Half the picture, half the colour of its class; not so on the boundary.
        expected = (picture + np.eye(3)[scene(number)] * 255) / 2
        assert np.median(np.abs(overlaid - expected)) < 12
    assert "11 frames of" in capsys.readouterr().out


def test_frames_go_through_in_batches_of_one_size(tmp_path):
    sizes = []

    class Watched(Channels):
        def segment(self, images):
            sizes.append(images.shape)
            return super().segment(images)

    path = make(tmp_path / "clip.mp4")
    assert run(path, tmp_path / "out", Watched(), write=("labels",)) == 11
    assert sizes == [(video.BATCH, 64, 96, 3)] * 2
    assert not (tmp_path / "out" / "clip_overlay.mp4").exists()
    assert video.batch_size(np.empty((1024, 2048, 3))) == 1
    assert video.batch_size(np.empty((4000, 4000, 3))) == 1
    assert video.batch_size(np.empty((720, 1280, 3))) == 2


def test_frames_are_rows_of_the_tables_and_have_every_output(tmp_path):
    path = make(tmp_path / "clip.mp4", frames=3)
    write = ("confidence", "shares", "overlay")
    run(path, tmp_path / "out", write=write)
    rows = (tmp_path / "out" / "shares.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == [f"clip/00000{i}" for i in range(3)]
    names = sorted(p.name for p in (tmp_path / "out" / "clip").iterdir())
    assert names == [f"00000{i}_confidence.png" for i in range(3)]


def test_odd_sizes_are_made_even(tmp_path):
    output = tmp_path / "film.mp4"
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 1), np.uint8).repeat(3, 2)
    picture = picture.repeat(9, 0).repeat(9, 1)  # 45 x 63
    with video.Film(output, RATE) as film:
        for _ in range(3):
            film.add(picture)
    (first, *_) = frames(output)
    assert first.shape == (46, 64, 3)
    assert np.abs(first[:45, :63].astype(int) - picture).mean() < 4
    assert np.abs(first[45, :63].astype(int) - picture[44]).mean() < 6


def turned(path, degrees):
    """Writes into an MP4's track header that players turn the picture clockwise by `degrees`."""
    data = bytearray(path.read_bytes())
    assert data.count(b"tkhd") == 1
    a, b, c, d = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[degrees]
    one = 1 << 16
    matrix = (a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    at = data.index(b"tkhd") + 44  # behind version, times, id, duration, layer and volume
    assert struct.unpack(">9i", data[at : at + 36]) == (one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    data[at : at + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(data)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_video_shot_with_the_telephone_turned_is_upright(tmp_path, degrees):
    path = make(tmp_path / "clip.mp4", frames=2)
    turned(path, degrees)
    run(path, tmp_path / "out")
    labels = np.asarray(Image.open(tmp_path / "out" / "clip" / "000001.png"))
    assert_labels(labels, np.rot90(scene(1), -degrees // 90))
    assert frames(tmp_path / "out" / "clip_overlay.mp4")[0].shape[:2] == labels.shape


# ---- what can be the matter with a video ----


def cut_off(path, within):
    """The header comes first and counts all frames; the file ends at or within a later one."""
    make(path, 120, movflags="faststart")
    with av.open(str(path)) as container:
        packets = sorted((p.pos, p.size) for p in container.demux(video=0) if p.size)
    position, size = packets[len(packets) // 2]
    path.write_bytes(path.read_bytes()[: position + (size // 2 if within else 0)])


def sound(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.sample_rate = 8000
        for packet in [*stream.encode(silence), *stream.encode(None)]:
            container.mux(packet)


@pytest.mark.parametrize("within", [False, True])
def test_a_video_that_breaks_off_is_done_up_to_there(tmp_path, capsys, within):
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    cut_off(folder / "cut.mp4", within)
    make(folder / "good.mp4", 3)
    with pytest.raises(UserError, match="1 of 2 images and videos could not be segmented") as error:
        run(folder, output)
    done = len(list((output / "cut").iterdir()))
    assert 20 < done < 100
    words = [f"cut.mp4: ends before frame {done} of 120, as if cut off"]
    words += [f"cut.mp4: frame {done} cannot be decoded"] * within  # the decoder may notice or not
    assert any(text in str(error.value) for text in words)
    assert f"frames 0 to {done - 1} were segmented" in str(error.value)
    assert len(frames(output / "cut_overlay.mp4")) == done
    assert len(frames(output / "good_overlay.mp4")) == 3
    assert "broken off: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "write", "words"),
    [
        ("text.mp4", lambda path: path.write_text("hello"), "not a readable video"),
        ("zero.avi", lambda path: path.write_bytes(b""), "not a readable video"),
        ("sound.mov", sound, "has no pictures"),
    ],
)
def test_what_is_no_video_leaves_nothing(tmp_path, name, write, words):
    write(tmp_path / name)
    with pytest.raises(UserError, match=f"{name}: {words}"):
        run(tmp_path / name, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_an_interrupted_film_can_be_played(tmp_path):
    class Interrupted(ByBrightness):
        calls = 0

        def segment(self, images):
            self.calls += 1
            if self.calls == 4:
                raise KeyboardInterrupt
            return super().segment(images)

    path = make(tmp_path / "clip.mp4", 60)
    with pytest.raises(KeyboardInterrupt):
        run(path, tmp_path / "out", Interrupted())
    assert 0 < len(frames(tmp_path / "out" / "clip_overlay.mp4")) < 24
    assert not list((tmp_path / "out").glob("*.part"))


def test_without_pyav_the_message_says_how_to_get_it(tmp_path, monkeypatch):
    (tmp_path / "clip.MP4").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match="clip.MP4 is a video: .*pip install av"):
        run(tmp_path / "clip.MP4", tmp_path / "out")
    assert not (tmp_path / "out").exists()
