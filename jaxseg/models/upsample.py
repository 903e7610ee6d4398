"""The ways in which decoders make a map larger, side by side.

* transposed: a learned transposed convolution (FCN, arXiv:1411.4038, section 3.3; U-Net,
  arXiv:1505.04597, figure 1);
* unpool: each value at the place where the encoder's pooling found its maximum (SegNet,
  arXiv:1511.00561, section 3);
* unpool_fixed: each value at the top left of its window (arXiv:1411.5928, section 3);
* bilinear, nearest: interpolation.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxseg.ops.conv import conv_transpose2d
from jaxseg.ops.pool import unpool
from jaxseg.ops.resize import resize

METHODS = ("transposed", "unpool", "unpool_fixed", "bilinear", "nearest")

# He's initialiser by fan-out, as in `common`. What a pixel of a transposed convolution goes out to
# is what comes in to a pixel of the convolution that it transposes, in whose order its kernel is.
kaiming_transposed = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class ConvTranspose(nn.Module):
    """Transposed square convolution: [b, h, w, c] -> [b, s(h - 1) + k - 2p + o, ..., features]."""

    features: int
    kernel: int = 2
    strides: int = 2
    padding: int = 0
    output_padding: int = 0
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = kaiming_transposed

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel, self.kernel, self.features, x.shape[-1])
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        x = conv_transpose2d(x, kernel, self.strides, self.padding, self.output_padding)
        if self.use_bias:
            x = x + self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return x


class Upsample(nn.Module):
    """Grows a map about twofold by one of `METHODS`: [b, h, w, c] -> [b, *size, c].

    `size` is that of the map whose pooling by two, rounded up, gave h x w. Interpolation takes any
    other size as well.

    Attributes:
      features: of the result, for "transposed" alone; None keeps the width.
      align_corners: for "bilinear" alone, see `ops.resize`.
    """

    method: str
    features: int | None = None
    align_corners: bool = False

    @nn.compact
    def __call__(
        self, x: jax.Array, size: tuple[int, int], indices: jax.Array | None = None
    ) -> jax.Array:
        """`indices`: for "unpool", from `ops.pool.max_pool_indices`; the others ignore them.

        Raises:
          ValueError: an unknown method, "unpool" without indices, or a size out of reach.
        """
        if self.method in ("bilinear", "nearest"):
            return resize(x, size, self.method, self.align_corners and self.method == "bilinear")
        if self.method == "transposed":
            grown = tuple(2 * n for n in x.shape[1:3])
            if any(n - m not in (0, 1) for n, m in zip(grown, size, strict=True)):
                raise ValueError(f"Upsample: {x.shape[1:3]} grows to {grown}, not to {size}")
            features = self.features or x.shape[-1]
            return ConvTranspose(features, name="conv")(x)[:, : size[0], : size[1]]
        if self.method == "unpool" and indices is not None:
            return unpool(x, indices, size)
        if self.method == "unpool_fixed":
            return unpool(x, None, size)
        raise ValueError(f"Upsample: no method {self.method!r} with indices={indices}")


def doublings(small: tuple[int, int], large: tuple[int, int]) -> list[tuple[int, int]]:
    """The sizes from `small`, left out, up to `large`, each the next one's half rounded up.

    Raises:
      ValueError: halving does not lead from `large` to `small`.
    """
    sizes, size = [], tuple(large)
    while size != tuple(small):
        if size[0] < small[0] or size[1] < small[1] or size == (1, 1):
            raise ValueError(f"doublings: no way from {small} to {large}")
        sizes.append(size)
        size = tuple(-(-n // 2) for n in size)
    return sizes[::-1]


def bilinear_init(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """The kernel [k, k, c, c] of a transposed convolution that interpolates bilinearly.

    Each channel by itself, as in the networks of the authors of FCN. With an even stride s, k = 2s
    and padding s / 2, pixels are s pixels apart and the first is at (s - 1) / 2; with an odd
    stride, k = 2s - 1 and padding (s - 1) / 2. `key` is not used: it makes this an initialiser.

    Raises:
      ValueError: unequal numbers of channels.
    """
    kh, kw, features, inputs = shape
    if features != inputs:
        raise ValueError(f"bilinear_init: {inputs} channels cannot each become one of {features}")
    rows, cols = (_triangle(k) for k in (kh, kw))
    kernel = np.einsum("i,j,oc->ijoc", rows, cols, np.eye(features))
    return jnp.asarray(kernel, dtype)


def _triangle(k: int) -> np.ndarray:
    """A hat of k samples, linear from its top to zero at one stride's distance."""
    stride = (k + 1) // 2
    return 1 - np.abs(np.arange(k) - (k - 1) / 2) / stride
