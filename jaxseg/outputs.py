"""What `predict` writes of an image, and of all images together.

  labels         NAME.png                class indices with a palette (16-bit grey past 256 classes)
  overlay        NAME_overlay.png        the image under its classes' colours, with a legend
  probabilities  NAME_probabilities.npz  'probabilities', float16 [h, w, C], and 'classes', C names
  confidence     NAME_confidence.png     the largest probability, 8-bit grey, see `confidence`
  entropy        NAME_entropy.png        how undecided it is, 8-bit grey, see `entropy`
  uncertainty    NAME_uncertainty.png    what samples differ in, where the chain samples; not asked
                                         for by name
  shares         shares.csv, shares.json each class's share of the pixels, a row per image
  coco           coco.json               a run-length mask per class and image, in COCO's form

Labels are the class of the largest probability before that is rounded. The tables are written when
the last image is done, or with the images done so far when there is an error or an interruption.
"""

import math
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxseg import named, predict, tables, visualize
from jaxseg.errors import UserError

# What stands behind an image's name in the names of its results.
ENDINGS = {
    "labels": ".png",
    "overlay": "_overlay.png",
    "probabilities": "_probabilities.npz",
    "confidence": "_confidence.png",
    "entropy": "_entropy.png",
    "uncertainty": "_uncertainty.png",
}
KNOWN = (*(name for name in ENDINGS if name != "uncertainty"), *tables.TABLES)
DEFAULT = ("labels", "overlay")
FROM_PROBABILITIES = ("probabilities", "confidence", "entropy")


def known(write: Iterable[str]) -> tuple[str, ...]:
    """Each of `write` once.

    Raises:
      UserError: nothing or something unknown is asked for, or the package for it is missing.
    """
    write = tuple(dict.fromkeys(write))
    for name in write:
        named.check("--write", "output", name, KNOWN)
    if not write:
        raise UserError(f"--write: names nothing; expected some of {', '.join(KNOWN)}")
    if "coco" in write:
        tables.pycocotools()
    return write


# ---- the maps of a batch ----


@jax.jit
def confidence(probabilities: jax.Array) -> jax.Array:
    """uint8 [..., h, w]: 255 times the largest probability, rounded; 255 is certain.

    The grey g stands for a probability within 1/510 of g / 255. No pixel is darker than 255 / C.
    """
    return jnp.rint(255 * probabilities.max(-1)).astype(jnp.uint8)


@jax.jit
def entropy(probabilities: jax.Array) -> jax.Array:
    """uint8 [..., h, w]: 255 times the entropy over its largest value, log C, rounded.

    0 is certain of one class, 255 takes all C for equally likely.
    """
    largest = math.log(max(probabilities.shape[-1], 2))
    nats = jax.scipy.special.entr(probabilities).sum(-1)
    return jnp.rint(255 * jnp.clip(nats / largest, 0, 1)).astype(jnp.uint8)


def make_maps(segmentation: Any, write: Sequence[str]) -> Callable[[Any], dict[str, Any]]:
    """What is computed of images on the device, and no more than `write` needs.

    Args:
      segmentation: a `jaxseg.segmentation.Segmentation`.
      write: of `KNOWN`, and 'uncertainty'.

    Returns:
      images uint8 [b, h, w, 3] -> 'labels' int32 [b, h, w], and as far as they are in `write`
      'probabilities' float16 [b, h, w, C], 'confidence' and 'entropy' uint8 [b, h, w], and
      'uncertainty' float32 [b, h, w], the variance's mean over the classes.
    """
    sampled = "uncertainty" in write
    # The passes' mean is what `segment` takes the largest of, but for a CRF, which comes after it.
    refined = bool(predict.checked(segmentation.chain)["crf"])
    chosen = [name for name in FROM_PROBABILITIES if name in write]
    functions = {
        "probabilities": lambda x: x.astype(jnp.float16),
        "confidence": confidence,
        "entropy": entropy,
    }

    def maps(images):
        if not (sampled or chosen):
            return {"labels": segmentation.segment(images)}
        found = {}
        if sampled:
            probabilities, variance = segmentation.uncertainty(images)
            found["uncertainty"] = variance.mean(-1)
        if refined or not sampled:
            probabilities = segmentation.probabilities(images)
        found["labels"] = predict.to_labels(probabilities)
        return found | {name: functions[name](probabilities) for name in chosen}

    return maps


def of_one(batch: Mapping[str, Any], index: int) -> dict[str, np.ndarray]:
    """The maps of one image of a batch, on the host."""
    return {name: np.asarray(x)[index] for name, x in batch.items()}


# ---- the files ----


class Results:
    """Where results go; a context, at whose end the tables are written, see `jaxseg.tables`.

    Args:
      folder: the files are `folder / NAME.png` and so on; folders are made.
      segmentation: a `jaxseg.segmentation.Segmentation`; its classes and palette are read.
      write: of `KNOWN`, and 'uncertainty'.
    """

    def __init__(self, folder: pathlib.Path, segmentation: Any, write: Sequence[str]):
        self.folder, self.write = folder, write
        self.classes, self.palette = segmentation.classes, segmentation.palette
        self.tables = tables.Tables(folder, segmentation, write)

    def save(
        self,
        name: str,
        file: str,
        image: np.ndarray,
        maps: Mapping[str, np.ndarray],
        without: Sequence[str] = (),
    ) -> None:
        """Writes what is wanted of one image; several threads may call it at once.

        Args:
          name: what the results are called.
          file: the image's file, relative to the input, for the tables.
          image: uint8 RGB [h, w, 3].
          maps: of `make_maps` and `of_one`.
          without: wanted results that are not written this time.

        Raises:
          UserError: a file cannot be written.
        """
        writers = {
            "labels": lambda path: visualize.save_label_png(path, maps["labels"], self.palette),
            "overlay": lambda path: visualize.save_png(
                path, visualize.overlay(image, maps["labels"], self.palette, self.classes)
            ),
            "probabilities": lambda path: np.savez(
                path, probabilities=maps["probabilities"], classes=np.array(self.classes)
            ),
            "confidence": lambda path: visualize.save_png(path, maps["confidence"]),
            "entropy": lambda path: visualize.save_png(path, maps["entropy"]),
            "uncertainty": lambda path: visualize.save_png(
                path, uncertainty_picture(maps["uncertainty"])
            ),
        }
        for key in self.write:
            if key in ENDINGS and key not in without:
                path = self.folder / f"{name}{ENDINGS[key]}"
                try:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    writers[key](path)
                except OSError as error:
                    raise tables.unwritable(path, error) from error
        self.tables.add(name, file, maps["labels"])

    def overlay(self, image: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """The overlay without its legend, of the image's size: uint8 RGB [h, w, 3]."""
        height, width = labels.shape
        return visualize.overlay(image, labels, self.palette, self.classes)[:height, :width]

    def __enter__(self) -> "Results":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.tables.write()


def uncertainty_picture(variance: np.ndarray) -> np.ndarray:
    """White where all samples agree, black where they differ most: uint8 RGB [h, w, 3].

    As in the paper's figures (arXiv:1511.02680, figure 1) and in the authors' program, black is
    the largest value of this very image, so that two images' shades cannot be compared;
    `Segmentation.uncertainty` gives the values.
    """
    share = variance / max(float(variance.max()), np.finfo(np.float32).tiny)
    grey = np.rint(255 * (1 - share)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)
