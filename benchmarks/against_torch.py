"""jaxseg against PyTorch on this machine: training steps and inference of the same networks.

    python benchmarks/against_torch.py                       # on a GPU: all models, 512x1024
    python benchmarks/against_torch.py --device cpu --models fcn --torch eager --size 128 256

Each framework runs in a process of its own. Both stay alive, and take turns in blocks of steps, so
that what else the machine does meets both; a block ends by waiting for its last result. Data are
random, not zero, and on the device. Of each, the least and the median milliseconds of a block's
step count. On a busy CPU, so does the least time that its threads worked, best with --cores 1.

PyTorch has channels_last memory, cudnn.benchmark, a fused SGD, bfloat16 autocast on a GPU (float32
on CPU, as jaxseg), and normalisations fused into convolutions for inference, as jaxseg has them
folded. A training step is forward, cross-entropy at the image's size, 0.4 of that of the auxiliary
head, backward and SGD with momentum. Inference takes uint8 images to labels.
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

CLASSES = 19
# Name -> config of jaxseg, and the number of parameters that both sides must have.
MODELS = {
    "fcn": ("configs/fcn_resnet.py:cityscapes", 49_497_734),
    "pspnet": ("configs/pspnet.py:cityscapes", 48_975_494),
    "deeplabv3p": ("configs/deeplabv3p.py:cityscapes", 43_589_878),
    "unet": ("configs/unet_fcn.py:cityscapes", 29_062_886),
}
TASKS = ("train", "infer")
COMPILERS = ("eager", "compile", "max-autotune")
ROOT = pathlib.Path(__file__).resolve().parent.parent


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line, with the defaults that depend on the device filled in."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--torch", nargs="+", choices=COMPILERS, help="how PyTorch runs a model")
    parser.add_argument("--size", nargs=2, type=int, metavar=("H", "W"), help="of the images")
    parser.add_argument("--batch", type=int, help="images of a training step")
    parser.add_argument("--infer-batch", type=int, help="images of an inference")
    parser.add_argument("--blocks", type=int, help="turns of each framework")
    parser.add_argument("--steps", type=int, help="steps of a turn")
    parser.add_argument("--warmup", type=int, help="steps before the first turn")
    parser.add_argument("--cores", type=int, help="CPU cores for both; all that there are")
    parser.add_argument("--json", type=pathlib.Path, help="write the figures there")
    options = parser.parse_args(argv)
    gpu = options.device == "cuda"
    defaults = dict(
        torch=list(COMPILERS) if gpu else ["eager"],
        size=[512, 1024] if gpu else [128, 256],
        batch=8 if gpu else 2,
        infer_batch=16 if gpu else 1,
        blocks=5,
        steps=20 if gpu else 2,
        warmup=20 if gpu else 2,
        cores=len(os.sched_getaffinity(0)),
    )
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    for name in ("batch", "infer_batch", "blocks", "steps", "cores"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')}={getattr(options, name)}: expected 1 or more")
    if options.cores > defaults["cores"]:
        parser.error(f"--cores={options.cores}: there are {defaults['cores']}")
    return options


class Side:
    """A process that runs one model in one framework, a block of steps when it is told to."""

    def __init__(self, framework: str, model: str, task: str, options: argparse.Namespace):
        batch = options.batch if task == "train" else options.infer_batch
        spec = dict(
            framework=framework, model=model, task=task, device=options.device, batch=batch,
            size=options.size, cores=options.cores, warmup=options.warmup,
        )  # fmt: skip
        # Half of the GPU's memory each; a platform that is not there must be an error.
        environment = os.environ | {
            "JAX_PLATFORMS": options.device if options.device == "cpu" else "cuda,cpu",
            "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.45",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "OMP_NUM_THREADS": str(options.cores),
        }
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "benchmarks" / "torch_sides.py"), json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.about = self._receive()

    def _receive(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"the process of {self.process.args[2]} ended; its error stands above")
        return json.loads(line)

    def run(self, steps: int) -> dict[str, float]:
        """Milliseconds of a step, over a block: that passed, 'ms', and of its threads, 'cpu_ms'."""
        print(steps, file=self.process.stdin, flush=True)
        return self._receive()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def compare(model: str, task: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of figures, one for each way that PyTorch runs the model."""
    rows = []
    ours = Side("jaxseg", model, task, options)
    for compiler in options.torch:
        theirs = Side(compiler, model, task, options)
        for side in (ours, theirs):
            if side.about["parameters"] != MODELS[model][1]:
                sys.exit(f"{model}: {side.about} has not {MODELS[model][1]} parameters")
        blocks = {ours: [], theirs: []}
        for _ in range(options.blocks):
            for side, times in blocks.items():
                times.append(side.run(options.steps))
        theirs.close()
        rows.append(
            row(model, task, compiler, *blocks.values())
            | {"jaxseg": ours.about, "torch": theirs.about}
        )
        print(table_line(rows[-1], options), flush=True)
    ours.close()
    return rows


