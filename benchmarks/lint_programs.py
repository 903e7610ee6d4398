"""What a compiler makes of every config's training step and prediction: lists what should not be.

    PYTHONPATH=. python benchmarks/lint_programs.py --target h200 [--configs deeplabv3p pspnet]
    PYTHONPATH=. python benchmarks/lint_programs.py --target v5e:2x2
    PYTHONPATH=. python benchmarks/lint_programs.py --target cpu      # eight host devices
    PYTHONPATH=. python benchmarks/lint_programs.py --target cpu --height 4   # images split by rows

On one GPU or TPU chip: weight gradients compiled into convolutions with a window as large as the
image (GPU), select-and-scatter, and the sorts, scatters and gathers there are; on TPU also the
share of the compiler's estimated cycles that is not convolutions. On eight host devices: exchanges
other than all-reduce, and how many of those there are. GPU and TPU programs are compiled without
the device; `python -m jaxseg.deviceless` fetches the compilers.
"""

import argparse
import collections
import pathlib
import time

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jaxseg import command_line, data, deviceless, hlo, lowering, models, sharding
from jaxseg import state as states
from jaxseg.data.base import Description
from jaxseg.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
HOSTS = 8
# No optimisation of the machine code: only the program is read.
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def read(name: str) -> tuple[ConfigDict, Description]:
    """A config as the command line makes it, and the description of its data set.

    Where that is a folder of your own, it is the synthetic one.
    """
    file = f"--config={ROOT}/configs/{name}.py"
    config = command_line.parse(["jaxseg", file, "--workdir=unused"])[2]
    if config.data.name == "folder":
        config = command_line.parse(["jaxseg", f"{file}:synthetic", "--workdir=unused"])[2]
    for loss in config.losses.values():
        loss.update({"class_weights": ()} if loss.get("class_weights") else {})
    return config, data.get(config.data)


def largest_kernel(config: ConfigDict, description: Description, size: tuple[int, int]) -> int:
    """The longest side of any convolution's kernel in the model."""
    model = models.get(config.model, num_classes=description.num_classes)
    params = states.abstract_variables(model, size)["params"]
    return max(max(leaf.shape[:2]) for leaf in jax.tree.leaves(params) if len(leaf.shape) == 4)


def compiled_text(lowered: jax.stages.Lowered, on: Mesh) -> str:
    platform = on.devices.flat[0].platform
    if platform == "cpu":
        return lowered.compile(FAST).as_text()
    options = {} if platform == "tpu" else FAST
    return deviceless.compile_lowered(lowered, on, options).as_text()


def offenders(text: str, target: str, kernel: int) -> list[str]:
    """One line for each thing that stands out."""
    executed = hlo.instructions(text)
    found: collections.Counter[str] = collections.Counter()
    if target == "cpu":
        for each in hlo.collectives(text):
            if each.opcode != "all-reduce":
                found[f"{each.opcode} {each.op_name} {each.bytes} bytes"] += each.times
        reduces = [each for each in executed if each.opcode == "all-reduce"]
        rows = [f"({len(reduces)} all-reduces, {sum(e.bytes for e in reduces) / 2e6:.1f} MB)"]
    else:
        found.update("giant window " + line for line in hlo.giant_windows(text, kernel))
        for each in executed:
            if "select_and_scatter" in each.line or each.opcode == "select-and-scatter":
                found[f"select-and-scatter {each.op_name}"] += each.times
            elif each.category in (hlo.SORT, hlo.SCATTER):
                found[f"{each.category}: {each.op_name}"] += each.times
        rows = shares(executed)
    return [f"{count} x {line}" for line, count in sorted(found.items())] + rows


def shares(executed: list[hlo.Instruction]) -> list[str]:
    """How the TPU compiler's cycles divide over the categories; nothing for other programs."""
    sums = {name: row[3] for name, row in hlo.totals(executed).items() if row[3]}
    total = sum(sums.values())
    ranked = sorted(sums.items(), key=lambda pair: -pair[1])
    parts = [f"{name} {cycles / total:.0%}" for name, cycles in ranked if cycles > 0.005 * total]
    return [f"({total / 1e6:.2f} M cycles: {', '.join(parts)})"] if total else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--target", default="h200", help="h100, h200, v5e:2x2, ..., or cpu")
    parser.add_argument("--configs", nargs="+", help="names in configs/; all without it")
    parser.add_argument("--size", type=int, nargs=2, default=(256, 320))
    parser.add_argument("--batch", type=int, default=2, help="images on each device")
    parser.add_argument("--height", type=int, default=1, help="devices that share an image")
    parser.add_argument("--parts", nargs="+", default=("training", "prediction"))
    options = parser.parse_args()
    if options.target == "cpu":
        jax.config.update("jax_num_cpu_devices", HOSTS)
    if options.target == "cpu":
        on = sharding.make_mesh(0, options.height)
    else:
        on = deviceless.mesh(options.target, options.height, options.height)
    size, batch = tuple(options.size), options.batch * on.shape["data"]
    for name in options.configs or sorted(path.stem for path in ROOT.glob("configs/*.py")):
        try:
            config, description = read(name)
            kernel = largest_kernel(config, description, size)
        except UserError as e:
            print(f"{name}: {e}", flush=True)
            continue
        for part in options.parts:
            began = time.monotonic()
            lower = getattr(lowering, part)
            text = compiled_text(lower(config, description, on, size, batch), on)
            print(f"{name} {part} ({time.monotonic() - began:.0f} s)", flush=True)
            for line in offenders(text, options.target, kernel):
                print("   ", line, flush=True)


if __name__ == "__main__":
    main()
