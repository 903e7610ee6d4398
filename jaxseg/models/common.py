"""Building blocks that the models share."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxseg.ops.conv import conv2d

# He et al. 2015, arXiv:1502.01852, eq. 14: keeps the gradient's variance through ReLUs.
kaiming = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
classifier_init = nn.initializers.normal(0.01)


# Up to this many samples per channel, the variance takes two passes. They cost nothing there, and
# matter: global averages of a few images lie close together but far from the running mean.
FEW = 1024

# Names results of convolutions that are not larger than what was convolved, see `jaxseg.remat`.
NARROW = "narrow"


class Conv(nn.Module):
    """Convolution, zero-padded so that stride 1 keeps the size ("half" padding).

    [b, h, w, c] -> [b, ceil(h / strides), ceil(w / strides), features] for odd `kernel`, its side
    or (height, width). A number of `padding` takes the place of half padding: so many zeros on each
    side, 0 for a "valid" convolution.
    """

    features: int
    kernel: int | tuple[int, int] = 1
    strides: int = 1
    dilation: int = 1
    groups: int = 1
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = kaiming
    padding: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        window = (self.kernel,) * 2 if isinstance(self.kernel, int) else self.kernel
        shape = (*window, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        dilation = tuple(self.dilation if k > 1 else 1 for k in window)
        half = tuple(d * (k // 2) for d, k in zip(dilation, window, strict=True))
        padding = half if self.padding is None else self.padding
        channels = x.shape[-1]
        x = conv2d(x, kernel, self.strides, padding, dilation, self.groups)
        depthwise = 1 < self.groups == channels
        if self.features <= channels * self.strides**2 and not depthwise:
            x = checkpoint_name(x, NARROW)
        if self.use_bias:
            x = x + self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return x


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe and Szegedy 2015, arXiv:1502.03167) over all axes but the last.

    Statistics and arithmetic are float32 (float64 for float64 inputs) whatever the dtype of `x`,
    which is also that of the result. As in PyTorch, the batch is normalised by its biased variance
    and the running variance is the unbiased one. Under `jit` with a sharded batch the statistics
    are those of the global batch.
    """

    momentum: float = 0.9  # of the running statistics: 1 minus PyTorch's
    epsilon: float = 1e-5
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        shape = x.shape[-1:]
        scale = self.param("scale", self.scale_init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if train:
            # One pass over the batch: the variance about a point near the mean, corrected.
            axes, n = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
            near = mean.value if n > FEW else y.mean(axes)
            shift = (y - near).mean(axes)
            batch_mean = near + shift
            batch_var = jnp.maximum(jnp.square(y - near).mean(axes) - jnp.square(shift), 0)
            if not self.is_initializing():
                unbiased = batch_var * (n / max(n - 1, 1))
                keep = self.momentum
                mean.value = keep * mean.value + (1 - keep) * batch_mean
                var.value = keep * var.value + (1 - keep) * unbiased
        else:
            batch_mean, batch_var = mean.value, var.value
        gain = jax.lax.rsqrt(batch_var + self.epsilon) * scale
        return ((y - batch_mean) * gain + bias).astype(x.dtype)


class ConvNorm(nn.Module):
    """Convolution without bias, batch normalisation and `act`: ReLU unless told otherwise."""

    features: int
    kernel: int = 1
    strides: int = 1
    dilation: int = 1
    groups: int = 1
    act: Callable[[jax.Array], jax.Array] | None = nn.relu
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    epsilon: float = 1e-5  # of the normalisation
    padding: int | None = None  # see Conv

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = Conv(
            self.features,
            self.kernel,
            self.strides,
            self.dilation,
            self.groups,
            use_bias=False,
            padding=self.padding,
            name="conv",
        )(x)
        x = BatchNorm(epsilon=self.epsilon, scale_init=self.scale_init, name="bn")(x, train)
        return x if self.act is None else self.act(x)


class SepConvNorm(nn.Module):
    """Depthwise separable convolution, normalised and rectified after each half.

    Chollet 2017, arXiv:1610.02357; atrous in DeepLabv3+, arXiv:1802.02611, section 3.1.
    """

    features: int
    kernel: int = 3
    dilation: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        c = x.shape[-1]
        depthwise = ConvNorm(c, self.kernel, 1, self.dilation, c, name="depthwise_conv")
        return ConvNorm(self.features, name="pointwise_conv")(depthwise(x, train), train)


class Dropout(nn.Module):
    """Dropout of values, or with `channels` of whole channels of an image.

    Active in training, and at test time too where a key for 'dropout' is given: Monte-Carlo
    dropout (Gal and Ghahramani 2015, arXiv:1506.02142).
    """

    rate: float
    channels: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        shared = (1, 2) if self.channels else ()
        active = train or self.has_rng("dropout")
        return nn.Dropout(self.rate, broadcast_dims=shared, deterministic=not active)(x)


class Classifier(nn.Module):
    """The last layer of a head: drops whole channels in training, then scores each pixel."""

    num_classes: int
    dropout: float = 0.1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = Dropout(self.dropout, channels=True)(x, train)
        return Conv(self.num_classes, kernel_init=classifier_init, name="conv")(x)
