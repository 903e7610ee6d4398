"""Weights of torchvision and segmentation_models.pytorch give the numbers that they give there."""

import numpy as np
import pytest

from jaxseg import api, convert, dialects, models
from jaxseg.config import from_file
from jaxseg.errors import UserError
from jaxseg.models import deeplabv3, segmenter
from jaxseg.ops.resize import resize
from jaxseg.state import abstract_variables
from tests import references, torch_writer

FOLDER = references.GOLDEN / "dialects"  # made by torchvision 0.28 and smp 0.5
RESNET = dict(name="resnet", depth=50, stem="plain", output_stride=8)
SPECS = {
    "torchvision_fcn_resnet50": dict(
        name="fcn", backbone=RESNET, num_convs=1, concat_input=False, num_classes=21
    ),
    "torchvision_deeplabv3_resnet50": dict(
        name="deeplabv3", backbone=RESNET, channels=256, project=1, refine=1, num_classes=21
    ),
    "smp_unet_resnet18": dict(
        name="unet_resnet", backbone=RESNET | dict(depth=18, output_stride=32), num_classes=5
    ),
}
QUICK = "smp_unet_resnet18"


def load(name):
    """(reference, its state dict, the model)."""
    npz = np.load(FOLDER / f"{name}.npz")
    return npz, references.state_dict(npz), models.get(SPECS[name])


@pytest.mark.parametrize("name", SPECS)
def test_every_name_has_a_place_and_every_place_a_name(name):
    _, state_dict, model = load(name)
    values, names = dialects.read(model, state_dict)
    variables = convert.from_torch(values, abstract_variables(model, (64, 64)), names)
    kernel = variables["params"]["backbone"]["stage1_0"]["conv1"]["conv"]["kernel"]
    there = next(v for k, v in state_dict.items() if k.endswith("layer1.0.conv1.weight"))
    np.testing.assert_array_equal(kernel, there.transpose(2, 3, 1, 0))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == QUICK else pytest.mark.slow) for n in SPECS]
)
def test_forward(name):
    npz, state_dict, model = load(name)
    values, names = dialects.read(model, state_dict)
    variables = convert.from_torch(values, abstract_variables(model, (64, 64)), names)
    image = npz["image"][None]
    outputs, _ = segmenter.forward(model, variables, image, train=False)
    logits = resize(outputs["logits"], image.shape[1:3])[0]
    error = references.relative_error(logits[npz["rows"], npz["cols"]], npz["logits"])
    assert error <= 1e-4, error


def test_the_order_of_the_joined_branches_is_put_right():
    """A 1x1 convolution of joined maps: the same sum, whichever map comes first."""
    rng = np.random.default_rng(0)
    branches, pooled = rng.normal(size=(7, 12)), rng.normal(size=(7, 4))
    weight = rng.normal(size=(5, 16, 1, 1))
    want = np.concatenate([branches, pooled], 1) @ weight[:, :, 0, 0].T
    head = deeplabv3.ASPPHead(21, channels=4)
    key = "classifier.0.project.0.weight"
    got = deeplabv3.torchvision_values(head, {key: weight, "other": 1})
    assert got["other"] == 1
    ours = np.concatenate([pooled, branches], 1) @ got[key][:, :, 0, 0].T
    np.testing.assert_allclose(ours, want)


def test_wrapped_names_are_unwrapped():
    plain = {"encoder.conv1.weight": 1, "segmentation_head.0.bias": 2}
    for prefix in ("module.", "model.", "model.module.", "_orig_mod."):
        assert dialects.unwrapped({prefix + k: v for k, v in plain.items()}) == plain
    mixed = {"model.a": 1, "epoch": 2}
    assert dialects.unwrapped(mixed) == mixed and dialects.unwrapped({}) == {}


def test_a_part_that_the_toolbox_lacks_is_named():
    _, state_dict, _ = load("smp_unet_resnet18")
    model = models.get(dict(name="pspnet", backbone=RESNET, num_classes=5))
    with pytest.raises(UserError, match="segmentation_models.pytorch.*no PSPHead"):
        dialects.read(model, state_dict)


@pytest.mark.slow
def test_a_file_of_another_toolbox_loads_by_a_config(tmp_path):
    """As a user has it: a config for the network, and the weights in a file."""
    name = "torchvision_fcn_resnet50"  # of the classes of VOC
    _, state_dict, _ = load(name)
    path = tmp_path / "model.safetensors"
    path.write_bytes(torch_writer.safetensors({f"model.{k}": v for k, v in state_dict.items()}))
    config = from_file("configs/fcn_resnet.py:voc2012")
    config.model = SPECS[name]
    loaded = api.from_config(config, path)
    assert len(loaded.classes) == 21 and loaded.classes[15] == "person"
    bias = loaded.variables["params"]["head"]["classifier"]["conv"]["bias"]
    np.testing.assert_array_equal(bias, state_dict["classifier.4.bias"])
    config.data, config.model.num_classes = from_file("configs/fcn_resnet.py:camvid").data, 11
    with pytest.raises(UserError, match=r"(?s)unequal shape:.*classifier/.*\(21,\).*\(11,\)"):
        api.from_config(config, path)
