"""Saving, restoring on other meshes, damage, mismatches, full disks and kills."""

import asyncio
import gc
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import zlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxseg import checkpoint, stored
from jaxseg.checkpoint import Checkpointer
from jaxseg.errors import UserError
from jaxseg.sharding import make_mesh, replicated
from jaxseg.state import TrainState
from jaxseg.trees import fill
from tests.processes import run_two

# Orbax leaves the reads beside a failed one to an event loop that is gone by then.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

ROOT = pathlib.Path(__file__).resolve().parents[1]


def make_state(step=0, classes=21, ema=False, momentum=0.9, devices=8) -> TrainState:
    """A small state whose values depend on the step, replicated over some CPU devices."""
    rng = np.random.default_rng(step)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    params = {
        "backbone": {"conv": {"kernel": normal(3, 3, 3, 8)}},
        "head": {"classifier": {"kernel": normal(1, 1, 8, classes), "bias": normal(classes)}},
    }
    tx = optax.chain(
        optax.add_decayed_weights(1e-4, mask=jax.tree.map(lambda p: p.ndim > 1, params)),
        optax.sgd(optax.linear_schedule(0.1, 0.0, 10), momentum=momentum),
    )
    state = TrainState(
        step=jnp.asarray(step, jnp.int32),
        params=params,
        model_state={"batch_stats": {"backbone": {"norm": {"mean": normal(8), "var": normal(8)}}}},
        opt_state=jax.tree.map(lambda x: x + jnp.asarray(step, x.dtype), tx.init(params)),
        ema=jax.tree.map(lambda p: p * 2, params) if ema else None,
    )
    return jax.device_put(state, replicated(make_mesh(devices)))


def shapes_of(state: TrainState) -> TrainState:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def save_steps(workdir, *steps, scores=None, **kw) -> None:
    checkpointer = Checkpointer(workdir)
    for step in steps:
        checkpointer.save(step, make_state(step, **kw), {"n": step}, (scores or {}).get(step))
    checkpointer.close()


def steps_in(workdir) -> list[str]:
    return sorted(p.name for p in (workdir / "checkpoints").iterdir())


def flip_bit(path: pathlib.Path, position: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(bytes(data))


def test_round_trip(tmp_path):
    state = make_state(3, ema=True)
    meta = {"config": {"crop": (512, 1024)}, "iou": np.array([0.5, np.nan])}
    checkpointer = Checkpointer(tmp_path)
    assert checkpointer.restore(shapes_of(state)) is None
    assert checkpointer.latest_step() is None
    checkpointer.save(3, state, meta)
    checkpointer.close()

    restored, meta = Checkpointer(tmp_path).restore(shapes_of(state))
    assert_same(restored, state)
    assert meta == {"config": {"crop": [512, 1024]}, "iou": [0.5, None]}


@pytest.mark.parametrize("devices", [4, 1])
def test_restore_on_fewer_devices(tmp_path, devices):
    state = make_state(1)
    # As sharded as it can be: the kernel's output channels over all eight devices.
    layout = NamedSharding(make_mesh(8), PartitionSpec(None, None, None, "data"))
    state.params["backbone"]["conv"] = {
        "kernel": jax.device_put(state.params["backbone"]["conv"]["kernel"], layout)
    }
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, state, {})
    checkpointer.close()
    target = shapes_of(make_state(0, devices=devices))
    restored, _ = Checkpointer(tmp_path).restore(target)
    assert_same(restored, state)
    for leaf, wanted in zip(jax.tree.leaves(restored), jax.tree.leaves(target), strict=True):
        assert leaf.sharding == wanted.sharding
        assert len(leaf.devices()) == devices


def test_state_may_be_donated_right_after_save(tmp_path):
    state = make_state(1)
    expected = jax.tree.map(lambda x: np.array(x), state)
    overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, state, {})
    shapes = shapes_of(state)
    jax.block_until_ready(overwrite(state))
    checkpointer.close()
    restored, _ = Checkpointer(tmp_path).restore(shapes)
    assert_same(restored, expected)