def row(
    model: str,
    task: str,
    compiler: str,
    ours: Sequence[Mapping[str, float]],
    theirs: Sequence[Mapping[str, float]],
) -> dict[str, Any]:
    """The figures of one comparison, from what `Side.run` returned for each block of both sides."""
    figures = {"model": model, "task": task, "compiler": compiler}
    for name, blocks in (("jaxseg", ours), ("torch", theirs)):
        times = [block["ms"] for block in blocks]
        figures[f"{name}_ms"] = {
            "min": min(times),
            "median": statistics.median(times),
            "cpu": min(block["cpu_ms"] for block in blocks),
        }
    # Time against time: below 1, jaxseg is the faster.
    figures["ratio"] = {
        kind: figures["jaxseg_ms"][kind] / figures["torch_ms"][kind]
        for kind in ("min", "median", "cpu")
    }
    return figures


HEADER = (
    "| model | task | batch | torch | jaxseg ms, least (median) | torch ms | jaxseg images/s "
    "| torch images/s | jaxseg's time / torch's, least (median) | CPU time / torch's |\n"
    + "|---" * 10
    + "|"
)


def table_line(figures: Mapping[str, Any], options: argparse.Namespace) -> str:
    """A row of `compare` as a row of a Markdown table; images/s are those of the median."""
    batch = options.batch if figures["task"] == "train" else options.infer_batch
    ours, theirs, ratio = (figures[k] for k in ("jaxseg_ms", "torch_ms", "ratio"))
    rates = [1e3 * batch / times["median"] for times in (ours, theirs)]
    cells = [
        figures["model"], figures["task"], str(batch), figures["compiler"],
        *(f"{t['min']:.1f} ({t['median']:.1f})" for t in (ours, theirs)),
        *(f"{rate:.1f}" for rate in rates), f"{ratio['min']:.2f} ({ratio['median']:.2f})",
        f"{ratio['cpu']:.2f}",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    options = parse(sys.argv[1:])
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    packages = ("jax", "jaxlib", "flax", "torch")
    versions = {name: importlib.metadata.version(name) for name in packages}
    versions["python"] = platform.python_version()
    print(f"{options.size[0]}x{options.size[1]}, {options.cores} CPU cores, {versions}\n{HEADER}")
    rows = [row for m in options.models for t in options.tasks for row in compare(m, t, options)]
    print("\n".join(sorted({f"{name}: {r[name]['device']}" for r in rows for name in SIDES})))
    if options.json:
        settings = {k: str(v) if k == "json" else v for k, v in vars(options).items()}
        report = {"versions": versions, "options": settings, "rows": rows}
        options.json.write_text(json.dumps(report, indent=1) + "\n")


SIDES = ("jaxseg", "torch")

if __name__ == "__main__":
    main()
