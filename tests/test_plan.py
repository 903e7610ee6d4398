"""The plan: order, augmentation, windows, crop before resize, evaluation groups."""

import collections
import dataclasses

import numpy as np
import pytest
import scipy.ndimage
from ml_collections import ConfigDict
from PIL import Image

from jaxseg.data import crop, plan
from jaxseg.data.plan import Cut
from jaxseg.errors import UserError


def augment(**changes):
    settings = dict(crop=(32, 48), scale=(0.5, 2.0), base_size=None, cat_max_ratio=0.75, flip=True)
    return ConfigDict({**settings, **changes})


def as_tuple(row):
    return row.index, row.ratio, row.flip, row.offsets.tobytes()


def whole_bilinear(image, size):
    """Oracle: SciPy's interpolation of the whole image at half-pixel centres, edges repeated."""
    grid = np.meshgrid(
        *((np.arange(n) + 0.5) * image.shape[i] / n - 0.5 for i, n in enumerate(size)),
        indexing="ij",
    )
    channels = [
        scipy.ndimage.map_coordinates(image[..., c].astype(float), grid, order=1, mode="nearest")
        for c in range(image.shape[-1])
    ]
    return np.stack(channels, -1)


def whole_nearest(label, size):
    """Oracle: Pillow's nearest resize of the whole label."""
    picture = Image.fromarray(label.astype(np.uint8))
    return np.asarray(picture.resize(size[::-1], Image.NEAREST)).astype(np.int32)


def test_every_epoch_reads_every_record_once():
    n, batch = 13, 5
    order = [
        row.index for step in range(13) for row in plan.train_rows(3, n, step, batch, augment())
    ]
    epochs = np.array(order).reshape(5, n)
    for epoch in epochs:
        assert sorted(epoch) == list(range(n))
    assert len({tuple(epoch) for epoch in epochs}) == 5


def test_order_is_pinned():
    # Runs of older checkouts resume with the same order only while these numbers stay.
    assert plan.permutation(0, 0, 8).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
    row = plan.row(0, 8, 0, augment())
    assert row.ratio == pytest.approx(1.7200310914690347, abs=1e-12)


def test_rows_do_not_depend_on_batch_size_or_processes():
    one = [as_tuple(r) for s in range(12) for r in plan.train_rows(7, 11, s, 4, augment())]
    two = [as_tuple(r) for s in range(4) for r in plan.train_rows(7, 11, s, 12, augment())]
    assert one == two
    split = [
        as_tuple(r)
        for s in range(12)
        for p in range(2)
        for r in plan.train_rows(7, 11, s, 4, augment(), p, 2)
    ]
    assert split == one
    other_seed = [as_tuple(r) for s in range(12) for r in plan.train_rows(8, 11, s, 4, augment())]
    assert not set(one) & set(other_seed)


def test_augmentation_is_uniform():
    rows = [plan.row(1, 100, position, augment()) for position in range(4000)]
    ratios = np.array([row.ratio for row in rows])
    assert ratios.min() >= 0.5 and ratios.max() < 2.0
    np.testing.assert_allclose(np.histogram(ratios, 6, (0.5, 2.0))[0] / 4000, 1 / 6, atol=0.025)
    assert abs(np.mean([row.flip for row in rows]) - 0.5) < 0.03
    offsets = np.stack([row.offsets for row in rows])  # [4000, 11, 2]
    np.testing.assert_allclose(offsets.mean(0), 0.5, atol=0.03)
    # Nothing is shared between the draws.
    draws = np.concatenate([ratios[:, None], offsets.reshape(4000, -1)], 1)
    correlation = np.corrcoef(draws.T) - np.eye(draws.shape[1])
    assert np.abs(correlation).max() < 0.08
    assert not any(plan.row(1, 100, p, augment(flip=False)).flip for p in range(50))


@pytest.mark.parametrize(
    ("size", "ratio", "base_size", "expected"),
    [
        ((1024, 2048), 0.5, None, (512, 1024)),
        ((375, 500), 1.25, None, (469, 625)),  # 468.75
        ((1024, 2048), 1.0, (2048, 1024), (1024, 2048)),
        ((512, 683), 1.0, (2048, 512), (512, 683)),  # the short edge binds
        ((256, 300), 1.0, (512, 2048), (512, 600)),  # in either order
        ((100, 1000), 1.0, (2048, 512), (205, 2048)),  # the long edge binds
        # int(2048 * .777) = 1591, int(512 * .777) = 397: factor 397 / 600
        ((600, 800), 0.777, (2048, 512), (397, 529)),
        ((1, 90), 0.1, None, (1, 9)),
    ],
)
def test_scaled_size(size, ratio, base_size, expected):
    assert plan.scaled_size(size, ratio, base_size) == expected


