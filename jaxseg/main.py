"""The command line.

    python -m jaxseg.main [train] --config configs/deeplabv3p.py:cityscapes --workdir runs/x
    python -m jaxseg.main eval    --workdir runs/x [--split val] [--step 4000]
    python -m jaxseg.main predict --workdir runs/x --input 'photos/*.jpg' --output out/
    python -m jaxseg.main check   --config configs/deeplabv3p.py:folder --config.data.root=mine

train    trains, evaluates, writes checkpoints and pictures; the same command again continues a run
eval     evaluates a run's best checkpoint on a split
predict  writes palette PNG labels and overlays for images, folders or globs (several --input)
check    reads every sample of a dataset and reports what is wrong with it

Any value of the config can be set, as in --config.optimizer.lr=0.02. eval and predict take the
run's own config from --workdir, so that --config is not needed there.
"""

import os
import pathlib
import sys

from absl import flags
from ml_collections import ConfigDict

from jaxseg import config as configs
from jaxseg import named
from jaxseg.errors import UserError

COMMANDS = ("train", "eval", "predict", "check")


def parse(argv: list[str]) -> tuple[str, flags.FlagValues, ConfigDict]:
    """(sub-command, flags, config) of a command line.

    Raises:
      UserError: an unknown command, flag or config key, or a value of the wrong type.
    """
    overrides, rest = configs.split_overrides(argv)
    command = "train"
    if len(rest) > 1 and not rest[1].startswith("-"):
        command = rest.pop(1)
        named.check("jaxseg.main", "command", command, COMMANDS)
    values = flags.FlagValues()
    flags.DEFINE_string("config", None, "FILE.py or FILE.py:ARGUMENT", flag_values=values)
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
    flags.DEFINE_multi_string("input", [], "image, folder or glob", flag_values=values)
    flags.DEFINE_string("output", None, "folder for predictions", flag_values=values)
    flags.DEFINE_string("split", None, "split to evaluate or check", flag_values=values)
    flags.DEFINE_integer("step", None, "checkpoint to use, not the best", flag_values=values)
    flags.DEFINE_bool("force", False, "continue though the config changed", flag_values=values)
    flags.DEFINE_bool("distributed", False, "join a multi-host run", flag_values=values)
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0", flag_values=values)
    flags.DEFINE_integer("num_processes", None, "number of processes", flag_values=values)
    flags.DEFINE_integer("process_id", None, "this process, from 0", flag_values=values)
    if {"--help", "-help", "-h"} & set(rest):
        print(__doc__ + values.main_module_help())
        sys.exit(0)
    try:
        positional = values(rest)[1:]
    except flags.Error as error:
        raise UserError(str(error)) from error
    if command == "predict":
        values.input = [*values.input, *positional]
    elif positional:
        raise UserError(f"{command}: what is {positional[0]!r}? Flags start with --")
    if command != "check" and not values.workdir:
        raise UserError(f"{command}: give --workdir=FOLDER, where the run is kept")
    if command == "predict" and not (values.input and values.output):
        raise UserError("predict: give --input=IMAGE, FOLDER or 'GLOB' and --output=FOLDER")

    if values.config:
        config = configs.from_file(values.config)
    elif command in ("eval", "predict"):
        from jaxseg.workdir import read_config

        config = read_config(values.workdir)
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
        print("interrupted; the same command continues from the newest checkpoint", file=sys.stderr)
        return 130


def dispatch(command: str, values: flags.FlagValues, config: ConfigDict, argv: list[str]) -> int:
    """Runs a parsed command; modules are imported when their command needs them."""
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
        from jaxseg import evaluate

        evaluate.evaluate_checkpoint(config, values.workdir, values.split, values.step)
    else:
        from jaxseg import api, predict_files

        segmentation = api.from_run(values.workdir, config=config, step=values.step)
        predict_files.predict_files(values.input, values.output, segmentation)
    return 0


def prepare_jax() -> None:
    """Settings before the first computation: quiet logs, a compilation cache on disk."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import jax

    if not jax.config.jax_compilation_cache_dir:
        cache = pathlib.Path(os.environ.get("JAXSEG_CACHE", "~/.cache/jaxseg")).expanduser()
        jax.config.update("jax_compilation_cache_dir", str(cache / "xla"))


def run() -> None:
    """The entry point of the `jaxseg` command."""
    sys.exit(main(sys.argv))


if __name__ == "__main__":
    run()
