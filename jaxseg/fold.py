"""Folding normalisations into the convolutions before them, for a model that is trained.

With running statistics a BatchNorm multiplies each channel by a number and adds another. Where it
directly follows a convolution, which is linear, the factors go into the kernel (Jacob et al. 2018,
arXiv:1712.05877, section 3.2) and only the sum is left to do.
"""

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.ad_checkpoint import checkpoint_name

from jaxseg.models.common import BatchNorm, Conv
from jaxseg.models.upsample import ConvTranspose
from jaxseg.state import abstract_variables

Path = tuple[str, ...]  # of a module in the tree of parameters

# The axis of a kernel that counts its output channels.
OUTPUT_AXIS = {Conv: 3, ConvTranspose: 2}


class Fold(NamedTuple):
    """A convolution that takes in the normalisation after it.

    Attributes:
      conv: its path.
      axis: of its kernel, that of the output channels.
      epsilon: of the normalisation.
    """

    conv: Path
    axis: int
    epsilon: float


@dataclasses.dataclass(frozen=True, eq=False)
class Folded:
    """A trained model whose normalisations are part of its convolutions: as it, but faster.

    To be applied to the variables that `folded` returns with it, as `predict` applies a model.
    """

    model: nn.Module
    folds: dict[Path, Fold]

    @property
    def align_corners(self) -> bool:
        return self.model.align_corners

    def init(self, *arguments: Any, **keywords: Any) -> Any:
        return self.model.init(*arguments, **keywords)

    def apply(self, *arguments: Any, **keywords: Any) -> Any:
        with applied(self.folds):
            return self.model.apply(*arguments, **keywords)


def folded(model: nn.Module, variables: Any) -> tuple[Folded, Any]:
    """The model and its variables, on their device, with every normalisation folded that can be."""
    folds = find(model)
    return Folded(model, folds), jax.device_put(fold(variables, folds))


def find(model: nn.Module, size: tuple[int, int] = (64, 64)) -> dict[Path, Fold]:
    """The normalisations that can be folded, by path, and what into.

    Those whose input is the output of one `Conv` or `ConvTranspose` that nothing else sees. The
    model is traced, not run; on images of `size`, on which the result does not depend.
    """
    variables = abstract_variables(model, size)
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.uint8)
    outputs = {}  # id of a convolution's output -> (path, axis, output, output by its name)
    folds, sources = {}, defaultdict(set)

    def watch(call, arguments, keywords, context):
        module, path = context.module, context.module.path
        if context.method_name != "__call__":
            return call(*arguments, **keywords)
        if type(module) in OUTPUT_AXIS:
            output = call(*arguments, **keywords)
            # Should anything but a normalisation use this, its name shows in the program.
            seen = checkpoint_name(output, _name(path))
            outputs[id(seen)] = path, OUTPUT_AXIS[type(module)], output, seen
            return seen
        if type(module) is BatchNorm:
            x, *rest = arguments
            conv, axis, output, _ = outputs.get(id(x), (None, None, x, None))
            sources[path].add(conv)
            if conv is not None:
                folds[path] = Fold(conv, axis, module.epsilon)
            return call(output, *rest, **keywords)
        return call(*arguments, **keywords)

    with nn.intercept_methods(watch):
        program = jax.make_jaxpr(lambda v, x: model.apply(v, x, False))(variables, image)
    users = Counter(conv for found in sources.values() for conv in found)
    visible = _used_names(program.jaxpr)
    return {
        path: fold
        for path, fold in folds.items()
        if len(sources[path]) == users[fold.conv] == 1 and _name(fold.conv) not in visible
    }


def _name(path: Path) -> str:
    return "/".join(("jaxseg.fold", *path))


def _used_names(jaxpr: Any) -> set[str]:
    """The names, of `checkpoint_name`, of values that a program uses."""
    names = set()
    for inner in _programs(jaxpr):
        used = {id(x) for equation in inner.eqns for x in equation.invars}
        used |= {id(x) for x in inner.outvars}
        names |= {
            equation.params["name"]
            for equation in inner.eqns
            if equation.primitive.name == "name" and id(equation.outvars[0]) in used
        }
    return names


def _programs(jaxpr: Any) -> Iterator[Any]:
    """A jaxpr and all those within it."""
    yield jaxpr
    for equation in jaxpr.eqns:
        for leaf in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(leaf, "jaxpr", leaf)  # of a closed one
            if hasattr(inner, "eqns"):
                yield from _programs(inner)


def fold(variables: Any, folds: dict[Path, Fold]) -> Any:
    """The variables with the normalisations' factors in the kernels, as NumPy arrays.

    Computed in float64 and rounded once, to the dtype that each array had. Of a folded
    normalisation only the bias is left; the other three are what makes it multiply by one, so that
    the model computes the same from these variables with `applied` and without, there for nothing.

    Args:
      variables: {'params': ..., 'batch_stats': ...}.
      folds: what `find` says of the model.
    """
    flat = traverse_util.flatten_dict(variables)
    flat = {path: np.asarray(leaf) for path, leaf in flat.items()}

    def put(path: Path, value: np.ndarray) -> None:
        flat[path] = value.astype(flat[path].dtype)

    for norm, (conv, axis, epsilon) in folds.items():
        at = {
            name: (kind, *norm, name)
            for kind, names in (("params", ("scale", "bias")), ("batch_stats", ("mean", "var")))
            for name in names
        }
        scale, bias, mean, var = (flat[path].astype(np.float64) for path in at.values())
        factor = scale / np.sqrt(var + epsilon)
        kernel = ("params", *conv, "kernel")
        shape = [-1 if i == axis else 1 for i in range(flat[kernel].ndim)]
        put(kernel, flat[kernel].astype(np.float64) * factor.reshape(shape))
        if (own := ("params", *conv, "bias")) in flat:
            put(own, flat[own].astype(np.float64) * factor)
        put(at["bias"], bias - mean * factor)
        put(at["scale"], np.ones_like(scale))
        put(at["mean"], np.zeros_like(mean))
        put(at["var"], np.full_like(var, 1 - epsilon))
    return traverse_util.unflatten_dict(flat)


def applied(folds: dict[Path, Fold]) -> AbstractContextManager:
    """While this lasts, the normalisations that were folded add their bias and do nothing else."""

    def replace(call, arguments, keywords, context):
        module = context.module
        if type(module) is not BatchNorm or module.path not in folds:
            return call(*arguments, **keywords)
        if context.method_name != "__call__":
            return call(*arguments, **keywords)
        x = arguments[0]
        bias = module.get_variable("params", "bias")
        return (x.astype(jnp.promote_types(x.dtype, jnp.float32)) + bias).astype(x.dtype)

    return nn.intercept_methods(replace)
