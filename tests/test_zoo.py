"""Released models by name: their classes and test protocol, without the reference data."""

import functools
import hashlib
import http.server
import threading

import jax
import numpy as np
import pytest
import references
import torch_writer
from PIL import Image

import jaxseg
from jaxseg import data, main, models, zoo
from jaxseg.errors import UserError
from jaxseg.state import abstract_variables

SLIDING = "deeplabv3plus_r18-d8_4xb2-80k_cityscapes-769x769"


def test_a_name_gives_model_classes_and_protocol():
    config = zoo.config(SLIDING)
    assert config.model.num_classes == 19 and config.model.align_corners
    assert config.predict.slide.to_dict() == {"crop": (769, 769), "stride": (513, 513)}
    assert config.eval.base_size == (2049, 1025)
    description = data.get(config.data)
    assert description.classes[0] == "road" and description.classes[-1] == "bicycle"
    assert description.palette[13] == (0, 0, 142)  # Cityscapes' car
    with pytest.raises(UserError, match="leftImg8bit"):  # where the images are to lie
        description.records("val")


def test_every_entry_builds_and_has_a_name_and_a_colour_for_each_class():
    names = [name for name, own in zoo.facts()["names"].items() if "model" in own]
    assert len(names) > 250
    for name in names:
        config = zoo.config(name)
        description = data.get(config.data)
        assert len(description.classes) == len(description.palette) == config.model.num_classes
        assert all(name == name.strip() and name for name in description.classes)
        model = models.get(config.model)
        assert model.head.num_classes == config.model.num_classes
        aux_heads = model.aux_head if isinstance(model.aux_head, tuple) else (model.aux_head,)
        for aux_head in filter(None, aux_heads):  # some tell boundaries from the rest
            assert aux_head.num_classes in (config.model.num_classes, 1, 2)
    for name in names[::40]:
        config = zoo.config(name)
        head = abstract_variables(models.get(config.model), (64, 64))["params"]["head"]
        widths = {
            leaf.shape[-1]
            for path, leaf in jax.tree.leaves_with_path(head)
            if "classifier" in jax.tree_util.keystr(path)
        }
        assert config.model.num_classes in widths, name


def test_a_wrong_name_or_no_weights_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXSEG_OFFLINE", "1")
    monkeypatch.setenv("JAXSEG_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=f"such as {SLIDING}"):
        jaxseg.load(SLIDING.replace("80k", "90k"), checkpoint={})
    with pytest.raises(UserError, match="downloads are off.*put it at"):
        jaxseg.load(SLIDING)
    with pytest.raises(UserError, match="backbone"):
        jaxseg.load(SLIDING, checkpoint={"backbone.conv1.weight": np.zeros((64, 3, 7, 7))})


RELEASED = "mobilenet-v2-d8_fcn_4xb2-80k_cityscapes-512x1024"


@pytest.fixture
def released(tmp_path, monkeypatch):
    """(reference outputs, weights) of a model whose published file lies on a server here."""
    npz = np.load(references.GOLDEN / f"{RELEASED}.npz")
    weights = references.state_dict(npz)
    meta = {"mmseg_version": "0.30.0", "CLASSES": ["road"], "epoch": 3}
    state = {
        name: torch_writer.whole(array, str(i)) for i, (name, array) in enumerate(weights.items())
    }
    file = torch_writer.zipped({"meta": meta, "state_dict": state})
    name = f"model_20200605-{hashlib.sha256(file).hexdigest()[:8]}.pth"
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / name).write_bytes(file)
    handler = functools.partial(
        http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "server")
    )
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("JAXSEG_CACHE", str(tmp_path / "cache"))
    url = f"http://127.0.0.1:{server.server_port}/{name}"
    monkeypatch.setitem(zoo.facts()["names"][RELEASED], "weights", url)
    yield npz, weights, tmp_path / "server" / name
    server.shutdown()
    server.server_close()


def test_a_released_model_is_downloaded_once_and_runs(released, tmp_path, capsys):
    npz, weights, published = released
    seg = jaxseg.load(RELEASED)
    logits = seg.logits(npz["image"][None])[0]
    error = references.relative_error(logits[npz["rows"], npz["cols"]], npz["logits"])
    assert error <= 1e-4
    published.unlink()  # from here on the cache alone has it
    Image.fromarray(npz["image"]).save(tmp_path / "street.png")
    out = tmp_path / "out"
    argv = ["jaxseg", "predict", f"--zoo={RELEASED}", f"--input={tmp_path / 'street.png'}"]
    assert main.main([*argv, f"--output={out}"]) == 0
    with Image.open(out / "street.png") as labels:
        found = np.asarray(labels)
    expected = jaxseg.load(RELEASED, checkpoint=weights).segment(npz["image"][None])[0]
    assert (found == np.asarray(expected)).mean() > 0.999
    said = capsys.readouterr().out
    assert said.count("Downloading") == 1


def test_every_entry_says_where_its_weights_are_and_what_they_hash_to():
    from jaxseg import download

    without = set()
    for name, own in zoo.facts()["names"].items():
        if "weights" not in own:
            without.add(name)
            continue
        assert own["weights"].startswith("https://download.openmmlab.com/"), name
        assert len(download.published_prefix(own["weights"])) == 8, name
    # What is published as theirs has ResNet-101.
    kin = "deeplabv3plus_r50-d8_4xb4-{}_pascal-context-480x480"
    assert without == {kin.format("40k"), kin.format("80k")}


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--zoo=pspnet_r50"], "such as pspnet_r50-d8"),
        ([f"--zoo={RELEASED}", "--workdir=runs/x"], "without --workdir"),
        ([f"--zoo={RELEASED}", "--checkpoint=nowhere.pth"], "nowhere.pth"),
        (["--workdir=runs/x", "--checkpoint=x.pth"], "--zoo=NAME"),
    ],
)
def test_mistakes_with_released_models_are_told(flags, words, capsys):
    argv = ["jaxseg", "predict", *flags, "--input=x.png", "--output=out"]
    assert main.main(argv) == 2
    assert words in capsys.readouterr().err
