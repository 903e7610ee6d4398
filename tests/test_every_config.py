"""Every config: each recipe traces, and each model trains, evaluates and predicts on a CPU."""

import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxseg import command_line, data, main, models, optim, train
from jaxseg import state as states
from jaxseg.data import balance
from jaxseg.models import segmenter

ROOT = pathlib.Path(__file__).resolve().parent.parent


def recipes() -> list[tuple[str, str]]:
    found = []
    for path in sorted((ROOT / "configs").glob("*.py")):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found += [(path.stem, name) for name in module.RECIPES]
    return found


def read(name: str, recipe: str):
    """The config as the command line would make it, and its data set where that needs no files."""
    path = ROOT / "configs" / f"{name}.py"
    config = command_line.parse(["jaxseg", f"--config={path}:{recipe}", "--workdir=unused"])[2]
    assert config.to_json_best_effort()
    for loss in config.losses.values():
        if loss.get("class_weights") == (balance.NAME,):  # it takes the data to count them
            loss.class_weights = ()
    own = recipe == "folder"  # the user's files say what its classes are
    return config, data.get({"name": "synthetic"} if own else config.data)


def test_every_recipe_describes_a_model():
    for name, recipe in recipes():
        config, description = read(name, recipe)
        model = models.get(config.model, num_classes=description.num_classes)
        assert isinstance(model, segmenter.Segmenter)


def traced() -> list:
    """All recipes; slow are all but a small one of each config, and those of DeepLabv3+."""
    names = {name: [] for name, _ in recipes()}
    for name, recipe in recipes():
        names[name].append(recipe)
    cases = []
    for name, own in names.items():
        quick = own if name == "deeplabv3p" else {"camvid" if "camvid" in own else own[0]}
        for recipe in own:
            marks = [] if recipe in quick else [pytest.mark.slow]
            cases.append(pytest.param(name, recipe, marks=marks))
    return cases


@pytest.mark.parametrize(("name", "recipe"), traced())
def test_every_recipe_traces_one_step_and_one_prediction(name, recipe):
    config, description = read(name, recipe)
    model = models.get(config.model, num_classes=description.num_classes)
    crop = tuple(config.augment.crop)
    params = states.abstract_variables(model, crop)["params"]
    tx, schedule = optim.make(config.optimizer, config.schedule, config.steps, params)
    state = jax.eval_shape(states.make_init(model, tx, crop, bool(config.ema), config.seed))
    b = config.batch_size
    batch = {
        "image": jax.ShapeDtypeStruct((b, *crop, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((b, *crop), jnp.int32),
        "mask": jax.ShapeDtypeStruct((b,), bool),
    }
    step = train.make_train_step(model, tx, schedule, config, description)
    after, scalars = jax.eval_shape(step, state, batch)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert scalars["loss"].shape == ()
    outputs, _ = jax.eval_shape(
        lambda variables, image: segmenter.forward(
            model, variables, image, train=False, dtype=config.dtype
        ),
        {"params": state.params, **state.model_state},
        batch["image"],
    )
    assert outputs["logits"].shape[-1] == description.num_classes


# A few small images, one step.
TINY = (
    "--config.data.size=(64,96)",
    "--config.data.train=4",
    "--config.data.val=2",
    "--config.data.test=2",
    "--config.augment.crop=(64,96)",
    "--config.batch_size=2",
    "--config.devices=1",
    "--config.steps=1",
    "--config.schedule.warmup=0",
    "--config.eval_every=1",
    "--config.checkpoint_every=1",
    "--config.eval.batch_size=2",
    "--config.data_backend=threads",
)


SYNTHETIC = sorted({name for name, recipe in recipes() if recipe == "synthetic"})


def run(name: str, folder: pathlib.Path, *overrides: str) -> None:
    """Trains one step, evaluates, and predicts an image of another size."""
    workdir = folder / "run"
    config = f"--config={ROOT}/configs/{name}.py:synthetic"
    assert main.main(["jaxseg", config, f"--workdir={workdir}", *TINY, *overrides]) == 0
    result = json.loads((workdir / "results-test.json").read_text())
    assert result["images"] == 2 and np.sum(result["confusion"]) > 0
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert any(np.isfinite(row.get("loss", np.nan)) for row in rows)

    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (63, 95, 3), np.uint8)).save(folder / "street.png")
    images, out = f"--input={folder}/street.png", f"--output={folder}/out"
    assert main.main(["jaxseg", "predict", f"--workdir={workdir}", images, out]) == 0
    labels = np.asarray(Image.open(folder / "out" / "street.png"))
    assert labels.shape == (63, 95) and labels.max() < 9


# One of each kind; all others, which tests of their own train, are slow.
QUICK = {"deeplabv1", "deeplabv3p", "fcn", "pointrend"}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in SYNTHETIC],
)
def test_every_system_trains_evaluates_and_predicts(name, tmp_path):
    """Heads that take any backbone get one here that compiles faster."""
    backbone = read(name, "synthetic")[0].model.get("backbone", {}).get("name")
    quick = backbone not in (None, "vgg", "unet")
    changes = ["--config.model.backbone.name=tests.tiny_backbone"] if quick else []
    if name == "unet_resnet":  # what a ResNet calls 'stem' is a stage there
        changes.append(f"--config.model.features={tuple(f'stage{i}' for i in range(5))}")
    run(name, tmp_path, *changes)


@pytest.mark.slow
@pytest.mark.parametrize("name", SYNTHETIC)
def test_every_system_as_it_is(name, tmp_path):
    run(name, tmp_path)


def test_every_model_has_a_config():
    used = {read(name, recipe)[0].model.name for name, recipe in recipes()}
    assert used == set(models.available("Model"))