def test_windows_reach_every_place_equally():
    offsets = np.random.default_rng(0).random((6000, 2))
    cuts = plan.windows(offsets, (34, 48), (32, 48))
    tops = collections.Counter(cut.top for cut in cuts)
    assert set(tops) == {0, 1, 2} and {cut.left for cut in cuts} == {0}
    assert all(abs(count - 2000) < 150 for count in tops.values())
    (small,) = plan.windows(np.array([[0.9, 0.9]]), (10, 60), (32, 48))
    assert (small.top, small.height, small.left, small.width) == (0, 10, int(0.9 * 13), 48)
    (last,) = plan.windows(np.array([[1 - 2**-53, 1 - 2**-53]]), (2000, 2000), (1, 1))
    assert (last.top, last.left) == (1999, 1999)


@pytest.mark.parametrize("scaled", [(31, 41), (62, 82), (15, 20), (47, 90), (24, 31)])
def test_crop_before_resize_equals_resize_before_crop(scaled):
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (31, 41, 3)).astype(np.uint8)
    label = rng.integers(0, 250, (31, 41)).astype(np.int32)
    image_oracle, label_oracle = whole_bilinear(image, scaled), whole_nearest(label, scaled)
    for top, left, height, width in [(0, 0, *scaled), (3, 5, 9, 11), (scaled[0] - 4, 2, 4, 7)]:
        cut = Cut(scaled, top, left, height, width)
        window = np.s_[top : top + height, left : left + width]
        got = crop.crop_image(image, cut)
        assert got.dtype == np.uint8
        assert np.abs(got - image_oracle[window]).max() < 0.501
        np.testing.assert_array_equal(plan.crop_label(label, cut), label_oracle[window])
        # Pixels outside of the stated box are never looked at.
        y, x, h, w = crop.source_box(image.shape[:2], cut)
        spoiled = np.full_like(image, 77)
        spoiled[y : y + h, x : x + w] = image[y : y + h, x : x + w]
        np.testing.assert_array_equal(crop.crop_image(spoiled, cut), got)


def test_nearest_index_is_exact_where_floats_are_not():
    index = plan.nearest_index(0, 30000, 30000, 10000)
    np.testing.assert_array_equal(index, np.repeat(np.arange(10000), 3))
    np.testing.assert_array_equal(plan.nearest_index(29990, 10, 30000, 10000), index[-10:])


def test_choose_window():
    label = np.zeros((20, 60), np.int32)
    label[:, 40:] = 1
    label[:, :10] = 255
    left = Cut((20, 60), 0, 12, 20, 20)  # class 0 only
    ignored = Cut((20, 60), 0, 0, 20, 20)  # ignored and class 0: one class
    most = Cut((20, 60), 0, 25, 20, 20)  # 15 of 20 columns are class 0: 0.75 exactly
    good = Cut((20, 60), 0, 26, 20, 20)  # 14 of 20
    assert plan.choose_window(label, [left, ignored, most, good, left], 0.75, 255) is good
    assert plan.choose_window(label, [left, ignored, most, left], 0.76, 255) is most
    last = dataclasses.replace(left)
    assert plan.choose_window(label, [left, ignored, last], 0.75, 255) is last
    for off in (None, 1.0):
        assert plan.choose_window(label, [left, good], off, 255) is left
    # Nothing labelled at all is no reason to divide by zero.
    assert plan.choose_window(np.full_like(label, 255), [left, good], 0.75, 255) is good


@pytest.mark.parametrize("ratio", [0.15, 0.2, 0.4, 0.5, 0.75, 0.99])
def test_choose_window_counts_exactly(ratio):
    """Against counts of all, where a class covers much, little, or what is not sampled."""
    rng = np.random.default_rng(4)
    chosen = collections.Counter()
    for trial in range(300):
        share = rng.uniform(0, 1)
        label = np.where(
            rng.random((33, 41)) < share, rng.integers(0, 4), rng.integers(0, 23, (33, 41))
        )
        label[rng.random((33, 41)) < rng.choice([0, 0.5])] = 255
        if trial % 3 == 0:
            label[::8, ::8] = rng.choice([7, 255])  # the sampled pixels mislead
        cut = Cut((33, 41), 0, 0, 33, 41)
        last = dataclasses.replace(cut)
        counts = np.unique(label[label != 255], return_counts=True)[1]
        fits = len(counts) > 1 and counts.max() < ratio * counts.sum()
        found = plan.choose_window(label.astype(np.uint8), [cut, last], ratio, 255)
        assert found is (cut if fits else last)
        chosen[fits] += 1
    assert set(chosen) == {True, False}


