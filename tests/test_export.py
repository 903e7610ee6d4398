"""Exported programs: the same masks as the model that they were made from, anywhere, or an error.

Weights are drawn, which makes scores that differ: labels would differ where two classes are closer
than rounding, which is nowhere in these images.
"""

import json
import pathlib
import shutil
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import randomised
from PIL import Image

import jaxseg
from jaxseg import checkpoint, export, export_tf, exported, fold, main, models, predict
from jaxseg.config import from_file
from jaxseg.errors import UserError
from jaxseg.exported import Axis, Form
from jaxseg.models.common import Classifier, ConvNorm
from jaxseg.models.segmenter import Segmenter
from jaxseg.segmentation import Segmentation
from jaxseg.state import TrainState, abstract_variables

ROOT = pathlib.Path(jaxseg.__file__).parents[1]
TINY = dict(
    name="deeplabv3p", backbone=dict(name="tests.tiny_backbone"), rates=(1, 2, 3), channels=8,
    low_channels=4, aux_channels=0,
)  # fmt: skip
CLASSES = ("road", "sky", "car", "tree", "pole")
PALETTE = tuple((40 * i, 10, 200) for i in range(5))


class Body(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = ConvNorm(8, 5, 2, name="first")(x, train)  # [b, ~h/2, ~w/2, 8]
        return {"x": ConvNorm(8, 5, 1, 2, 8, None, name="depthwise")(x, train)}


class Head(nn.Module):
    @nn.compact
    def __call__(self, features, train):
        return {"logits": Classifier(len(CLASSES), 0.5, name="classifier")(features["x"], train)}


def segmentation(model=None, **fields) -> Segmentation:
    """Of a config's model, or of one that compiles faster."""
    model = models.get(model, len(CLASSES)) if model else Segmenter(Body(), Head())
    variables = randomised(abstract_variables(model, (64, 64)), seed=3)
    return Segmentation(model, variables, CLASSES, PALETTE, **fields)


def pictures(*shape):
    """Squares of one colour each, and some noise."""
    rng = np.random.default_rng(shape[-1])
    b, h, w = shape
    colours = rng.integers(0, 230, (b, -(-h // 8), -(-w // 8), 3))
    image = colours.repeat(8, 1).repeat(8, 2)[:, :h, :w] + rng.integers(0, 26, (*shape, 3))
    return image.astype(np.uint8)


def assert_same(labels, want) -> None:
    """Equal, and more than one answer everywhere."""
    assert (np.asarray(labels) == np.asarray(want)).all() and len(np.unique(want)) > 2


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """(segmentation, the folder that it was exported to with probabilities)."""
    seg = segmentation(TINY)
    folder = tmp_path_factory.mktemp("export") / "model"
    export.export(seg, folder, probabilities=True, source={"step": 7})
    return seg, folder


def test_masks_and_probabilities_are_those_of_the_model(plain):
    seg, folder = plain
    program = jaxseg.load(folder)
    assert program.classes == CLASSES and program.palette == PALETTE
    assert program.form == Form(*(Axis(1, 1),) * 3), "a plain network takes images of any size"
    for shape in ((1, 64, 96), (3, 33, 47)):
        images = pictures(*shape)
        labels, values = program.segment(images), program.probabilities(images)
        assert labels.shape == shape and labels.dtype == jnp.int32
        want = seg.probabilities(images)
        assert_same(labels, want.argmax(-1))
        assert values.dtype == jnp.float32
        np.testing.assert_allclose(values, want, atol=1e-5)


def test_plain_jax_runs_it_in_another_process(plain, tmp_path):
    """What docs/export.md says, where there is no jaxseg."""
    seg, folder = plain
    images = pictures(2, 40, 56)
    np.save(tmp_path / "images.npy", images)
    page = (ROOT / "docs" / "export.md").read_text()
    code = page.split("<!-- plain jax -->")[1].split("```python\n")[1].split("```")[0]
    code = code.replace('"model/', f'"{folder}/').replace("images = ...", "images = load()")
    code = (
        "import numpy as np\n"
        f"load = lambda: np.load({str(tmp_path / 'images.npy')!r})\n{code}\n"
        f"np.save({str(tmp_path / 'labels.npy')!r}, labels)\n"
        "import sys; assert not {'jaxseg', 'flax'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert_same(np.load(tmp_path / "labels.npy"), seg.segment(images))


def test_the_program_is_for_all_platforms_and_holds_no_norms(plain):
    seg, folder = plain
    description = json.loads((folder / "model.json").read_text())
    program = jax.export.deserialize(bytearray((folder / "model.stablehlo").read_bytes()))
    assert tuple(description["platforms"]) == program.platforms == ("cpu", "cuda", "tpu")
    assert description["step"] == 7 and description["jax"] == jax.__version__
    assert description["folded_norms"] == len(fold.find(seg.model)) > 10
    text = program.mlir_module()
    assert "rsqrt" not in text and "stablehlo.sqrt" not in text
    assert str(ROOT) not in text and "/jaxseg/" not in text, "tells where it was made"
    scores = predict.make_scores(seg.model, {}, dtype="float32")
    unfolded = jax.jit(lambda x: scores(seg.variables, x, (64, 64))).lower(pictures(1, 64, 64))
    assert unfolded.as_text().count("rsqrt") == description["folded_norms"]


CHAINS = {
    "flip and scales": dict(flip=True, scales=(0.5, 1.0)),
    "windows": dict(slide=dict(crop=(32, 32), stride=(24, 24), batch=2)),
    "samples": dict(samples=2),
    "crf": dict(crf=dict(iterations=2)),
}


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=[pytest.mark.slow] if x == "crf" else []) for x in CHAINS]
)
def test_the_chain_goes_in(name, tmp_path):
    seg = segmentation(chain=CHAINS[name])
    export.export(seg, tmp_path / "model", size=(40, 56), platforms=("cpu",))
    program = exported.load(tmp_path / "model")
    assert program.form == Form(Axis(1, 1), Axis(40, 0), Axis(56, 0))
    images = pictures(3, 40, 56)
    assert_same(program.segment(images), seg.segment(images))


def test_images_are_fitted_into_base_size_as_on_the_host(tmp_path):
    seg = segmentation(base_size=(64, 48))
    with pytest.raises(UserError, match="base_size"):
        export.export(seg, tmp_path / "model")
    export.export(seg, tmp_path / "model", size=(50, 41))
    images = pictures(2, 50, 41)  # becomes 59 x 48
    assert_same(exported.load(tmp_path / "model").segment(images), seg.segment(images))


def test_bfloat16_on_request(tmp_path):
    seg, narrow = segmentation(dtype="auto"), segmentation(dtype="bfloat16")
    assert export.export(seg, tmp_path / "auto")["dtype"] == "float32"
    folder = tmp_path / "model"
    description = export.export(narrow, folder, platforms=("cpu",), probabilities=True)
    assert description["dtype"] == "bfloat16" and description["platforms"] == ["cpu"]
    program = exported.load(folder)
    text = program.program.mlir_module()
    assert "5x5x3x8xbf16" in text and "5x5x3x8xf32" not in text, "weights take half the place"
    # A norm that is folded rounds elsewhere: no further from float32 than the model itself is.
    images = pictures(2, 64, 96)
    exact, folded = (np.asarray(x.probabilities(images)) for x in (seg, program))
    plain = predict.make_probabilities(narrow.model, narrow.chain, dtype="bfloat16")
    eager = np.asarray(plain(narrow.variables, images, images.shape[1:3]))
    error = np.square(folded - exact).mean() / np.square(eager - exact).mean()
    assert 0.7 < error < 1.4
    assert 0.99 < (program.segment(images) == eager.argmax(-1)).mean() < 1


def test_forms_are_tried_from_the_most_sizes_to_the_fewest():
    words = [form.words() for form in export.forms(None, (64, 100))]
    assert words == [
        "b any, h any, w any",
        "b any, h any from 64 on, w any from 64 on",
        "b any, h multiples of 32, w multiples of 32",
        "b any, h multiples of 32 from 64 on, w multiples of 32 from 64 on",
        "b any, h 64, w 100",
        "b 1, h 64, w 100",
    ]
    assert [form.words() for form in export.forms((5, 6), (64, 100))] == [
        "b any, h 5, w 6",
        "b 1, h 5, w 6",
    ]
    assert [n for n in range(200) if Axis(64, 32).holds(n)] == [64, 96, 128, 160, 192]
    assert [n for n in range(200) if Axis(7, 0).holds(n)] == [7]
    assert [Axis(64, 32).at_least(n) for n in (1, 64, 65)] == [64, 64, 96]
    assert [Axis(7, 0).at_least(n) for n in (1, 64)] == [7, 7]


POINTREND = dict(
    name="pointrend", backbone=dict(name="tests.tiny_backbone"),
    subdivision_points=64, subdivision_steps=1,
    coarse=dict(name="fcn", feature="stage1", channels=4, num_convs=1, aux_channels=0),
    fine_features=("stage0",), channels=4,
)  # fmt: skip
SEGNET_BASIC = dict(name="segnet_basic", width=4)
FCN = dict(
    name="fcn", backbone=dict(name="tests.tiny_backbone"), feature="stage1", channels=4,
    num_convs=1, aux_channels=0,
)  # fmt: skip
LRASPP = dict(name="lraspp", backbone=dict(name="tests.tiny_backbone"), channels=4)


@pytest.mark.parametrize(
    ("model", "form", "fits", "does_not"),
    [
        (POINTREND, "any from 64 on", (70, 65), (63, 64)),  # as many pixels as it redraws
        (SEGNET_BASIC, "multiples of 32", (32, 64), (48, 64)),  # that pooling halves evenly
        (LRASPP, "64", (64, 64), (96, 64)),  # its pooling window is cut off at the map's size
    ],
)
def test_a_model_that_cannot_take_any_size_takes_fewer(model, form, fits, does_not, tmp_path):
    seg = segmentation(model)
    export.export(seg, tmp_path / "model", usual=(64, 64))
    program = exported.load(tmp_path / "model")
    assert program.form.height.words() == program.form.width.words() == form
    images = pictures(2, *fits)
    assert_same(program.segment(images), seg.segment(images))
    with pytest.raises(UserError, match=f"h {form}") as error:
        program.segment(pictures(2, *does_not))
    assert str(list(does_not))[1:-1] in str(error.value)


def test_what_was_not_exported_is_told(plain, tmp_path):
    _, folder = plain
    program = exported.load(folder)
    images = pictures(1, 32, 32)
    for wrong in (images[0], images.astype(np.float32), images[..., :2], [[1]], images[:0]):
        with pytest.raises(UserError, match=r"uint8 RGB \[b, h, w, 3\] with b any"):
            program.segment(wrong)
    for call in (program.logits, program.uncertainty):
        with pytest.raises(UserError, match="labels and probabilities"):
            call(images)
    export.export(segmentation(), tmp_path / "labels", size=(32, 32), platforms=("cpu",))
    with pytest.raises(UserError, match="--probabilities"):
        exported.load(tmp_path / "labels").probabilities(images)
    with pytest.raises(UserError, match="give no config, step or checkpoint"):
        jaxseg.load(folder, checkpoint={})


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def edited(**values):
    def edit(path):
        path = path.with_name("model.json")
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return edit


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flip_a_byte, ["model.stablehlo", "checksum"]),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), ["checksum"]),
        (lambda path: path.unlink(), ["model.stablehlo", "No such file"]),
        (lambda path: path.with_name("model.json").unlink(), ["model.json", "No such file"]),
        (lambda path: path.with_name("model.json").write_text("{"), ["model.json", "damaged"]),
        (lambda path: path.with_name("model.json").write_text("[]"), ["model.json", "damaged"]),
        (lambda path: path.with_name("model.json").write_text("{}"), ["model.json", "damaged"]),
        (edited(format=2), ["format 2"]),
        (edited(calling_convention=99, jax="9.9"), ["jax 9.9", "99"]),
        (edited(platforms=["tpu"]), ["tpu", "--platforms=cpu"]),
    ],
)
def test_damage_and_what_is_of_elsewhere_is_told(plain, tmp_path, damage, words):
    folder = shutil.copytree(plain[1], tmp_path / "copy")
    damage(folder / "model.stablehlo")
    with pytest.raises(UserError) as error:
        jaxseg.load(folder)
    for word in words:
        assert word in str(error.value)


