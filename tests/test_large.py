"""Images too large for one piece: the same labels as the ordinary chain, in bounded memory."""

import numpy as np
import pytest
from test_predict import make_model, pictures

from jaxseg import large, predict
from jaxseg.errors import UserError
from jaxseg.ops import bands
from jaxseg.segmentation import Segmentation

SLIDE = {"slide": {"crop": (16, 24), "stride": (12, 16), "batch": 2}}


@pytest.fixture
def little_memory(monkeypatch):
    """Images of more than 40 x 40 pixels and three classes are large."""
    monkeypatch.setattr(large, "WHOLE", 40 * 40 * 3)
    monkeypatch.setattr(bands, "CPU_BAND", 64 * 3 * 7)


def both(config, image, size, **how):
    """Labels of the ordinary chain, and of the one in bands."""
    model, variables = make_model()
    how = {"dtype": "float32", **how}
    plain = predict.make_predict(model, config, **how)(variables, image[None], size)
    banded = large.make_segment(model, config, 3, **how)(variables, image, size)
    assert banded.shape == size and banded.dtype == np.int32
    return np.asarray(plain)[0], banded


@pytest.mark.parametrize("config", [None, SLIDE, {"flip": True}, {"scales": (0.5, 1.0)}])
def test_a_small_image_enlarged_in_bands_has_the_labels_of_one_enlarged_whole(
    little_memory, config
):
    plain, banded = both(config, pictures(24, 32), (100, 64))
    assert (plain == banded).mean() > 0.999


def test_a_large_image_that_is_fitted_into_a_small_box(little_memory):
    image = pictures(100, 64)
    assert large.is_large((100, 64), 3)
    plain, banded = both({"scales": (0.5, 1.0)}, image, (100, 64), base_size=(50, 40))
    assert (plain == banded).mean() > 0.999
    with pytest.raises(UserError, match="without scales and config.eval.base_size"):
        both(SLIDE, image, (100, 64), base_size=(300, 200))


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", [(52, 64), (49, 41), (100, 24), (16, 301)])
def test_windows_along_bands_give_the_labels_of_windows_over_the_whole(little_memory, size, flip):
    assert large.is_large(size, 3)
    plain, banded = both(SLIDE | {"flip": flip}, pictures(*size), size)
    assert (plain == banded).mean() > 0.999


def test_a_segmentation_takes_large_images_by_itself(little_memory):
    model, variables = make_model()
    names = ("a", "b", "c")
    colors = ((0, 0, 0), (1, 1, 1), (2, 2, 2))
    seg = Segmentation(model, variables, names, colors, chain=SLIDE)
    images = pictures(2, 52, 64)
    expected = predict.make_predict(model, SLIDE, dtype="float32")(variables, images, (52, 64))
    assert (np.asarray(seg.segment(images)) == np.asarray(expected)).mean() > 0.999


@pytest.mark.parametrize(
    "config, words",
    [
        (None, "config.predict.slide.crop"),
        (SLIDE | {"scales": (0.5, 1.0)}, "without scales"),
        (SLIDE | {"crf": {"iterations": 2}}, "too large for config.predict.crf"),
    ],
)
def test_what_cannot_be_done_in_bands_is_told(little_memory, config, words):
    with pytest.raises(UserError, match=words):
        model, variables = make_model()
        segment = large.make_segment(model, config, 3, dtype="float32")
        segment(variables, pictures(64, 64), (64, 64))
