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
    model, variables = load(shared, fixture, name, npz)

    @jax.jit
    def run(variables, image):
        logits = segmenter.forward(model, variables, image, train=False)[0]["logits"]
        return resize(logits, image.shape[1:3], align_corners=model.align_corners)

    logits = run(variables, npz["image"][None])[0]
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
    assert errors["entry, median"] < 1e-3
    assert errors["entry, worst"] < 5e-2
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
    assert max(errors.values()) < 1e-6


def test_every_deeplabv3plus_resnet_of_the_zoo_is_understood(shared):
    """All names, those without a reference output too."""
    understood = 0
    for name, description in descriptions(shared).items():
        head = description["decode_head"]
        kind = head["type"] if isinstance(head, dict) else None
        backbone = description["backbone"]["type"]
        if kind == "DepthwiseSeparableASPPHead" and backbone in zoo.STEMS:
            spec = zoo.model_spec(description)
            model = models.get(spec)
            depth = spec["backbone"]["depth"]
            assert model.head.num_classes == head["num_classes"] == model.aux_head.num_classes
            assert f"r{depth}-d" in name or f"r{depth}b-d" in name
            assert (spec["backbone"]["stem"] == "plain") == (f"r{depth}b-" in name)
            assert spec["backbone"]["output_stride"] == (16 if "-d16" in name else 8)
            assert spec["backbone"].get("multi_grid") == ((1, 2, 4) if "mg124" in name else None)
            assert spec["align_corners"] == ("769x769" in name)
            understood += 1
        elif kind == "DepthwiseSeparableASPPHead":
            with pytest.raises(UserError, match=backbone):
                zoo.model_spec(description)
    assert understood > 30
