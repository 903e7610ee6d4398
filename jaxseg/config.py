"""Configs: reading a config file, setting values from the command line, checking the result."""

import importlib.util
import pathlib
import re
import sys
import traceback
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from jaxseg import named
from jaxseg.errors import UserError

PAIRS = ("augment.crop", "augment.scale", "augment.base_size", "eval.base_size", "data.size")
POSITIVE = ("batch_size", "steps", "log_every", "eval_every", "checkpoint_every")


def from_file(name: str) -> ConfigDict:
    """The config that 'FILE.py' or 'FILE.py:ARGUMENT' returns from its `get_config`.

    Raises:
      UserError: no such file, it fails, or it does not know the argument.
    """
    file, _, argument = name.partition(":")
    path = pathlib.Path(file).expanduser()
    if not path.is_file():
        raise UserError(
            f"config {file}: no such file (looked in {pathlib.Path.cwd()}); configs/ has those "
            "that come with jaxseg"
        )
    spec = importlib.util.spec_from_file_location(path.stem, path)
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        get_config = module.get_config
        return get_config(argument) if argument else get_config()
    except Exception as error:  # whatever the file does; it is the user's
        frames = [f for f in traceback.extract_tb(sys.exc_info()[2]) if f.filename == str(path)]
        line = f", line {frames[-1].lineno}" if frames else ""
        raise UserError(f"config {name}{line}: {type(error).__name__}: {error}") from error


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the arguments of the form --config.key=value, all others)."""
    overrides, rest = [], []
    for argument in argv:
        (overrides if re.match(r"--?(no)?config\.", argument) else rest).append(argument)
    return overrides, rest


def override(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    """The config, locked, with the values of '--config.optimizer.lr=0.1' and the like set.

    Raises:
      UserError: an unknown key, with the nearest that exists, or a value of another type.
    """
    for argument in overrides:
        _check_override(config, argument)
    values = flags.FlagValues()
    argv = ["", *overrides]
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
    try:
        values(argv)
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(str(error).removeprefix("flag ")) from error
    return values.config


def _check_override(config: ConfigDict, argument: str) -> None:
    key, equals, _ = argument.lstrip("-").partition("=")
    if not equals:
        raise UserError(f"{argument}: write the value behind an equals sign, --{key}=VALUE")
    section, path = config, key.split(".")[1:]
    for depth, name in enumerate(path):
        parent = ".".join(["config", *path[:depth]])
        if not isinstance(section, ConfigDict):
            raise UserError(f"--{key}: {parent} is {section!r}, which has no parts")
        named.check(f"--{key}", f"key of {parent}", name, section)
        section = section[name]


def validate(config: ConfigDict) -> None:
    """Checks what the types of values do not tell.

    Raises:
      UserError: names the key, its value and what was expected.
    """
    for key in PAIRS:
        section, name = key.split(".")
        value = config.get(section, {}).get(name)
        if value and (not isinstance(value, tuple) or len(value) != 2):
            raise UserError(
                f"config.{key}={value}: expected two numbers, as --config.{key}='(a,b)'"
            )
    for key in POSITIVE:
        if config.get(key, 1) < 1:  # a released model's config has nothing of training
            raise UserError(f"config.{key}={config[key]}: expected 1 or more")
    if config.dtype not in ("auto", "float32", "bfloat16"):
        raise UserError(f"config.dtype={config.dtype!r}: expected 'auto', 'float32' or 'bfloat16'")
