"""What the comparison with PyTorch does without PyTorch: its arguments, its table, its ratios."""

import importlib.util
import pathlib

import pytest

from jaxseg import config, models, state

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def script():
    path = ROOT / "benchmarks" / "against_torch.py"
    spec = importlib.util.spec_from_file_location("against_torch", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["fcn", "pspnet", "deeplabv3p", "unet"])
def test_numbers_of_parameters(script, name):
    file, parameters = script.MODELS[name]
    model = models.get(config.from_file(str(ROOT / file)).model, num_classes=script.CLASSES)
    assert state.count(state.abstract_variables(model)["params"]) == parameters


def test_a_gpu_is_measured_at_length_by_default(script):
    options = script.parse([])
    assert options.device == "cuda" and options.size == [512, 1024] and options.batch == 8
    assert options.blocks * options.steps >= 50
    assert options.torch == ["eager", "compile", "max-autotune"]
    assert options.models == list(script.MODELS)


def test_a_cpu_is_measured_in_little_time(script):
    options = script.parse(["--device", "cpu", "--models", "unet", "--steps", "7"])
    assert options.models == ["unet"] and options.torch == ["eager"]
    assert options.steps == 7 and options.size[0] <= 256


@pytest.mark.parametrize("argument", ["--steps=0", "--batch=-1", "--models=vgg", "--cores=9999"])
def test_arguments_that_mean_nothing(script, argument, capsys):
    with pytest.raises(SystemExit):
        script.parse([argument])
    assert argument.partition("=")[0] in capsys.readouterr().err


def test_figures_of_a_row(script):
    ours = [{"ms": ms, "cpu_ms": 2 * ms} for ms in (30.0, 10.0, 20.0)]
    theirs = [{"ms": ms, "cpu_ms": ms} for ms in (40.0, 90.0, 20.0)]
    figures = script.row("fcn", "train", "eager", ours, theirs)
    assert figures["jaxseg_ms"] == {"min": 10, "median": 20, "cpu": 20}
    assert figures["ratio"] == {"min": 0.5, "median": 0.5, "cpu": 1}
    line = script.table_line(figures, script.parse(["--batch", "4"]))
    assert "| 200.0 | 100.0 |" in line  # images/s: 4 in 20 ms and in 40
    assert line.count("|") == script.HEADER.splitlines()[0].count("|")
