"""The command line.

    python -m jaxseg.main [train] --config configs/deeplabv3p.py:cityscapes --workdir runs/x
    python -m jaxseg.main eval    --workdir runs/x [--split val] [--step 4000]
                                  [--compare 'crf: predict.crf.iterations=10' --compare ...]
    python -m jaxseg.main eval    --zoo NAME --config.data.root=data/cityscapes [--workdir out/]
    python -m jaxseg.main predict --workdir runs/x --input 'photos/*.jpg' --output out/
    python -m jaxseg.main predict --zoo NAME --input street.jpg --output out/
    python -m jaxseg.main tune_crf --workdir runs/x [--images 100] [--grid bilateral_sxy=30,60,90]
    python -m jaxseg.main submit  --workdir runs/x --output out/ [--split test]
    python -m jaxseg.main export  --workdir runs/x --output model/ [--size 360x480]
    python -m jaxseg.main convert --zoo NAME --output FOLDER  (or --workdir runs/x; x.safetensors)
    python -m jaxseg.main check   --config configs/deeplabv3p.py:folder --config.data.root=mine
    python -m jaxseg.main benchmark --config configs/deeplabv3p.py [--sizes=512x1024 --batches=2,8]
                                  [--what=train,inference,input,end_to_end] [--roofline]
                                  [--json=here.json] [--against=there.json]
    python -m jaxseg.main plan    --config configs/deeplabv3p.py --target h200,v5e:4x4
                                  [--nolargest] [--json=plan.json]
    python -m jaxseg.main compare runs/a/results-val.json runs/b/results-val.json ...
    python -m jaxseg.main zoo     ['*_r50-*cityscapes*'] [--sort=name|dataset|params|miou|runs]

train    trains, evaluates, writes checkpoints and pictures; the same command again continues a run
eval     evaluates a run's best checkpoint on a split; with --compare 'NAME: KEY=VALUE ...' as often
         as wanted, variants of it side by side: keys of predict, model and dtype. A released model
         is evaluated by its published test protocol, and its results left in --workdir, if any
predict  writes palette PNG labels and overlays for images, videos, folders or globs (several
         --input); --write=labels,overlay,probabilities,confidence,entropy,shares,coco says what
tune_crf searches the dense CRF's settings on images of the validation split
submit   segments a split and packs what the dataset's evaluation server takes
export   writes a run's model and test-time chain as one program, which predict takes as --workdir
         too; --probabilities adds those to the labels, --formats=saved_model,tflite,onnx files
         for other runtimes
convert  writes weights as a run's folder, or as FILE.safetensors by the names of PyTorch
check    reads every sample of a dataset and reports what is wrong with it
plan     compiles the training step for GPUs and TPUs that are not here: what fits, how fast it is
benchmark times training steps and inference on random data at the sizes and batches given, the
         input pipeline (--input: it alone) and both together, against the machine's measured peaks
compare  puts results of eval side by side, seeds of one recipe as mean and deviation; refuses such
         as were evaluated by unlike protocols
zoo      lists the released models whose names fit, with published mIoU, and which of them run

Any value of the config can be set, as in --config.optimizer.lr=0.02. With --rescale, train and plan
make of a recipe an equivalent one for another --config.batch_size, or for --config.devices of which
each takes as many images: learning rate, steps and what else counts steps; values given stay.

With --deterministic, train, eval and benchmark give the same bits again on the same machine; GPUs
pay for it with speed.

Processes of one run, started by srun, mpirun or on each host of a Cloud TPU, find each other in
train and eval. Elsewhere give each --coordinator=HOST:PORT --num_processes=N --process_id=I;
--nodistributed keeps one to itself, and --distributed refuses to go on alone.

eval, predict, submit and export take the run's own config from --workdir, so that --config is not
needed there; or a released model of MMSegmentation by --zoo, with --checkpoint=FILE where its
weights are not to be downloaded.
"""

import functools
import os
import sys
import traceback

from absl import flags
from ml_collections import ConfigDict

from jaxseg import cache, command_line, distributed, full_disk
from jaxseg.errors import Preempted, UserError, printable


