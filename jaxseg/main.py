"""The command line.

    python -m jaxseg.main [train] --config configs/deeplabv3p.py:cityscapes --workdir runs/x
    python -m jaxseg.main eval    --workdir runs/x [--split val] [--step 4000]
                                  [--compare 'crf: predict.crf.iterations=10' --compare ...]
    python -m jaxseg.main eval    --zoo NAME --config.data.root=data/cityscapes [--workdir out/]
    python -m jaxseg.main predict --workdir runs/x --input 'photos/*.jpg' --output out/
    python -m jaxseg.main predict --zoo NAME --input street.jpg --output out/
    python -m jaxseg.main tune_crf --workdir runs/x [--images 100] [--grid bilateral_sxy=30,60,90]
    python -m jaxseg.main submit  --workdir runs/x --output out/ [--split test]
    python -m jaxseg.main export  --workdir runs/x --output model/ [--size 360x480]
    python -m jaxseg.main convert --zoo NAME --output FOLDER  (or --workdir runs/x; x.safetensors)
    python -m jaxseg.main check   --config configs/deeplabv3p.py:folder --config.data.root=mine
    python -m jaxseg.main zoo     ['*_r50-*cityscapes*'] [--sort=name|dataset|params|miou|runs]

train    trains, evaluates, writes checkpoints and pictures; the same command again continues a run
eval     evaluates a run's best checkpoint on a split; with --compare 'NAME: KEY=VALUE ...' as often
         as wanted, variants of it side by side: keys of predict, model and dtype. A released model
         is evaluated by its published test protocol, and its results left in --workdir, if any
predict  writes palette PNG labels and overlays for images, videos, folders or globs (several
         --input); --write=labels,overlay,probabilities,confidence,entropy,shares,coco says what
tune_crf searches the dense CRF's settings on images of the validation split
submit   segments a split and packs what the dataset's evaluation server takes
export   writes a run's model and test-time chain as one program, which predict takes as --workdir
         too; --probabilities adds those to the labels, --formats=saved_model,tflite,onnx files
         for other runtimes
convert  writes weights as a run's folder, or as FILE.safetensors by the names of PyTorch
check    reads every sample of a dataset and reports what is wrong with it
zoo      lists the released models whose names fit, with published mIoU, and which of them run

Any value of the config can be set, as in --config.optimizer.lr=0.02. eval, predict, submit and
export take the run's own config from --workdir, so that --config is not needed there; or a released
model of MMSegmentation by --zoo, with --checkpoint=FILE where its weights are not to be downloaded.
"""

import functools
import os
import sys

from absl import flags
from ml_collections import ConfigDict

from jaxseg import cache, named
from jaxseg import config as configs
from jaxseg.errors import UserError

RUN = ("config", "workdir", "step")  # what every command takes that looks at a run
ZOO = ("zoo", "checkpoint")  # what those take in its place that run released models too
HOSTS = ("distributed", "coordinator", "num_processes", "process_id")
TAKES = {
    "train": ("config", "workdir", "force", *HOSTS),
    "eval": (*RUN, *ZOO, "split", "compare", *HOSTS),
    "predict": (*RUN, *ZOO, "input", "output", "write"),
    "tune_crf": (*RUN, "split", "images", "grid"),
    "submit": (*RUN, *ZOO, "split", "output"),
    "export": (*RUN, *ZOO, "output", "probabilities", "size", "platforms", "formats"),
    "convert": (*RUN, *ZOO, "output"),
    "check": ("config", "split"),
    "zoo": ("pattern", "sort"),
}  # fmt: skip


def define_flags() -> flags.FlagValues:
    """Every flag of every command, not yet parsed."""
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
    define(flags.DEFINE_bool, "force", False, "continue though the config changed")
    define(flags.DEFINE_bool, "distributed", False, "join a multi-host run")
    define(flags.DEFINE_string, "coordinator", None, "HOST:PORT of process 0")
    define(flags.DEFINE_integer, "num_processes", None, "number of processes")
    define(flags.DEFINE_integer, "process_id", None, "this process, from 0")
    return values


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
    values = define_flags()
    if {"--help", "-help", "-h"} & set(rest):
        print(__doc__ + values.main_module_help())
        sys.exit(0)
    try:
        positional = values(rest)[1:]
    except flags.Error as error:
        raise UserError(str(error)) from error
    for name in values:
        if values[name].present and name not in TAKES[command]:
            takes = " ".join(f"--{flag}" for flag in TAKES[command])
            raise UserError(f"{command}: takes no --{name}. It takes {takes}")
    if command == "zoo":
        values.pattern = " ".join(positional) or values.pattern
        return command, values, configs.override(ConfigDict(), overrides)
    if command == "predict":
        values.input = [*values.input, *positional]
    elif positional:
        raise UserError(f"{command}: what is {positional[0]!r}? Flags start with --")
    weights = values.zoo or (command == "convert" and values.checkpoint)
    if command != "check" and not values.workdir and not weights:
        other = ", or --zoo=NAME" if "zoo" in TAKES[command] else ""
        raise UserError(f"{command}: give --workdir=FOLDER, where the run is kept{other}")
    if command == "predict" and not (values.input and values.output):
        raise UserError("predict: give --input=IMAGE, FOLDER or 'GLOB' and --output=FOLDER")
    if command in ("submit", "export", "convert") and not values.output:
        file = " or FILE.safetensors" if command == "convert" else ""
        raise UserError(f"{command}: give --output=FOLDER{file}, which will be made")
    if values.zoo:
        results = command == "eval"  # its --workdir is where results go
        if values.config or values.step is not None or (values.workdir and not results):
            raise UserError(
                f"{command}: --zoo={values.zoo} is a model with its weights; give it without "
                f"{'' if results else '--workdir, '}--config and --step"
            )
        from jaxseg import recipes, zoo

        config = recipes.with_predict(zoo.config(values.zoo))
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
    if values.workdir and command not in ("train", "check"):
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
    elif command not in ("train", "check"):
        from jaxseg import recipes
        from jaxseg.workdir import read_config

        config = recipes.with_predict(read_config(values.workdir))
    else:
        raise UserError(f"{command}: give --config=FILE, for example configs/deeplabv3p.py:camvid")
    config = configs.override(config, overrides)
    configs.validate(config)
    return command, values, config


