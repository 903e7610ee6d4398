"""The lock files: that they fit requirements.txt, and that nothing in them lacks a hash."""

import pathlib
import re

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = pathlib.Path(__file__).resolve().parents[1]
VERSIONS = ("3.11", "3.12")
LINUX = {
    "implementation_name": "cpython",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "platform_system": "Linux",
    "sys_platform": "linux",
}
PIN = re.compile(r"([\w.-]+)==([\w.+!-]+)(?: ; [^\\]+)?")


def lock(version: str) -> tuple[dict[str, tuple[str, list[str]]], set[str]]:
    """({name: (version, hashes)}, the names that requirements.txt itself asks for)."""
    text = (ROOT / "requirements" / f"lock-py{version.replace('.', '')}.txt").read_text()
    pins, direct, name = {}, set(), ""
    for line in text.splitlines():
        word = line.strip().removesuffix("\\").strip()
        if not line.startswith((" ", "#")):
            match = PIN.fullmatch(word)
            assert match, f"neither a pin nor a hash: {line!r}"
            name = canonicalize_name(match[1])
            assert name not in pins, f"{name} is there twice"
            pins[name] = match[2], []
        elif word.startswith("--hash="):
            assert re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", word), line
            pins[name][1].append(word)
        elif "-r requirements.txt" in word:
            direct.add(name)
        else:
            assert word.startswith("#"), f"an option of pip's: {line!r}"
    return pins, direct


def requirements(version: str) -> dict[str, Requirement]:
    """What requirements.txt asks for on Linux with this Python."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    asked = [Requirement(line.partition(" #")[0]) for line in lines if line and line[0] != "#"]
    here = LINUX | {"python_version": version, "python_full_version": f"{version}.0"}
    asked = [one for one in asked if one.marker is None or one.marker.evaluate(here)]
    return {canonicalize_name(one.name): one for one in asked}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_lock_fits_the_requirements(version):
    pins, direct = lock(version)
    asked = requirements(version)
    assert {"jax", "flax", "tensorflow-cpu"} <= set(asked) and "tensorflow" not in asked
    again = "make the locks anew: bash tools/lock.sh"
    assert direct == set(asked), again
    for name, requirement in asked.items():
        pinned = pins[name][0]
        assert requirement.specifier.contains(pinned), f"{requirement}, {pinned}; {again}"


@pytest.mark.parametrize("version", VERSIONS)
def test_every_package_is_held_by_a_hash(version):
    pins, direct = lock(version)
    assert len(pins) > 2 * len(direct)  # what these need in turn is there too
    bare = [name for name, (_, hashes) in pins.items() if not hashes]
    assert not bare


def test_the_locks_say_nothing_of_where_packages_come_from():
    for path in (ROOT / "requirements").glob("*.txt"):
        assert not re.search(r"://|index-url|find-links|trusted-host", path.read_text()), path
