"""The split in device memory: the batches of the threads, on any number of devices."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import processes
import pytest
from ml_collections import ConfigDict
from test_pipeline import blocks, describe, photo
from test_train import TINY, config_of

from jaxseg import data, feed, models, optim, train
from jaxseg import state as states
from jaxseg.data import crop, device_crop, device_store, on_device, plan, samples, threads
from jaxseg.data.base import Record
from jaxseg.errors import UserError
from jaxseg.sharding import make_mesh, over_batch, replicated

SIZES = [
    (75, 101),
    (40, 59),
    (101, 75),
    (33, 90),
    (64, 64),
    (75, 101),
    (81, 47),
    (52, 97),
    (75, 77),
]
CROP = (48, 64)


def records(sizes):
    return [
        Record(f"r{i}", lambda i=i, s=s: photo(i, s), lambda i=i, s=s: blocks(i, s))
        for i, s in enumerate(sizes)
    ]


@pytest.fixture(scope="module")
def toy():
    """Odd sizes, some smaller than the crop."""
    pixels = {}

    def cached(make, i, size):
        return lambda: pixels.setdefault((make, i), make(i, size))

    return describe(
        [Record(f"r{i}", cached(photo, i, s), cached(blocks, i, s)) for i, s in enumerate(SIZES)]
    )


def augment(**changes):
    settings = dict(crop=CROP, scale=(0.5, 2.0), base_size=(), cat_max_ratio=0.4, flip=True)
    return ConfigDict({**settings, **changes})


def settings(**changes):
    return {**dict(seed=11, batch_size=8, start_step=0, num_steps=4), **changes}


def batches(description, config, devices=1, **changes):
    found = on_device.train_batches(
        description, "train", config, mesh=make_mesh(devices), **settings(**changes)
    )
    return [{k: v if k == "id" else np.asarray(v) for k, v in batch.items()} for batch in found]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a["id"] == b["id"]
        for key in ("image", "label", "mask"):
            np.testing.assert_array_equal(a[key], b[key])


@pytest.mark.parametrize(
    "changes",
    [
        dict(),
        dict(scale=(0.3, 0.6), cat_max_ratio=None),  # padded on both sides
        dict(scale=(1.7, 2.9), flip=False),
        dict(scale=(1.0, 1.0), cat_max_ratio=1.0),
        dict(base_size=(90, 60), crop=(37, 53)),
    ],
    ids=["usual", "small", "large", "unscaled", "base_size"],
)
def test_equals_threads(toy, changes):
    config = augment(**changes)
    expected = list(threads.train_batches(toy, "train", config, **settings()))
    found = batches(toy, config)
    assert len(found) == len(expected) == 4
    for a, b in zip(found, expected, strict=True):
        assert a["id"] == b["id"] and a["mask"].dtype == bool and a["mask"].all()
        assert a["image"].dtype == np.uint8 and a["label"].dtype == np.uint8
        np.testing.assert_array_equal(a["label"], b["label"])
        off = np.abs(a["image"].astype(int) - b["image"])
        # Both round one float32 number: ties alone may fall otherwise.
        assert off.max() <= 1 and np.mean(off > 0) < 1e-3


def test_labels_beyond_a_byte(toy):
    many = describe(
        [
            Record(r.id, r.image, lambda r=r: r.label().astype(int) * 7)
            for r in toy.records("train")
        ],
        classes=tuple(map(str, range(300))),
        palette=((0, 0, 0),) * 300,
        ignore_label=255 * 7,
    )
    expected = list(threads.train_batches(many, "train", augment(), **settings(num_steps=2)))
    found = batches(many, augment(), num_steps=2)
    for a, b in zip(found, expected, strict=True):
        assert a["label"].dtype == np.uint16
        np.testing.assert_array_equal(a["label"], b["label"])
    assert (found[0]["label"] == 255 * 7).any()


def test_one_device_equals_eight(toy, monkeypatch):
    one = batches(toy, augment())
    # Nine records on eight devices: seven have an empty slot. One image a chunk.
    monkeypatch.setattr(device_store, "_CHUNK_BYTES", 1)
    assert_same(batches(toy, augment(), devices=8), one)


def test_resumes_anywhere(toy):
    whole = batches(toy, augment(), num_steps=5)
    assert_same(batches(toy, augment(), start_step=3, num_steps=2), whole[3:])
    assert batches(toy, augment(), start_step=5, num_steps=0) == []


def test_crops_alone_are_exchanged(toy):
    mesh = make_mesh(8)
    n, b, split = 5, 8, over_batch(mesh)
    shapes = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=split)
        for shape, dtype in (
            ((8 * n, 90, 110, 3), np.uint8),
            ((8 * n, 90, 110), np.uint8),
            ((8, b, len(device_crop.Window._fields)), np.int32),
        )
    ]
    program = on_device.make_cut(mesh, CROP, 255).lower(*shapes).compile()
    text = program.as_text()
    assert "reduce-scatter" in text
    assert not any(name in text for name in ("all-gather", "all-to-all", "collective-permute"))
    outputs = program.output_shardings
    assert all(s.is_equivalent_to(split, 1) for s in outputs)


@pytest.mark.parametrize("resample", [device_crop.by_taps, device_crop.by_matrices])
def test_both_forms_cut_what_the_host_cuts(resample):
    rng = np.random.default_rng(0)
    images = np.stack([photo(i, (90, 110)) for i in range(3)])
    labels = rng.integers(0, 255, (3, 90, 110)).astype(np.uint8)
    cut_one = jax.jit(lambda images, labels, window: resample(images, labels, window, CROP))
    for i in range(12):
        size = int(rng.integers(20, 91)), int(rng.integers(20, 111))
        row = plan.row(3, 3, i, augment(scale=(0.4, 2.5)))
        image, label = (x[row.index, : size[0], : size[1]] for x in (images, labels))
        where = plan.cut(row, label, augment(cat_max_ratio=None), 255)
        window = device_crop.Window(
            row.index, *size, *where.scaled, where.top, where.left, where.height, where.width,
            int(where.flip),
        )  # fmt: skip
        window = jax.tree.map(np.int32, window)
        found = [x[: where.height, : where.width] for x in cut_one(images, labels, window)]
        expected = crop.crop_image(image, where), plan.crop_label(label, where)
        if where.flip:
            expected = [x[:, ::-1] for x in expected]
        off = np.abs(np.asarray(found[0]).astype(int) - expected[0])
        assert off.max() <= 1 and np.mean(off > 0) < 1e-3
        np.testing.assert_array_equal(found[1], expected[1])


def test_places_are_exact_up_to_the_limit():
    rng = np.random.default_rng(1)
    along = jax.jit(device_crop._along)
    sizes = [(int(a), int(a * s) + 1) for a, s in rng.uniform((1, 0.3), (20000, 2), (60, 2))]
    for source, scaled in [*sizes, (32767, 32767), (1, 50), (50, 1)]:
        assert 2 * source * scaled <= device_crop.MAX_PRODUCT
        length = min(scaled, 40)
        start = scaled - length  # where the products are largest
        low, high, share, nearest = along(jnp.arange(40), *map(jnp.int32, (start, length, scaled,
                                                                            source)))  # fmt: skip
        np.testing.assert_array_equal(
            nearest[:length], plan.nearest_index(start, length, scaled, source)
        )
        # Place and share as one number: low + share may differ by rounding where it is whole.
        first, second, weight = crop.taps(start, length, scaled, source)
        values = np.linspace(0, 1, source) ** 2
        found = values[low] * (1 - np.float64(share)) + values[high] * share
        expected = values[first] * (1 - np.float64(weight)) + values[second] * weight
        np.testing.assert_allclose(found[:length], expected, atol=1e-6)


def test_trains_as_from_the_host():
    config = config_of("synthetic", *TINY, "--config.steps=3")
    with config.unlocked():  # one convolution is enough of a head, and compiles fast
        config.model = dict(
            name="fcn", backbone=config.model.backbone, feature="stage2", channels=8, num_convs=1,
            kernel=1, dilation=1, concat_input=False, aux_feature="stage1", aux_channels=0,
            dropout=0.0, align_corners=False,
        )  # fmt: skip
        del config.losses.aux_logits
    description = data.get(config.data)
    mesh = make_mesh(1)
    model = models.get(config.model, num_classes=description.num_classes)
    crop_size = tuple(config.augment.crop)
    params = states.abstract_variables(model, crop_size)["params"]
    tx, schedule = optim.make(config.optimizer, config.schedule, config.steps, params)
    start, _ = states.create(states.make_init(model, tx, crop_size, False, 0), mesh)
    step = jax.jit(
        train.make_train_step(model, tx, schedule, config, description),
        in_shardings=(replicated(mesh), over_batch(mesh)),
    )
    losses = {}
    for cache in ("none", "device"):
        with config.unlocked():
            config.data_cache = cache
        losses[cache], state = [], start
        for batch in feed.train_batches(config, description, mesh, 0):
            del batch["id"]
            state, scalars = step(state, batch)
            losses[cache].append(float(scalars["loss"]))
    np.testing.assert_allclose(losses["device"], losses["none"], rtol=1e-5)
    assert len(set(losses["device"])) == 3


TWO_PROCESSES = """
import sys

