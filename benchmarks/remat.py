"""What each `config.remat` is worth: memory, arithmetic and time of a training step.

    PYTHONPATH=. python benchmarks/remat.py --target h200                # compiled, not run
    PYTHONPATH=. python benchmarks/remat.py --size 128 256 --batch 2     # timed on this machine

With a target the program is compiled for a GPU that need not be here (see `jaxseg.deviceless`):
GiB of one device's memory, FLOPs of its convolutions and matrix products, and the bytes that its
kernels read and write. Without one, steps are also timed on the first device here, policies taking
turns, least and median.
"""

import argparse
import statistics
import time

import jax

from jaxseg import benchmark_programs, compiling, data, deviceless, hlo, lowering, remat, sharding
from jaxseg import config as configs


def timed(programs: dict, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each program's steps; the programs take turns."""
    times = {policy: [] for policy in programs}
    for turn in range(rounds + 1):
        for policy, program in programs.items():
            began = time.perf_counter()
            jax.block_until_ready(program.run())
            if turn:  # the first warms up
                times[policy].append(1e3 * (time.perf_counter() - began))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", default="deeplabv3p:cityscapes", help="CONFIG:DATASET")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 1024), help="height and width")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--target", help="such as h200; compiles only")
    parser.add_argument("--rounds", type=int, default=20, help="timed steps of each policy")
    options = parser.parse_args()
    name, _, dataset = options.config.partition(":")
    config = configs.from_file(f"configs/{name}.py:{dataset}")
    description = data.get(config.data)
    size = tuple(options.size)
    mesh = deviceless.mesh(options.target) if options.target else sharding.make_mesh(1)
    where = options.target or mesh.devices.flat[0].device_kind
    print(f"{options.config}, {size[0]}x{size[1]}, batch {options.batch}, {where}")
    print(f"jax {jax.__version__}")
    print("| remat | memory, GiB | TFLOP | kernels' traffic, GB |", flush=True)
    programs = {}
    for policy in remat.POLICIES:
        config.remat = policy
        what = (config, description, mesh, size, options.batch)
        if options.target:
            program = deviceless.compile_lowered(lowering.training(*what), mesh)
        else:
            programs[policy] = benchmark_programs.training(*what)
            program = programs[policy].compiled
        executed = hlo.instructions(program.as_text())
        flops, traffic = (sum(getattr(i, key) for i in executed) for key in ("flops", "bytes"))
        memory = compiling.needed_bytes(program) / 2**30
        print(f"| {policy} | {memory:.2f} | {flops / 1e12:.2f} | {traffic / 1e9:.0f} |", flush=True)
    if options.target:
        return
    times = timed(programs, options.rounds)
    print("| remat | least ms | median ms | least, of none's |")
    least = min(times["none"])
    for policy, ms in times.items():
        row = f"{min(ms):.0f} | {statistics.median(ms):.0f} | {min(ms) / least:.2f}"
        print(f"| {policy} | {row} |")


if __name__ == "__main__":
    main()
