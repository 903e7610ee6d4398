"""Eight CPU devices for every test, and where the optional reference data is."""

import pathlib

import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder with reference outputs and real pictures; tests that need it skip without it."""
    if not SHARED.is_dir():
        pytest.skip("needs the reference data in ../shared, which is absent")
    return SHARED
