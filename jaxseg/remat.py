"""What the backward pass computes again instead of keeping it: less memory for more arithmetic.

One value for every model, `config.remat`. It is about blocks: the modules that a backbone, a neck
or a head makes (a ResNet's bottlenecks, an ASPP). A module that was given parts, as a model its
backbone, makes no blocks; its parts do. Outputs of blocks are kept, and of what is inside of them:

    none    all that the gradient wants
    wide    the convolutions' results but for those larger than what was convolved: a bottleneck's
            last, which is four times as wide as the others and a quarter of its work. Activations,
            normalisations and depthwise convolutions, cheap and often wide, are computed again
    blocks  nothing: each block's forward pass is computed twice

Chen et al. 2016, arXiv:1604.06174, section 4; benchmarks/remat.py measures what each is worth.
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax

from jaxseg import named
from jaxseg.models.common import NARROW

POLICIES = {
    "none": None,
    "wide": jax.checkpoint_policies.save_only_these_names(NARROW),
    "blocks": jax.checkpoint_policies.nothing_saveable,
}


def recompute(forward: Callable, policy: str) -> Callable:
    """`forward`, a function that applies a model, to be differentiated as `policy` says.

    Results and gradients are the same to rounding, and random numbers are the same.

    Raises:
      UserError: `policy` is not in `POLICIES`.
    """
    named.check("config.remat", "policy", policy, POLICIES)
    if policy == "none":
        return forward

    @functools.wraps(forward)
    def recomputing(*args, **kwargs):
        with nn.intercept_methods(_in_blocks(POLICIES[policy])):
            return forward(*args, **kwargs)

    return recomputing


def _is_block(module: nn.Module) -> bool:
    """Whether what contains the module made it, and has no parts that it was given."""
    around = module.parent
    if not isinstance(around, nn.Module):
        return False
    fields = (getattr(around, f.name) for f in dataclasses.fields(around) if f.name != "parent")
    parts = jax.tree.leaves(list(fields), is_leaf=lambda x: isinstance(x, nn.Module))
    return not any(isinstance(part, nn.Module) for part in parts)


def _in_blocks(keeps: Callable) -> Callable:
    """What flax calls in place of every method of a module: transforms the calls of blocks."""
    inside = False

    def intercept(call, args, kwargs, context):
        nonlocal inside
        if inside or context.method_name != "__call__" or not _is_block(context.module):
            return call(*args, **kwargs)
        # Arrays are arguments of the transformed function; flags and sizes stay Python values.
        leaves, structure = jax.tree.flatten((args, kwargs))
        arrays = {i: leaf for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array)}

        def run(module, arrays):
            args, kwargs = structure.unflatten(arrays.get(i, x) for i, x in enumerate(leaves))
            return module(*args, **kwargs)

        inside = True
        try:
            return nn.remat(run, policy=keeps)(context.module, arrays)
        finally:
            inside = False

    return intercept
