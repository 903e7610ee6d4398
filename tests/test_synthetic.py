"""The drawn scenes: deterministic, disjoint, legal, laid out like a street, and hard by colour."""

import concurrent.futures
import hashlib
import importlib.util
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from jaxseg import data
from jaxseg.data import synthetic
from jaxseg.data.scene_canvas import Canvas, clouds, develop
from jaxseg.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[1]
NAMES = ("road", "sidewalk", "marking", "building", "pole", "vegetation", "sky", "person", "car")
COUNT, SIZE = 48, (128, 256)


def digest(record) -> str:
    return hashlib.sha256(record.image().tobytes() + record.label().tobytes()).hexdigest()


@pytest.fixture(scope="module")
def small() -> data.Description:
    return data.get({"name": "synthetic", "size": SIZE, "train": COUNT, "val": 16, "test": 4})


@pytest.fixture(scope="module")
def images(small) -> np.ndarray:
    return np.stack([record.image() for record in small.records("train")])


@pytest.fixture(scope="module")
def labels(small) -> np.ndarray:
    return np.stack([record.label() for record in small.records("train")])


def test_description(small):
    assert small.classes == NAMES and small.num_classes == 9
    assert len(set(small.palette)) == 9
    assert all(0 <= value <= 255 for color in small.palette for value in color)
    assert [len(small.records(split)) for split in small.splits] == [COUNT, 16, 4]
    ids = [record.id for split in small.splits for record in small.records(split)]
    assert len(set(ids)) == len(ids)


