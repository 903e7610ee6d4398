"""The command line's flags: which command takes which, and what is wrong with those given."""

import re

from absl import flags
from ml_collections import ConfigDict

from jaxseg import config as configs
from jaxseg import deterministic, named
from jaxseg.errors import UserError

RUN = ("config", "workdir", "step")  # what every command takes that looks at a run
ZOO = ("zoo", "checkpoint")  # what those take in its place that run released models too
HOSTS = ("distributed", "coordinator", "num_processes", "process_id")
TAKES = {
    "train": ("config", "workdir", "force", "profile", "rescale", "deterministic", *HOSTS),
    "eval": (*RUN, *ZOO, "split", "compare", "deterministic", *HOSTS),
    "predict": (*RUN, *ZOO, "input", "output", "write"),
    "tune_crf": (*RUN, "split", "images", "grid"),
    "submit": (*RUN, *ZOO, "split", "output"),
    "export": (*RUN, *ZOO, "output", "probabilities", "size", "platforms", "formats"),
    "convert": (*RUN, *ZOO, "output"),
    "check": ("config", "split"),
    "plan": ("config", "target", "largest", "json", "rescale"),
    "benchmark": (
        "config", "what", "input", "sizes", "batches", "steps", "roofline", "json", "against",
        "deterministic",
    ),
    "compare": ("results",),
    "zoo": ("pattern", "sort"),
}  # fmt: skip


def define_flags(command: str) -> flags.FlagValues:
    """Every flag of every command, not yet parsed; `--input` as `command` takes it."""
    values = flags.FlagValues()

    def define(kind, name, default, text):
        takers = ", ".join(command for command, takes in TAKES.items() if name in takes)
        kind(name, default, f"{text} ({takers})", flag_values=values)

    define(flags.DEFINE_string, "config", None, "FILE.py or FILE.py:ARGUMENT")
    define(flags.DEFINE_string, "workdir", None, "folder of the run")
    define(flags.DEFINE_string, "zoo", None, "name of a released model, instead of a workdir")
    define(flags.DEFINE_string, "checkpoint", None, "file of the model's weights")
    define(flags.DEFINE_integer, "step", None, "checkpoint to use, not the best")
    define(flags.DEFINE_string, "split", None, "split of the data")
    define(flags.DEFINE_multi_string, "compare", [], "'NAME: KEY=VALUE ...'")
    if command == "benchmark":
        define(flags.DEFINE_bool, "input", False, "the input pipeline alone, as --what=input")
    else:
        define(flags.DEFINE_multi_string, "input", [], "image, video, folder or glob")
    define(flags.DEFINE_string, "output", None, "folder or file to write")
    define(flags.DEFINE_list, "write", "labels,overlay", "what to write")
    define(flags.DEFINE_integer, "images", 100, "how many images to look at")
    define(flags.DEFINE_multi_string, "grid", [], "SETTING=VALUE,VALUE")
    define(flags.DEFINE_bool, "probabilities", False, "these too, not labels alone")
    define(flags.DEFINE_string, "size", None, "HEIGHTxWIDTH of images")
    define(flags.DEFINE_list, "platforms", "cpu,cuda,tpu", "what to make the program for")
    define(flags.DEFINE_list, "formats", "", "also: saved_model, tflite, onnx")
    define(flags.DEFINE_string, "pattern", "", "part of a name, or a glob")
    define(flags.DEFINE_string, "sort", "name", "by name, dataset, params, miou or runs")
    define(flags.DEFINE_list, "what", "train,inference", "train, inference, input, end_to_end")
    define(flags.DEFINE_list, "sizes", "", "HEIGHTxWIDTH,... of images, not the crop")
    define(flags.DEFINE_list, "batches", "", "batch sizes, not the config's")
    define(flags.DEFINE_integer, "steps", 0, "timed steps, not as many as 10 s hold")
    define(flags.DEFINE_bool, "roofline", False, "also: what the heaviest operations could take")
    define(flags.DEFINE_string, "json", None, "file to write the results to")
    define(flags.DEFINE_string, "against", None, "such a file, to compare with")
    define(flags.DEFINE_multi_string, "results", [], "file that eval has written")
    define(flags.DEFINE_string, "profile", None, "steps to trace, FIRST:LAST or how many")
    define(flags.DEFINE_bool, "rescale", False, "adapt rate and steps to another batch size")
    define(flags.DEFINE_list, "target", "", "h200, h200:8, v5e:4x4, ...: what to plan for")
    define(flags.DEFINE_bool, "largest", True, "also: the largest batch that fits; --nolargest")
    define(flags.DEFINE_bool, "deterministic", False, "the same bits again on the same machine")
    define(flags.DEFINE_bool, "force", False, "continue though the config changed")
    define(flags.DEFINE_bool, "distributed", None, "one of several processes, or --nodistributed")
    define(flags.DEFINE_string, "coordinator", None, "HOST:PORT of process 0")
    define(flags.DEFINE_integer, "num_processes", None, "number of processes")
    define(flags.DEFINE_integer, "process_id", None, "this process, from 0")
    return values