def test_a_folder_is_made_whole_or_not_at_all(plain, tmp_path, monkeypatch):
    seg, folder = plain
    before = (folder / "model.json").read_text()
    with pytest.raises(UserError, match="is there already"):
        export.export(seg, folder)
    assert (folder / "model.json").read_text() == before

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(export_tf, "write", full)
        with pytest.raises(UserError, match="No space left"):
            export.export(seg, tmp_path / "new" / "model", size=(8, 8))
    assert list((tmp_path / "new").iterdir()) == []
    for options, words in (
        (dict(platforms=("gpu",)), "cpu, cuda, tpu"),
        (dict(formats=("h5",)), "saved_model, tflite, onnx"),
        (dict(formats=("tflite",)), "--size"),
    ):
        with pytest.raises(UserError, match=words):
            export.export(seg, tmp_path / "model", **options)
    assert not (tmp_path / "model").exists()


def test_a_model_that_cannot_be_traced_is_told(tmp_path, monkeypatch):
    def at_run_time(*_):
        return lambda images: np.asarray(images)[..., :1]

    monkeypatch.setattr(export, "make_scores", at_run_time)
    with pytest.raises(UserError, match="--size=HEIGHTxWIDTH"):
        export.export(segmentation(), tmp_path / "model")
    with pytest.raises(UserError, match="cannot be one program: TracerArrayConversionError"):
        export.export(segmentation(), tmp_path / "model", size=(32, 32))
    assert not (tmp_path / "model").exists()