def test_checksum_is_crc32_of_the_bytes():
    values = np.arange(48, dtype=np.float32).reshape(8, 6)
    expected = zlib.crc32(values.tobytes())
    mesh = make_mesh(8)
    for spec in (PartitionSpec(), PartitionSpec("data")):
        assert stored.checksum(jax.device_put(values, NamedSharding(mesh, spec))) == expected
    assert stored.checksum(np.asfortranarray(values)) == expected
    half = values.astype(ml_dtypes.bfloat16)
    assert stored.checksum(half) == zlib.crc32(half.tobytes())
    assert stored.checksum(np.int32(7)) == zlib.crc32(b"\7\0\0\0")


def test_every_flipped_bit_is_harmless_or_found(tmp_path):
    save_steps(tmp_path, 1)
    state, folder = make_state(1), tmp_path / "checkpoints" / "1"
    abstract = shapes_of(state)
    rng = np.random.default_rng(0)
    found_in = set()
    files = [p for p in folder.rglob("*") if p.is_file() and p.stat().st_size]
    for path in files:
        intact = path.read_bytes()
        for position in {0, len(intact) - 1, *rng.integers(0, len(intact), 4).tolist()}:
            flip_bit(path, position, int(rng.integers(8)))
            try:
                assert_same(stored.read_state(folder, abstract)[0], state)
            except stored.Damage:
                found_in.add(path.parent.name)
            path.write_bytes(intact)
    assert found_in >= {"d", "meta"}  # the chunks of the arrays, and our own file
    assert_same(stored.read_state(folder, abstract)[0], state)


def test_flipped_bit_in_array_data_is_found_though_orbax_loads_it(tmp_path):
    """Flips a bit of the stored bytes of one array itself, wherever zstd left them readable."""
    state = make_state(1)
    noise = np.random.default_rng(5).integers(0, 2**32, 4096, dtype=np.uint32)  # incompressible
    state = state.replace(model_state={"noise": jnp.asarray(noise)})
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, state, {})
    checkpointer.close()
    folder = tmp_path / "checkpoints" / "1"
    needle = noise.tobytes()[1000:1064]
    hits = [p for p in folder.rglob("d/*") if needle in p.read_bytes()]
    assert hits
    for path in hits:
        flip_bit(path, path.read_bytes().index(needle), 0)
    with pytest.raises(stored.Damage, match="model/model_state/noise differs from its checksum"):
        stored.read_state(folder, shapes_of(state))


