"""What surrounds the step: compiling it once, tracing it, saying what that took."""

import gzip
import json
import pathlib
import threading
import types

import jax
import jax.numpy as jnp
import pytest
from test_train import TINY, config_of

from jaxseg import compiling, main, nonfinite, profiling, progress, train
from jaxseg.errors import UserError
from jaxseg.sharding import make_mesh


def test_a_run_compiles_its_step_once_and_traces_the_steps_asked_for(tmp_path, monkeypatch, capsys):
    schedule = ("--config.steps=6", "--config.log_every=2", "--config.eval_every=3")
    config = config_of("synthetic", *TINY, *schedule)
    traced = []
    make = train.make_train_step

    def counted(*arguments):
        step = make(*arguments)
        return lambda state, batch: traced.append(batch["label"].dtype) or step(state, batch)

    monkeypatch.setattr(train, "make_train_step", counted)
    train.run(config, str(tmp_path), profile="4:5")
    assert traced == [jnp.uint8]
    assert not [t for t in threading.enumerate() if t.name.startswith("jaxseg-")]

    output = capsys.readouterr().out
    assert "the training step" in output and "the first step took" in output
    (path,) = tmp_path.glob("profile/plugins/profile/*/perfetto_trace.json.gz")
    assert f"drop {path} on it" in output
    assert f"xprof --logdir {tmp_path}/profile" in output
    assert list(path.parent.glob("*.xplane.pb"))  # what xprof reads
    with gzip.open(path) as file:
        events = json.load(file)["traceEvents"]
    assert [e["args"]["step_num"] for e in events if e.get("name") == "train"] == ["4", "5"]

    # It is done: the same command makes no further step, and has none to trace.
    with pytest.raises(UserError, match=r"--profile=4:5: steps 4 to 5 .* none"):
        train.run(config, str(tmp_path), profile="4:5")


@pytest.mark.parametrize(
    ("text", "start", "want"),
    [
        (None, 0, range(0)),
        ("3:3", 0, range(3, 4)),
        ("101:120", 100, range(101, 121)),
        ("4", 100, range(106, 110)),
    ],
)
def test_the_steps_to_trace(text, start, want):
    assert profiling.parse(text, start, 120) == want


@pytest.mark.parametrize(
    "text", ["", "a", "3-5", ":5", "5:", "0:3", "5:4", "100:102", "119:121", "16", "0"]
)
def test_mistakes_in_the_steps_to_trace_are_named(text):
    with pytest.raises(UserError, match=f"--profile={text}: "):
        profiling.parse(text, 100, 120)


def test_a_program_from_the_cache_is_told_from_a_compiled_one(tmp_path, capsys):
    settings = {
        "jax_compilation_cache_dir": str(tmp_path),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        jax.experimental.compilation_cache.compilation_cache.reset_cache()
        said = []
        for _ in range(2):
            jax.clear_caches()
            lowered = jax.jit(lambda x: x * 3 + 7).lower(jnp.ones(17))
            compiling.compile_lowered(lowered, "it")
            said.append(capsys.readouterr().out.partition(" in ")[0])
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        jax.experimental.compilation_cache.compilation_cache.reset_cache()
    assert said == ["compiled it", "read it from the cache"]


def test_the_share_of_time_that_waited_for_data(tmp_path, monkeypatch, capsys):
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    written = []
    writer = types.SimpleNamespace(write_scalars=lambda step, scalars: written.append(scalars))
    log = progress.Progress(4, 8, writer, nonfinite.Watch(tmp_path, 10))

    def batches():
        nonlocal now
        for i in range(4):
            now += 3
            yield i

    for step, _ in enumerate(log.timed(batches()), 1):
        now += 1
        scalars = {name: jnp.ones(()) for name in ("loss", "lr", "finite")}
        log.add(step, scalars, {})
    log.write()
    assert written[-1] == {"images_per_s": 8 / 4, "data_wait": 3 / 4}
    assert "waiting for data 75%" in capsys.readouterr().out


def test_compiled_programs_are_kept_where_the_user_says(tmp_path, monkeypatch):
    name = "jax_compilation_cache_dir"
    before = getattr(jax.config, name)
    monkeypatch.setenv("JAXSEG_CACHE", str(tmp_path))
    try:
        jax.config.update(name, None)
        main.prepare_jax()
        assert getattr(jax.config, name) == str(tmp_path / "xla")
        # Of JAX_COMPILATION_CACHE_DIR, which jax itself reads.
        jax.config.update(name, "/elsewhere")
        main.prepare_jax()
        assert getattr(jax.config, name) == "/elsewhere"
    finally:
        jax.config.update(name, before)


def test_an_option_that_a_compiler_does_not_know_is_left_out(monkeypatch):
    assert compiling.training_options(make_mesh(1)) == {}
    known = {"xla_cpu_enable_fast_math": False}
    for devices, options, found in ((2, known, known), (3, {"xla_cpu_of_tomorrow": True}, {})):
        monkeypatch.setattr(compiling, "_OPTIONS", {"cpu": options})
        assert compiling.training_options(make_mesh(devices)) == found
    monkeypatch.setattr(compiling, "_OPTIONS", {"cpu": {"xla_cpu_enable_fast_math": "maybe"}})
    with pytest.raises(jax.errors.JaxRuntimeError, match="maybe"):
        compiling.training_options(make_mesh(4))


def test_needed_memory_counts_donated_arguments_once():
    x = jnp.zeros((1024, 256), jnp.float32)
    for donated, arrays in (((), 2), ((0,), 1)):
        compiled = jax.jit(lambda x: x + 1, donate_argnums=donated).lower(x).compile()
        assert compiling.needed_bytes(compiled) == arrays * x.nbytes


def test_an_unknown_remat_is_a_mistake_before_anything_is_made(tmp_path):
    config = config_of("synthetic", *TINY, "--config.remat=everything")
    with pytest.raises(UserError, match=r"config\.remat: unknown policy 'everything'"):
        train.run(config, str(tmp_path))
    assert not pathlib.Path(tmp_path, "checkpoints").exists()
