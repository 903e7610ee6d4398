"""Folders of strangers' runs, checkpoints, exported models: none runs code, all end in a line."""

import hashlib
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import pytest
from jax import export as jax_export

from jaxseg import checkpoint, config, data, exported, main, models, stored, workdir
from jaxseg.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[1]
DEEP = "[" * 200_000
HUGE = 2**60


# ---- Folders of runs ----


@pytest.mark.parametrize("text", [DEEP, "[1, 2]", "3", "{", '{"a.b": 1}', "", "\x00", '"' * 3])
def test_nonsense_for_a_config(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match="config.json"):
        workdir.read_config(tmp_path)


@pytest.mark.parametrize("where", ["model", "backbone", "data", "losses"])
def test_a_run_does_not_bring_its_own_code(tmp_path, monkeypatch, capsys, where):
    run = tmp_path / "runs" / "nice"
    run.mkdir(parents=True)
    evil = "import pathlib\npathlib.Path(__file__).with_name('sentinel').touch()\n"
    (run / "evil.py").write_text(evil)
    (run / "pack").mkdir()
    (run / "pack" / "__init__.py").write_text(evil)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    for name in ("runs.nice.evil", "runs.nice.pack", "runs.nice.pack.net", "runs.nice.evil.f"):
        found = config.from_file(str(ROOT / "configs" / "deeplabv3p.py") + ":synthetic")
        part = {
            "model": found.model,
            "backbone": found.model.backbone,
            "data": found.data,
            "losses": found.losses.logits,
        }[where]
        part.name = name
        (run / "config.json").write_text(found.to_json_best_effort())
        argv = ["jaxseg", "predict", f"--workdir={run}", "--input=x.png", "--output=out"]
        assert main.main(argv) == 2
        said = capsys.readouterr().err
        assert f"name={name!r} is code that lies in this very folder" in said
    assert not list(tmp_path.rglob("sentinel"))


def test_own_code_beside_the_runs_is_allowed(tmp_path, monkeypatch):
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    (tmp_path / "nets.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    (run / "config.json").write_text('{"model": {"name": "nets.mine", "b": [{"name": "os.path"}]}}')
    assert workdir.read_config(run).model.name == "nets.mine"


@pytest.mark.parametrize("name", ["..", ".evil", "a..b", "os.", "a b.c", "jaxseg/../x.y", "a.b\0"])
def test_names_that_are_no_modules(name):
    with pytest.raises(UserError, match="config.data"):
        data.get({"name": name})
    found = config.from_file(str(ROOT / "configs" / "deeplabv3p.py") + ":synthetic")
    with pytest.raises(UserError, match="config.model.name"):
        models.get(dict(found.model, name=name), num_classes=3)


def sealed(values: dict) -> str:
    """`meta` with its right checksum: who alters the one can alter the other."""
    return json.dumps(values | {"crc32": stored._crc32_of_json(values)})


GOOD_META = {
    "format": 1,
    "step": 1,
    "score": None,
    "meta": {},
    "leaves": {"model/params/w": {"shape": [2], "dtype": "float32", "crc32": 0}},
}


@pytest.mark.parametrize(
    "text",
    [
        DEEP,
        "[]",
        *(
            sealed(GOOD_META | change)
            for change in (
                {"leaves": 3},
                {"leaves": {"model/params/w": {"shape": [HUGE], "dtype": "float32", "crc32": 0}}},
                {"leaves": {"model/params/w": {"shape": [-1], "dtype": "float32", "crc32": 0}}},
                {"leaves": {"model/params/w": {"shape": ["a"], "dtype": "float32", "crc32": 0}}},
                {"leaves": {"model/params/w": {"shape": [1], "dtype": "object", "crc32": 0}}},
                {"leaves": {"model/params/w": {"shape": [1], "dtype": "os.system", "crc32": 0}}},
                {"leaves": {"model/../../../x": {"shape": [1], "dtype": "int8", "crc32": 0}}},
                {"score": "best"},
                {"meta": []},
            )
        ),
        sealed({"format": 1}),
        sealed({}),
    ],
)
def test_a_checkpoint_that_lies(tmp_path, text):
    step = tmp_path / "run" / "checkpoints" / "1"
    for item in ("meta", "model"):
        (step / item).mkdir(parents=True)
    (step / "meta" / "metadata").write_text(text)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="checkpoint"):
        checkpoint.load_model(tmp_path / "run")
    assert sorted(tmp_path.rglob("*")) == before


# ---- Exported models ----


DESCRIPTION = {
    "format": exported.FORMAT,
    "platforms": ["cpu"],
    "calling_convention": jax_export.maximum_supported_calling_convention_version,
    "jax": jax.__version__,
    "classes": ["a", "b"],
    "palette": [[0, 0, 0], [9, 9, 9]],
    "images": {name: {"least": 1, "step": 1} for name in ("batch", "height", "width")},
}


def write_program(folder, function, checks=(), **changes):
    shape = jax.ShapeDtypeStruct(jax_export.symbolic_shape("b, h, w, 3"), jnp.uint8)
    program = jax_export.export(
        jax.jit(function), platforms=("cpu",), disabled_checks=checks
    )(shape).serialize()  # fmt: skip
    return write_bytes(folder, bytes(program), **changes)


def write_bytes(folder, program: bytes, **changes):
    folder.mkdir(exist_ok=True)
    (folder / exported.PROGRAM).write_bytes(program)
    about = DESCRIPTION | {"sha256": hashlib.sha256(program).hexdigest()} | changes
    (folder / exported.DESCRIPTION).write_text(json.dumps(about))
    return folder


def harmless(images):
    return {"labels": jnp.argmax(images, -1).astype(jnp.int32)}


def test_a_program_that_calls_into_the_process_is_refused(tmp_path):
    def evil(images):
        shape = jax.ShapeDtypeStruct(images.shape[:3], jnp.int32)
        return {"labels": jax.ffi.ffi_call("xla_ffi_python_cpu_callback", shape)(images, index=0)}

    def within(images):
        return jax.lax.cond(images.sum() > 0, evil, harmless, images)

    check = jax_export.DisabledSafetyCheck.custom_call("xla_ffi_python_cpu_callback")
    for function in (evil, within):
        folder = write_program(tmp_path / "model", function, [check])
        with pytest.raises(UserError, match="calls xla_ffi_python_cpu_callback.*was not run"):
            exported.load(folder)
    assert exported.load(write_program(tmp_path / "model", harmless)).classes == ("a", "b")


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": 3},
        {"palette": None},
        {"images": {}},
        {"images": {"batch": {"least": 1}, "height": 2, "width": 3}},
        {"platforms": 5},
        {"calling_convention": "x"},
        {"calling_convention": 10**9},
        {"format": DEEP[:10]},
        {"sha256": []},
    ],
)
def test_an_exported_model_that_lies(tmp_path, changes):
    with pytest.raises(UserError, match=str(tmp_path)):
        exported.load(write_program(tmp_path / "model", harmless, **changes))


@pytest.mark.parametrize("program", [b"", b"\0" * 100, b"\xff" * 1000])
def test_a_program_of_nonsense(tmp_path, program):
    with pytest.raises(UserError, match="model"):
        exported.load(write_bytes(tmp_path / "model", program))
    (tmp_path / "model" / exported.DESCRIPTION).write_text(DEEP)
    with pytest.raises(UserError, match="damaged"):
        exported.load(tmp_path / "model")
