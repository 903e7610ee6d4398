"""The one pass behind every figure: the same for any batch, device and process; equal to NumPy."""

import json
import pathlib
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from jaxseg import data, evaluate, figures, measure, metrics, models
from jaxseg.data import cityscapes
from jaxseg.data.base import Description
from jaxseg.metrics import boundaries, images, sizes
from jaxseg.metrics import cityscapes as cityscapes_metrics
from jaxseg.sharding import make_mesh, over_batch
from tests.processes import run_two
from tests.test_evaluate import CLASSES, config, description, one_size, random_variables

ROOT = pathlib.Path(__file__).resolve().parents[1]


def colors(variables, image, size):
    """Instead of a model: each colour is a class, and the brighter the likelier."""
    return jax.nn.softmax(image.astype(jnp.float32) / 64)


def total_of(
    step, setting: ConfigDict, variables, devices: int, what: Description | None = None
) -> measure.Total:
    mesh, what = make_mesh(devices), what or description()
    total = measure.Total()
    for sample in measure.samples(
        {"base": step(mesh)},
        variables,
        evaluate.batches(setting, what, "val", mesh),
        mesh,
        measure.make_examine(what, {}),
    ):
        total.add(sample.id, sample.counts["base"])
    return total


def of_colors(mesh):
    return measure.counted(colors, description(), mesh)


def assert_equal(a: measure.Total, b: measure.Total) -> None:
    assert jax.tree.structure(a.sums) == jax.tree.structure(b.sums)
    jax.tree.map(np.testing.assert_array_equal, a.sums, b.sums)
    assert sorted(a.images) == sorted(b.images)
    jax.tree.map(np.testing.assert_array_equal, a.images, b.images)


def test_no_figure_depends_on_batch_size_or_devices():
    """A network, whose sums of products might change their order; figures bit by bit."""
    variables = random_variables()

    def step(mesh):
        model = models.get(config(1).model, num_classes=3)
        return measure.make_step(model, config(1), description(), mesh)

    reference = total_of(step, config(1), variables, 1, one_size())
    expected = figures.compute(reference, description(), "val")
    assert sum(row["pixels"] > 0 for row in expected["calibration"]["bins"]) > 3
    for batch_size, devices in ((3, 2), (7, 8)):
        total = total_of(step, config(batch_size), variables, devices, one_size())
        assert_equal(total, reference)
        assert figures.compute(total, description(), "val") == expected


def test_devices_count_without_a_word_to_each_other():
    mesh = make_mesh(8)
    labels = jax.ShapeDtypeStruct((8, 40, 56), jnp.int32, sharding=over_batch(mesh))
    confidence = jax.ShapeDtypeStruct(labels.shape, jnp.float32, sharding=over_batch(mesh))
    program = measure._make_count(3, 255, mesh).lower(labels, confidence, labels).compile()
    for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert word not in program.as_text()


def test_counts_are_those_of_each_image_in_numpy():
    total = total_of(of_colors, config(3), {}, 2)
    assert sorted(total.images) == [str(i) for i in range(7)], "and nothing of the padding"
    confusion, by_size, histogram = np.zeros((3, 3), np.int64), 0, np.zeros((2, 15), np.int64)
    for record in description().records("val"):
        image, label = record.image(), record.label().astype(np.int32)
        scores = np.exp(image / 64.0) / np.exp(image / 64.0).sum(-1, keepdims=True)
        labels, sure = scores.argmax(-1), scores.max(-1)
        valid = label != 255
        one = np.zeros((3, 3), np.int64)
        np.add.at(one, (label[valid], labels[valid]), 1)
        confusion += one
        sides = np.stack([np.diag(one), one.sum(1), one.sum(0)])
        np.testing.assert_array_equal(total.images[record.id]["classes"], sides)
        by_size += sizes.counts(labels, label, 3, 255)
        bins = np.minimum((sure * 15).astype(int), 14)
        for right in (0, 1):
            at = bins[valid & ((labels == label) == right)]
            histogram[right] += np.bincount(at, minlength=15)
    np.testing.assert_array_equal(total.sums["confusion"], confusion)
    np.testing.assert_array_equal(total.sums["sizes"], by_size)
    wide = total.sums["calibration"].reshape(2, 15, -1).sum(-1)
    np.testing.assert_allclose(wide, histogram, atol=1)  # a pixel may lie on an edge


def test_every_figure_is_there_and_fits_json():
    total = total_of(of_colors, config(3), {}, 1)
    summary = figures.compute(total, description(), "val")
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    plain = metrics.summarize(total.sums["confusion"], CLASSES)
    assert {k: summary[k] for k in plain} == plain
    near = boundaries.summarize(total.sums["boundaries"], CLASSES)
    [trimap] = [t["mIoU"] for t in near["trimap"] if t["width"] == measure.TRIMAP]
    # The figures with intervals, from counts of images, are those from the sums.
    assert summary["scores"] == pytest.approx(
        {
            "mIoU": plain["mIoU"],
            "pixel_accuracy": plain["pixel_accuracy"],
            "boundary_IoU": near["mean_boundary_IoU"],
            "trimap_mIoU": trimap,
            "boundary_F": near["mean_boundary_F"],
            "ECE": summary["calibration"]["ECE"],
        },
        rel=1e-12,
    )
    for name, (low, high) in summary["intervals"].items():
        assert low < summary["scores"][name] < high, name
    assert summary["calibration"]["pixels"] == summary["pixels"]
    assert sum(of["pixels"] for of in summary["sizes"].values()) == summary["pixels"]
    text = figures.report(summary)
    for words in ("boundary IoU", "ECE", "trimap", "worst: ", "small", "95 %"):
        assert words in text