def size(flag: str, text: str) -> tuple[int, int]:
    """'360x480' -> (360, 480), height first; raises `UserError` that names the flag otherwise."""
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if not match:
        raise UserError(f"{flag}={text}: expected HEIGHTxWIDTH in pixels, as {flag}=360x480")
    return int(match[1]), int(match[2])


def help_text() -> str:
    """Every flag with its meaning and the commands that take it."""
    return define_flags("").module_help(__name__)


def parse(argv: list[str]) -> tuple[str, flags.FlagValues, ConfigDict]:
    """(sub-command, flags, config) of a command line.

    Raises:
      UserError: an unknown command, flag or config key, a flag of another command, or a value of
        the wrong type.
    """
    overrides, rest = configs.split_overrides(argv)
    command = "train"
    if len(rest) > 1 and not rest[1].startswith("-"):
        command = rest.pop(1)
        named.check("jaxseg.main", "command", command, TAKES)
    values = define_flags(command)
    try:
        positional = values(rest)[1:]
    except (flags.Error, ValueError) as error:  # absl raises the latter for --noforce=1
        raise UserError(str(error)) from error
    for name in values:
        if values[name].present and name not in TAKES[command]:
            takes = " ".join(f"--{flag}" for flag in TAKES[command])
            raise UserError(f"{command}: takes no --{name}. It takes {takes}")
    if command == "zoo":
        values.pattern = " ".join(positional) or values.pattern
        return command, values, configs.override(ConfigDict(), overrides)
    if values.deterministic:
        deterministic.switch_on()  # what follows may import jax, and then it would be too late
    if command == "compare":
        values.results = [*values.results, *positional]
        return command, values, configs.override(ConfigDict(), overrides)
    if command == "predict":
        values.input = [*values.input, *positional]
    elif positional:
        raise UserError(f"{command}: what is {positional[0]!r}? Flags start with --")
    weights = values.zoo or (command == "convert" and values.checkpoint)
    if command not in ("check", "plan", "benchmark") and not values.workdir and not weights:
        other = ", or --zoo=NAME" if "zoo" in TAKES[command] else ""
        raise UserError(f"{command}: give --workdir=FOLDER, where the run is kept{other}")
    if command == "predict" and not (values.input and values.output):
        raise UserError("predict: give --input=IMAGE, FOLDER or 'GLOB' and --output=FOLDER")
    if command in ("submit", "export", "convert") and not values.output:
        file = " or FILE.safetensors" if command == "convert" else ""
        raise UserError(f"{command}: give --output=FOLDER{file}, which will be made")
    if command == "plan" and not values.target:
        raise UserError("plan: give --target=h200, h200:8, v5e:4x4, or several with commas between")
    if values.zoo:
        results = command == "eval"  # its --workdir is where results go
        if values.config or values.step is not None or (values.workdir and not results):
            raise UserError(
                f"{command}: --zoo={values.zoo} is a model with its weights; give it without "
                f"{'' if results else '--workdir, '}--config and --step"
            )
        from jaxseg import recipes, zoo

        config = recipes.completed(zoo.config(values.zoo))
        if command == "eval":
            config.dtype = "float32"  # that of the published figures
        config = configs.override(config, overrides)
        configs.validate(config)
        return command, values, config
    if values.checkpoint and (command != "convert" or values.workdir or not values.config):
        other = " or --config=FILE" if command == "convert" else ""
        raise UserError(
            f"{command}: --checkpoint is the weights' file of a model given by --zoo=NAME{other}"
        )
    if values.workdir and command != "train":
        from jaxseg import exported

        if exported.is_exported(values.workdir):
            if command != "predict":
                raise UserError(
                    f"{command}: {values.workdir} is an exported model, which predict alone takes; "
                    "give the workdir of the run that it was exported from"
                )
            exported.refuse_settings(values.workdir, overrides, values.config, values.step)
            return command, values, ConfigDict()

    if values.config:
        config = configs.from_file(values.config)
    elif values.workdir and command != "train":
        from jaxseg import recipes
        from jaxseg.workdir import read_config

        config = recipes.completed(read_config(values.workdir))
    else:
        raise UserError(f"{command}: give --config=FILE, for example configs/deeplabv3p.py:camvid")
    config = configs.override(config, overrides)
    configs.validate(config)
    return command, values, config
