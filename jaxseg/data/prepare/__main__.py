"""Prepares a downloaded dataset once, for `source='tfds'`, or adds SBD's masks to VOC 2012.

    python -m jaxseg.data.prepare {cityscapes,ade20k,voc2012} --manual_dir DIR --data_dir data/tfds
    python -m jaxseg.data.prepare sbd --sbd benchmark_RELEASE/dataset --voc data/VOCdevkit/VOC2012

Preparing these needs TensorFlow; reading the result does not. Without TensorFlow, any dataset can
be copied into files that are decoded faster:

    python -m jaxseg.data.prepare reencode --config configs/deeplabv3p.py:cityscapes --split train \
        --output data/cityscapes_bmp --to bmp [--shard 1/4] [--config.data.root=...]
    python -m jaxseg.data.prepare reencode --output data/cityscapes_bmp --verify
"""

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Sequence

from jaxseg import config, data
from jaxseg.data.prepare import reencode, sbd
from jaxseg.errors import UserError


def run(argv: Sequence[str]) -> str:
    """Does what the command line says and returns a line that tells what was written."""
    parser = argparse.ArgumentParser(
        "jaxseg.data.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="dataset", required=True)
    for name in ("cityscapes", "ade20k", "voc2012"):
        command = commands.add_parser(name)
        command.add_argument("--manual_dir", required=True, help="folder with the downloads")
        command.add_argument("--data_dir", default="data/tfds", help="TFDS's data folder")
        command.add_argument(
            "--file_format",
            default="tfrecord",
            choices=("tfrecord", "array_record"),
            help="tfrecord lists faster in jaxseg and reads with as_dataset, array_record with "
            "as_data_source",
        )
        if name == "voc2012":
            command.add_argument("--augmented", action="store_true", help="with SBD's masks")
    command = commands.add_parser("sbd")
    command.add_argument("--sbd", required=True, help="benchmark_RELEASE/dataset")
    command.add_argument("--voc", required=True, help="VOCdevkit/VOC2012")
    command = commands.add_parser("reencode", help="copies a dataset into files decoded faster")
    command.add_argument(
        "--config", help="configs/FILE.py:DATASET; --config.data.root=... and such"
    )
    command.add_argument("--split", action="append", help="repeat it for several; default: train")
    command.add_argument("--output", required=True, help="folder of the copy")
    command.add_argument(
        "--to",
        help="bmp: lossless, as large as the pixels, decoded fastest; jpeg: quality 95, LOSSY, a "
        "fifth of the PNG",
    )
    command.add_argument("--shard", default="1/1", help="i/n: every n-th sample from the i-th on")
    command.add_argument("--verify", action="store_true", help="compare checksums, write nothing")
    overrides, rest = config.split_overrides(argv)
    args = parser.parse_args(rest)
    if overrides and args.dataset != "reencode":
        raise UserError(f"{overrides[0]}: only `reencode` takes a config")
    if args.dataset == "reencode":
        return _reencode(args, overrides)
    if args.dataset == "sbd":
        count = sbd.convert(args.sbd, args.voc)
        return f"{count} masks in {args.voc}/SegmentationClassAug, listed in aug.txt"
    variant = "augmented" if getattr(args, "augmented", False) else None
    return build(args.dataset, args.manual_dir, args.data_dir, args.file_format, variant)


def _reencode(args: argparse.Namespace, overrides: Sequence[str]) -> str:
    if args.verify:
        return reencode.verify(args.output)
    for name in ("config", "to"):
        if getattr(args, name) is None:
            raise UserError(f"--{name} is missing: reencode needs it unless --verify is given")
    values = config.override(config.from_file(args.config), overrides)
    spec = json.loads(values.data.to_json_best_effort())
    return reencode.run(
        spec, data.get(values.data), args.split or ["train"], args.output, args.to, args.shard
    )


def build(
    dataset: str, manual_dir: str, data_dir: str, file_format: str, config: str | None = None
) -> str:
    """Runs the TFDS builder of `dataset` and returns a line with the place and the split sizes.

    Raises:
      UserError: TensorFlow or the downloads are missing.
    """
    # tensorflow_datasets 4.9.10 imports importlib_resources to prepare and does not declare it:
    # https://github.com/tensorflow/datasets/issues/11212
    for module in ("tensorflow", "importlib_resources"):
        if importlib.util.find_spec(module) is None:
            raise UserError(
                f"preparing a dataset needs {module}, which is not installed: "
                f"pip install {module}, or prepare it elsewhere and copy the folder"
            )
    manual_dir = os.path.expanduser(manual_dir)
    if not os.path.isdir(manual_dir) or not os.listdir(manual_dir):
        raise UserError(
            f"--manual_dir={manual_dir}: no such folder, or empty; it must hold the downloads"
        )
    import tensorflow_datasets as tfds

    options = dict(data_dir=os.path.expanduser(data_dir), file_format=file_format)
    if dataset == "cityscapes":
        for name in ("leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip"):
            if not os.path.isfile(os.path.join(manual_dir, name)):
                raise UserError(
                    f"{os.path.join(manual_dir, name)}: no such file. Download it from "
                    "www.cityscapes-dataset.com and leave it packed"
                )
        builder = tfds.builder("cityscapes/semantic_segmentation", **options)
    elif dataset == "ade20k":
        from jaxseg.data.prepare.ade20k import Ade20kMasks

        builder = Ade20kMasks(**options)
    else:
        from jaxseg.data.prepare.voc2012 import Voc2012Masks

        builder = Voc2012Masks(config=config or "segmentation", **options)
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=manual_dir)
    )
    sizes = ", ".join(f"{name} {split.num_examples}" for name, split in builder.info.splits.items())
    return f"{builder.data_dir}: {sizes}"


if __name__ == "__main__":
    try:
        print(run(sys.argv[1:]))
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
