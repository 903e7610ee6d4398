"""`jaxseg.load` and what it returns, with a model whose logits have a closed form."""

import dataclasses
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import jaxseg
from jaxseg import api, checkpoint, stored
from jaxseg.errors import UserError
from jaxseg.ops import opencv
from jaxseg.ops.resize import resize
from jaxseg.state import TrainState
from jaxseg.workdir import read_config

# logits = ((image - mean) / std) @ kernel + bias at each pixel
MODEL = """
import flax.linen as nn
from jaxseg.models.segmenter import Segmenter

class Identity(nn.Module):
    def __call__(self, x, train):
        return {"stage1": x}

class Head(nn.Module):
    num_classes: int
    @nn.compact
    def __call__(self, features, train):
        return {"logits": nn.Conv(self.num_classes, (1, 1), name="classifier")(features["stage1"])}

def Model(num_classes, mean=(100.0, 110.0, 120.0)):
    return Segmenter(Identity(), Head(num_classes), mean=mean, std=(50.0, 60.0, 70.0))

def torch_names(module):
    return [("conv_seg", "classifier")] if isinstance(module, Head) else []
"""
CONFIG = """
from ml_collections import ConfigDict

def get_config(dataset="camvid"):
    if dataset != "camvid":
        raise ValueError(f"choose camvid, not {dataset}")
    return ConfigDict(dict(
        dtype="bfloat16",
        model=dict(name="tiny_package.tiny"),
        data=dict(name="camvid", root="nowhere"),
        eval=dict(base_size=None),
        predict=dict(),
    ))
"""


@pytest.fixture
def config_file(tmp_path, monkeypatch):
    (tmp_path / "tiny_package").mkdir()
    (tmp_path / "tiny_package" / "tiny.py").write_text(MODEL)
    (tmp_path / "config.py").write_text(CONFIG)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield str(tmp_path / "config.py")
    for name in [name for name in sys.modules if name.startswith("tiny_package")]:
        del sys.modules[name]


def weights(num_classes=11, seed=0):
    draw = np.random.default_rng(seed).normal
    return {
        "decode_head.conv_seg.weight": draw(size=(num_classes, 3, 1, 1)).astype(np.float32),
        "decode_head.conv_seg.bias": draw(size=num_classes).astype(np.float32),
    }


def expected_logits(state_dict, images):
    x = (images.astype(np.float64) - (100, 110, 120)) / (50, 60, 70)
    kernel = state_dict["decode_head.conv_seg.weight"][:, :, 0, 0]
    return x @ kernel.T + state_dict["decode_head.conv_seg.bias"]


def pictures(*shape):
    return np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)


def make_workdir(folder: pathlib.Path, classes=("a", "b", "c")) -> list[dict]:
    """A run with a scored step 10, which is the best, and step 20; returns both steps' weights."""
    folder.mkdir()
    config = ConfigDict(
        {
            "dtype": "float32",
            "model": {"name": "tiny_package.tiny", "mean": (100.0, 110.0, 120.0)},
            "data": {"name": "folder", "root": "no longer there"},
            "eval": {"base_size": (64, 32)},
            "predict": {"flip": True},
        }
    )
    (folder / "config.json").write_text(json.dumps(json.loads(config.to_json())))
    checkpointer = checkpoint.Checkpointer(folder)
    saved = []
    for step, score in ((10, 0.9), (20, 0.5)):
        torch = weights(len(classes), seed=step)
        kernel = jnp.asarray(torch["decode_head.conv_seg.weight"].transpose(2, 3, 1, 0))
        bias = jnp.asarray(torch["decode_head.conv_seg.bias"])
        params = {"head": {"classifier": {"kernel": kernel, "bias": bias}}}
        state = TrainState(jnp.asarray(step, jnp.int32), params, {}, {"count": jnp.zeros(())})
        meta = {"classes": list(classes), "palette": [[i, 2, 3] for i in range(len(classes))]}
        checkpointer.save(step, state, meta, score=score)
        saved.append(torch)
    checkpointer.close()
    return saved


def test_load_a_config_file_with_pytorch_weights(config_file):
    torch, images = weights(), pictures(2, 9, 13)
    for name in (config_file, pathlib.Path(config_file), f"{config_file}:camvid"):
        seg = jaxseg.load(name, checkpoint=torch)
        logits = seg.logits(images)
        assert logits.dtype == jnp.float32 and logits.shape == (2, 9, 13, 11)
        np.testing.assert_allclose(logits, expected_logits(torch, images), atol=1e-4)
    labels = seg.segment(images)
    assert labels.shape == (2, 9, 13) and labels.dtype == jnp.int32
    assert (np.asarray(labels) == expected_logits(torch, images).argmax(-1)).mean() > 0.99
    assert len(seg.classes) == len(seg.palette) == 11 and "pedestrian" in seg.classes
    assert seg.dtype == "float32"
    assert jax.tree.map(jnp.shape, seg.variables["params"]["head"]) == {
        "classifier": {"kernel": (1, 1, 3, 11), "bias": (11,)}
    }