def main(argv: list[str]) -> int:
    """Runs one command. Exit status: 0, 1 (`check` found faults), 2 (a user's mistake), 130."""
    try:
        command, values, config = parse(argv)
        return dispatch(command, values, config, argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        again = "the same command continues training from the newest checkpoint"
        print(f"interrupted; {again}", file=sys.stderr)
        return 130


def dispatch(command: str, values: flags.FlagValues, config: ConfigDict, argv: list[str]) -> int:
    """Runs a parsed command; modules are imported when their command needs them."""
    if command == "zoo":
        from jaxseg import zoo_table

        zoo_table.show(values.pattern, values.sort)
        return 0
    if command == "check":
        from jaxseg import data
        from jaxseg.data import check

        description = data.get(config.data)
        splits = (values.split,) if values.split else description.splits
        report = check.check(description, splits)
        print(check.format_report(report))
        return 1 if report.problems else 0

    prepare_jax()
    if values.distributed or values.coordinator:
        from jaxseg.sharding import init_distributed

        init_distributed(values.coordinator, values.num_processes, values.process_id)
    if command == "train":
        from jaxseg import train

        train.run(config, values.workdir, argv, values.force)
    elif command == "eval":
        from jaxseg import compare, evaluate, released

        where = (values.split, values.step)
        if values.zoo:
            which = (values.zoo, values.checkpoint, values.split)
            released.run(config, *which, workdir=values.workdir, variants=values.compare)
        elif values.compare:
            compare.run(config, values.workdir, values.compare, *where)
        else:
            evaluate.evaluate_checkpoint(config, values.workdir, *where)
    elif command == "tune_crf":
        from jaxseg import tune_crf

        grid = tune_crf.parse_grid(values.grid)
        tune_crf.tune(config, values.workdir, values.split, values.step, values.images, grid)
    elif command == "submit":
        from jaxseg import api, submit

        if values.zoo:
            load = functools.partial(api.from_zoo, values.zoo, config, values.checkpoint)
            submit.run(config, load, values.output, values.split)
        else:
            submit.from_run(config, values.workdir, values.output, values.split, values.step)
    elif command == "export":
        from jaxseg import export

        options = dict(
            probabilities=values.probabilities,
            size=export.parse_size(values.size) if values.size else None,
            platforms=values.platforms,
            formats=values.formats,
        )
        if values.zoo:
            which = (values.zoo, values.checkpoint)
            export.export_released(config, *which, values.output, **options)
        else:
            export.export_run(config, values.workdir, values.output, step=values.step, **options)
    elif command == "convert":
        from jaxseg import convert_files

        which = dict(zoo=values.zoo, workdir=values.workdir, checkpoint=values.checkpoint)
        convert_files.run(config, values.output, step=values.step, **which)
    else:
        from jaxseg import api, exported, outputs, predict_files

        write = outputs.known(values.write)
        if values.zoo:
            segmentation = api.from_zoo(values.zoo, config, values.checkpoint)
        elif exported.is_exported(values.workdir):
            segmentation = exported.load(values.workdir)
            if set(write) & set(outputs.FROM_PROBABILITIES):
                segmentation.require_probabilities()
        else:
            segmentation = api.from_run(values.workdir, config=config, step=values.step)
        predict_files.predict_files(values.input, values.output, segmentation, write=write)
    return 0


def prepare_jax() -> None:
    """Settings before the first computation: quiet logs, a compilation cache on disk."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import jax

    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(cache.folder() / "xla"))


def run() -> None:
    """The entry point of the `jaxseg` command."""
    sys.exit(main(sys.argv))


if __name__ == "__main__":
    run()
