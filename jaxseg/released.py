"""Released models on their datasets, by the test protocol that their figures were published with.

    python -m jaxseg.main eval --zoo NAME --config.data.root=FOLDER

The protocol is MMSegmentation's: the image is scaled to fit `eval.base_size`, its aspect kept; goes
through the model whole or in the windows of `predict.slide`; the logits are resized to the size of
the label, with the model's `align_corners`; and one confusion matrix of the whole split gives IoU
and Dice. Those with '(ms+flip)' average probabilities over `predict.scales` and `predict.flip`.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from jaxseg import api, data, evaluate, zoo
from jaxseg import compare as comparing
from jaxseg.console import say
from jaxseg.data import reading
from jaxseg.errors import UserError
from jaxseg.metrics.confusion import percent
from jaxseg.sharding import make_mesh

TTA = "(ms+flip)"  # ends the names of figures that were published with scales and flip


def prepare(
    config: ConfigDict, name: str, checkpoint: str | None = None, split: str | None = None
) -> evaluate.Task:
    """Finds the data and then loads the weights, which may have to be downloaded.

    Args:
      config: of `zoo.config`, made whole by `recipes.completed`; `eval`, `predict` and `data`
        may be others.
      name: of `jaxseg.zoo`.
      checkpoint: the weights' file; None takes the published one.
      split: `config.eval.split` when None.

    Raises:
      UserError: no such split, files of it are missing, no labels, or no weights.
    """
    split = split or config.eval.split
    description = data.get(config.data)
    records = reading.labelled_records(description, split)
    segmentation = api.from_zoo(name, config, checkpoint)
    known = zoo.entry(name)
    say(f"\nevaluating {known['name']} on {len(records)} images of {description.name}/{split}")
    weights = {"model": known["name"], "published": known.get("metrics", {})}
    mesh, variables = make_mesh(config.devices, config.shard.height), segmentation.variables
    return evaluate.Task(config, description, split, records, mesh, variables, weights)


def run(
    config: ConfigDict,
    name: str,
    checkpoint: str | None = None,
    split: str | None = None,
    workdir: str | None = None,
    variants: Sequence[str] = (),
) -> dict[str, Any]:
    """Evaluates a released model; prints the figures, and what was published.

    Args:
      config, name, checkpoint, split: as for `prepare`.
      workdir: a folder for what `evaluate.evaluate_checkpoint` or `compare.run` leave; None: they
        leave nothing.
      variants: to compare with it, see `compare.parse`.

    Returns:
      What `evaluate.evaluate_checkpoint` or, with variants, `compare.run` returns, with 'model' and
      'published' in the place of 'step'.

    Raises:
      UserError: as `prepare` and `compare.parse`, or `workdir` is that of a run.
    """
    if workdir is not None and (pathlib.Path(workdir) / "config.json").exists():
        raise UserError(
            f"--workdir={workdir}: is a run, whose results would be replaced; give another folder "
            "for those of the released model, or none to have them printed only"
        )
    if variants:
        found = comparing.parse(config, variants)
        result = comparing.compare(found, prepare(config, name, checkpoint, split), workdir)
        figures = result["variants"][comparing.BASE]
    else:
        result = figures = evaluate.evaluate(prepare(config, name, checkpoint, split), workdir)
    say("\n" + beside(result["published"], figures, config.predict, result["split"]))
    for note in zoo.entry(name).get("notes", ()):
        say(f"(of the published facts: {note})")
    return result


def beside(
    published: Mapping[str, float], figures: Mapping[str, Any], chain: Mapping[str, Any], split: str
) -> str:
    """The published figures as text, with those of the same name and kind found here.

    Args:
      published: of `zoo.entry`, in percent.
      figures: of `figures.compute`, as fractions.
      chain: `config.predict`, which tells whether they are with scales and flip.
      split: that they are of.
    """
    if not published:
        return "no figure was published of this model"
    last = figures["classes"][-1]  # the vessels, where 'Dice' is published
    here = {"mIoU": figures["mIoU"], "mDice": figures["mean_Dice"], "Dice": last["Dice"]}
    several = bool(chain["flip"] and chain["scales"])
    lines = []
    for name, value in published.items():
        line, found = f"{name:<14}  published {value:6.2f}", here.get(name.removesuffix(TTA))
        if split == "val" and name.endswith(TTA) == several and found is not None:
            line += f"  here {percent(found):>6}  ({100 * found - value:+.2f})"
        lines.append(line)
    if split != "val":
        lines.append(f"(the published figures are of val, not of {split})")
    return "\n".join(lines)