def main(argv: list[str]) -> int:
    """Runs one command.

    Returns:
      The exit status: 0; 1, `check` or `compare` found faults; 2, a user's mistake or a full disk;
      42, SIGTERM came, what there is is saved, and the same command goes on; 130, interrupted.
    """
    if {"--help", "-help", "-h"} & set(argv):
        print(__doc__ + command_line.help_text())
        return 0
    try:
        command, values, config = command_line.parse(argv)
        status = dispatch(command, values, config, argv)
        distributed.leave()
        return status
    except Preempted:
        distributed.leave()
        print("stopped by SIGTERM; the same command goes on", file=sys.stderr, flush=True)
        return 42
    except UserError as error:
        status, report = 2, f"error: {error}"
    except KeyboardInterrupt:
        again = "the same command continues training from the newest checkpoint"
        status, report = 130, f"interrupted; {again}"
    except Exception as error:
        if isinstance(error, OSError) and full_disk.is_full(error):
            status, report = 2, f"error: {error.filename or 'a file'}: {error.strerror}; make room"
        elif not distributed.joined():
            raise
        else:
            status, report = 1, traceback.format_exc()
    distributed.end_all(status, report)  # does not return where there are other processes
    print(report, file=sys.stderr, flush=True)
    return status


def dispatch(command: str, values: flags.FlagValues, config: ConfigDict, argv: list[str]) -> int:
    """Runs a parsed command; modules are imported when their command needs them."""
    if command == "zoo":
        from jaxseg import zoo_table

        zoo_table.show(values.pattern, values.sort)
        return 0
    if command == "check":
        from jaxseg import data
        from jaxseg.data import check

        description = data.get(config.data)
        splits = (values.split,) if values.split else description.splits
        report = check.check(description, splits)
        print(printable(check.format_report(report)))
        return 1 if report.problems else 0
    if command == "compare":
        from jaxseg import compare_results

        return compare_results.run(values.results)

    prepare_jax()
    if command in ("train", "eval"):
        where = (values.coordinator, values.num_processes, values.process_id)
        distributed.init_distributed(*where, wanted=values.distributed)
    rescaled = []
    if values.rescale:
        from jaxseg import rescale

        config, rescaled = rescale.from_command(values.config, config, argv)
    if command == "train":
        from jaxseg import train

        train.run(config, values.workdir, argv, values.force, values.profile, rescaled)
    elif command == "plan":
        from jaxseg import planning

        planning.run(config, values.target, values.largest, values.json)
    elif command == "benchmark":
        from jaxseg import benchmark

        benchmark.run(
            config,
            ["input"] if values.input else values.what,
            sizes=values.sizes,
            batches=values.batches,
            steps=values.steps,
            roofline=values.roofline,
            json_file=values.json,
            against=values.against,
        )
    elif command == "eval":
        from jaxseg import compare, evaluate, released

        where = (values.split, values.step)
        if values.zoo:
            which = (values.zoo, values.checkpoint, values.split)
            released.run(config, *which, workdir=values.workdir, variants=values.compare)
        elif values.compare:
            compare.run(config, values.workdir, values.compare, *where)
        else:
            evaluate.evaluate_checkpoint(config, values.workdir, *where)
    elif command == "tune_crf":
        from jaxseg import tune_crf

        grid = tune_crf.parse_grid(values.grid)
        tune_crf.tune(config, values.workdir, values.split, values.step, values.images, grid)
    elif command == "submit":
        from jaxseg import api, submit

        if values.zoo:
            load = functools.partial(api.from_zoo, values.zoo, config, values.checkpoint)
            submit.run(config, load, values.output, values.split)
        else:
            submit.from_run(config, values.workdir, values.output, values.split, values.step)
    elif command == "export":
        from jaxseg import export

        options = dict(
            probabilities=values.probabilities,
            size=command_line.size("--size", values.size) if values.size else None,
            platforms=values.platforms,
            formats=values.formats,
        )
        if values.zoo:
            which = (values.zoo, values.checkpoint)
            export.export_released(config, *which, values.output, **options)
        else:
            export.export_run(config, values.workdir, values.output, step=values.step, **options)
    elif command == "convert":
        from jaxseg import convert_files

        which = dict(zoo=values.zoo, workdir=values.workdir, checkpoint=values.checkpoint)
        convert_files.run(config, values.output, step=values.step, **which)
    else:
        from jaxseg import api, exported, outputs, predict_files

        write = outputs.known(values.write)
        if values.zoo:
            segmentation = api.from_zoo(values.zoo, config, values.checkpoint)
        elif exported.is_exported(values.workdir):
            segmentation = exported.load(values.workdir)
            if set(write) & set(outputs.FROM_PROBABILITIES):
                segmentation.require_probabilities()
        else:
            segmentation = api.from_run(values.workdir, config=config, step=values.step)
        predict_files.predict_files(values.input, values.output, segmentation, write=write)
    return 0


def prepare_jax() -> None:
    """Settings before the first computation: quiet logs, a compilation cache on disk."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import jax

    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(cache.folder() / "xla"))


def run() -> None:
    """The entry point of the `jaxseg` command."""
    sys.exit(main(sys.argv))


if __name__ == "__main__":
    run()
