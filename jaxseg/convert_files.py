"""`convert`: a model's weights as the folder of a run, or as a PyTorch state dict in safetensors.

    OUTPUT/config.json, OUTPUT/checkpoints/0/     what --workdir, `jaxseg.load` and init_from take
    OUTPUT.safetensors                            MMSegmentation's names; also read here, as a file

Both hold every number as it was, to the last bit; of a run the averaged weights where it has them.
"""

import json
import os
import pathlib
import shutil

import jax.numpy as jnp
from ml_collections import ConfigDict

from jaxseg import api, convert, safetensors_file
from jaxseg.checkpoint import Checkpointer
from jaxseg.console import say
from jaxseg.errors import UserError
from jaxseg.segmentation import Segmentation
from jaxseg.state import TrainState, count
from jaxseg.writer import write_atomically


def run(
    config: ConfigDict,
    output: str | os.PathLike,
    *,
    zoo: str | None = None,
    workdir: str | os.PathLike | None = None,
    checkpoint: str | os.PathLike | None = None,
    step: int | None = None,
) -> None:
    """Converts the weights of a released model, of a run, or of a file for the model of `config`.

    Args:
      config: of the model.
      output: the folder to make, or the file if its name ends in .safetensors.
      zoo: a released model; its weights are downloaded unless `checkpoint` has them.
      workdir, step: a run, and which of its checkpoints; None takes the best.
      checkpoint: a file or folder, see `jaxseg.load`.

    Raises:
      UserError: the output is there already or cannot be written, or see `jaxseg.load`.
    """
    path = checked(output)
    if zoo:
        segmentation = api.from_zoo(zoo, config, checkpoint)
    elif workdir:
        segmentation = api.from_run(workdir, config, step)
    else:
        segmentation = api.from_config(config, checkpoint)
    write = write_safetensors if path.suffix == ".safetensors" else write_folder
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(segmentation, config, path)
    except OSError as error:
        raise UserError(f"--output={output}: cannot be written ({error.strerror})") from error
    millions = count(segmentation.variables["params"]) / 1e6
    say(f"{output}: {millions:.1f} M parameters, {len(segmentation.classes)} classes")


def checked(output: str | os.PathLike) -> pathlib.Path:
    """The path to write to. Raises `UserError` for another kind of file, or one that is there."""
    path = pathlib.Path(output).expanduser().absolute()
    if path.suffix in (".pth", ".pt", ".bin", ".ckpt"):
        raise UserError(
            f"--output={output}: jaxseg reads PyTorch's own format but does not write it; give "
            "FILE.safetensors, which safetensors.torch.load_file reads into PyTorch, or a folder"
        )
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise UserError(f"--output={output} is there already; remove it or give another name")
    return path


def write_safetensors(segmentation: Segmentation, config: ConfigDict, path: pathlib.Path) -> None:
    """Writes the weights by their names in PyTorch, see `convert.to_torch`."""
    names = convert.torch_names(segmentation.model)
    safetensors_file.write(path, convert.to_torch(segmentation.variables, names))


def write_folder(segmentation: Segmentation, config: ConfigDict, path: pathlib.Path) -> None:
    """Writes a run's folder with one checkpoint, of step 0; it is there when it is whole."""
    partial = path.with_name(path.name + ".part")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    model_state = dict(segmentation.variables)
    params = model_state.pop("params")
    values = json.loads(config.to_json_best_effort(sort_keys=True))
    checkpointer = Checkpointer(partial)
    checkpointer.save(
        0,
        TrainState(jnp.zeros((), jnp.int32), params, model_state, opt_state=()),
        {
            "step": 0,
            "config": values,
            "classes": list(segmentation.classes),
            "palette": [list(color) for color in segmentation.palette],
            "metrics": None,
        },
    )
    checkpointer.close()
    write_atomically(partial / "config.json", json.dumps(values, indent=2) + "\n")
    if path.is_dir():
        path.rmdir()  # empty
    partial.rename(path)
