"""`--rescale`: the same epochs at another batch size, with the rate that goes with it."""

import json
import math
import pathlib

import pytest
from test_main import command

from jaxseg import optim, rescale, train
from jaxseg.config import from_file, override
from jaxseg.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIG = str(ROOT / "configs" / "deeplabv3p.py")


def rescaled(name: str, *overrides: str):
    file = f"{CONFIG}:{name}"
    return rescale.from_command(file, override(from_file(file), overrides), ["jaxseg", *overrides])


def test_a_recipe_of_four_times_two_images_for_one_device():
    config, lines = rescaled("cityscapes", "--config.devices=1")
    assert lines == [
        "batch_size: 8 -> 2 (images of a step)",
        "steps: 40000 -> 160000 (the same number of images)",
        "log_every: 50 -> 200 (the same number of images)",
        "eval_every: 4000 -> 16000 (the same number of images)",
        "checkpoint_every: 1000 -> 4000 (the same number of images)",
        "optimizer.lr: 0.01 -> 0.0025 (linear in the images of an update, as for SGD: Goyal et al. "
        "2017)",
        "schedule.end: 0.0001 -> 2.5e-05 (as the rate)",
        "unlike the recipe's, BatchNorm's statistics are of 2 images, not 8",
    ]
    assert (config.batch_size, config.steps, config.devices) == (2, 160_000, 1)
    assert config.optimizer.lr == pytest.approx(0.0025)
    assert config.optimizer.weight_decay == 5e-4


def test_the_rate_is_the_same_function_of_the_images_seen_but_for_its_factor():
    recipe = from_file(f"{CONFIG}:cityscapes")
    recipe.schedule.warmup = 1000
    config, _ = rescale.rescaled(recipe, recipe.copy_and_resolve_references(), {"batch_size"})
    assert config.to_dict() == recipe.to_dict()
    wanted = recipe.copy_and_resolve_references()
    wanted.batch_size = 32
    config, _ = rescale.rescaled(recipe, wanted, {"batch_size"})
    there = optim.schedule(recipe.schedule, recipe.optimizer.lr, recipe.steps)
    here = optim.schedule(config.schedule, config.optimizer.lr, config.steps)
    for step in (0, 100, 250, 5000, 9999, 10_000):
        assert float(here(step)) == pytest.approx(4 * float(there(4 * step)), rel=1e-5)


def test_adamw_takes_the_square_root_and_keeps_what_decays_over_an_epoch():
    recipe = from_file(f"{CONFIG}:synthetic")  # lr 2e-3, decay 1e-2, batch 8, 400 steps, warmup 50
    config, lines = rescaled("synthetic", "--config.batch_size=2")
    assert config.optimizer.lr == pytest.approx(1e-3)
    assert (config.steps, config.schedule.warmup, config.log_every) == (1600, 200, 80)

    def decayed(config):
        return config.optimizer.lr * config.optimizer.weight_decay * config.steps

    assert decayed(config) == pytest.approx(decayed(recipe))
    assert any("Malladi et al. 2022" in line for line in lines)
    assert config.schedule.end == 0 and not any("schedule.end" in line for line in lines)


def test_accumulating_the_recipes_batch_keeps_its_rate_and_its_updates():
    overrides = ("--config.batch_size=3", "--config.optimizer.accumulate=4")
    config, _ = rescaled("ade20k", *overrides)  # batch 16, 80,000 steps
    assert config.optimizer.lr == pytest.approx(0.01 * 12 / 16)
    assert config.steps % 4 == 0 and 0 <= config.steps * 3 - 80_000 * 16 < 12

    config, lines = rescaled("cityscapes", "--config.batch_size=2", overrides[1])
    assert config.optimizer.lr == 0.01 and config.steps == 160_000
    assert not any(line.startswith("optimizer") for line in lines)


def test_averages_reach_as_many_images_back():
    recipe = from_file(f"{CONFIG}:cityscapes")
    recipe.ema = 0.999
    wanted = recipe.copy_and_resolve_references()
    wanted.batch_size = 2
    config, _ = rescale.rescaled(recipe, wanted, {"batch_size"})
    assert config.ema**4 == pytest.approx(0.999)


def test_what_the_user_sets_stays():
    overrides = ("--config.batch_size=4", "--config.optimizer.lr=0.02", "--config.eval_every=500")
    config, lines = rescaled("cityscapes", *overrides)
    assert (config.optimizer.lr, config.eval_every, config.steps) == (0.02, 500, 80_000)
    assert "optimizer.lr: 0.01 -> 0.02 (as given)" in lines
    assert "eval_every: 4000 -> 500 (as given)" in lines


def test_the_recipes_own_batch_changes_nothing():
    config, lines = rescaled("cityscapes", "--config.batch_size=8")
    assert lines == [] and config.to_dict() == from_file(f"{CONFIG}:cityscapes").to_dict()


def test_a_much_larger_batch_brings_the_warm_up_to_mind():
    warning = "wants a warm-up"
    assert any(warning in line for line in rescaled("cityscapes", "--config.batch_size=64")[1])
    overrides = ("--config.batch_size=64", "--config.schedule.warmup=200")
    config, lines = rescaled("cityscapes", *overrides)
    assert not any(warning in line for line in lines)
    assert config.schedule.warmup == 200


def test_every_optimizer_has_a_rule():
    assert rescale.RULES.keys() == optim.OPTIMIZERS.keys()
    assert rescale.RULES["sgd"][0](9) == 9 and rescale.RULES["adamw"][0](9) == math.sqrt(9)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ((), ["nothing says what this machine holds", "--config.batch_size=2", "--config.devices"]),
        (("--config.devices=1", "--config.optimizer.name=lion"), ["optimizer", "'lion'", "sgd"]),
    ],
)
def test_what_cannot_be_rescaled_says_what_to_give(overrides, words):
    with pytest.raises(UserError) as error:
        rescaled("cityscapes", *overrides)
    assert all(word in str(error.value) for word in words)


def test_a_batch_that_four_devices_do_not_share_has_to_be_given():
    file = str(ROOT / "configs" / "deeplabv1.py")  # ten images
    config = override(from_file(file), ["--config.devices=1"])
    with pytest.raises(UserError, match="10 images do not divide over 4 devices"):
        rescale.from_command(file, config, ["", "--config.devices=1"])


def test_the_changes_are_shown_and_recorded_and_the_same_command_goes_on(
    tmp_path, capsys, monkeypatch
):
    def stop(*_):  # of a run, what comes before the training
        raise UserError("stopped here")

    monkeypatch.setattr(train, "_run", stop)
    argv = (f"--config={CONFIG}:cityscapes", f"--workdir={tmp_path}", "--config.devices=1")
    for start in range(2):
        status, output = command(capsys, *argv, "--config.steps=2", "--rescale")
        assert status == 2 and "error: stopped here" in output
        assert "optimizer.lr: 0.01 -> 0.0025 (linear" in output
        entry = json.loads((tmp_path / "manifest.json").read_text())["runs"][start]
        assert "batch_size: 8 -> 2 (images of a step)" in entry["rescaled"]
        assert "steps: 40000 -> 2 (as given)" in entry["rescaled"]
        (tmp_path / "checkpoints" / "1").mkdir(parents=True, exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["optimizer"]["lr"] == pytest.approx(0.0025)
    # Without --rescale it would be another run, and is refused.
    status, output = command(capsys, *argv, "--config.steps=2")
    assert status == 2 and "batch_size: 2 -> 8" in output
