"""Released models by name: their classes and test protocol, without the reference data."""

import jax
import numpy as np
import pytest

import jaxseg
from jaxseg import data, models, zoo
from jaxseg.errors import UserError
from jaxseg.state import abstract_variables

SLIDING = "deeplabv3plus_r18-d8_4xb2-80k_cityscapes-769x769"


def test_a_name_gives_model_classes_and_protocol():
    config = zoo.config(SLIDING)
    assert config.model.num_classes == 19 and config.model.align_corners
    assert config.predict.slide.to_dict() == {"crop": (769, 769), "stride": (513, 513)}
    assert config.eval.base_size == (2049, 1025)
    description = data.get(config.data)
    assert description.classes[0] == "road" and description.classes[-1] == "bicycle"
    assert description.palette[13] == (0, 0, 142)  # Cityscapes' car
    with pytest.raises(UserError, match="only its classes are known"):
        description.records("val")


def test_every_entry_builds_and_has_a_name_and_a_colour_for_each_class():
    names = zoo.facts()["names"]
    assert len(names) > 250
    built = set()
    for name, entry in names.items():
        config = zoo.config(name)
        description = data.get(config.data)
        assert len(description.classes) == len(description.palette) == config.model.num_classes
        assert all(name == name.strip() and name for name in description.classes)
        model = models.get(config.model)
        assert model.head.num_classes == config.model.num_classes
        assert model.aux_head is None or model.aux_head.num_classes == config.model.num_classes
        kind = type(model.head), type(model.backbone)
        if entry["dataset"] != "CityscapesDataset" and kind not in built:
            built.add(kind)
            head = abstract_variables(model, (64, 64))["params"]["head"]
            leaves = jax.tree.leaves(head.get("point", head)["classifier"])
            assert all(leaf.shape[-1] == config.model.num_classes for leaf in leaves)
    assert len(built) > 8


def test_a_wrong_name_or_no_weights_is_told():
    with pytest.raises(UserError, match=f"such as {SLIDING}"):
        jaxseg.load(SLIDING.replace("80k", "90k"), checkpoint={})
    with pytest.raises(UserError, match="give checkpoint="):
        jaxseg.load(SLIDING)
    with pytest.raises(UserError, match="backbone"):
        jaxseg.load(SLIDING, checkpoint={"backbone.conv1.weight": np.zeros((64, 3, 7, 7))})
