"""Nonsense on the command line and in configs is a `UserError`; see `fuzzing`."""

import json
import pathlib
from unittest import mock

import hypothesis
import pytest
from fuzzing import JSON, damaged, fuzz
from hypothesis import strategies as st

from jaxseg import command_line, deterministic, workdir
from jaxseg import config as configs
from jaxseg.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIG = configs.from_file(str(ROOT / "configs" / "deeplabv3p.py") + ":folder")


def keys(section, prefix) -> list[str]:
    found = []
    for name, value in section.items():
        found.append(f"{prefix}.{name}")
        if isinstance(value, type(section)):
            found += keys(value, found[-1])
    return found


KEY = st.sampled_from(keys(CONFIG, "--config")) | st.text(max_size=8).map("--config.{}".format)
VALUE = st.sampled_from(
    ["", "1", "-1", "1e999", "nan", "True", "None", "()", "(1,)", "(1,2)", "((", "'", '"', "[1]"]
    + ["{}", "(1,'a')", "((1,2),(3,4))", "9" * 5000, "(" * 300, "\0", "\udce9", "lambda: 0"]
) | st.text(max_size=12)  # fmt: skip
SETTING = st.tuples(KEY, st.sampled_from(["=", "=", "=", "", " "]), VALUE).map("".join)


@fuzz
@hypothesis.given(st.lists(SETTING, max_size=3))
def test_overrides(settings):
    try:
        config = configs.override(CONFIG.copy_and_resolve_references(), settings)
        configs.validate(config)
    except UserError as error:
        assert str(error)


@pytest.mark.parametrize("value", ["", "x", "{'crop': (1, 2)}"])
def test_a_section_is_no_value(value):
    with pytest.raises(UserError, match="--config.augment: is a section.*augment.base_size=VALUE"):
        configs.override(CONFIG.copy_and_resolve_references(), [f"--config.augment={value}"])


FLAG = st.sampled_from(
    [f"--{name}" for name in sorted(set().union(*command_line.TAKES.values()))]
    + ["--", "-", "--no", "--help=", "--noforce", "-config", "--flagfile", "--undefok"]
) | st.text(max_size=6).map("--{}".format)  # fmt: skip
WORD = st.sampled_from([*command_line.TAKES, "x.png", "FILE.py:x", "/nowhere", "\0"]) | st.text()
ARGUMENT = SETTING | WORD | st.tuples(FLAG, st.just("="), VALUE | WORD).map("".join) | FLAG


@fuzz
@hypothesis.given(st.lists(ARGUMENT, max_size=4))
def test_command_lines(arguments):
    try:
        with mock.patch.object(deterministic, "switch_on"):  # it is for the whole process
            command, _, _ = command_line.parse(["jaxseg", *arguments])
        assert command in command_line.TAKES
    except UserError as error:
        assert str(error)


TEXT = JSON.map(json.dumps) | damaged([CONFIG.to_json_best_effort().encode()])


@fuzz
@hypothesis.given(TEXT)
def test_configs_of_runs(text):
    folder = pathlib.Path()
    content = text if isinstance(text, bytes) else text.encode()
    for name, read in (("config", workdir.read_config), ("manifest", workdir.read_manifest)):
        (folder / f"{name}.json").write_bytes(content)
        try:
            read(folder)
        except UserError as error:
            assert f"{name}.json" in str(error)
