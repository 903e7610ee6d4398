"""A TFDS builder for the masks of PASCAL VOC 2012, which TFDS's own `voc` leaves out."""

import os
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from jaxseg.data import files, voc2012
from jaxseg.data.base import Record

ARCHIVE = "VOCtrainval_11-May-2012.tar"


class Voc2012Masks(tfds.core.GeneratorBasedBuilder):
    """Images exactly as downloaded, masks as class indices with 255 for the border."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"{voc2012.PREPARE}\n{voc2012.PREPARE_AUGMENTED}"
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="segmentation", description="train and validation"),
        tfds.core.BuilderConfig(name="augmented", description="and `aug`, the masks SBD adds"),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="PASCAL VOC 2012 segmentation: photographs and masks of 21 classes.",
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "label": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
                }
            ),
            homepage="http://host.robots.ox.ac.uk/pascal/VOC/voc2012",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        manual = str(dl_manager.manual_dir)
        root = os.path.join(manual, "VOCdevkit", "VOC2012")
        augmented = self.builder_config.name == "augmented"
        if not os.path.isdir(root) and not augmented:
            layout = f"that file, or {manual}/VOCdevkit/VOC2012, the root of\n{voc2012.LAYOUT}"
            path = files.require(os.path.join(manual, ARCHIVE), layout)
            root = os.path.join(str(dl_manager.extract(path)), "VOCdevkit", "VOC2012")
        records = voc2012.describe(root).records
        splits = {
            "train": self._generate_examples(records("train")),
            "validation": self._generate_examples(records("val")),
        }
        if augmented:
            splits["aug"] = self._generate_examples(voc2012.added_by_sbd(root))
        return splits

    def _generate_examples(self, records: list[Record]) -> Iterator[tuple[str, dict]]:
        for record in records:
            # Stored as grey values: decoding a palette PNG elsewhere may give colours.
            with Image.open(record.label) as mask:
                label = np.asarray(mask)[..., None]
            yield record.id, {"id": record.id, "image": record.image, "label": label}