def test_same_scene_in_any_order_thread_and_process(small):
    records = small.records("train")[:6]
    expected = [digest(record) for record in records]
    fresh = synthetic.describe(size=SIZE, train=6).records("train")
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        assert list(pool.map(digest, reversed(fresh))) == expected[::-1]
    code = (
        "import hashlib, jaxseg.data.synthetic as s\n"
        f"r = s.describe(size={SIZE}, train=9).records('train')[4]\n"
        "print(hashlib.sha256(r.image().tobytes() + r.label().tobytes()).hexdigest())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == expected[4]


def test_no_image_in_two_splits_or_two_seeds():
    digests = []
    for seed in (0, 1):
        sets = synthetic.describe(size=(64, 64), train=12, val=12, test=12, seed=seed)
        for split in sets.splits:
            digests += [hashlib.sha256(r.image()).hexdigest() for r in sets.records(split)]
    assert len(set(digests)) == 2 * 3 * 12


def test_image_and_label_come_from_one_drawing(monkeypatch):
    drawn = []
    draw = synthetic.draw
    monkeypatch.setattr(synthetic, "draw", lambda *args: drawn.append(args) or draw(*args))
    record = synthetic.describe(size=(64, 96)).records("val")[3]
    image, label = record.image(), record.label()
    assert len(drawn) == 1
    assert record.image() is image
    for array in (image, label):  # a cached array that a caller could change would be no source
        with pytest.raises(ValueError):
            array[0, 0] = 0


@pytest.mark.parametrize("size", [(64, 64), (65, 97), (97, 301), (200, 70), (256, 512)])
def test_any_size(size):
    for record in synthetic.describe(size=size, test=3).records("test"):
        image, label = record.image(), record.label()
        assert image.shape == (*size, 3) and image.dtype == np.uint8
        assert label.shape == size and label.dtype == np.uint8
        assert set(np.unique(label)) <= {*range(9), 255}
        assert image.std() > 8  # something is to be seen


def test_a_scene_is_the_same_at_twice_the_size():
    coarse = synthetic.describe(size=(128, 256), train=8).records("train")
    fine = synthetic.describe(size=(256, 512), train=8).records("train")
    agreement, difference = [], []
    for a, b in zip(coarse, fine, strict=True):
        image = b.image().reshape(128, 2, 256, 2, 3).mean((1, 3))
        difference.append(np.abs(image - a.image()).mean())
        both = (a.label() != 255) & (b.label()[::2, ::2] != 255)
        agreement.append((a.label() == b.label()[::2, ::2])[both].mean())
    assert min(agreement) > 0.93
    assert np.mean(difference) < 12  # grey levels; noise and texture differ, composition does not


def test_every_class_is_there_often_enough(labels):
    for index, name in enumerate(NAMES):
        present = (labels == index).any((1, 2)).mean()
        share = (labels == index).mean()
        assert present > 0.8, f"{name} in {present:.0%} of the scenes"
        assert 0.004 < share < 0.4, f"{name} has {share:.2%} of the pixels"


def test_void_is_present_and_rare(labels):
    void = (labels == 255).mean((1, 2))
    assert (void > 0).all()
    assert 0.005 < void.mean() < 0.06
    assert void.max() < 0.15


def test_cars_and_people_touch_nothing_but_void(labels):
    inside = np.isin(labels, [NAMES.index("car"), NAMES.index("person")])
    legal = inside | (labels == 255)
    assert legal[:, 1:][inside[:, :-1]].all() and legal[:, :-1][inside[:, 1:]].all()
    assert legal[..., 1:][inside[..., :-1]].all() and legal[..., :-1][inside[..., 1:]].all()


def test_layout_is_that_of_a_street(labels):
    row = {name: np.nonzero(labels == i)[1].mean() / SIZE[0] for i, name in enumerate(NAMES)}
    assert row["sky"] < row["building"] < row["car"] < row["road"]
    third = SIZE[0] // 3
    sky, road = NAMES.index("sky"), NAMES.index("road")
    assert not (labels[:, -third:] == sky).any()
    assert not np.isin(labels[:, :third], [road, NAMES.index("marking")]).any()
    for label in labels:  # in every scene all sky lies above all road
        assert np.nonzero(label == sky)[0].max() <= np.nonzero(label == road)[0].min()


def test_edges_of_the_label_are_edges_of_the_image(images, labels):
    light = images.astype(np.float32).mean(-1)
    contrast = np.abs(np.diff(light, axis=2))

    def at_edges(shift):
        edge = np.roll(np.diff(labels.astype(int), axis=2) != 0, shift, axis=2)
        return contrast[edge].mean()

    assert at_edges(0) > 1.5 * max(at_edges(-6), at_edges(6))


def test_scenes_differ_in_light(images):
    means = images.reshape(COUNT, -1, 3).mean(1)
    assert means.mean(1).std() > 20  # day and dusk
    assert (means[:, 0] / means[:, 2]).std() > 0.08  # warm and cold


def test_colour_is_not_enough(small):
    path = ROOT / "benchmarks" / "synthetic_baseline.py"
    spec = importlib.util.spec_from_file_location("synthetic_baseline", path)
    baseline = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(baseline)
    miou = {}
    for strips in (1, 16):
        table = baseline.fit(small, "train", 4, strips)
        iou, _ = baseline.evaluate(small, "val", table, 4, strips)
        miou[strips] = iou.mean()
    assert 0.1 < miou[1] < 0.3
    # The least bit of context, the height in the image, already helps but is no solution either.
    assert miou[1] + 0.05 < miou[16] < 0.45


@pytest.mark.parametrize(
    "arguments",
    [
        {"size": (32, 64)},
        {"size": (128,)},
        {"size": 128},
        {"size": (128.5, 256)},
        {"train": 0},
        {"val": -1},
        {"test": 2.5},
        {"seed": -1},
        {"seed": "a"},
        {"colour": True},
    ],
)
def test_bad_arguments_name_themselves(arguments):
    (name,) = arguments
    with pytest.raises(UserError, match=name):
        data.get({"name": "synthetic", **arguments})


def test_unknown_split(small):
    with pytest.raises(UserError, match="train, val, test"):
        small.records("trainval")


def camera(**changes) -> Canvas:
    settings = {"focal": 150.0, "horizon": 50.0, "center": 100.0, "eye": 1.5, "visibility": 500.0}
    return Canvas((120, 200), **{**settings, **changes}, light=(1.0, 1.0, 1.0))


def test_wall_is_where_a_pinhole_camera_sees_it():
    a, b = (-2.0, 8.0), (4.0, 20.0)
    patch = camera().wall(a, b, 0.0, 3.0)
    rows, columns = patch.window
    # Rays through the pixel centres, cut with the wall's plane by solving for (depth, share).
    for column in (columns.start, 100, columns.stop - 1):
        ray = (column + 0.5 - 100.0) / 150.0
        matrix = np.array([[ray, a[0] - b[0]], [1.0, a[1] - b[1]]])
        depth, share = np.linalg.solve(matrix, a)
        i = column - columns.start
        np.testing.assert_allclose(patch.z[0, i], depth, rtol=1e-5)
        np.testing.assert_allclose(patch.u[0, i], share * np.hypot(6, 12), rtol=1e-4, atol=1e-4)
        for row in (rows.start, rows.stop - 1):
            height = 1.5 - (row + 0.5 - 50.0) / 150.0 * depth
            np.testing.assert_allclose(patch.v[row - rows.start, i], height, rtol=1e-4, atol=1e-4)
    assert (columns.start, columns.stop) == (63, 130)  # 100 + 150 (-2 / 8) and 100 + 150 (4 / 20)


def test_wall_from_behind_keeps_its_beginning():
    forth = camera().wall((-2.0, 8.0), (4.0, 20.0), 0.0, 3.0)
    back = camera().wall((4.0, 20.0), (-2.0, 8.0), 0.0, 3.0)
    assert forth.window == back.window
    np.testing.assert_allclose(back.u, np.hypot(6, 12) - forth.u, atol=1e-4)


def test_floor_and_wall_meet():
    view = camera()
    wall = view.wall((-1.0, 10.0), (1.0, 10.0), 0.0, 2.0)
    floor = view.floor((-1.0, 1.0), (5.0, 10.0))
    foot = 50 + 150 * 1.5 / 10
    assert abs(wall.window[0].stop - foot) <= 0.5
    assert wall.window[0].stop == floor.window[0].start
    assert floor.z.max() <= 10.0 and floor.z.min() >= 5.0
    assert view.floor((-1.0, 1.0), (5.0, 10.0), level=1.5) is None  # at eye level: edge on
    assert view.wall((30.0, 10.0), (31.0, 10.0), 0.0, 2.0) is None  # out of view


def test_develop_keeps_a_plain_grey_and_adds_the_noise_asked_for():
    rng = np.random.Generator(np.random.Philox(key=3))
    grey = np.full((3, 101, 203), 120.0, np.float32)
    settings = {"gain": (1.0, 1.0, 1.0), "contrast": 0.0, "blur": 0.2, "vignette": 0.0}
    assert (develop(grey.copy(), rng, noise=0.0, **settings) == 120).all()
    noisy = develop(grey.copy(), rng, noise=5.0, **settings).astype(np.float64)
    assert abs(noisy.mean() - 120) < 0.2
    assert abs(noisy.std() - 5.0) < 0.1


def test_clouds_are_smooth_and_the_same_at_any_size():
    def made(size):
        return clouds(np.random.Generator(np.random.Philox(key=5)), size)

    coarse, fine = made((60, 90)), made((237, 357))  # corners on corners: every fourth sample
    np.testing.assert_allclose(fine[::4, ::4], coarse, atol=1e-3)
    assert np.abs(np.diff(fine, axis=1)).max() < 0.05
    assert 0 <= fine.min() and fine.max() <= 1
