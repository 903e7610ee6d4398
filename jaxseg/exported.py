"""Exported models, read back: what a folder holds that `jaxseg.export` wrote.

    model/model.stablehlo   the program, as `jax.export` writes it, with the weights
    model/model.json        what it takes and answers, where it comes from, its checksum

Nothing here knows models: the program is all that runs.
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import export as jax_export
from jax.extend.mlir.dialects import stablehlo
from jax.interpreters import mlir

from jaxseg.errors import UserError

FORMAT = 1
PROGRAM, DESCRIPTION = "model.stablehlo", "model.json"
# What a program may call: checks of shapes, random bits, operations that StableHLO has no name for.
CALLS = {
    *("shape_assertion", "cu_threefry2x32_ffi", "hip_threefry2x32_ffi", "ApproxTopK"),
    *(f"stablehlo.dynamic_{name}" for name in ("approx_top_k", "reduce_window", "top_k")),
    "stablehlo.dynamic_rng_bit_generator",
    # where arrays lie
    *("Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape", "annotate_device_placement"),
}


class Axis(NamedTuple):
    """Lengths of an axis: `least` and from there on multiples of `step`; `least` alone if 0."""

    least: int
    step: int

    def holds(self, n: int) -> bool:
        """Whether `n` is such a length."""
        return n == self.least or (self.step > 0 and n >= self.least and n % self.step == 0)

    def at_least(self, n: int) -> int:
        """The smallest of these lengths from `n` on, or the only one."""
        return max(self.least, -(-n // self.step) * self.step) if self.step else self.least

    def words(self) -> str:
        """As in 'multiples of 32 from 128 on'."""
        if not self.step:
            return str(self.least)
        start = f" from {self.least} on" if self.least > self.step else ""
        return (f"multiples of {self.step}" if self.step > 1 else "any") + start


class Form(NamedTuple):
    """The shapes of images that a program takes: [batch, height, width, 3]."""

    batch: Axis
    height: Axis
    width: Axis

    def holds(self, shape: tuple[int, ...]) -> bool:
        """Whether it takes images of this shape."""
        return len(shape) == 4 and shape[3] == 3 and all(map(Axis.holds, self, shape))

    def words(self) -> str:
        """As in 'b any, h 360, w 480'."""
        return ", ".join(f"{name} {axis.words()}" for name, axis in zip("bhw", self, strict=True))

    def symbolic_shape(self) -> tuple[Any, ...]:
        """The shape as `jax.export` wants it."""
        dims = [
            f"{axis.step}*{name}" if axis.step else str(axis.least)
            for name, axis in zip("bhw", self, strict=True)
        ]
        return jax_export.symbolic_shape(",".join([*dims, "3"]), constraints=self.bounds())

    def bounds(self) -> list[str]:
        """What `jax.export` is told of the symbols."""
        return [
            f"{name} >= {axis.least // axis.step}"
            for name, axis in zip("bhw", self, strict=True)
            if axis.step and axis.least > axis.step
        ]


@dataclasses.dataclass(frozen=True, eq=False)
class Exported:
    """An exported model; in part what `jaxseg.segmentation.Segmentation` is, and used like that.

    Attributes:
      classes: class names; a label is an index into them.
      palette: one RGB colour per class.
      form: the images that it takes.
      description: all that model.json holds.
      program: what `jax.export.deserialize` returns.
      folder: where it was read from.
      chain: of links that are left to do: none, they are in the program.
    """

    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    form: Form
    description: Mapping[str, Any]
    program: jax_export.Exported
    folder: pathlib.Path
    chain: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def segment(self, images: np.ndarray | jax.Array) -> jax.Array:
        """Labels by the chain that was exported. Compiled once per shape.

        Args:
          images: uint8 RGB [b, h, w, 3], of a shape in `form`.

        Returns:
          int32 [b, h, w], class indices at the images' size.

        Raises:
          UserError: `images` has another shape or dtype.
        """
        return self._run(self._checked(images))[0]

    def require_probabilities(self) -> None:
        """Raises `UserError` if the program has none."""
        if "probabilities" not in self.description["outputs"]:
            raise UserError(
                f"{self.folder}: was exported without probabilities; export it again with "
                "--probabilities"
            )

    def probabilities(self, images: np.ndarray | jax.Array) -> jax.Array:
        """Probabilities by the chain that was exported, whose largest is the label.

        Args:
          images: as in `segment`.

        Returns:
          float32 [b, h, w, classes], at the images' size.

        Raises:
          UserError: `images` has another shape or dtype, or the program has no probabilities.
        """
        self.require_probabilities()
        return self._run(self._checked(images))[1]

    def logits(self, *_: Any) -> None:
        """Raises `UserError`: the chain's inner values did not go out with it."""
        raise UserError(
            f"{self.folder}: an exported model answers {' and '.join(self.description['outputs'])}"
            "; for logits, variances and other settings load the run that it was exported from"
        )

    uncertainty = logits

    def _checked(self, images: Any) -> Any:
        dtype, shape = getattr(images, "dtype", type(images).__name__), np.shape(images)
        if dtype != np.uint8 or not self.form.holds(shape):
            raise UserError(
                f"images: {dtype} {list(shape)}; {self.folder} was exported for uint8 RGB "
                f"[b, h, w, 3] with {self.form.words()}"
            )
        return images

    @functools.cached_property
    def _run(self):
        return jax.jit(self.program.call)


