"""The same numbers as MMSegmentation's models, from the same weights: forward and training step."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxseg
from jaxseg import convert, models, zoo
from jaxseg.errors import UserError
from jaxseg.models import segmenter
from jaxseg.ops.resize import resize

QUICK = (
    "deeplabv3plus_r18-d8_4xb4-80k_isaid-896x896",
    "deeplabv3plus_r18b-d8_4xb2-80k_cityscapes-769x769",
    "deeplabv3plus_r50-d8_4xb2-300k_mapillay_v1_65-1280x1280",
)
LONG = (
    "deeplabv3plus_r101-d16-mg124_4xb2-80k_cityscapes-512x1024",
    "deeplabv3plus_r101-d8_4xb2-40k_cityscapes-512x1024",
    "deeplabv3plus_r101-d8_4xb4-160k_ade20k-512x512",
    "deeplabv3plus_r101-d8_4xb4-20k_voc12aug-512x512",
    "deeplabv3plus_r101-d8_4xb4-80k_loveda-512x512",
    "deeplabv3plus_r101b-d8_4xb2-80k_cityscapes-512x1024",
    "deeplabv3plus_r18-d8_4xb4-80k_loveda-512x512",
    "deeplabv3plus_r50b-d8_4xb2-80k_cityscapes-512x1024",
)
STEP = "deeplabv3plus_r18-d8_4xb2-80k_cityscapes-512x1024"


def redraw(shared):
    """The module that redraws the weights of the reference outputs."""
    spec = importlib.util.spec_from_file_location("fixture", shared / "zoo" / "fixture.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def fixture(shared):
    return redraw(shared)


def descriptions(shared) -> dict[str, dict]:
    entries = json.loads((shared / "zoo" / "zoo.json").read_text())
    resolved = json.loads((shared / "zoo" / "models.json").read_text())
    return {name: resolved[e["model"]] for name, e in entries.items() if "model" in e}


def load(shared, fixture, name, npz, dtype=jnp.float32, **changes):
    """(model, variables) of a fixture."""
    model = models.get(zoo.model_spec(descriptions(shared)[name]) | changes)
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.uint8)
    shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, False), image)
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), shapes)
    names = convert.torch_names(model)
    return model, convert.from_torch(fixture.state_dict(npz), wanted, names)


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in LONG)]
)
def test_forward(shared, fixture, name):
    npz = np.load(shared / "zoo" / "outputs" / f"{name}.npz")
    logits = jaxseg.load(name, checkpoint=fixture.state_dict(npz)).logits(npz["image"][None])[0]
    error = fixture.relative_error(logits[npz["rows"], npz["cols"]], npz["logits"])
    print(f"{name}: relative error {error:.1e}")
    assert error <= 1e-4


def cross_entropy(logits, labels, align_corners):
    """MMSegmentation's: ignored pixels add nothing to the sum but count in the mean."""
    logits = resize(logits, labels.shape[1:], align_corners=align_corners)
    scores = jax.nn.log_softmax(logits)
    picked = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)  # 255: all zeros
    return -(scores * picked).sum() / labels.size


def step_errors(shared, fixture, dtype) -> dict[str, float]:
    """How far one training step is from the reference, by kind."""
    npz = np.load(shared / "zoo" / "steps" / f"{STEP}.step.npz")
    model, variables = load(shared, fixture, STEP, npz, dtype, dropout=0.0)

    @jax.jit
    def run(variables, image, labels):
        def total(params):
            outputs, new = segmenter.forward(
                model, {**variables, "params": params}, image, train=True, dtype=dtype
            )
            losses = [
                weight * cross_entropy(outputs[name], labels, model.align_corners)
                for name, weight in (("logits", 1.0), ("aux_logits", 0.4))
            ]
            return sum(losses), (jnp.stack(losses), new)

        return jax.grad(total, has_aux=True)(variables["params"])

    grads, (losses, new) = run(variables, npz["images"], npz["labels"])
    found = {
        "/".join(k.key for k in path): np.asarray(leaf)
        for path, leaf in jax.tree.leaves_with_path({"params": grads, **new})
    }

    def get(key):
        """An array of ours in PyTorch's order of axes, flattened."""
        names = convert.torch_names(model)
        value = found.get(convert.place(str(key), 1, names))
        if value is None:
            value = found[convert.place(str(key), 4, names)]
        if value.ndim == 4:
            value = value.transpose(3, 2, 0, 1)
        return value.reshape(-1).astype(np.float64)

    gradients = [get(key) for key in npz["grad_keys"]]
    norms = np.array([np.linalg.norm(g) for g in gradients])
    by_norm = np.abs(norms / npz["grad_norms"] - 1)
    picked = np.stack([g[i] for g, i in zip(gradients, npz["grad_index"], strict=True)])
    # An entry is compared on the scale of its tensor.
    size = np.array([np.sqrt(g.size) for g in gradients])
    by_entry = np.abs(picked - npz["grad_values"]) * (size / npz["grad_norms"])[:, None]
    statistics = np.concatenate([get(key) for key in npz["bn_keys"]])
    errors = {
        "loss": np.abs(np.asarray(losses) / npz["loss_values"] - 1).max(),
        "norm, median": np.median(by_norm),
        "norm, worst": by_norm.max(),
        "entry, median": np.median(by_entry),
        "entry, worst": by_entry.max(),
        "statistics": np.abs(statistics / npz["bn_values"] - 1).max(),
        "gradients": len(gradients),
        "parameters": len(jax.tree.leaves(grads)),
    }
    return {name: float(value) for name, value in errors.items()}