def test_sums_pass_int32_and_float32():
    """Counts of one image again and again, each as large as int32 holds."""
    largest = np.iinfo(np.int32).max
    counts = {
        "confusion": np.array([[largest, 0], [1, 0]], np.int32),
        "calibration": np.full((2, 1800), largest, np.int32),
        "boundaries": {
            "boundary_iou": np.full((3, 2), largest, np.int32),
            "trimap": np.full((len(boundaries.WIDTHS), 3, 2), largest, np.int32),
            "contour": np.full((4, 2), largest, np.int32),
        },
    }
    total = measure.Total()
    for i in range(5):
        total.add(f"{i}", counts)
    assert total.sums["confusion"].tolist() == [[5 * largest, 0], [5, 0]]
    assert (total.sums["calibration"] == 5 * largest).all()
    assert (total.sums["boundaries"]["trimap"] == 5 * largest).all()
    assert images.sides(total.sums["confusion"])[1].tolist() == [5 * largest, 5]
    assert total.sums["confusion"].dtype == np.int64


TWO_PROCESSES = """
import pickle, sys, jax
port, index, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.distributed.initialize(f"127.0.0.1:{port}", 2, index, shutdown_timeout_seconds=30)
from tests import test_measure as t
total = t.total_of(t.of_colors, t.config(3), {}, 0).of_all_hosts()
large = t.measure.gathered([2**40 + index] * (1 + index))  # beyond int32, of different lengths
pickle.dump((total, large), open(f"{out}/{index}", "wb"))
"""


def test_two_processes_have_the_figures_of_one(tmp_path):
    run_two(TWO_PROCESSES, str(tmp_path))
    reference = total_of(of_colors, config(3), {}, 1)
    for index in range(2):
        total, large = pickle.loads((tmp_path / f"{index}").read_bytes())
        assert_equal(total, reference)
        assert large == [[2**40], [2**40 + 1] * 2]


def test_the_shortlist_keeps_the_first_and_copies_them():
    kept = measure.Shortlist(3)
    array = np.zeros(1)
    for i, key in enumerate([0.5, 0.1, 0.9, 0.5, 0.2]):
        array[0] = i
        kept.offer(key, "edcba"[i], (array,))
    assert [(id, int(x[0])) for id, x in kept] == [("c", 2), ("b", 3), ("e", 0)]


def test_cityscapes_has_categories_and_instances_where_there_are_masks(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for i in range(3):
        names = {}
        for kind, folder in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine")):
            (tmp_path / folder / "val" / "ulm").mkdir(parents=True, exist_ok=True)
            names[kind] = str(tmp_path / folder / "val" / "ulm" / f"ulm_00000{i}_000019_{kind}")
        labels = np.kron(rng.choice([7, 11, 24, 26, 0], (3, 4)), np.ones((8, 8))).astype(np.uint16)
        instances = np.where(labels > 23, 1000 * labels + np.arange(32) // 8, labels)
        image = rng.integers(0, 19, (24, 32, 3)).astype(np.uint8)
        Image.fromarray(image).save(names["leftImg8bit"] + ".png")
        Image.fromarray(labels.astype(np.uint8)).save(names["gtFine"] + "_labelIds.png")
        Image.fromarray(instances.astype(np.uint16)).save(names["gtFine"] + "_instanceIds.png")
    what = cityscapes.describe(str(tmp_path))

    def by_red(variables, image, size):
        return jax.nn.one_hot(image[..., 0], 19)

    def total():
        masks = cityscapes_metrics.find_instances(what.records("val"))
        mesh = make_mesh(1)
        counted, step = measure.Total(), measure.counted(by_red, what, mesh)
        rows = evaluate.batches(config(2), what, "val", mesh)
        examine = measure.make_examine(what, masks)
        for sample in measure.samples({"base": step}, {}, rows, mesh, examine):
            counted.add(sample.id, sample.counts["base"])
        return figures.compute(counted, what, "val")

    summary = total()
    confusion, counts = np.zeros((19, 19), np.int64), []
    for record in what.records("val"):
        predicted = np.asarray(Image.open(record.image))[..., 0].astype(np.int32)
        truth = data.reading.read_label(what, record)
        np.add.at(confusion, (truth[truth < 19], predicted[truth < 19]), 1)
        with Image.open(record.label.replace("labelIds", "instanceIds")) as instances:
            counts.append(cityscapes_metrics.instance_counts(predicted, np.asarray(instances)))
    assert summary["cityscapes"] == cityscapes_metrics.summarize(confusion, counts)
    assert summary["cityscapes"]["instances"] > 5
    assert "class iIoU" in figures.report(summary)

    (tmp_path / "gtFine" / "val" / "ulm" / "ulm_000001_000019_gtFine_instanceIds.png").unlink()
    assert "iIoU" not in total()["cityscapes"]
    assert "no iIoU: 1 of 3 images" in capsys.readouterr().out
