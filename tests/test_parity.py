"""The same numbers as MMSegmentation's models, from the same weights: forward and training step."""

import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxseg
from jaxseg import convert, mmseg, models, zoo
from jaxseg.errors import UserError
from jaxseg.models import segmenter
from jaxseg.ops.resize import resize
from jaxseg.state import abstract_variables
from tests import references
from tests.conftest import SHARED

# Families of MMSegmentation's that run; the others are refused, by name.
UNDERSTOOD = {
    "fcn", "pspnet", "deeplabv3", "deeplabv3plus", "unet", "hrnet", "mobilenet_v2", "mobilenet_v3",
    "sem_fpn", "point_rend", "upernet", "resnest", "fastfcn", "encnet", "ocrnet", "fastscnn",
    "erfnet", "cgnet", "bisenetv1", "bisenetv2", "stdc", "icnet", "ddrnet", "pidnet",
}  # fmt: skip
# With drawn weights the softmaxes of split attention magnify rounding: the reference, which is of
# float32, is itself 1.5e-4 from what PyTorch and jaxseg both give in float64.
EXCEPTIONS = {"resnest_s101-d8_pspnet_4xb2-80k_cityscapes512x1024": 3e-4}
# One of each kind of backbone and head, of those without a golden file; others are slow.
QUICK = (
    "deeplabv3plus_r18-d8_4xb4-80k_isaid-896x896",
    "deeplabv3_r18b-d8_4xb2-80k_cityscapes-769x769",
    "fcn_r18-d8_4xb2-80k_cityscapes-769x769",
    "fcn-d6_r50b-d16_4xb2-80k_cityscapes-769x769",
    "fpn_r50_4xb4-160k_ade20k-512x512",
    "mobilenet-v2-d8_pspnet_4xb2-80k_cityscapes-512x1024",
    "mobilenet-v3-d8_lraspp_4xb4-320k_cityscapes-512x1024",
    "unet-s5-d16_deeplabv3_4xb4-40k_stare-128x128",
)
STEPS = (
    "deeplabv3plus_r18-d8_4xb2-80k_cityscapes-512x1024",
    "fcn_hr18s_4xb2-40k_cityscapes-512x1024",
    "fcn_r50-d8_4xb2-40k_cityscapes-512x1024",
    "fpn_r50_4xb2-80k_cityscapes-512x1024",
    "pspnet_r50-d8_4xb2-40k_cityscapes-512x1024",
)
QUICK_STEP = STEPS[0]


def descriptions(shared) -> dict[str, dict]:
    entries = json.loads((shared / "zoo" / "zoo.json").read_text())
    resolved = json.loads((shared / "zoo" / "models.json").read_text())
    return {name: resolved[e["model"]] for name, e in entries.items() if "model" in e}


def error_of(npz, name: str) -> float:
    """The relative error of the logits of the model `name` with the weights of its reference."""
    segmentation = jaxseg.load(name, checkpoint=references.state_dict(npz))
    logits = segmentation.logits(npz["image"][None])[0]
    error = references.relative_error(logits[npz["rows"], npz["cols"]], npz["logits"])
    print(f"{name}: relative error {error:.1e}")
    return error


@pytest.mark.parametrize("path", sorted(references.GOLDEN.glob("*.npz")), ids=lambda p: p.stem)
def test_forward_of_a_golden_file(path):
    assert error_of(np.load(path), path.stem) <= 1e-4


def forward_cases():
    found = sorted(path.stem for path in (SHARED / "zoo" / "outputs").glob("*.npz"))
    names = [
        name for name in found
        if zoo.facts()["names"][name]["family"] in UNDERSTOOD
        and not (references.GOLDEN / f"{name}.npz").exists()
    ]  # fmt: skip
    return [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in names or QUICK]


@pytest.mark.parametrize("name", forward_cases())
def test_forward(shared, name):
    bound = EXCEPTIONS.get(name, 1e-4)
    assert error_of(np.load(shared / "zoo" / "outputs" / f"{name}.npz"), name) <= bound


def cross_entropy(logits, labels, align_corners):
    """MMSegmentation's: ignored pixels add nothing to the sum but count in the mean."""
    logits = resize(logits, labels.shape[1:], align_corners=align_corners)
    scores = jax.nn.log_softmax(logits)
    picked = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)  # 255: all zeros
    return -(scores * picked).sum() / labels.size