def _truncate(folder):
    for path in (folder / "model").rglob("d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE = {
    "truncated": _truncate,
    "missing chunk": lambda folder: [p.unlink() for p in (folder / "train").rglob("d/*")],
    "missing item": lambda folder: shutil.rmtree(folder / "train"),
    "missing meta": lambda folder: shutil.rmtree(folder / "meta"),
    "empty meta": lambda folder: (folder / "meta" / "metadata").write_bytes(b""),
    "changed meta": lambda folder: (folder / "meta" / "metadata").write_text(
        (folder / "meta" / "metadata").read_text().replace('"n": 2', '"n": 3')
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_falls_back_to_the_step_before(tmp_path, caplog, what):
    save_steps(tmp_path, 1, 2)
    DAMAGE[what](tmp_path / "checkpoints" / "2")
    checkpointer = Checkpointer(tmp_path)
    state, meta = checkpointer.restore(shapes_of(make_state(0)))
    assert_same(state, make_state(1))
    assert meta == {"n": 1}
    assert "checkpoint of step 2 is damaged" in caplog.text
    assert steps_in(tmp_path) == ["1", "2.damaged"]

    checkpointer.save(2, make_state(2), {"n": 2})  # training gets there again
    checkpointer.close()
    assert_same(Checkpointer(tmp_path).restore(shapes_of(state))[0], make_state(2))


def test_all_damaged_is_an_error_that_keeps_the_files(tmp_path):
    save_steps(tmp_path, 1, 2)
    for step in "12":
        _truncate(tmp_path / "checkpoints" / step)
    with pytest.raises(UserError, match=r"every checkpoint is damaged \(step 2: .*; step 1: "):
        Checkpointer(tmp_path).restore(shapes_of(make_state(0)))
    assert steps_in(tmp_path) == ["1", "2"]
    with pytest.raises(UserError, match="is damaged .* choose another step"):
        checkpoint.load_model(tmp_path)


def test_keeps_the_latest_and_the_best_across_resumes(tmp_path):
    checkpointer = Checkpointer(tmp_path, keep=2)
    scores = {1: 0.3, 2: 0.9, 3: 0.4, 4: 0.5}
    best = [checkpointer.save_best(s, make_state(s), {}, scores[s]) for s in (1, 2)]
    assert best == [True, True]
    for step in (3, 4):
        assert not checkpointer.save_best(step, make_state(step), {}, scores[step])
        checkpointer.save(step, make_state(step), {}, scores[step])
    checkpointer.close()
    assert steps_in(tmp_path) == ["2", "3", "4"]

    checkpointer = Checkpointer(tmp_path, keep=2)  # a new process knows the scores from the files
    assert (checkpointer.latest_step(), checkpointer.best_step()) == (4, 2)
    assert not checkpointer.save_best(5, make_state(5), {}, 0.9)  # a tie goes to the earlier
    assert not checkpointer.save_best(5, make_state(5), {}, float("nan"))
    assert checkpointer.save_best(5, make_state(5), {}, 0.95)
    checkpointer.save(5, make_state(0), {})  # already there
    checkpointer.close()
    assert steps_in(tmp_path) == ["4", "5"]
    assert_same(Checkpointer(tmp_path).restore(shapes_of(make_state(0)))[0], make_state(5))


def test_load_model_finds_best_latest_or_a_step(tmp_path):
    save_steps(tmp_path, 1, 2, 3, scores={2: 0.8, 3: 0.1})
    folder = tmp_path / "checkpoints"
    for path, step, expected in [
        (tmp_path, None, 2),
        (folder, None, 2),
        (tmp_path, "latest", 3),
        (tmp_path, 3, 3),
        (folder / "3", None, 3),
    ]:
        variables, meta = checkpoint.load_model(path, step=step)
        state = make_state(expected)
        assert meta == {"n": expected}
        assert_same(variables, {"params": state.params, **state.model_state})
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(variables))
    with pytest.raises(UserError, match=r"no checkpoint of step 7; there are \[2, 3\]"):
        checkpoint.load_model(tmp_path, step=7)
    with pytest.raises(UserError, match="holds no checkpoint"):
        checkpoint.load_model(tmp_path / "nowhere")


def test_load_model_takes_the_averaged_weights_and_any_layout(tmp_path):
    save_steps(tmp_path, 1, ema=True)
    shutil.copytree(tmp_path / "checkpoints" / "1", tmp_path / "released")  # moved and renamed
    state = make_state(1, ema=True, devices=4)
    wanted = {"params": state.ema, **state.model_state}
    variables, _ = checkpoint.load_model(tmp_path / "released", shapes_of(wanted))
    assert_same(variables, wanted)
    assert all(len(leaf.devices()) == 4 for leaf in jax.tree.leaves(variables))


def test_another_class_count_is_one_message(tmp_path):
    save_steps(tmp_path, 1)
    other = shapes_of(make_state(0, classes=19))
    with pytest.raises(UserError) as error:
        Checkpointer(tmp_path).restore(other)
    assert "params/head/classifier/kernel: checkpoint (1, 1, 8, 21), model (1, 1, 8, 19)\n" in str(
        error.value
    )
    assert "another model, 2 arrays differ" in str(error.value)
    assert "--config.init_from" in str(error.value)
    assert steps_in(tmp_path) == ["1"]  # not taken for damage
    with pytest.raises(UserError, match=r"classifier/bias: checkpoint \(21,\), model \(19,\)"):
        checkpoint.load_model(tmp_path, {"params": other.params, **other.model_state})


def test_another_optimizer_or_ema_is_named(tmp_path):
    save_steps(tmp_path, 1)
    with pytest.raises(UserError, match=r"another optimizer, 3 arrays(.|\n)*opt_state/.*trace"):
        Checkpointer(tmp_path).restore(shapes_of(make_state(0, momentum=None)))
    with pytest.raises(UserError, match="ema/backbone/conv/kernel: only in the model"):
        Checkpointer(tmp_path).restore(shapes_of(make_state(0, ema=True)))


def test_a_checkpoint_fills_what_is_not_skipped(tmp_path, capsys):
    save_steps(tmp_path, 1)
    source, fresh = make_state(1), make_state(9, classes=19)
    variables = {"params": fresh.params, **fresh.model_state}
    loaded, _ = checkpoint.load_model(tmp_path)
    with pytest.raises(UserError) as error:
        fill(variables, loaded, None, "x")
    text = str(error.value)
    assert "head/classifier/kernel: checkpoint (1, 1, 8, 21), model (1, 1, 8, 19)" in text
    assert "head/classifier/bias: checkpoint (21,), model (19,)" in text
    assert "--config.init_skip='head/classifier'" in text
    assert "arrays that fit: backbone 3 of 3, head 0 of 2" in text

    filled = fill(variables, loaded, "head/classifier", "x")
    assert_same(filled["params"]["backbone"], source.params["backbone"])
    assert_same(filled["batch_stats"], source.model_state["batch_stats"])
    assert_same(filled["params"]["head"], fresh.params["head"])
    assert "left as initialised: head/classifier" in capsys.readouterr().out
    for leaf, like in zip(jax.tree.leaves(filled), jax.tree.leaves(variables), strict=True):
        assert leaf.sharding == like.sharding


def test_fill_lists_everything_and_checks_its_expressions():
    ours = {"params": {"head": {"a": np.zeros(2), "b": np.zeros(3)}, "head2": {"a": np.zeros(1)}}}
    theirs = {"params": {"head": {"a": np.ones(5)}, "neck": {"c": np.ones(4)}}}
    with pytest.raises(UserError) as error:
        fill(ours, theirs, None, "x")
    assert str(error.value).splitlines()[1:5] == [
        "  head/a: checkpoint (5,), model (2,)",
        "  head/b: only in the model, (3,)",
        "  head2/a: only in the model, (1,)",
        "  neck/c: only in the checkpoint, (4,)",
    ]
    assert_same(fill(ours, theirs, ("head", "head2|neck"), "x"), ours)
    with pytest.raises(UserError, match="head2/a: only in the model"):
        fill(ours, theirs, "head|neck", "x")  # 'head' does not cover 'head2'
    with pytest.raises(UserError, match="'haed' matches no parameter.* head, head2, neck"):
        fill(ours, theirs, "haed", "x")
    with pytest.raises(UserError, match="is not a regular expression"):
        fill(ours, theirs, "head(", "x")


def run_python(code: str, *args) -> subprocess.CompletedProcess:
    env = dict(os.environ, PYTHONPATH=str(ROOT), JAX_PLATFORMS="cpu", JAX_NUM_CPU_DEVICES="1")
    command = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, env=env, text=True, capture_output=True, timeout=120)


