"""Decoded data kept in memory: the same batches, read once, and only where it fits."""

import importlib.util

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from jaxseg import data
from jaxseg.data import labels, rate, reading, samples
from jaxseg.data.base import Description, Record
from jaxseg.errors import UserError

TENSORFLOW = importlib.util.find_spec("tensorflow") is not None
AUGMENT = ConfigDict(
    dict(crop=(24, 40), scale=(0.5, 2.0), base_size=(), cat_max_ratio=0.6, flip=True)
)


def photos(folder, kinds=("png", "jpg", "bmp", "png", "jpg"), size=(45, 67)):
    """Records of smooth pictures in files, and labels of blocks: stored 7 and 9 are the classes."""
    rng = np.random.default_rng(0)
    records = []
    for number, kind in enumerate(kinds):
        small = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        picture = Image.fromarray(small).resize(size[::-1], Image.BICUBIC)
        image, label = folder / f"{number}.{kind}", folder / f"{number}_label.png"
        picture.save(image)
        blocks = rng.choice(np.array([7, 9, 0], np.uint8), (9, 10))
        Image.fromarray(np.kron(blocks, np.ones((5, 7), np.uint8))[: size[0], : size[1]]).save(
            label
        )
        records.append(Record(str(number), str(image), str(label)))
    return records


def describe(records, **changes):
    mapping = np.full(256, -1, np.int32)
    mapping[[7, 9, 0]] = 0, 1, 255
    return Description(
        **{
            "name": "toy",
            "classes": ("a", "b"),
            "palette": ((0, 0, 0), (9, 9, 9)),
            "splits": ("train",),
            "records": lambda split: records,
            "label_map": mapping,
            **changes,
        }
    )


def train(description, cache, backend="threads", start=0, steps=8, **settings):
    return data.train_batches(
        description,
        "train",
        AUGMENT,
        backend=backend,
        cache=cache,
        seed=3,
        batch_size=2,
        start_step=start,
        num_steps=steps,
        **settings,
    )


@pytest.mark.parametrize("backend", ["threads", *["tfdata"] * TENSORFLOW])
def test_cached_batches_are_the_same(tmp_path, backend):
    description = describe(photos(tmp_path))
    plain = list(train(description, "none", backend))
    cached = list(train(description, "decoded", backend))
    later = list(train(description, "decoded", backend, start=5, steps=3))
    share = list(train(description, "decoded", backend, process_index=1, process_count=2))
    for number, (one, two) in enumerate(zip(plain, cached, strict=True)):
        assert one["id"] == two["id"] and one["label"].dtype == two["label"].dtype == np.int32
        np.testing.assert_array_equal(one["image"], two["image"])
        np.testing.assert_array_equal(one["label"], two["label"])
        np.testing.assert_array_equal(share[number]["image"], one["image"][1:])
        if number >= 5:
            np.testing.assert_array_equal(later[number - 5]["image"], one["image"])
    seen = np.unique(np.stack([batch["label"] for batch in plain]))
    assert seen.tolist() == [0, 1, 255]


def test_every_file_is_read_once():
    count = {"image": 0, "label": 0}

    def counted(part, array):
        def read():
            count[part] += 1
            return array

        return read

    image = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    label = np.random.default_rng(1).choice(np.array([7, 9], np.uint8), (30, 50))
    records = [Record(str(i), counted("image", image), counted("label", label)) for i in range(3)]
    batches = train(describe(records), "decoded", steps=9)
    assert count == {"image": 3, "label": 0}  # for the estimate of what all will take
    assert len(list(batches)) == 9
    assert count == {"image": 6, "label": 3}


def test_a_bad_sample_comes_at_its_batch(tmp_path):
    records = photos(tmp_path)
    torn = tmp_path / "torn.png"
    torn.write_bytes((tmp_path / "0.png").read_bytes()[:-300])
    records[3] = Record("bad", str(torn), records[3].label)
    batches = train(describe(records), "decoded")
    with pytest.raises(UserError, match="torn.png.*not a complete image"):
        for batch in batches:
            assert "bad" not in batch["id"]


def test_other_caches_are_refused(tmp_path):
    description = describe(photos(tmp_path))
    with pytest.raises(UserError, match="config.data_cache.*'decode', did you mean 'decoded'"):
        train(description, "decode")
    with pytest.raises(UserError, match="config.data_cache='device' .* 'none' and 'decoded'"):
        train(description, "device")


def test_too_little_memory_is_said_before_reading(tmp_path, monkeypatch):
    records = photos(tmp_path)
    description = describe(records)
    assert samples.decoded_bytes(description, records) == 5 * 45 * 67 * 4
    wide = describe(records, classes=tuple(map(str, range(300))), ignore_label=65535)
    assert samples.decoded_bytes(wide, records) == 5 * 45 * 67 * 5
    need = 5 * 45 * 67 * 4
    monkeypatch.setattr(samples, "free_memory", lambda: need)
    monkeypatch.setattr(samples, "read", None)  # nothing is read
    with pytest.raises(UserError, match="take 0.0 GB.*config.data_cache='none'.*reencode"):
        train(description, "decoded")
    for free in (None, int(need / 0.9) + 2):
        monkeypatch.setattr(samples, "free_memory", lambda free=free: free)
        train(description, "decoded").close()


def test_many_sizes_are_estimated_from_some(tmp_path, monkeypatch):
    records = photos(tmp_path, kinds=("bmp",) * 3)
    monkeypatch.setattr(samples, "_ASKED", 2)
    assert samples.decoded_bytes(describe(records), records) == 3 * 45 * 67 * 4