# ---- the command line ----


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir with a checkpoint of drawn weights."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    folder.mkdir()
    config = from_file(f"{ROOT}/configs/deeplabv3p.py:synthetic")
    config.model = FCN
    (folder / "config.json").write_text(config.to_json())
    seg = segmentation(FCN)
    variables = dict(seg.variables)
    state = TrainState(np.int32(5), variables.pop("params"), variables, {"count": np.zeros(())})
    writer = checkpoint.Checkpointer(folder)
    meta = {"classes": CLASSES, "palette": PALETTE, "metrics": {"mIoU": 0.25}}
    writer.save(5, jax.tree.map(jnp.asarray, state), meta, score=0.25)
    writer.close()
    return folder


def command(capsys, *argv) -> tuple[int, str]:
    status = main.main(["jaxseg", *map(str, argv)])
    output = capsys.readouterr()
    assert "Traceback" not in output.err
    return status, output.out + output.err


def test_the_command_line_exports_a_run_and_predicts_with_it(run, tmp_path, capsys):
    model, photo = tmp_path / "model", tmp_path / "photo.png"
    Image.fromarray(pictures(1, 45, 60)[0]).save(photo)
    status, text = command(capsys, "export", f"--workdir={run}", f"--output={model}")
    assert status == 0, text
    assert "h any, w any" in text
    description = json.loads((model / "model.json").read_text())
    assert description["step"] == 5 and description["metrics"] == {"mIoU": 0.25}
    assert description["config"]["model"]["name"] == "fcn"
    masks = []
    for workdir in (run, model):
        out = tmp_path / f"out-{workdir.name}"
        flags = (f"--workdir={workdir}", f"--input={photo}", f"--output={out}")
        status, text = command(capsys, "predict", *flags)
        assert status == 0, text
        with Image.open(out / "photo.png") as mask:
            masks.append((np.asarray(mask), mask.getpalette()[:15]))
    assert_same(masks[1][0], masks[0][0])
    assert masks[0][1] == masks[1][1]
    status, text = command(capsys, "predict", *flags, "--write=entropy")
    assert status == 2 and "export it again with --probabilities" in text


