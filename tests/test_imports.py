"""What importing jaxseg drags in: nothing heavy, and nothing that may be absent."""

import pathlib
import subprocess
import sys

import pytest

import jaxseg

ROOT = pathlib.Path(jaxseg.__file__).resolve().parent
HEAVY = (
    "tensorflow",
    "tensorflow_datasets",
    "keras",
    "torch",
    "clu",
    "cv2",
    "av",
    "pycocotools",
    "PIL",
    "matplotlib",
    "grain",
    "tensorboardX",
)
# A finder that raised instead would break those who ask `find_spec` whether a package is there.
BLOCK = f"""
import importlib.machinery, sys
class Blocked(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY}:
            return None
        return super().find_spec(name, path, target)
finders = sys.meta_path
finders[finders.index(importlib.machinery.PathFinder)] = Blocked
"""


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def modules() -> list[str]:
    paths = sorted(ROOT.rglob("*.py"))
    names = [".".join(p.relative_to(ROOT.parent).with_suffix("").parts) for p in paths]
    return [name.removesuffix(".__init__") for name in names]


def test_the_command_line_imports_nothing_heavy():
    out = run(f"import sys, jaxseg, jaxseg.main; print([m for m in {HEAVY} if m in sys.modules])")
    assert out.strip() == "[]"


def test_importing_jaxseg_does_not_import_jax():
    out = run("import sys, jaxseg; print(jaxseg.__version__, 'jax' in sys.modules)")
    assert out.split() == [jaxseg.__version__, "False"]


def test_every_module_imports_where_optional_packages_are_absent():
    # TFDS builders are classes of TFDS; they are for its own command line.
    names = [name for name in modules() if not name.startswith("jaxseg.data.prepare")]
    assert len(names) > 20
    code = BLOCK + f"import importlib\nfor name in {names}: importlib.import_module(name)\n"
    code += f"print([m for m in {HEAVY} if m in sys.modules])"
    assert run(code).strip() == "[]"


def test_load_is_there_without_having_been_imported():
    out = run("import jaxseg; print('load' in dir(jaxseg), jaxseg.load.__module__)")
    assert out.split() == ["True", "jaxseg.api"]
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = jaxseg.nothing
