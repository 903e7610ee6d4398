"""Monte-Carlo dropout at prediction, on classifiers whose moments have a closed form."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxseg import links, predict, predict_files
from jaxseg.errors import UserError
from jaxseg.models import segmenter
from jaxseg.models.common import Dropout
from jaxseg.segmentation import Segmentation

CLASSES = ("left", "right")
PALETTE = ((0, 0, 0), (200, 0, 0))
SLOPE = 0.3


class Identity(nn.Module):
    def __call__(self, x, train):
        return {"stage1": x}


class Linear(nn.Module):
    """Drops the red channel of some pixels, then scores it: logits (0, slope x / (1 - rate))."""

    rate: float

    @nn.compact
    def __call__(self, features, train):
        slope = self.param("slope", nn.initializers.constant(SLOPE), ())
        x = Dropout(self.rate)(features["stage1"][..., :1], train)
        return {"logits": jnp.concatenate([jnp.zeros_like(x), slope * x], -1)}


def make_model(rate=0.25):
    model = segmenter.Segmenter(Identity(), Linear(rate), mean=(0.0,) * 3, std=(1.0,) * 3)
    return model, {"params": {"head": {"slope": np.float32(SLOPE)}}}


def flat(red, h=32, w=48, b=1):
    return np.full((b, h, w, 3), (red, 7, 250), np.uint8)


def closed_form(red, rate):
    """Mean and variance of the second class's probability: with chance 1 - rate, x stays."""
    kept = 1 / (1 + np.exp(-SLOPE * red / (1 - rate)))
    mean = (1 - rate) * kept + rate * 0.5
    return mean, rate * (1 - rate) * (kept - 0.5) ** 2


CHAINS = [
    {},
    {"slide": {"crop": (16, 32), "stride": (12, 16)}},
    {"flip": True},
    {"slide": {"crop": (16, 32), "stride": (16, 32)}, "flip": True},
]


