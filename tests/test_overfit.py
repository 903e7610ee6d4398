"""Every system learns eight CamVid pictures by heart: what it is made of can represent them."""

import functools
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from jaxseg import command_line, data, models, optim, predict, train
from jaxseg import state as states

ROOT = pathlib.Path(__file__).resolve().parent.parent
PICTURES, STEPS, EVERY = 8, 800, 50
# Config -> height of the pictures, and settings. Logits at stride 8, enlarged, can hold at most
# 95.6 % of the pixels of 96x128 labels; so the backbones that can are taken to stride 4, and models
# that end at stride 8 by their nature get larger pictures.
CASES = {
    "bisenetv1": (192,),
    "bisenetv2": (192,),
    "cgnet": (192,),
    "deeplabv1": (192,),
    "deeplabv2": (96, "backbone.output_stride=4"),
    "deeplabv3": (96, "backbone.output_stride=4"),
    "deeplabv3p": (96,),
    "deeplabv3p_mobilenetv2": (96,),
    "deeplabv3p_xception": (96,),
    "ddrnet": (192,),
    "encnet": (96, "backbone.output_stride=4"),
    "erfnet": (96, "block_dropout=0.0"),
    "fastfcn": (192,),
    "fastscnn": (192,),
    "fcn": (192,),
    "fcn_hrnet": (96,),
    "fcn_resnet": (96, "backbone.output_stride=4"),
    "icnet": (192,),
    "lraspp": (96,),
    "ocrnet": (96,),
    "pidnet": (192,),
    "pointrend": (96,),
    "pointrend_deeplabv3": (96,),
    "pspnet": (96, "backbone.output_stride=4"),
    "segnet": (96,),
    "segnet_basic": (96,),
    "sem_fpn": (96,),
    "stdc": (192,),
    "unet": (96,),
    "unet_fcn": (96,),
    "upernet": (96,),
    "unet_resnet": (96,),
}


def test_every_config_is_here():
    files = {path.stem for path in (ROOT / "configs").glob("*.py")}
    assert set(CASES) == files - {"finetune"}, "finetune is of the others' networks"


@functools.cache
def pictures(folder: pathlib.Path, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Training pictures spread over the sequences: uint8 [8, h, w, 3] and class indices, 255."""
    found = sorted((folder / "train").glob("*.webp"))
    found = found[:: len(found) // PICTURES][:PICTURES]
    size = (height * 4 // 3, height)
    images, labels = [], []
    for path in found:
        images.append(np.asarray(Image.open(path).convert("RGB").resize(size, Image.BILINEAR)))
        label = Image.open(folder / "trainannot" / f"{path.stem}.png").resize(size, Image.NEAREST)
        labels.append(np.asarray(label, np.int32))
    labels = np.stack(labels)
    return np.stack(images), np.where(labels < 11, labels, 255)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_eight_pictures_are_learned_by_heart(shared, name):
    height, *settings = CASES[name]
    images, labels = pictures(shared / "data" / "camvid", height)
    config = command_line.parse(
        ["jaxseg", f"--config={ROOT}/configs/{name}.py:camvid", "--workdir=unused"]
        + [f"--config.model.{setting}" for setting in settings]
    )[2]
    with config.unlocked():
        config.augment.update(elastic=0.0, photometric=False)
        config.steps = STEPS
        config.optimizer.weight_decay = 0.0
        config.schedule.update(name="poly", power=0.9, end=0.0, warmup=50)
        for part in (config.model, *(config.model.get(k, {}) for k in ("coarse", "head"))):
            if "dropout" in part:
                part["dropout"] = 0.0
        for loss in config.losses.values():
            if "class_weights" in loss:
                loss.class_weights = ()
    description = data.get(config.data)
    model = models.get(config.model, num_classes=11)
    size = images.shape[1:3]
    params = states.abstract_variables(model, size)["params"]
    tx, schedule = optim.make(config.optimizer, config.schedule, config.steps, params)
    state = jax.jit(states.make_init(model, tx, size, False, 0))()
    first = jax.device_get(state.params)
    step = jax.jit(
        train.make_train_step(model, tx, schedule, config, description), donate_argnums=0
    )
    segment = predict.make_predict(model, None, dtype="float32")
    batch = {"image": images, "label": labels, "mask": np.ones(PICTURES, bool)}

    counted = labels != 255
    for i in range(1, STEPS + 1):
        state, scalars = step(state, batch)
        if i % EVERY == 0:
            assert scalars["finite"] == 1
            found = np.asarray(segment(state.variables(), images, size))
            accuracy = (found == labels)[counted].mean()
            print(f"{name}: step {i}, loss {scalars['loss']:.3f}, accuracy {accuracy:.4f}")
            if accuracy > 0.95:
                break
    assert accuracy > 0.95
    # Without weight decay, a parameter moves only where a gradient reaches it.
    for (path, before), after in zip(
        jax.tree.leaves_with_path(first), jax.tree.leaves(state.params), strict=True
    ):
        assert np.isfinite(after).all() and (before != after).any(), jax.tree_util.keystr(path)