def test_cut_follows_the_rule_of_resize_then_crop():
    """The whole chain against the rule spelled out on the whole, rescaled label."""
    rng = np.random.default_rng(2)
    blocks = rng.choice([0, 1, 2, 255], (5, 7), p=[0.6, 0.2, 0.1, 0.1])
    label = np.kron(blocks, np.ones((11, 9), int)).astype(np.int32)
    config = augment(crop=(16, 16), cat_max_ratio=0.6)
    took_last = 0
    for position in range(60):
        row = plan.row(5, 1, position, config)
        scaled = tuple(int(edge * row.ratio + 0.5) for edge in label.shape)
        resized = whole_nearest(label, scaled)
        for attempt, (y, x) in enumerate(row.offsets):
            top, left = int(y * (scaled[0] - 15)), int(x * (scaled[1] - 15))
            window = resized[top : top + 16, left : left + 16]
            values, counts = np.unique(window[window != 255], return_counts=True)
            fits = len(values) > 1 and counts.max() / counts.sum() < 0.6
            if fits or attempt == plan.TRIES:
                took_last += attempt == plan.TRIES
                break
        cut = plan.cut(row, label, config, 255)
        assert (cut.scaled, cut.top, cut.left, cut.flip) == (scaled, top, left, row.flip)
    assert 0 < took_last < 60


@pytest.mark.parametrize("scaled", [(31, 41), (62, 82), (15, 20), (47, 30)])
@pytest.mark.parametrize("flip", [False, True])
def test_write_image_takes_a_part_and_pads_after_the_flip(scaled, flip):
    image = np.random.default_rng(6).integers(0, 256, (31, 41, 3)).astype(np.uint8)
    oracle = whole_bilinear(image, scaled)
    for top, left, height, width in [(0, 0, 15, 20), (4, 7, 11, 13)]:
        cut = Cut(scaled, top, left, height, width, flip)
        y, x, h, w = crop.source_box(image.shape[:2], cut)
        for corner, part in (((0, 0), image), ((y, x), image[y : y + h, x : x + w])):
            out = np.full((17, 22, 3), 99, np.uint8)
            crop.write_image(out, part, cut, image.shape[:2], corner)
            window = oracle[top : top + height, left : left + width]
            window = window[:, ::-1] if flip else window
            assert np.abs(out[:height, :width] - window).max() < 0.501
            assert not out[height:].any() and not out[:, width:].any()


def test_place_pads_after_the_flip():
    out = np.zeros((3, 4), np.int32)
    crop.place(np.array([[1, 2], [3, 4]], np.int32), out, flip=True, fill=255)
    assert out.tolist() == [[2, 1, 255, 255], [4, 3, 255, 255], [255] * 4]


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_eval_groups(processes):
    rng = np.random.default_rng(3)
    shapes = [(32, 32), (16, 16), (16, 64)]
    sizes = [shapes[i] for i in rng.integers(0, 3, 21)]
    shares = [plan.eval_groups(sizes, 4, p, processes) for p in range(processes)]
    assert len({len(share) for share in shares}) == 1
    seen = []
    for parts in zip(*shares, strict=True):
        assert len({part.size for part in parts}) == 1
        assert all(len(part.indices) == 4 // processes for part in parts)
        batch = [index for part in parts for index in part.indices]
        real = [index for index in batch if index >= 0]
        assert batch == real + [-1] * (4 - len(real)) and real
        assert all(sizes[index] == parts[0].size for index in real)
        seen += real
    assert sorted(seen) == list(range(21))
    joined = [sum((p.indices for p in parts), ()) for parts in zip(*shares, strict=True)]
    assert joined == [group.indices for group in plan.eval_groups(sizes, 4)]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (dict(crop=(0, 5)), "crop"),
        (dict(crop=(5,)), "crop"),
        (dict(scale=(2.0, 0.5)), "scale"),
        (dict(scale=(0.0, 0.5)), "scale"),
        (dict(base_size=(100,)), "base_size"),
        (dict(cat_max_ratio=0.0), "cat_max_ratio"),
    ],
)
def test_bad_settings(changes, named):
    with pytest.raises(UserError, match=f"config.augment.{named}="):
        plan.check_augment(augment(**changes), 0)


def test_bad_batch_and_seed():
    with pytest.raises(UserError, match="batch_size=6"):
        plan.train_rows(0, 5, 0, 6, augment(), 0, 4)
    with pytest.raises(UserError, match="batch_size=0"):
        plan.train_rows(0, 5, 0, 0, augment())
    with pytest.raises(UserError, match="seed"):
        plan.check_augment(augment(), -1)
