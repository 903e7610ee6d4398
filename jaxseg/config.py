"""Configs: reading a config file, setting values from the command line, checking the result."""

import importlib.util
import json
import pathlib
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

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
    if isinstance(section, ConfigDict):
        part = next(iter(section), "KEY")
        raise UserError(f"--{key}: is a section; set what is in it, as --{key}.{part}=VALUE")


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
    _check_bad_samples(config)
    for key, least in (("stop_after", 1), ("rollbacks", 0)):
        value = config.get("nonfinite", {}).get(key, least)
        if value < least:
            raise UserError(f"config.nonfinite.{key}={value}: expected {least} or more")
    if config.dtype not in ("auto", "float32", "bfloat16"):
        raise UserError(f"config.dtype={config.dtype!r}: expected 'auto', 'float32' or 'bfloat16'")


def _check_bad_samples(config: ConfigDict) -> None:
    policy, cap = config.get("on_bad_sample", "error"), config.get("bad_sample_cap", 0.001)
    named.check("config.on_bad_sample", "policy", policy, ("error", "skip"))
    if not isinstance(cap, float) or not 0 < cap < 1:
        raise UserError(
            f"config.bad_sample_cap={cap}: expected a share of the data set, above 0 and below 1"
        )
    if policy == "skip" and config.get("data_cache") == "device":
        raise UserError(
            "config.on_bad_sample='skip' with config.data_cache='device': samples on the devices "
            "have no substitutes. Set config.data_cache='decoded' or 'none', or leave bad samples "
            "out of the data set: `python -m jaxseg.main check` finds them"
        )


def changed_keys(old: ConfigDict, new: ConfigDict, under: Sequence[str] = ()) -> list[str]:
    """What differs between two configs, one line per leaf: 'optimizer.lr: 0.01 -> 0.02'.

    Args:
      old: a saved config, from `workdir.read_config`.
      new: the config of this start.
      under: keep only these top-level keys; empty keeps all.
    """
    # Through JSON, because the saved one has been there: values that JSON cannot hold are text.
    pair = (json.loads(config.to_json_best_effort()) for config in (old, new))
    return [line for line in changes(*pair) if not under or re.split("[.:]", line)[0] in under]


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`changed_keys` of configs as JSON has them."""
    old, new, absent = leaves(old), leaves(new), "(absent)"
    return [
        f"{key}: {_show(old[key]) if key in old else absent} -> "
        f"{_show(new[key]) if key in new else absent}"
        for key in sorted(old.keys() | new.keys())
        if key not in old or key not in new or old[key] != new[key]
    ]


def leaves(values: Any, prefix: str = "") -> dict[str, Any]:
    """{'optimizer.lr': 0.01, ...} of nested mappings."""
    if not isinstance(values, Mapping) or not values:
        return {prefix: values}
    found = {}
    for key, value in values.items():
        found |= leaves(value, f"{prefix}.{key}" if prefix else key)
    return found


def _show(value: Any) -> str:
    return repr(tuple(value) if isinstance(value, list) else value)
