"""Pictures of labels: exact colours, nothing of the photograph hidden, PNGs that read back."""

import numpy as np
import pytest
from PIL import Image

from jaxseg import visualize

PALETTE = ((200, 0, 0), (0, 150, 0), (0, 0, 250))
CLASSES = ("road", "tree", "sky")


@pytest.fixture
def labels():
    return np.random.default_rng(0).integers(0, 3, (20, 31))


def test_color_map_takes_each_pixels_colour():
    colors = visualize.color_map(np.array([[0, 2], [255, -1]]), PALETTE, ignore_color=(9, 8, 7))
    assert colors.dtype == np.uint8
    assert colors.tolist() == [[[200, 0, 0], [0, 0, 250]], [[9, 8, 7], [9, 8, 7]]]


@pytest.mark.parametrize("size", [(360, 480), (256, 512), (40, 60), (600, 200)])
def test_overlay_blends_and_puts_the_legend_outside(size):
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    labels = np.zeros(size, np.int32)
    labels[:, size[1] // 2 :] = 2
    labels[:10] = 255
    before = image.copy()
    result = visualize.overlay(image, labels, PALETTE, CLASSES, alpha=0.5)
    assert (image == before).all()
    assert result.dtype == np.uint8
    h, w = size
    assert result.shape[0] >= h and result.shape[1] >= w and result.shape != image.shape
    # Ignored pixels stay as photographed, pixels away from boundaries are the mean of both.
    np.testing.assert_array_equal(result[:8, :w], image[:8])
    expected = (image[15, 5].astype(float) + PALETTE[0]) / 2
    np.testing.assert_allclose(result[15, 5], expected, atol=0.5)
    # The swatches of the classes that occur are in the legend, that of the absent one is not.
    outside = result.copy()
    outside[:h, :w] = 255
    present = {tuple(color) for color in outside.reshape(-1, 3).tolist()}
    assert PALETTE[0] in present and PALETTE[2] in present and PALETTE[1] not in present
    below, beside = outside[h:].min(initial=255) < 255, outside[:h, w:].min(initial=255) < 255
    assert (below, beside) == ((True, False) if w > 1.5 * h else (False, True)) or h < 100
    assert below or beside


def test_overlay_marks_boundaries_only():
    image = np.full((50, 50, 3), 100, np.uint8)
    labels = np.zeros((50, 50), np.int32)
    labels[:, 25:] = 1
    picture = visualize.overlay(image, labels, PALETTE, CLASSES)[:50, :50]
    plain = [(100 + np.array(PALETTE[k], float)) / 2 for k in (0, 1)]
    differs = [(np.abs(picture[10, x] - plain[x >= 25]) > 1).any() for x in range(50)]
    assert np.flatnonzero(differs).tolist() == [24, 25]


def test_legend_lists_the_largest_class_first():
    labels = np.zeros((100, 100), np.int32)
    labels[:20], labels[20:50] = 1, 2
    legend = visualize.overlay(np.zeros((100, 100, 3), np.uint8), labels, PALETTE, CLASSES)
    legend = legend[:, 100:]
    tops = [np.argwhere((legend == PALETTE[k]).all(-1))[:, 0].min() for k in (0, 2, 1)]
    assert tops == sorted(tops) and len(set(tops)) == 3


def test_legend_has_room_for_many_classes():
    names = tuple(f"class {i}" for i in range(150))
    palette = tuple((i, 255 - i, 7) for i in range(150))
    labels = np.arange(300 * 500).reshape(300, 500) % 150
    result = visualize.overlay(np.zeros((300, 500, 3), np.uint8), labels, palette, names)
    swatches = {tuple(color) for color in result.reshape(-1, 3).tolist()}
    assert all(color in swatches for color in palette)


def test_overlay_refuses_sizes_that_differ(labels):
    with pytest.raises(ValueError, match="differ in size"):
        visualize.overlay(np.zeros((5, 5, 3), np.uint8), labels, PALETTE, CLASSES)


def test_label_png_has_indices_and_palette(tmp_path, labels):
    labels[3, 4] = 255
    path = tmp_path / "x.png"
    visualize.save_label_png(path, labels, PALETTE)
    with Image.open(path) as picture:
        assert picture.mode == "P"
        np.testing.assert_array_equal(np.asarray(picture), labels)
        colors = np.asarray(picture.convert("RGB"))
    np.testing.assert_array_equal(colors, visualize.color_map(labels, PALETTE))
    assert path.read_bytes()[24:26] == bytes([8, 3])  # IHDR: 8 bits, indexed colour


def test_label_png_past_256_classes_is_16_bit(tmp_path):
    labels = np.arange(300, dtype=np.int32).reshape(15, 20)
    path = tmp_path / "x.png"
    visualize.save_label_png(path, labels, ((1, 2, 3),) * 300)
    with Image.open(path) as picture:
        assert picture.mode.startswith("I;16")
        np.testing.assert_array_equal(np.asarray(picture), labels)
    with pytest.raises(ValueError, match="do not fit"):
        visualize.save_label_png(path, labels, PALETTE)


def test_side_by_side_brings_the_image_to_the_truths_size(labels):
    image = np.random.default_rng(2).integers(0, 256, (10, 31, 3), dtype=np.uint8)
    row = visualize.side_by_side(image, labels, labels[::2], PALETTE)
    assert row.shape == (20, 93, 3) and row.dtype == np.uint8
    np.testing.assert_array_equal(row[:, :31], image.repeat(2, axis=0))
    np.testing.assert_array_equal(row[:, 31:62], visualize.color_map(labels, PALETTE))
    doubled = visualize.color_map(labels[::2], PALETTE).repeat(2, axis=0)
    np.testing.assert_array_equal(row[:, 62:], doubled)
