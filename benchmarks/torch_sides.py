"""The two processes that `against_torch.py` lets take turns: one model in one framework each.

Told what to run by a JSON object as only argument, it writes a line about itself when it is warm,
and then, for each number of steps that it reads, a line with the milliseconds of a step: those
that passed, and those that its threads worked.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.against_torch import CLASSES, MODELS, ROOT


def jaxseg_side(spec: dict[str, Any]) -> tuple[dict[str, Any], Callable, Callable]:
    """(about, step, wait): `step()` starts one step, `wait()` waits for all that were started."""
    import jax

    from jaxseg import benchmark_programs as programs
    from jaxseg import config as configs
    from jaxseg import data as datasets
    from jaxseg import models, sharding
    from jaxseg import state as states

    config = configs.from_file(str(ROOT / MODELS[spec["model"]][0]))
    config.augment.photometric = False
    model = models.get(config.model, num_classes=CLASSES)
    mesh = sharding.make_mesh(1)
    make = {"train": programs.training, "infer": programs.inference}[spec["task"]]
    size = tuple(spec["size"])
    program = make(config, datasets.get(config.data), mesh, size, spec["batch"])
    about = {
        "parameters": states.count(states.abstract_variables(model)["params"]),
        "device": mesh.devices.flat[0].device_kind,
        "compile_s": program.seconds,
    }
    last = None

    def run() -> None:
        nonlocal last
        last = program.run()

    return about, run, lambda: jax.block_until_ready(last)


def torch_side(spec: dict[str, Any]) -> tuple[dict[str, Any], Callable, Callable]:
    """As `jaxseg_side`."""
    import torch
    import torch.nn.functional as F

    from benchmarks import torch_models

    torch.manual_seed(0)
    torch.set_num_threads(spec["cores"])
    torch.backends.cudnn.benchmark = True
    device, gpu = torch.device(spec["device"]), spec["device"] == "cuda"
    model = torch_models.build(spec["model"], CLASSES).to(device)
    about = {"parameters": sum(p.numel() for p in model.parameters())}
    about["device"] = torch.cuda.get_device_name() if gpu else torch.__version__
    shape = (spec["batch"], *spec["size"])
    images = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, device=device)
    images = images.permute(0, 3, 1, 2)  # of channels_last memory, as it stands
    labels = torch.randint(0, CLASSES, shape, device=device)

    def cast():
        return torch.autocast("cuda", torch.bfloat16) if gpu else contextlib.nullcontext()

    def compiled(function: Callable) -> Callable:
        modes = {"compile": "default", "max-autotune": "max-autotune"}
        name = spec["framework"]
        return torch.compile(function, mode=modes[name]) if name in modes else function

    if spec["task"] == "train":
        model = model.to(memory_format=torch.channels_last).train()
        optimizer = torch.optim.SGD(
            model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True
        )

        @compiled
        def loss_of(images, labels):
            with cast():
                logits, aux = model(images)
                return F.cross_entropy(logits, labels) + 0.4 * F.cross_entropy(aux, labels)

        def run() -> None:
            torch.compiler.cudagraph_mark_step_begin()
            loss_of(images, labels).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    else:
        model.eval()
        model.fuse()
        model = model.to(memory_format=torch.channels_last)

        @compiled
        def labels_of(images):
            with cast():
                return model(images).argmax(1)

        def run() -> None:
            with torch.inference_mode():
                labels_of(images)

    return about, run, torch.cuda.synchronize if gpu else lambda: None


def main() -> None:
    spec = json.loads(sys.argv[1])
    # What libraries print must not come between the lines to the parent.
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    about, run, wait = (jaxseg_side if spec["framework"] == "jaxseg" else torch_side)(spec)
    began = time.perf_counter()
    for _ in range(max(spec["warmup"], 1)):
        run()
    wait()
    about["warmup_s"] = time.perf_counter() - began
    print(json.dumps(about), file=lines)
    for line in sys.stdin:
        steps, clocks = int(line), (time.perf_counter, time.process_time)
        began = [clock() for clock in clocks]
        for _ in range(steps):
            run()
        wait()
        took = [1e3 * (clock() - start) / steps for clock, start in zip(clocks, began, strict=True)]
        print(json.dumps({"ms": took[0], "cpu_ms": took[1]}), file=lines)


if __name__ == "__main__":
    main()
