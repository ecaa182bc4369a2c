"""PatchGAN discriminator with pre-activation residual blocks (METHOD: losses, discriminator)."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from dualtoken_jax.models.convolution import Conv
from dualtoken_jax.models.group_norm import GroupNorm
from dualtoken_jax.sharding import constrain_batch


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
    """Three residual blocks double the channels each; the first two halve the resolution."""

    channels: int = 64  # after the first convolution
    groups: int = 32  # of GroupNorm


def _conv(inputs: int, outputs: int, kernel: int, stride: int, rngs: nnx.Rngs) -> Conv:
    return Conv(inputs, outputs, kernel, rngs, stride, init=nnx.initializers.normal(0.02))


def _leaky(x: jax.Array) -> jax.Array:
    return jax.nn.leaky_relu(x, 0.2)


class DiscriminatorBlock(nnx.Module):
    """GroupNorm, LeakyReLU, conv3×3, plus a 1×1 convolution of the input (resized first when the stride is 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int, rngs: nnx.Rngs):
        self.norm = GroupNorm(inputs, groups, None, rngs)
        self.conv = _conv(inputs, outputs, 3, stride, rngs)
        self.shortcut = _conv(inputs, outputs, 1, 1, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv(self.norm(x, _leaky))
        if x.shape[1:3] != y.shape[1:3]:
            x = jax.image.resize(x, (*y.shape[:3], x.shape[3]), "bilinear", antialias=False)
        return constrain_batch(y + self.shortcut(x))


class Discriminator(nnx.Module):
    """Images [B, H, W, 3] in [−1, 1] → patch logits [B, H/8, W/8, 1]; float32 throughout."""

    def __init__(self, config: DiscriminatorConfig, rngs: nnx.Rngs):
        width, groups = config.channels, config.groups
        self.conv_in = _conv(3, width, 3, 2, rngs)
        self.block0 = DiscriminatorBlock(width, 2 * width, 2, groups, rngs)
        self.block1 = DiscriminatorBlock(2 * width, 4 * width, 2, groups, rngs)
        self.block2 = DiscriminatorBlock(4 * width, 8 * width, 1, groups, rngs)
        self.conv_out = _conv(8 * width, 1, 3, 1, rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = _leaky(self.conv_in(images.astype(jnp.float32)))
        return self.conv_out(self.block2(self.block1(self.block0(x))))