FULL_DISK = """
import pathlib, resource, signal, sys, warnings
warnings.simplefilter("error", DeprecationWarning)
import jax, jax.numpy as jnp, numpy as np
from absl import app, logging
from jaxseg.checkpoint import Checkpointer
from jaxseg.errors import UserError
from jaxseg.state import TrainState

def state(step):
    noise = np.random.default_rng(step).integers(0, 2**32, 50_000, dtype=np.uint32)
    return TrainState(jnp.asarray(step), {"w": jnp.asarray(noise)}, {}, ())

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

def main(argv):
    folder = pathlib.Path(argv[1])
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    checkpointer = Checkpointer(folder)
    checkpointer.save(1, state(1), {}, score=0.5)
    checkpointer.wait()
    limit(20_000)
    checkpointer.save(2, state(2), {}, score=0.9)
    checkpointer.wait()
    print("best", checkpointer.best_step())
    limit(resource.RLIM_INFINITY)
    checkpointer.save(3, state(3), {})
    checkpointer.wait(final=True)
    print("on disk", sorted(p.name for p in (folder / "checkpoints").iterdir()))
    limit(20_000)
    checkpointer.save(4, state(4), {})
    try:
        checkpointer.close()
    except UserError as error:
        print("final", error)
    restored, _ = Checkpointer(folder).restore(state(0))
    same = (restored.params["w"] == state(3).params["w"]).all()
    print("restored", int(restored.step), bool(same))

app.run(main)
"""


