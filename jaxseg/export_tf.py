"""Exported models for other runtimes: TensorFlow SavedModel, TensorFlow Lite, ONNX.

By converters that others maintain: `jax.experimental.jax2tf` puts the program of `jaxseg.export`
into a TensorFlow graph as it is, TensorFlow's own converter makes TensorFlow Lite's operations of
one of fixed shape, and tf2onnx makes ONNX's of those. They are imported when they are needed.
"""

import importlib.util
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax import export as jax_export

from jaxseg.data.tfdata import import_tensorflow
from jaxseg.errors import UserError
from jaxseg.exported import Form

FORMATS = {"saved_model": "saved_model", "tflite": "model.tflite", "onnx": "model.onnx"}
NEEDS = {  # beside jaxseg's own
    "saved_model": {"tensorflow": "tensorflow>=2.20"},
    "tflite": {"tensorflow": "tensorflow>=2.20"},
    "onnx": {"tensorflow": "tensorflow>=2.20", "tf2onnx": "tf2onnx>=1.17"},
}
_STABLEHLO = "1.9.0"  # an old form of programs: TensorFlow 2.21 can read none after 1.13


def check(formats: Sequence[str], size: tuple[int, int] | None) -> None:
    """Raises `UserError` for a format that does not exist, or lacks a package or a size."""
    for name in formats:
        if name not in FORMATS:
            raise UserError(f"--formats: unknown {name!r}; expected some of {', '.join(FORMATS)}")
        for module, package in NEEDS[name].items():
            if importlib.util.find_spec(module) is None:
                raise UserError(f"--formats={name}: needs {module}: pip install '{package}'")
        if name != "saved_model" and size is None:
            raise UserError(
                f"--formats={name}: its programs have one size; give --size=HEIGHTxWIDTH"
            )


def write(
    folder: pathlib.Path,
    formats: Sequence[str],
    program: jax_export.Exported,
    form: Form,
    outputs: tuple[str, ...],
    scores: Callable[[jax.Array], jax.Array],
) -> None:
    """Writes the files of `formats`, see `FORMATS`, into `folder`.

    Args:
      folder: an existing one.
      formats: keys of `FORMATS`, checked.
      program: images -> outputs.
      form: the images that it takes.
      outputs: their names: 'labels', and 'probabilities' or not.
      scores: images -> what the labels are the largest of, and what the probabilities are.

    Raises:
      UserError: an operation of the model has no counterpart there.
    """
    if "saved_model" in formats:
        _saved_model(folder / FORMATS["saved_model"], program, form, outputs)
    if {"tflite", "onnx"} & set(formats):
        shape = (1, form.height.least, form.width.least, 3)
        lite = folder / FORMATS["tflite"]
        lite.write_bytes(_tflite(scores, shape, outputs))
        if "onnx" in formats:
            _onnx(lite, folder / FORMATS["onnx"])
        if "tflite" not in formats:
            lite.unlink()


def _saved_model(
    folder: pathlib.Path, program: jax_export.Exported, form: Form, outputs: tuple[str, ...]
) -> None:
    """The program in a graph: signature 'serving_default', 'images' -> `outputs` by name."""
    tf = import_tensorflow()
    from jax.experimental import jax2tf

    call = jax2tf.convert(
        program.call,
        polymorphic_shapes=[f"({', '.join(map(str, program.in_avals[0].shape))})"],
        polymorphic_constraints=form.bounds(),
        native_serialization_platforms=program.platforms,
        with_gradient=False,
    )
    shape = [None if axis.step else axis.least for axis in form]
    module = tf.Module()
    module.segment = tf.function(
        lambda images: dict(zip(outputs, call(images), strict=True)),
        input_signature=[tf.TensorSpec([*shape, 3], tf.uint8, "images")],
        autograph=False,
    )
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.segment})
    _for_older_readers(folder / "saved_model.pb")
    some = [1, *(axis.at_least(64) for axis in form[1:]), 3]
    try:  # TensorFlow reads the program when it runs it
        tf.saved_model.load(str(folder)).segment(tf.zeros(some, tf.uint8))
    except tf.errors.OpError as error:
        raise UserError(
            f"--formats=saved_model: TensorFlow {tf.__version__} cannot run what jax "
            f"{jax.__version__} writes of this model: {_reason(error)}"
        ) from error


def _for_older_readers(file: pathlib.Path) -> None:
    """Writes the programs in a saved model as `_STABLEHLO`: JAX's is newer than TensorFlow's."""
    from jax.extend.mlir import ir
    from jax.extend.mlir.dialects import stablehlo
    from tensorflow.core.protobuf import saved_model_pb2

    model = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    for graph in model.meta_graphs:
        for function in graph.graph_def.library.function:
            for node in function.node_def:
                if node.op == "XlaCallModule":
                    program = node.attr["module"]
                    with ir.Context() as context:
                        read = stablehlo.deserialize_portable_artifact(context, program.s)
                        program.s = stablehlo.serialize_portable_artifact(read, _STABLEHLO)
    file.write_bytes(model.SerializeToString())


def _tflite(
    scores: Callable[[jax.Array], jax.Array], shape: tuple[int, ...], outputs: tuple[str, ...]
) -> bytes:
    """TensorFlow Lite's built-in operations only: 'images' of `shape` -> `outputs` by name."""
    tf = import_tensorflow()
    from jax.experimental import jax2tf

    call = jax2tf.convert(scores, native_serialization_platforms=("cpu",), with_gradient=False)

    # TensorFlow's argmax: the one that JAX writes has no counterpart.
    def segment(images: Any) -> Mapping[str, Any]:
        values = call(images)
        named = {"labels": tf.argmax(values, -1, output_type=tf.int32), "probabilities": values}
        return {name: named[name] for name in outputs}

    module = tf.Module()
    spec = tf.TensorSpec(shape, tf.uint8, "images")
    module.segment = tf.function(segment, input_signature=[spec], autograph=False)
    functions = [module.segment.get_concrete_function()]
    converter = tf.lite.TFLiteConverter.from_concrete_functions(functions, module)
    try:
        return converter.convert()
    except Exception as error:  # ConverterError, which TensorFlow does not name in public
        raise UserError(
            "--formats: TensorFlow Lite, by way of which ONNX is made too, lacks an operation of "
            f"this model: {_reason(error)}"
        ) from error


def _onnx(lite: pathlib.Path, file: pathlib.Path) -> None:
    """The operations of a TensorFlow Lite file as those of ONNX, the outputs in the same order."""
    from tf2onnx import convert

    try:
        convert.from_tflite(str(lite), output_path=str(file))
    except Exception as error:  # ValueError and others: tf2onnx has no type of its own
        raise UserError(
            f"--formats=onnx: tf2onnx lacks an operation of this model: {_reason(error)}"
        ) from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
