"""A TFDS builder for ADE20K's 150 classes, from the download of the SceneParsing challenge 2016."""

import os
from collections.abc import Iterator

import tensorflow_datasets as tfds

from jaxseg.data import ade20k, files
from jaxseg.data.base import Record


class Ade20kMasks(tfds.core.GeneratorBasedBuilder):
    """Images and masks exactly as downloaded: the mask holds 1..150, and 0 for everything else."""

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = ade20k.PREPARE

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="ADE20K (SceneParsing 2016): photographs and masks of 150 classes.",
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "label": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
                }
            ),
            homepage="http://sceneparsing.csail.mit.edu",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        manual = str(dl_manager.manual_dir)
        root = os.path.join(manual, "ADEChallengeData2016")
        if not os.path.isdir(root):
            path = files.require(f"{root}.zip", f"{manual} to hold that file, or\n{ade20k.LAYOUT}")
            root = os.path.join(str(dl_manager.extract(path)), "ADEChallengeData2016")
        records = ade20k.describe(root).records
        return {
            "train": self._generate_examples(records("train")),
            "validation": self._generate_examples(records("val")),
        }

    def _generate_examples(self, records: list[Record]) -> Iterator[tuple[str, dict[str, str]]]:
        # TFDS stores a file that is given by its path byte for byte.
        for record in records:
            yield record.id, {"id": record.id, "image": record.image, "label": record.label}