def test_full_disk_is_one_line_and_training_goes_on(tmp_path):
    done = run_python(FULL_DISK, tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "best 1"
    assert lines[1] == "on disk ['1', '3']"  # nothing of step 2 holds space
    assert lines[2].startswith("final could not save the checkpoint of step 4 in ")
    assert "File too large; the run's last state is not on disk" in lines[2]
    assert lines[3] == "restored 3 True"
    told = done.stderr.splitlines()  # nothing of Orbax's, no warnings, one line per failure
    assert [("step 2" in t, "step 4" in t) for t in told] == [(True, False), (False, True)], told


def test_of_a_failed_save_asyncio_tells_nothing_more(tmp_path, caplog):
    Checkpointer(tmp_path).close()

    def leave(message):
        """A failed future that nobody asks, as TensorStore's are after the first failed one."""
        event_loop = asyncio.new_event_loop()
        event_loop.create_future().set_exception(ValueError(message))
        event_loop.close()
        gc.collect()

    leave(f'writing "{tmp_path}/checkpoints/12.orbax-checkpoint-tmp/train": File too large')
    assert not caplog.records
    leave("of something else")
    (record,) = caplog.records
    assert "of something else" in record.getMessage()


KILLED = """
import os, signal, sys, threading
import jax, jax.numpy as jnp
from jaxseg.checkpoint import Checkpointer
from jaxseg.state import TrainState

workdir, delay, last = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
@jax.jit
def step_once(state):
    params = {"w": state.params["w"] * 1664525 + 1013904223}
    return state.replace(step=state.step + 1, params=params)

params = {"w": jnp.arange(1000, dtype=jnp.uint32)}
state = TrainState(jnp.zeros((), jnp.int32), params, {}, ())
checkpointer = Checkpointer(workdir)
restored = checkpointer.restore(state)
if restored:
    state = jax.tree.map(jnp.asarray, restored[0])
print("from", int(state.step), flush=True)
if delay:
    threading.Timer(delay, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
while state.step < last:
    state = step_once(state)
    step = int(state.step)
    checkpointer.save_best(step, state, {}, (step * 7 % 20) / 20)
    checkpointer.save(step, state, {})
checkpointer.close()
print("best", checkpointer.best_step(), flush=True)
"""


def test_killed_at_any_moment_it_resumes_to_the_same_bits(tmp_path):
    last = 25  # the scores' maximum, 19/20, is at step 17
    for delay in (0.3, 0.9, 1.5):
        done = run_python(KILLED, tmp_path, delay, 10_000)
        assert done.returncode == -signal.SIGKILL, done.stderr
        newest = max(
            (int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()),
            default=0,
        )
        last = max(last, newest + 2)
    done = run_python(KILLED, tmp_path, 0, last)
    assert done.returncode == 0, done.stderr
    assert "damaged" not in done.stderr
    names = [p.name for p in (tmp_path / "checkpoints").iterdir()]
    assert all(name.isdigit() for name in names)  # no temporary folder left
    assert set(names) == {str(last - 1), str(last), "17"}
    assert done.stdout.splitlines()[-1] == "best 17"

    def value_at(step):
        values = np.arange(1000, dtype=np.uint32)
        for _ in range(step):
            values = values * np.uint32(1664525) + np.uint32(1013904223)
        return values

    for step in (17, last):
        variables, _ = checkpoint.load_model(tmp_path / "checkpoints" / str(step))
        np.testing.assert_array_equal(variables["params"]["w"], value_at(step))


TWO_PROCESSES = """
import sys, jax
port, index, workdir = sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.distributed.initialize(f"127.0.0.1:{port}", 2, index, shutdown_timeout_seconds=30)
import jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxseg.checkpoint import Checkpointer
from jaxseg.sharding import make_mesh, over_batch, replicated
from jaxseg.state import TrainState
from jaxseg.workdir import Workdir
from jaxseg.writer import Writer

mesh = make_mesh()
def put(values, layout):
    return jax.make_array_from_callback(values.shape, layout, lambda i: values[i])
state = TrainState(
    step=put(np.asarray(5, np.int32), replicated(mesh)),
    params={"w": put(np.arange(6, dtype=np.float32), replicated(mesh))},
    model_state={},
    opt_state={"m": put(np.arange(8, dtype=np.float32), over_batch(mesh))},  # no process has all
)
shapes = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
with Workdir(workdir), Writer(workdir) as writer:
    writer.write_scalars(5, {"loss": 1.0})
    checkpointer = Checkpointer(workdir)
    of_eight, meta = checkpointer.restore(jax.tree.map(shapes, state))
    assert meta == {"by": 8} and of_eight.step.addressable_data(0) == 3
    mine = of_eight.opt_state["m"].addressable_data(0)
    np.testing.assert_array_equal(mine, 10 * np.arange(8)[4 * index : 4 * index + 4])
    np.testing.assert_array_equal(of_eight.params["w"].addressable_data(0), 10 * np.arange(6))
    checkpointer.save(5, state, {"by": 2}, score=0.5)
    checkpointer.wait(final=True)
    restored, meta = checkpointer.restore(jax.tree.map(shapes, state))
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        assert a.sharding == b.sharding
        np.testing.assert_array_equal(a.addressable_data(0), b.addressable_data(0))
    checkpointer.close()
"""


def test_two_processes_restore_what_eight_devices_saved_and_save_what_one_restores(tmp_path):
    layout = NamedSharding(make_mesh(8), PartitionSpec("data"))
    state = TrainState(
        step=jnp.asarray(3, jnp.int32),
        params={"w": 10 * jnp.arange(6, dtype=jnp.float32)},
        model_state={},
        opt_state={"m": jax.device_put(10 * np.arange(8, dtype=np.float32), layout)},
    )
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(3, state, {"by": 8})
    checkpointer.close()

    run_two(TWO_PROCESSES, str(tmp_path))
    like = TrainState(
        np.zeros((), np.int32),
        {"w": np.zeros(6, np.float32)},
        {},
        {"m": np.zeros(8, np.float32)},
    )
    state, meta = Checkpointer(tmp_path).restore(like)
    assert meta == {"by": 2} and state.step == 5
    np.testing.assert_array_equal(state.params["w"], np.arange(6))
    np.testing.assert_array_equal(state.opt_state["m"], np.arange(8))
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1


FULL_FOR_SOME = """
import resource, signal, sys
port, index, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
import jax
jax.distributed.initialize(f"127.0.0.1:{port}", 2, index)
import numpy as np
from jaxseg.checkpoint import Checkpointer
from jaxseg.distributed import store
from jaxseg.errors import UserError
from jaxseg.sharding import make_mesh, over_batch, replicated
from jaxseg.state import TrainState

mesh = make_mesh()
def put(values, layout):
    return jax.make_array_from_callback(values.shape, layout, lambda i: values[i])
def state(step):
    values = np.random.default_rng(step).normal(size=(64, 512))
    params = {"shared": put(values, replicated(mesh)), "own": put(values, over_batch(mesh))}
    return TrainState(put(np.int32(step), replicated(mesh)), params, {}, ())
def save(step, full=()):
    checkpointer.wait()
    size = 4000 if index in full else resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    checkpointer.save(step, state(step), {})

checkpointer = Checkpointer(folder)
save(1)
for step, full in enumerate([{1}, {0}, {0, 1}], start=2):
    save(step, full)
    checkpointer.wait()
    assert checkpointer.steps() == [1], step
save(5)
save(6)
assert checkpointer.steps() == [5, 6]
save(7, full={1})
try:
    checkpointer.close()
except UserError as error:
    print("final", error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
checkpointer = Checkpointer(folder)
shapes = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
restored, _ = checkpointer.restore(jax.tree.map(shapes, state(6)))
for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(state(6)), strict=True):
    np.testing.assert_array_equal(a.addressable_data(0), b.addressable_data(0))
checkpointer.save(8, state(8), {})
if index == 1:  # as one that fails in the middle of a step does
    checkpointer.close()
    store().key_value_set("closed", "1")
else:
    store().blocking_key_value_get("closed", 60_000)
    checkpointer.close()
"""


def test_a_disk_that_is_full_for_one_process_costs_that_save_alone(tmp_path):
    outputs = run_two(FULL_FOR_SOME, str(tmp_path))
    for index, output in enumerate(outputs):
        told = [line for line in output.splitlines() if " of step " in line]
        steps = [line.split("of step ")[1].split()[0] for line in told]
        assert steps == ["2", "3", "4", "7", "7"], output  # the last one also as the end's error
        assert all("/checkpoints: File too large" in line for line in told[:3]), output
        why = ("another process could not write its part", "File too large")[index]
        assert all(f"/checkpoints: {why}" in line for line in told[3:]), output
        assert told[-1].startswith("final ") and "last state is not on disk" in told[-1]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["6", "8"]