def test_load_in_bfloat16_computes_in_bfloat16(config_file):
    torch, images = weights(), pictures(1, 8, 8)
    logits = jaxseg.load(config_file, torch, dtype="bfloat16").logits(images)
    assert logits.dtype == jnp.float32
    error = np.abs(logits - expected_logits(torch, images)).max()
    assert 1e-3 < error < 0.2


def test_load_a_workdir_takes_the_best_step_and_its_classes(config_file, tmp_path):
    best, last = make_workdir(tmp_path / "run")
    images = pictures(1, 8, 8)
    seg = jaxseg.load(tmp_path / "run")
    np.testing.assert_allclose(seg.logits(images), expected_logits(best, images), atol=1e-4)
    assert seg.classes == ("a", "b", "c")
    assert seg.palette == ((0, 2, 3), (1, 2, 3), (2, 2, 3))
    assert seg.chain["flip"] is True and seg.base_size == (64, 32)
    for seg in (
        jaxseg.load(tmp_path / "run", checkpoint=tmp_path / "run" / "checkpoints" / "20"),
        api.from_run(tmp_path / "run", step=20),
    ):
        np.testing.assert_allclose(seg.logits(images), expected_logits(last, images), atol=1e-4)


def test_segment_fits_the_image_into_base_size_and_answers_at_its_own_size(config_file):
    torch = weights()
    seg = dataclasses.replace(jaxseg.load(config_file, torch), base_size=(60, 30))
    for size, fitted in (
        ((20, 50), (24, 60)),  # the long edge decides: factor 1.2
        ((45, 60), (30, 40)),  # the short edge decides: factor 2/3
    ):
        images = pictures(1, *size)
        logits = expected_logits(torch, np.asarray(opencv.resize(images, fitted)))
        expected = resize(jnp.asarray(logits, jnp.float32), size).argmax(-1)
        assert (seg.segment(images) == expected).mean() > 0.999
        assert (seg.segment(images) == expected_logits(torch, images).argmax(-1)).mean() < 0.9
    flat = np.full((1, 20, 50, 3), (30, 90, 200), np.uint8)
    labels = np.asarray(seg.segment(flat))
    assert labels.shape == (1, 20, 50)
    assert (labels == expected_logits(torch, flat).argmax(-1)).all()


@pytest.mark.parametrize(
    "images, words",
    [
        (np.zeros((8, 8, 3), np.uint8), "image[None]"),
        (np.zeros((1, 8, 8, 3), np.float32), "float32"),
        (np.zeros((1, 8, 8, 4), np.uint8), "[1, 8, 8, 4]"),
        (np.zeros((0, 8, 8, 3), np.uint8), "[0, 8, 8, 3]"),
        ([[[[1, 2, 3]]]], "list"),
    ],
)
def test_images_of_a_wrong_kind_are_refused(config_file, images, words):
    seg = jaxseg.load(config_file, weights())
    for function in (seg.logits, seg.segment):
        with pytest.raises(UserError, match=r"expected uint8 RGB \[b, h, w, 3\]") as error:
            function(images)
        assert words in str(error.value)


def test_a_checkpoint_of_ones_own_without_class_names_is_told(config_file, tmp_path):
    make_workdir(tmp_path / "run")
    step = checkpoint.find_step(tmp_path / "run")
    _, meta = checkpoint.load_model(step)
    assert set(meta) >= {"classes", "palette"}
    meta.pop("palette")
    stored.replace_meta(step, meta, score=0.9)
    with pytest.raises(UserError, match="meta lacks palette; save it by") as error:
        jaxseg.load(tmp_path / "run")
    assert str(tmp_path / "run") in str(error.value)


def test_what_load_cannot_load_is_told(config_file, tmp_path):
    (tmp_path / "empty").mkdir()
    make_workdir(tmp_path / "run")
    for arguments, words in (
        (("deeplabv9",), "config file such as"),
        ((config_file,), "has no weights"),
        ((f"{config_file}:kitti", weights()), "choose camvid"),
        ((tmp_path / "no.py", weights()), "no such file"),
        ((tmp_path / "tiny_package" / "tiny.py", weights()), "get_config"),
        ((tmp_path / "empty",), "config.json"),
        ((config_file, tmp_path / "empty"), "no checkpoint"),
        ((config_file, weights(5)), "unequal shape"),
        ((config_file, {"decode_head.conv_seg.weight": np.zeros((11, 3, 1, 1))}), "missing"),
    ):
        with pytest.raises(UserError) as error:
            jaxseg.load(*arguments)
        assert words in str(error.value), arguments
    config = read_config(tmp_path / "run")
    config.model = {"name": "deeplabv3p", "backbone": {"name": "resnet", "depth": 18}}
    with pytest.raises(UserError, match="of another model"):
        api.from_run(tmp_path / "run", config)
