"""Evaluation: exact for any batch size and number of devices, equal to a plain NumPy count."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from jaxseg import checkpoint, data, evaluate, figures, models, predict, results
from jaxseg import state as states
from jaxseg.data.base import Description, Record
from jaxseg.data.fingerprint import fingerprint
from jaxseg.errors import UserError
from jaxseg.sharding import make_mesh

CLASSES = ("a", "b", "c")
SIZES = [(40, 56), (40, 56), (33, 47), (40, 56), (33, 47), (40, 56), (40, 56)]


def description() -> Description:
    """Seven images of two sizes, with ignored pixels."""
    rng = np.random.default_rng(0)
    records = []
    for i, size in enumerate(SIZES):
        image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
        label = rng.choice([0, 1, 2, 255], size, p=[0.5, 0.2, 0.2, 0.1]).astype(np.uint8)
        records.append(Record(f"{i}", lambda image=image: image, lambda label=label: label))
    palette = ((0, 0, 0), (255, 0, 0), (0, 255, 0))
    return Description("seven", CLASSES, palette, ("val",), lambda split: records)


def one_size() -> Description:
    """Those five that are of one size, so that a program is compiled once."""
    records = [r for r in description().records("val") if r.label().shape == SIZES[0]]
    return dataclasses.replace(description(), records=lambda split: records)


def config(batch_size: int, base_size: tuple[int, ...] = (), flip: bool = False) -> ConfigDict:
    return ConfigDict(
        dict(
            dtype="float32",
            model=dict(
                name="deeplabv3p",
                backbone=dict(name="tests.tiny_backbone"),
                channels=8,
                low_channels=4,
                aux_channels=0,
            ),
            shard=dict(state=False, height=1),
            eval=dict(split="val", batch_size=batch_size, base_size=base_size),
            predict=dict(flip=flip),
        )
    )


def random_variables():
    """Random weights that give every class somewhere."""
    model = models.get(config(1).model, num_classes=3)
    variables = jax.jit(
        lambda: model.init(jax.random.key(0), np.zeros((1, 40, 56, 3), np.uint8), False)
    )()
    variables["params"]["head"]["classifier"]["conv"]["kernel"] *= 100
    return variables


@pytest.fixture(scope="module")
def variables():
    return random_variables()


def count(setting: ConfigDict, variables, devices: int) -> tuple[np.ndarray, list]:
    mesh = make_mesh(devices)
    model = models.get(setting.model, num_classes=3)
    step = evaluate.make_eval_step(model, setting, description(), mesh)
    batches = evaluate.batches(setting, description(), "val", mesh)
    return evaluate.run(step, variables, batches, 3, mesh, keep=10)


def test_counts_do_not_depend_on_batch_size_or_devices(variables):
    reference, kept = count(config(1), variables, 1)
    assert reference.sum() == sum(
        int((np.asarray(r.label()) != 255).sum()) for r in description().records("val")
    )
    assert (reference.sum(axis=0) > 0).all(), "a class is never predicted: the test shows little"
    assert sorted(id for id, *_ in kept) == [str(i) for i in range(7)]
    for batch_size, devices in ((3, 1), (7, 2), (2, 8)):
        counts, _ = count(config(batch_size), variables, devices)
        np.testing.assert_array_equal(counts, reference)


def test_counts_equal_a_plain_count_of_each_image(variables):
    model = models.get(config(1).model, num_classes=3)
    logits = jax.jit(predict.whole(predict.forward(model, "float32")))
    expected = np.zeros((3, 3), np.int64)
    for record in description().records("val"):
        prediction = np.asarray(logits(variables, record.image()[None]))[0].argmax(-1)
        label = record.label()
        for truth, predicted in zip(label[label != 255], prediction[label != 255], strict=True):
            expected[truth, predicted] += 1
    counts, _ = count(config(2), variables, 1)
    np.testing.assert_array_equal(counts, expected)


def test_images_may_be_resized_while_labels_keep_their_size(variables):
    counts, kept = count(config(2, base_size=(80, 60)), variables, 1)
    plain, _ = count(config(2), variables, 1)
    assert counts.sum() == plain.sum()
    assert (counts != plain).any()
    for id, image, truth, labels in kept:
        assert image.shape[:2] == truth.shape == labels.shape == SIZES[int(id)]


def test_a_split_without_a_labelled_pixel_is_refused():
    with pytest.raises(UserError, match="no labelled pixel"):
        figures.summarize(np.zeros((3, 3), np.int64), description(), "val")


def test_a_config_may_name_any_dataset_module():
    with pytest.raises(UserError, match="no such dataset"):
        data.get({"name": "atlantis"})
    with pytest.raises(UserError, match="config.data for 'camvid'"):
        data.get({"name": "camvid", "rot": "x"})


def test_averaged_parameters_are_evaluated_when_kept(variables):
    state = states.TrainState(
        step=0, params={"w": 1}, model_state={"batch_stats": {}}, opt_state=(), ema={"w": 2}
    )
    assert state.variables()["params"] == {"w": 2}
    assert state.replace(ema=None).variables()["params"] == {"w": 1}


def write_run(folder: pathlib.Path, variables) -> pathlib.Path:
    """A run with nothing but a checkpoint of the tiny network."""
    state = states.TrainState(
        step=np.int32(7),
        params=variables["params"],
        model_state={"batch_stats": variables["batch_stats"]},
        opt_state={},
    )
    checkpointer = checkpoint.Checkpointer(folder)
    meta = {"step": 7, "classes": CLASSES, "palette": description().palette}
    checkpointer.save(7, state, meta, score=0.5)
    checkpointer.close()
    return folder


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, variables):
    return write_run(tmp_path_factory.mktemp("run"), variables)


def run_config() -> ConfigDict:
    setting = config(3)
    setting.devices, setting.augment = 1, dict(crop=(40, 56))
    setting.data = dict(name="tests.test_evaluate")
    return setting


def describe() -> Description:
    """`config.data.name` may be any module with this function."""
    return description()


def test_the_protocol_has_the_links_in_force():
    """What is switched off, or changes no figure, does not make two protocols."""
    one, other = config(1), config(1, base_size=(64, 32), flip=True)
    crf = dict(iterations=0, bilateral_weight=4.0)
    one.predict = dict(flip=False, scales=(1.0,), slide=dict(crop=(), stride=(), batch=4), crf=crf)
    plain = results.chain(one)
    assert plain == results.chain(config(1))
    other.predict.slide = dict(crop=(16, 16), stride=(8, 8), batch=2)
    other.dtype = "bfloat16"
    found = results.chain(other)
    assert found["predict"]["slide"] == dict(crop=(16, 16), stride=(8, 8))
    assert found["predict"]["flip"] is True and found["dtype"] == "bfloat16"
    assert found["eval"]["base_size"] == [64, 32]
    assert "OpenCV" in found["resize"]["images"] and plain["resize"]["images"] == "none"


def test_results_have_the_training_and_the_model_as_it_was_evaluated():
    trained = {"seed": 5, "model": {"name": "old"}, "data": {"name": "x", "root": "/data"}}
    setting, weights = run_config(), {"w": np.zeros(2, np.float32)}
    what = (setting, description(), "val", description().records("val"), None, weights)
    header = results.header(evaluate.Task(*what, {"step": 7, "config": trained}))
    assert header["config"] == {"seed": 5, "model": setting.model.to_dict(), "data": {"name": "x"}}
    assert trained["data"]["root"] == "/data"
    released = results.header(evaluate.Task(*what, {"model": "net", "published": {"mIoU": 1.0}}))
    assert released["model"] == "net" and released["published"] == {"mIoU": 1.0}
    assert released["config"]["data"] == {"name": "tests.test_evaluate"}


def test_a_checkpoint_leaves_figures_a_diagram_and_pictures(workdir, variables, capsys):
    stale = workdir / "predictions" / "val-worst" / "old_compared.png"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"")
    summary = evaluate.evaluate_checkpoint(run_config(), str(workdir))
    result = json.loads((workdir / "results-val.json").read_text())
    assert result == json.loads(json.dumps(summary))
    assert (result["dataset"], result["images"], result["step"]) == ("seven", 7, 7)
    assert np.sum(result["confusion"]) == result["pixels"]
    assert results.disagreements(results.read(workdir / "results-val.json")) == []
    assert result["protocol"] == {
        "dataset": "seven",
        "split": "val",
        "images": 7,
        "fingerprint": fingerprint(description(), description().records("val")),
        "classes": list(CLASSES),
        "ignore_label": 255,
        "resize": {
            "images": "none",
            "scores": "bilinear, to the size of the label, before the argmax",
        },
        "eval": {"base_size": []},
        "predict": {"samples": 0, "slide": {}, "flip": False, "scales": [], "crf": {}},
        "dtype": "float32",
    }
    assert result["weights_sha256"] == results.digest(variables)
    assert result["config"]["model"]["channels"] == 8
    machine = result["machine"]
    assert machine["device"] == jax.devices()[0].device_kind and machine["packages"]["jax"]
    assert "host" not in machine
    with Image.open(workdir / "reliability-val.png") as picture:
        assert picture.mode == "RGB"
    ids = {str(i) for i in range(7)}
    found = lambda folder, ending: {  # noqa: E731
        path.name.removesuffix(ending)
        for path in (workdir / "predictions" / folder).glob(f"*{ending}")
    }
    assert found("", "_overlay.png") == found("", "_compared.png") == ids
    for kind in ("worst", "best"):
        assert found(f"val-{kind}", "_compared.png") == {r["id"] for r in result["per_image"][kind]}
    assert not stale.exists()
    assert "worst: " + result["per_image"]["worst"][0]["id"] in capsys.readouterr().out


def test_only_extremes_have_pictures(workdir, monkeypatch):
    monkeypatch.setattr(evaluate, "OVERLAYS", 2)
    result = evaluate.evaluate_checkpoint(run_config(), str(workdir))
    for kind in ("worst", "best"):
        names = [p.name for p in (workdir / "predictions" / f"val-{kind}").iterdir()]
        first = [row["id"] for row in result["per_image"][kind][:2]]
        assert sorted(names) == sorted(f"{id}_compared.png" for id in first)