def test_mistakes_on_the_command_line_are_told(run, plain, tmp_path, capsys):
    out = f"--output={tmp_path / 'x'}"
    for argv, words in (
        (("export", f"--workdir={run}"), "--output"),
        (("export", f"--workdir={run}", out, "--size=360"), "--size=360x480"),
        (("export", f"--workdir={run}", out, "--platforms=gpu"), "cuda"),
        (("export", f"--workdir={plain[1]}", out), "exported model"),
        (("eval", f"--workdir={plain[1]}"), "exported model"),
        (("predict", f"--workdir={plain[1]}", out, "--input=x", "--step=3"), "give no config"),
    ):
        status, text = command(capsys, *argv)
        assert status == 2 and words in text, text
    assert not (tmp_path / "x").exists()


# ---- other runtimes ----


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """(segmentation, folder) of an export with every format that this machine has packages for."""
    pytest.importorskip("tensorflow")
    formats = ["saved_model", "tflite"]
    try:
        export_tf.check(["onnx"], (40, 56))
        formats.append("onnx")
    except UserError:
        pass
    seg = segmentation()
    folder = tmp_path_factory.mktemp("converted") / "model"
    export.export(seg, folder, size=(40, 56), probabilities=True, formats=formats)
    return seg, folder


def test_a_saved_model_answers_the_same_without_jax(tmp_path):
    pytest.importorskip("tensorflow")
    seg, folder = segmentation(), tmp_path / "model"
    export.export(seg, folder, probabilities=True, formats=["saved_model"])
    images = pictures(3, 33, 47)
    np.save(tmp_path / "images.npy", images)
    code = f"""
import sys
sys.modules["jax"] = None  # importing it fails
import numpy as np, tensorflow as tf
segment = tf.saved_model.load({str(folder / "saved_model")!r}).signatures["serving_default"]
answer = segment(images=tf.constant(np.load({str(tmp_path / "images.npy")!r})))
np.savez({str(tmp_path / "answer.npz")!r}, **{{k: v.numpy() for k, v in answer.items()}})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer = np.load(tmp_path / "answer.npz")
    assert_same(answer["labels"], seg.segment(images))
    np.testing.assert_allclose(answer["probabilities"], seg.probabilities(images), atol=1e-5)


def test_what_another_runtime_cannot_run_is_told(tmp_path):
    pytest.importorskip("tensorflow")
    for model, formats, words in (
        (POINTREND, ["saved_model"], "TensorFlow .* cannot run"),  # older than this top_k
        (SEGNET_BASIC, ["tflite"], "lacks an operation"),  # it selects no 8-bit numbers
    ):
        with pytest.raises(UserError, match=words):
            export.export(segmentation(model), tmp_path / "model", size=(64, 64), formats=formats)
        assert not (tmp_path / "model").exists()


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
def test_tensorflow_lite_answers_the_same(converted):
    import tensorflow as tf

    seg, folder = converted
    images = pictures(1, 40, 56)
    run = tf.lite.Interpreter(str(folder / "model.tflite")).get_signature_runner()
    answer = run(images=images)
    assert_same(answer["labels"], seg.segment(images))
    np.testing.assert_allclose(answer["probabilities"], seg.probabilities(images), atol=1e-5)


def test_onnx_answers_the_same(converted):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("tf2onnx")
    seg, folder = converted
    images = pictures(1, 40, 56)
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    labels, values = session.run(None, {session.get_inputs()[0].name: images})
    assert_same(labels, seg.segment(images))
    np.testing.assert_allclose(values, seg.probabilities(images), atol=1e-5)
