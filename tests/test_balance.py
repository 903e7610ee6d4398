"""Median-frequency balancing against numbers worked out by hand."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxseg.data import balance
from jaxseg.data.base import Description, Record
from jaxseg.errors import UserError

VOID = 255


def description(*labels, classes=("road", "car", "sign", "bird"), ignore_label=VOID):
    """A data set of these labels, given as rows of numbers."""
    arrays = [np.array(label, np.uint8) for label in labels]
    records = [
        Record(str(i), np.zeros((*a.shape, 3), np.uint8), lambda a=a: a)
        for i, a in enumerate(arrays)
    ]
    return Description(
        name="toy",
        classes=classes,
        palette=((0, 0, 0),) * len(classes),
        splits=("train",),
        records=lambda split: records,
        ignore_label=ignore_label,
    )


# road: 4 + 2 + 1 of 8 + 4 + 4 pixels = 7/16; car: 2 + 2 of 8 + 4 = 4/12; sign: 1 of 8; bird: none.
# The ignored pixel of the first and the three of the last belong to their images all the same.
TOY = (
    [[0, 0, 0, 0], [1, 1, 2, VOID]],
    [[0, 0], [1, 1]],
    [[0, VOID], [VOID, VOID]],
)
FREQUENCIES = (7 / 16, 1 / 3, 1 / 8, 0)
WEIGHTS = (16 / 21, 1.0, 8 / 3, 0.0)  # the median of the first three is 1/3


def test_frequencies_count_only_images_that_show_the_class():
    got = balance.class_frequencies(description(*TOY), "train")
    np.testing.assert_allclose(got, FREQUENCIES, rtol=1e-12)


def test_weights_are_the_median_over_the_frequency(capsys):
    weights = balance.median_frequency(description(*TOY), "train")
    np.testing.assert_allclose(weights, WEIGHTS, rtol=1e-12)
    assert isinstance(weights, tuple) and all(type(weight) is float for weight in weights)
    assert "bird" in capsys.readouterr().out  # it has no part in the loss, and that is told


def test_the_median_of_an_even_number_lies_between():
    toy = description([[0, 0, 0, 1]], classes=("road", "car"))
    np.testing.assert_allclose(balance.median_frequency(toy, "train"), (0.5 / 0.75, 0.5 / 0.25))


def test_classes_that_every_image_shows_weigh_the_same_in_all():
    labels = np.random.default_rng(0).choice(4, (6, 30, 20), p=(0.6, 0.3, 0.08, 0.02))
    weights = balance.median_frequency(description(*labels), "train")
    totals = np.bincount(labels.ravel()) * weights
    np.testing.assert_allclose(totals, totals[0])


def test_an_ignore_label_below_the_number_of_classes_is_no_class():
    toy = description([[0, 1, 1, 2]], classes=("a", "unused", "b"), ignore_label=1)
    np.testing.assert_allclose(balance.class_frequencies(toy, "train"), (0.25, 0, 0.25))


@pytest.mark.parametrize("given", ["median_frequency", ("median_frequency",)])
def test_resolve_puts_the_numbers_into_a_copy(given):
    config = ConfigDict(
        {
            "train_split": "train",
            "losses": {
                "logits": {"name": "cross_entropy", "class_weights": given},
                "aux_logits": {"name": "cross_entropy", "class_weights": (1.0, 2.0, 3.0, 4.0)},
                "points": {"name": "dice"},
            },
        }
    )
    config.lock()
    resolved = balance.resolve(config, description(*TOY))
    np.testing.assert_allclose(resolved.losses.logits.class_weights, WEIGHTS)
    assert resolved.losses.aux_logits.class_weights == (1.0, 2.0, 3.0, 4.0)
    assert config.losses.logits.class_weights == given
    with pytest.raises(AttributeError):
        resolved.losses.logits.class_weigths = ()  # locked as it was


def test_resolve_reads_no_label_unless_asked():
    def records(split):
        raise AssertionError("read")

    unread = Description("toy", ("a", "b"), ((0, 0, 0),) * 2, ("train",), records)
    config = ConfigDict({"train_split": "train", "losses": {"logits": {"class_weights": ()}}})
    assert balance.resolve(config, unread) is config


@pytest.mark.parametrize("given", ["median", ("median_frequency", 1.0)])
def test_resolve_refuses_other_words(given):
    config = ConfigDict({"train_split": "train", "losses": {"logits": {"class_weights": given}}})
    with pytest.raises(UserError, match=r"config\.losses\.logits\.class_weights.*median_frequency"):
        balance.resolve(config, description(*TOY))


def test_labels_that_cannot_be_used_are_told():
    with pytest.raises(UserError, match="value 9"):
        balance.median_frequency(description(*TOY, [[0, 9]]), "train")
    with pytest.raises(UserError, match="toy/train has no labelled pixel"):
        balance.median_frequency(description([[VOID, VOID]]), "train")
    with pytest.raises(UserError, match="no split 'test'"):
        balance.median_frequency(description(*TOY), "test")