def step_errors(shared, name: str, dtype) -> dict[str, float]:
    """How far one training step is from the reference, by kind."""
    npz = np.load(shared / "zoo" / "steps" / f"{name}.step.npz")
    spec = zoo.config(name).model.to_dict() | dict(dropout=0.0)
    # The reference holds the image's mean and deviation in float32, in float64 steps too.
    spec |= {key: tuple(float(np.float32(x)) for x in spec[key]) for key in ("mean", "std")}
    model = models.get(spec)
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, dtype), abstract_variables(model, (64, 64))
    )
    names = convert.torch_names(model)
    variables = convert.from_torch(references.state_dict(npz), abstract, names)
    outputs_and_weights = [("logits", 1.0), ("aux_logits", 0.4)][: len(npz["loss_names"])]

    @jax.jit
    def run(variables, image, labels):
        def total(params):
            outputs, new = segmenter.forward(
                model, {**variables, "params": params}, image, train=True, dtype=dtype
            )
            losses = [
                weight * cross_entropy(outputs[name], labels, model.align_corners)
                for name, weight in outputs_and_weights
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
    # Means may lie near zero: a statistic is compared on the scale of its tensor, too.
    statistics = [get(key) for key in npz["bn_keys"]]
    parts = np.split(npz["bn_values"], np.cumsum([len(value) for value in statistics])[:-1])
    by_tensor = [
        np.abs(value - want).max() / np.sqrt(np.square(want).mean())
        for value, want in zip(statistics, parts, strict=True)
    ]
    by_statistic = np.abs(np.concatenate(statistics) / npz["bn_values"] - 1)
    errors = {
        "loss": np.abs(np.asarray(losses) / npz["loss_values"] - 1).max(),
        "norm, median": np.median(by_norm),
        "norm, worst": by_norm.max(),
        "entry, median": np.median(by_entry),
        "entry, worst": by_entry.max(),
        "statistics": max(by_tensor),
        "statistics, worst alone": by_statistic.max(),
        "gradients": len(gradients),
        "parameters": len(jax.tree.leaves(grads)),
    }
    return {name: float(value) for name, value in errors.items()}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n == QUICK_STEP else pytest.mark.slow) for n in STEPS],
)
def test_training_step(shared, name):
    errors = step_errors(shared, name, jnp.float32)
    print(errors)
    assert errors["gradients"] == errors["parameters"]  # none is left unchecked
    assert errors["loss"] < 1e-5
    assert errors["norm, median"] < 1e-3
    assert errors["norm, worst"] < 2e-2
    assert errors["entry, median"] < (1e-2 if name == QUICK_STEP else 2e-2)
    assert errors["entry, worst"] < 1e-1
    assert errors["statistics"] < 1e-5
    if name == QUICK_STEP:  # in others a mean lies so near zero that rounding is a share of it
        assert errors["statistics, worst alone"] < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", STEPS)
def test_training_step_in_float64(shared, name):
    """In a process of its own: the switch to 64 bits is for the whole process."""
    code = (
        "import json, pathlib, test_parity as t, jax.numpy as jnp\n"
        f"shared = pathlib.Path({str(shared)!r})\n"
        f"print(json.dumps(t.step_errors(shared, {name!r}, jnp.float64)))"
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
    assert max(errors.values()) < 1e-9


def test_every_name_of_the_zoo_is_understood_or_refused(shared):
    """All names, those without a reference output too."""
    families = {
        name: entry["family"]
        for name, entry in json.loads((shared / "zoo" / "zoo.json").read_text()).items()
    }
    stored, built = zoo.facts(), {}
    for name, description in descriptions(shared).items():
        if families[name] not in UNDERSTOOD:
            assert "model" not in stored["names"][name] and stored["names"][name]["lacks"]
            with pytest.raises(UserError, match="jaxseg supports"):
                mmseg.model_spec(description)
            continue
        spec = mmseg.model_spec(description)
        model = stored["names"][name]["model"]
        if name == "fpn_r101_4xb4-160k_ade20k-512x512":
            # MMSegmentation 1.x has lost the depth of this one; its published weights have it.
            assert spec["backbone"]["depth"] == 50
            spec["backbone"]["depth"] = 101
        assert stored["models"][model] == json.loads(json.dumps(spec)), "run tools/make_zoo.py"
        built.setdefault(model, (name, spec, description))
    assert len(built) > 150
    for name, spec, description in built.values():
        model, heads = models.get(spec), description["decode_head"]
        head = heads[-1] if isinstance(heads, list) else heads
        assert spec["num_classes"] == head["num_classes"]
        assert model.align_corners == head.get("align_corners", False)
        aux = description.get("auxiliary_head") or []
        ours = model.aux_head if isinstance(model.aux_head, tuple) else [model.aux_head]
        theirs = aux if isinstance(aux, list) else [aux]
        assert len([head for head in ours if head is not None]) == len(theirs)
        for own, other in zip(ours, theirs, strict=False):
            assert own.channels == other["channels"]
            assert getattr(own, "dilation", 1) == other.get("dilation", 1)
        depth = re.search(r"_r(18|50|101)(b?)[-_]", name)
        if depth and "strides" in description["backbone"]:  # a ResNet, not a network around one
            backbone = spec["backbone"]
            assert backbone["depth"] == int(depth[1])
            plain = bool(depth[2]) or "rsb" in name
            assert backbone["stem"] == ("plain" if plain else "v1c")
            stride = description["backbone"]["strides"]
            assert backbone["output_stride"] == 4 * np.prod(stride)
            assert backbone.get("multi_grid") == ((1, 2, 4) if "mg124" in name else None)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("decode_head", dict(type="ANNHead"), "decode_head.type='ANNHead'"),
        ("decode_head", dict(gain=2), "decode_head.gain=2"),
        ("decode_head", dict(in_index=2), "decode_head.in_index=2"),
        ("backbone", dict(type="ResNeXt"), "backbone.type='ResNeXt'"),
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
    model = models.get(mmseg.model_spec(description))
    assert model.backbone.stem == "v1d" and model.backbone.freeze_norm
    assert model.mean == (1.0, 2.0, 3.0) and model.aux_head.feature == "stage3"
    broken = description | {part: description[part] | change}
    with pytest.raises(UserError, match=message):
        mmseg.model_spec(broken)
