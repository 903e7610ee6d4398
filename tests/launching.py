"""Runs the scripts of launch/ in a copy of the checkout, with pretended programs on PATH."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
FAKES = ROOT / "tests" / "fakes"


class Launcher:
    """A small checkout at `folder`/checkout, and what its scripts find on PATH.

    Attributes:
      checkout: the scripts and requirements of this one, under git.
      cloud: where the pretended cloud keeps its state, see fakes/cloud/gcloud.
    """

    def __init__(self, folder: pathlib.Path, *programs: str):
        self.checkout, self.cloud, self._bin = folder / "checkout", folder / "cloud", folder / "bin"
        for made in (self.checkout, self.cloud, self._bin):
            made.mkdir()
        shutil.copytree(ROOT / "launch", self.checkout / "launch")
        for requirements in ROOT.glob("requirements*.txt"):
            shutil.copy(requirements, self.checkout)
        (self.checkout / ".gitignore").write_text("/data/\n/runs/\n")
        subprocess.run(["git", "init", "-q", self.checkout], check=True)
        for program in programs:
            (self._bin / program).symlink_to(FAKES / "recorder")

    def answer(self, program: str, stdout: str = "", status: int = 0) -> None:
        """What a pretended program says from now on."""
        text = json.dumps({"stdout": stdout, "status": status})
        (self.cloud / f"{program}.json").write_text(text)

    def __call__(
        self, script: str, *arguments: str, stdin: str | None = None, **variables: str
    ) -> tuple[int, str]:
        """(exit status, everything printed) of a script; nobody is at the keyboard by default."""
        command = ["bash", f"launch/{script}", *arguments]
        process = subprocess.run(
            command,
            cwd=self.checkout,
            env=self.environment(**variables),
            input=stdin or "",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
        return process.returncode, process.stdout

    def environment(self, **variables: str) -> dict[str, str]:
        python = pathlib.Path(sys.executable).parent
        path = [self._bin, FAKES / "cloud", python, os.environ["PATH"]]
        return {
            "PATH": ":".join(map(str, path)),
            "HOME": str(self.cloud),
            "TMPDIR": os.environ.get("TMPDIR", "/tmp"),
            "FAKE_CLOUD": str(self.cloud),
            "FAKES": str(self.cloud),
            "POLL": "0",
            **variables,
        }

    def calls(self) -> list[list[str]]:
        """The command lines that the pretended programs were called with, first to last."""
        path = self.cloud / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