import jax

from jaxseg import distributed, sharding

distributed.init_distributed(f"127.0.0.1:{sys.argv[1]}", 2, int(sys.argv[2]))
sys.path[:0] = ["tests"]
import numpy as np
import test_on_device as t

description = t.describe(t.records(t.SIZES))
mesh = sharding.make_mesh()
assert mesh.size == 2
found = t.on_device.train_batches(description, "train", t.augment(), mesh=mesh, **t.settings())
mine = dict(process_index=jax.process_index(), process_count=2)
expected = t.threads.train_batches(description, "train", t.augment(), **t.settings(), **mine)
for a, b in zip(found, expected, strict=True):
    assert a["id"] == b["id"]
    np.testing.assert_array_equal(sharding.local_rows(a["label"]), b["label"])
    image = sharding.local_rows(a["image"]).astype(int)
    assert image.shape == b["image"].shape and np.abs(image - b["image"]).max() <= 1
"""


@pytest.mark.slow
def test_each_process_reads_its_share():
    processes.run_two(TWO_PROCESSES)


def test_refuses_what_cannot_be(toy, tmp_path, monkeypatch):
    def message(description=toy, devices=1, config=None, **changes):
        with pytest.raises(UserError) as error:
            batches(description, config or augment(), devices, **changes)
        return str(error.value)

    assert "batch_size=9" in message(devices=2, batch_size=9)
    assert "no split" in message(describe([], splits=("other",)))
    with pytest.raises(UserError, match="config.shard.height=2"):
        on_device.train_batches(toy, "train", augment(), mesh=make_mesh(2, 2), **settings())

    torn = tmp_path / "torn.png"
    torn.write_bytes(b"\x89PNG\r\n\x1a\n")
    good = toy.records("train")
    assert str(torn) in message(describe([*good, Record("torn", str(torn), good[0].label)]))
    assert str(torn) in message(describe([*good, Record("torn", good[0].image, str(torn))]))
    other = Record("other", good[0].image, good[1].label)
    assert "'other'" in message(describe([*good, other]))

    panorama = message(describe(records([(20, 400), (400, 20), (20, 20)])))
    assert "400 x 400" in panorama and "config.data_cache='decoded'" in panorama

    monkeypatch.setattr(device_crop, "MAX_PRODUCT", 2 * 100 * 200)
    assert "101 x 75" in message() and "202 x 150" in message()


def test_says_what_does_not_fit(capsys, monkeypatch):
    sizes = [(1024, 2048)] * 2975
    description = describe([])
    gpu = types.SimpleNamespace(
        process_index=0,
        platform="gpu",
        device_kind="NVIDIA H200",
        memory_stats=lambda: {"bytes_limit": 20 * 10**9, "bytes_in_use": 10**9},
    )
    one = types.SimpleNamespace(devices=np.array([gpu]), size=1)
    layout = device_store.lay_out(description, sizes, one)
    with pytest.raises(
        UserError, match=r"24\.\d+ GB are needed .* 19\.00 GB of 20\.00 GB are free"
    ):
        device_store.check_memory(layout, one, True)
    assert "2975 images take 24.96 GB" in capsys.readouterr().out

    two = types.SimpleNamespace(devices=np.array([gpu, gpu]), size=2)
    layout = device_store.lay_out(description, sizes, two)
    monkeypatch.setattr(samples, "free_memory", lambda: 7 * 10**9)
    device_store.check_memory(layout, two, True)
    monkeypatch.setattr(samples, "free_memory", lambda: 6 * 10**9)
    with pytest.raises(UserError, match=r"6\.24 GB of the host's .*data_cache='none'"):
        device_store.check_memory(layout, two, True)
    device_store.check_memory(layout, two, False)  # windows are taken unseen: no labels there

    cpu = make_mesh(1)
    layout = device_store.lay_out(description, sizes, cpu)
    with pytest.raises(UserError, match=r"31\.\d+ GB of the host's memory"):
        device_store.check_memory(layout, cpu, True)