def is_exported(path: str | os.PathLike) -> bool:
    """Whether a folder holds an exported model, whole or not."""
    folder = pathlib.Path(path).expanduser()
    return any((folder / name).is_file() for name in (PROGRAM, DESCRIPTION))


def refuse_settings(path: str | os.PathLike, *settings: Any) -> None:
    """Raises `UserError` where one of the `settings` of a run is given with an exported model."""
    if any(setting not in (None, []) for setting in settings):
        raise UserError(
            f"{path}: is an exported model, its weights and settings are fixed: give no config, "
            "step or checkpoint, or export the run again with other settings"
        )


def load(path: str | os.PathLike) -> Exported:
    """Reads an exported model.

    Raises:
      UserError: a file is missing or damaged, or it is not for this version of JAX or jaxseg, or
        not for this kind of device.
    """
    folder = pathlib.Path(path).expanduser()
    try:
        text = (folder / DESCRIPTION).read_bytes()
        program = (folder / PROGRAM).read_bytes()
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}; export the model again") from error
    try:
        description = json.loads(text)
        version = description["format"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{folder / DESCRIPTION}: is damaged; export the model again") from error
    if version != FORMAT:
        raise UserError(
            f"{folder}: exported in format {version}, this jaxseg reads {FORMAT}; use the version "
            "that wrote it, or export the model again"
        )
    if hashlib.sha256(program).hexdigest() != description.get("sha256"):
        raise UserError(
            f"{folder / PROGRAM}: differs from its checksum in {DESCRIPTION}; copy it again, or "
            "export the model again"
        )
    try:
        _check_jax(folder, description)
        program = jax_export.deserialize(bytearray(program))
        _refuse_calls(folder, program)
        return Exported(
            classes=tuple(description["classes"]),
            palette=tuple(tuple(color) for color in description["palette"]),
            form=Form(**{name: Axis(**axis) for name, axis in description["images"].items()}),
            description=description,
            program=program,
            folder=folder,
        )
    except UserError:
        raise
    except Exception as error:  # whatever nonsense leads to, where the checksum is right
        raise UserError(
            f"{folder}: is no exported model ({type(error).__name__}: {error!s:.200}); export the "
            "model again"
        ) from error


def _refuse_calls(folder: pathlib.Path, program: jax_export.Exported) -> None:
    """Raises `UserError` where a program calls what is not of XLA's own.

    A program computes, and touches nothing else, but for its custom calls: these name functions in
    the process, or hold machine code for an accelerator. `jax.export` looks at them when it writes,
    and not when it reads.
    """
    found = set()

    def visit(operation):
        if operation.name.rpartition(".")[2] == "custom_call":
            found.add(mlir.ir.StringAttr(operation.attributes["call_target_name"]).value)
        return mlir.ir.WalkResult.ADVANCE

    with mlir.make_ir_context() as context:
        module = stablehlo.deserialize_portable_artifact(context, program.mlir_module_serialized)
        module.operation.walk(visit)
    if strange := sorted(found - CALLS):
        raise UserError(
            f"{folder / PROGRAM}: calls {', '.join(strange)}, which jaxseg never writes; it was "
            "not run. Take the model from its publisher"
        )


def _check_jax(folder: pathlib.Path, description: Mapping[str, Any]) -> None:
    """Raises `UserError` where this JAX, or its device, is none that the program is for."""
    least = jax_export.minimum_supported_calling_convention_version
    most = jax_export.maximum_supported_calling_convention_version
    version = description["calling_convention"]
    if not least <= version <= most:
        raise UserError(
            f"{folder}: exported by jax {description['jax']} with calling convention {version}; "
            f"jax {jax.__version__} reads {least} to {most}: export it again with this version"
        )
    here = {"gpu": {"cuda", "rocm"}}.get(jax.default_backend(), {jax.default_backend()})
    if not here & set(description["platforms"]):
        raise UserError(
            f"{folder}: exported for {', '.join(description['platforms'])}, but jax computes on "
            f"{jax.default_backend()} here; export it again with --platforms={','.join(here)}"
        )