@pytest.mark.parametrize("rate", [0.25, 0.5])
@pytest.mark.parametrize("chain", CHAINS)
def test_moments_of_a_linear_classifier(rate, chain):
    model, variables = make_model(rate)
    number, red = 50, 6
    moments = predict.make_moments(model, chain, number, dtype="float32")
    mean, variance = jax.jit(moments, static_argnums=2)(variables, flat(red), (32, 48))
    assert mean.shape == variance.shape == (1, 32, 48, 2)
    np.testing.assert_allclose(mean.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(variance[..., 0], variance[..., 1], atol=1e-5)
    want_mean, want_variance = closed_form(red, rate)
    draws = 16 * 32 * number  # the fewest that are independent: windows share theirs
    error = np.sqrt(want_variance / draws)
    assert abs(mean[..., 1].mean() - want_mean) < 5 * error
    # Of n samples with variance s^2, the mean square about their own mean is (n - 1) / n s^2.
    want_variance *= (number - 1) / number
    assert abs(variance[..., 1].mean() / want_variance - 1) < 0.03


def test_moments_are_those_of_the_single_passes():
    model, variables = make_model(0.5)
    image = np.random.default_rng(0).integers(0, 20, (2, 8, 9, 3), np.uint8)
    keys = jax.random.split(jax.random.key(links.SEED), 7)
    passes = []
    for key in keys:
        outputs, _ = segmenter.forward(model, variables, image, train=False, rngs={"dropout": key})
        odds = np.exp(np.asarray(outputs["logits"], np.float64))
        passes.append(odds / odds.sum(-1, keepdims=True))
    assert len({p.tobytes() for p in passes}) == 7
    mean, variance = predict.make_moments(model, {}, 7, dtype="float32")(variables, image, (8, 9))
    np.testing.assert_allclose(mean, np.mean(passes, 0), atol=1e-6)
    np.testing.assert_allclose(variance, np.var(passes, 0), atol=1e-6)
    scores = predict.make_scores(model, {"samples": 7}, dtype="float32")(variables, image, (8, 9))
    np.testing.assert_array_equal(scores, mean)


def test_zero_samples_are_the_plain_chain():
    model, variables = make_model(0.5)
    image = np.random.default_rng(1).integers(0, 20, (2, 8, 12, 3), np.uint8)
    x = image[..., :1].astype(np.float32)
    logits = np.concatenate([0 * x, SLOPE * x], -1)
    for config in (None, {}, {"samples": 0}):
        scores = predict.make_scores(model, config, dtype="float32")
        np.testing.assert_allclose(scores(variables, image, (8, 12)), logits, rtol=1e-6)
    flipped = predict.make_scores(model, {"samples": 0, "flip": True}, dtype="float32")
    np.testing.assert_allclose(
        flipped(variables, image, (8, 12)), jax.nn.softmax(logits), rtol=1e-5
    )


def test_memory_does_not_grow_with_the_number_of_samples():
    model, variables = make_model()

    def bytes_for(number):
        moments = predict.make_moments(model, {}, number, dtype="float32")
        lowered = jax.jit(moments, static_argnums=2).lower(variables, flat(6), (32, 48))
        return lowered.compile().memory_analysis().temp_size_in_bytes

    maps = 32 * 48 * 2 * 4
    assert bytes_for(64) < bytes_for(4) + 2 * maps


@pytest.mark.parametrize("config", [{"samples": 5}, {"samples": 5, "flip": True}])
def test_samples_of_a_model_without_dropout_are_refused(config):
    with pytest.raises(UserError, match=r"config\.predict\.samples=5.*no dropout.*dropout above 0"):
        predict.make_scores(make_model(rate=0.0)[0], config, dtype="float32")


@pytest.mark.parametrize("samples", [-1, 2.5, "many"])
def test_a_number_of_samples_that_is_none_is_refused(samples):
    with pytest.raises(UserError, match=r"config\.predict\.samples=.*whole number"):
        predict.make_scores(make_model()[0], {"samples": samples}, dtype="float32")


# ---- a Segmentation, and files ----


def segmentation(rate=0.5, **chain):
    model, variables = make_model(rate)
    return Segmentation(model, variables, CLASSES, PALETTE, chain)


def test_uncertainty_agrees_with_segment_and_with_itself():
    images = np.random.default_rng(2).integers(0, 4, (1, 20, 30, 3), np.uint8)
    seg = segmentation(samples=9)
    mean, variance = seg.uncertainty(images)
    assert mean.shape == variance.shape == (1, 20, 30, 2)
    np.testing.assert_array_equal(seg.segment(images), np.argmax(mean, -1))
    again = seg.uncertainty(images, samples=9)
    np.testing.assert_array_equal(mean, again[0])
    np.testing.assert_array_equal(variance, again[1])
    # A pixel without red cannot differ; one with red nearly always does, in nine draws.
    red = images[..., 0] > 0
    assert not variance[~red].any() and (variance[red] > 0).mean() > 0.98
    more, _ = segmentation().uncertainty(images, samples=3)
    assert np.abs(mean - more).max() > 0


def test_uncertainty_fits_the_image_into_base_size():
    model, variables = make_model(0.5)
    seg = Segmentation(model, variables, CLASSES, PALETTE, {}, base_size=(20, 20))
    mean, variance = seg.uncertainty(flat(5, 30, 40), samples=4)
    assert mean.shape == variance.shape == (1, 30, 40, 2)


def test_uncertainty_without_samples_or_dropout_is_refused():
    with pytest.raises(UserError, match=r"samples=0.*uncertainty\(images, samples=20\)"):
        segmentation().uncertainty(flat(1))
    with pytest.raises(UserError, match="no dropout"):
        segmentation(rate=0.0).uncertainty(flat(1), samples=4)
    with pytest.raises(UserError, match="uint8 RGB"):
        segmentation().uncertainty(flat(1)[0], samples=4)


def test_files_get_a_picture_of_the_uncertainty(tmp_path):
    image = flat(0, 24, 40)[0]
    image[:, 20:, 0] = 12  # only the right half can differ
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(image).save(folder / "x.png")
    Image.fromarray(image).save(folder / "x_uncertainty.bmp")
    predict_files.predict_files([str(folder)], str(tmp_path / "plain"), segmentation())
    assert {p.name for p in (tmp_path / "plain").iterdir()} == {
        f"{name}{end}.png" for name in ("x", "x_uncertainty") for end in ("", "_overlay")
    }
    seg = segmentation(samples=4)
    with pytest.raises(UserError, match="would both be written to"):
        predict_files.predict_files([str(folder)], str(tmp_path / "out"), seg)
    (folder / "x_uncertainty.bmp").unlink()
    predict_files.predict_files([str(folder)], str(tmp_path / "out"), seg)
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == ["x.png", "x_overlay.png", "x_uncertainty.png"]
    picture = np.asarray(Image.open(tmp_path / "out" / "x_uncertainty.png"))
    _, variance = seg.uncertainty(image[None])
    variance = np.asarray(variance)[0].mean(-1)
    assert picture.shape == (24, 40, 3) and (picture[:, :20] == 255).all()
    np.testing.assert_allclose(picture[..., 0], 255 * (1 - variance / variance.max()), atol=0.51)
    assert picture.min() == 0
