"""Eight CPU devices for every test, and where the optional reference data is.

JAX_PLATFORMS=cuda runs the tests of single devices on a GPU instead.
"""

import gc
import os
import pathlib
import signal

# Tests compile much and compute little: less optimisation saves most of their time.
FAST = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FAST}"

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_platforms", os.environ.get("JAX_PLATFORMS") or "cpu")
jax.config.update("jax_num_cpu_devices", 8)

# Tracing makes many objects and few cycles: to look for them took a fifth of the tests' time.
gc.set_threshold(200_000, 20, 50)

# What a shell starts in the background ignores Ctrl-C, which some tests send, as do its children.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder with reference outputs and real pictures; tests that need it skip without it."""
    if not SHARED.is_dir():
        pytest.skip("needs the reference data in ../shared, which is absent")
    return SHARED


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Programs that several tests share are compiled once, in this process and in its children."""
    folder = str(tmp_path_factory.mktemp("xla"))
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    patch = pytest.MonkeyPatch()
    patch.setenv("JAX_COMPILATION_CACHE_DIR", folder)
    yield
    patch.undo()


@pytest.fixture(params=["zip", "stream"])
def write(request, tmp_path):
    """Writes a value in each of PyTorch's formats, and returns the file's path."""
    import torch_writer

    def run(value, **options):
        path = tmp_path / "file.pth"
        path.write_bytes(torch_writer.FORMATS[request.param](value, **options))
        return path

    return run