def test_training_step(shared, fixture):
    errors = step_errors(shared, fixture, jnp.float32)
    print(errors)
    assert errors["gradients"] == errors["parameters"]  # none is left unchecked
    assert errors["loss"] < 1e-5
    assert errors["norm, median"] < 1e-3
    assert errors["norm, worst"] < 2e-2
    assert errors["entry, median"] < 1e-2
    assert errors["entry, worst"] < 1e-1
    assert errors["statistics"] < 1e-4


@pytest.mark.slow
def test_training_step_in_float64(shared, fixture):
    """In a process of its own: the switch to 64 bits is for the whole process."""
    code = (
        "import json, pathlib, test_parity as t, jax.numpy as jnp\n"
        f"shared = pathlib.Path({str(shared)!r})\n"
        "print(json.dumps(t.step_errors(shared, t.redraw(shared), jnp.float64)))"
    )
    here = pathlib.Path(__file__).resolve().parent
    env = os.environ | {
        "JAX_ENABLE_X64": "1",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": f"{here}:{here.parent}",
    }
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    errors = json.loads(run.stdout.splitlines()[-1])
    print(errors)
    assert errors.pop("gradients") == errors.pop("parameters")
    assert errors.pop("entry, worst") < 1e-5
    assert max(errors.values()) < 1e-6


def test_every_name_of_the_zoo_is_understood_or_refused(shared):
    """All names, those without a reference output too."""
    understood = 0
    for name, description in descriptions(shared).items():
        if not name.startswith("deeplabv3plus_r"):
            with pytest.raises(UserError, match="jaxseg supports"):
                zoo.model_spec(description)
            continue
        head, spec = description["decode_head"], zoo.model_spec(description)
        model, backbone = models.get(spec), spec["backbone"]
        assert model.head.num_classes == head["num_classes"] == model.aux_head.num_classes
        assert name.startswith(
            f"deeplabv3plus_r{backbone['depth']}{'b' if backbone['stem'] == 'plain' else ''}-"
        )
        assert backbone["output_stride"] == (16 if "-d16" in name else 8)
        assert backbone.get("multi_grid") == ((1, 2, 4) if "mg124" in name else None)
        assert spec["align_corners"] == ("769x769" in name)
        stored = zoo.facts()["models"][zoo.facts()["names"][name]["model"]]
        assert stored == json.loads(json.dumps(spec)), "run tools/make_zoo.py again"
        understood += 1
    assert understood > 30


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("decode_head", dict(type="PSPHead"), "decode_head.type='PSPHead'"),
        ("decode_head", dict(in_index=2), "decode_head.in_index=2"),
        ("backbone", dict(type="ResNeSt"), "backbone.type='ResNeSt'"),
        ("backbone", dict(strides=[1, 2, 1, 2]), "backbone.strides"),
        ("backbone", dict(contract_dilation=False), "contract_dilation"),
        ("auxiliary_head", dict(align_corners=True), "auxiliary_head.align_corners=True"),
        ("auxiliary_head", dict(num_convs=2), "auxiliary_head.num_convs=2"),
    ],
)
def test_what_is_not_supported_is_named(part, change, message):
    description = dict(
        type="EncoderDecoder",
        backbone=dict(
            type="ResNetV1d", depth=50, strides=[1, 2, 1, 1], dilations=[1, 1, 2, 4],
            contract_dilation=True, norm_eval=True,
        ),
        decode_head=dict(
            type="DepthwiseSeparableASPPHead", num_classes=4, channels=512, c1_channels=48,
            dilations=[1, 12, 24, 36], dropout_ratio=0.1, align_corners=False, in_index=3,
        ),
        auxiliary_head=dict(
            type="FCNHead", num_classes=4, in_index=2, channels=256, num_convs=1,
            concat_input=False, dropout_ratio=0.1, align_corners=False,
        ),
        data_preprocessor=dict(mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0], bgr_to_rgb=True),
    )  # fmt: skip
    model = models.get(zoo.model_spec(description))
    assert model.backbone.stem == "v1d" and model.backbone.freeze_norm
    assert model.mean == (1.0, 2.0, 3.0) and model.aux_head.feature == "stage3"
    broken = description | {part: description[part] | change}
    with pytest.raises(UserError, match=message):
        zoo.model_spec(broken)