MEMINFO = "MemTotal: 900 kB\nMemFree: 100 kB\nMemAvailable: 500 kB\n"


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, None),
        ({"proc/meminfo": MEMINFO}, 500 * 1024),
        # Version 2: the group has no limit, the one above it has; cached files give way.
        (
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "0::/job/step\n",
                "sys/fs/cgroup/job/step/memory.max": "max\n",
                "sys/fs/cgroup/job/step/memory.current": "5000\n",
                "sys/fs/cgroup/job/memory.max": "90000\n",
                "sys/fs/cgroup/job/memory.current": "30000\n",
                "sys/fs/cgroup/job/memory.stat": "anon 20000\ninactive_file 4000\n",
            },
            64000,
        ),
        # Version 1, as a container sees it: its own group is the root.
        (
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "4:cpu,cpuacct:/a\n3:memory:/docker/abc\n0::/\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "80000\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "90000\n",
                "sys/fs/cgroup/memory/memory.stat": "inactive_file 1\ntotal_inactive_file 13000\n",
            },
            3000,
        ),
    ],
)
def test_free_memory(tmp_path, files, free):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert samples.free_memory(str(tmp_path)) == free


@pytest.mark.parametrize(
    ("classes", "ignore", "dtype"),
    [(2, 255, "uint8"), (255, 255, "uint16"), (254, 255, "uint8"), (19, 19, "uint8"),
     (300, 65535, "uint16"), (2, 65536, "uint32")],
)  # fmt: skip
def test_labels_are_narrow_and_still_checked(classes, ignore, dtype):
    description = describe(
        [], classes=tuple(map(str, range(classes))), ignore_label=ignore, label_map=None
    )
    stored = np.array([[0, classes - 1, ignore]], np.int64)
    narrow = labels.to_classes(description, stored, "x")
    assert narrow.dtype == labels.dtype(description) == dtype
    assert narrow.tolist() == stored.tolist()
    for wrong in {classes, classes + 1, 70000} - {ignore}:
        with pytest.raises(UserError, match=f"value {wrong} .1 pixel. not allowed"):
            labels.to_classes(description, np.array([[0, wrong]]), "x")
    small = stored[stored < 256].astype(np.uint8)[None]
    np.testing.assert_array_equal(labels.to_classes(description, small, "x"), small)


@pytest.mark.parametrize("backend", ["threads", *["tfdata"] * TENSORFLOW])
def test_rates_are_of_what_was_asked_for(tmp_path, backend):
    description = describe(photos(tmp_path, kinds=("png", "png", "jpg")))
    measured = rate.measure_input(
        description, "train", AUGMENT, backend=backend, batch_size=2, batches=3
    )
    assert measured["format"] == "PNG 67x45" and measured["backend"] == backend
    assert (measured["batches"], measured["batch_size"], measured["cache"]) == (3, 2, "none")
    for name in ("images_per_s", "images_per_cpu_s", "first_batch_s"):
        assert 0 < measured[name] < float("inf")


def test_rates_of_a_cache_are_of_what_is_kept(monkeypatch):
    """Once the clock runs, nothing is decoded any more."""
    calls = []
    image = np.zeros((30, 50, 3), np.uint8)
    label = np.full((30, 50), 7, np.uint8)
    records = [Record(str(i), lambda: image, lambda: label) for i in range(20)]
    read = samples.read
    monkeypatch.setattr(samples, "read", lambda *args: calls.append(1) or read(*args))
    measured = rate.measure_input(
        describe(records), "train", AUGMENT, cache="decoded", batch_size=4, batches=3
    )
    assert len(calls) == 12  # of 20: three batches' worth
    assert measured["format"] == "array 50x30" and measured["backend"] == "threads"
    with pytest.raises(UserError, match="0 batches"):
        rate.measure_input(describe(records), "train", AUGMENT, batches=0)


# ---- Reading a part of an image ----


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP", "TIFF", "PPM"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_box_is_a_part_of_the_image(tmp_path, kind, mode):
    rng = np.random.default_rng(1)
    path = tmp_path / "x"
    Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)).convert(mode).save(
        path, kind
    )
    content = path.read_bytes()
    whole = reading.decode_image(content, "x")
    for top, left, height, width in [(0, 0, 40, 30), (0, 3, 1, 5), (11, 0, 9, 30), (39, 29, 1, 1)]:
        part = reading.decode_image(content, "x", (top, left, height, width))
        np.testing.assert_array_equal(part, whole[top : top + height, left : left + width])


def test_of_a_png_only_the_top_is_decoded_but_all_is_checked(tmp_path):
    from jaxseg.data import png

    pixels = np.random.default_rng(1).integers(0, 256, (60, 50, 3), dtype=np.uint8)
    path = tmp_path / "x.png"
    Image.fromarray(pixels).save(path)
    content = path.read_bytes()
    short = png.first_rows(content, 7)
    with Image.open(path) as picture:
        assert picture.size == (50, 60)
    path.write_bytes(short)
    with Image.open(path) as picture:
        assert picture.size == (50, 7)
        np.testing.assert_array_equal(np.asarray(picture), pixels[:7])
    for rows in (60, 100):
        assert png.first_rows(content, rows) is content
    # Whatever is the matter below the window, the whole file goes to the decoder, which says so.
    damaged = content[:-60] + bytes([content[-60] ^ 1]) + content[-59:]
    for bad in (damaged, content[:-5], content[:-30], content[:20], b"", content[:-12]):
        assert png.first_rows(bad, 7) is bad
    with pytest.raises(UserError, match="not a complete image"):
        reading.decode_image(content[:-30], "x", (0, 0, 3, 3))
