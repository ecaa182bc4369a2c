"""Decoders from up-projected pixel tokens to images (METHOD: decoder).

Every decoder is `features` (everything but the last layer) and `output` (the last layer), because the adaptive
generator weight needs gradients at the last layer only.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from dualtoken_jax.models.convolution import Conv
from dualtoken_jax.models.group_norm import GroupNorm
from dualtoken_jax.models.siglip import Encoder, Remat, TowerConfig, layer_norm
from dualtoken_jax.sharding import constrain_batch


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """`convolutional` is the paper's VQGAN decoder; `transformer` is its cheap stand-in where convolutions are slow."""

    kind: Literal["convolutional", "transformer"] = "convolutional"
    # convolutional:
    channels: int = 128  # channels at full resolution
    multipliers: tuple[int, ...] = (1, 1, 4, 4, 8)  # of `channels`, from full resolution down; ×2 between levels
    residual_blocks: int = 2  # per level, plus one
    latent_grid: int = 24  # side of the decoder's input; tokens on another grid are resized to it
    attention_grids: tuple[int, ...] = (24,)  # sides at which every residual block is followed by attention
    groups: int = 32  # of GroupNorm
    # transformer:
    width: int = 1024  # channels
    depth: int = 8  # layers
    heads: int = 16  # attention heads

    @property
    def resolution(self) -> int:
        """Pixels along a side of the convolutional decoder's output."""
        return self.latent_grid * 2 ** (len(self.multipliers) - 1)


def make_decoder(config: DecoderConfig, width: int, grid: int, patch: int, dtype, remat: Remat, rngs: nnx.Rngs):
    """The configured decoder for `grid`² tokens of `width` channels."""
    if config.kind == "transformer":
        return TransformerDecoder(config, width, grid, patch, dtype, remat, rngs)
    return ConvolutionalDecoder(config, width, dtype, remat, rngs)


def _conv(inputs: int, outputs: int, kernel: int, dtype, rngs: nnx.Rngs) -> Conv:
    return Conv(inputs, outputs, kernel, rngs, dtype=dtype)


class ResidualBlock(nnx.Module):
    """GroupNorm-SiLU-conv twice, [B, H, W, inputs] → [B, H, W, outputs]; the first convolution may be 1×1."""

    def __init__(self, inputs: int, outputs: int, groups: int, dtype, rngs: nnx.Rngs, first_kernel: int = 3):
        self.norm1 = GroupNorm(inputs, groups, dtype, rngs)
        self.conv1 = _conv(inputs, outputs, first_kernel, dtype, rngs)
        self.norm2 = GroupNorm(outputs, groups, dtype, rngs)
        self.conv2 = _conv(outputs, outputs, 3, dtype, rngs)
        self.shortcut = _conv(inputs, outputs, 1, dtype, rngs) if inputs != outputs else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv1(self.norm1(x, jax.nn.silu))
        y = self.conv2(self.norm2(y, jax.nn.silu))
        return constrain_batch(y + (x if self.shortcut is None else self.shortcut(x)))


class GridAttention(nnx.Module):
    """Single-head attention over all positions of a grid, [B, H, W, C] → the same."""

    def __init__(self, channels: int, groups: int, dtype, rngs: nnx.Rngs):
        self.norm = GroupNorm(channels, groups, dtype, rngs)
        self.query = _conv(channels, channels, 1, dtype, rngs)
        self.key = _conv(channels, channels, 1, dtype, rngs)
        self.value = _conv(channels, channels, 1, dtype, rngs)
        self.out = _conv(channels, channels, 1, dtype, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.norm(x)
        tokens = lambda t: t.reshape(x.shape[0], -1, 1, x.shape[-1])  # noqa: E731  [B, HW, 1, C]
        y = jax.nn.dot_product_attention(tokens(self.query(y)), tokens(self.key(y)), tokens(self.value(y)))
        return constrain_batch(x + self.out(y.reshape(x.shape)))


class Level(nnx.Module):
    """One resolution: residual blocks, each followed by attention where configured, then ×2 upsampling."""

    def __init__(self, inputs: int, outputs: int, grid: int, last: bool, config: DecoderConfig, dtype, rngs: nnx.Rngs):
        self.blocks = config.residual_blocks + 1
        self.attends = grid in config.attention_grids
        for i in range(self.blocks):
            setattr(
                self, f"block{i}", ResidualBlock(inputs if i == 0 else outputs, outputs, config.groups, dtype, rngs)
            )
            if self.attends:
                setattr(self, f"attention{i}", GridAttention(outputs, config.groups, dtype, rngs))
        self.upsample = None if last else _conv(outputs, outputs, 3, dtype, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(self.blocks):
            x = getattr(self, f"block{i}")(x)
            if self.attends:
                x = getattr(self, f"attention{i}")(x)
        if self.upsample is None:
            return x
        return constrain_batch(self.upsample(jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)))  # nearest


class ConvolutionalDecoder(nnx.Module):
    """Tokens [B, N, C] → images [B, R, R, 3] with R = latent_grid · 2^(levels − 1); no output squashing."""

    def __init__(self, config: DecoderConfig, width: int, dtype, remat: Remat, rngs: nnx.Rngs):
        self.config, self.dtype, self.remat = config, dtype, remat
        deepest, groups = config.channels * config.multipliers[-1], config.groups
        self.adapter = ResidualBlock(width, deepest, groups, dtype, rngs, first_kernel=1)
        self.conv_in = _conv(deepest, deepest, 3, dtype, rngs)
        self.mid_block1 = ResidualBlock(deepest, deepest, groups, dtype, rngs)
        self.mid_attention = GridAttention(deepest, groups, dtype, rngs)
        self.mid_block2 = ResidualBlock(deepest, deepest, groups, dtype, rngs)
        inputs, levels = deepest, len(config.multipliers)
        for i in range(levels):
            outputs = config.channels * config.multipliers[levels - 1 - i]
            grid = config.latent_grid * 2**i
            setattr(self, f"level{i}", Level(inputs, outputs, grid, i == levels - 1, config, dtype, rngs))
            inputs = outputs
        self.norm_out = GroupNorm(inputs, groups, dtype, rngs)
        self.conv_out = _conv(inputs, 3, 3, dtype, rngs)

    def features(self, tokens: jax.Array) -> jax.Array:
        """Input of the last convolution, [B, N, C] → [B, R, R, channels]."""
        grid = round(tokens.shape[1] ** 0.5)
        x = tokens.reshape(tokens.shape[0], grid, grid, -1)
        if grid != self.config.latent_grid:
            shape = (x.shape[0], self.config.latent_grid, self.config.latent_grid, x.shape[-1])
            x = jax.image.resize(x, shape, "bilinear", antialias=False)  # half-pixel centres
        x = self.conv_in(self.adapter(x.astype(self.dtype)))
        x = self.mid_block2(self.mid_attention(self.mid_block1(x)))
        for i in range(len(self.config.multipliers)):
            level = getattr(self, f"level{i}")
            x = level(x) if self.remat == "none" else nnx.remat(Level.__call__)(level, x)
        return self.norm_out(x, jax.nn.silu)

    def output(self, features: jax.Array) -> jax.Array:
        """The last convolution, to RGB float32."""
        return self.conv_out(features).astype(jnp.float32)

    @property
    def last_layer(self) -> str:
        """Name of the submodule that `output` applies."""
        return "conv_out"


class TransformerDecoder(nnx.Module):
    """Tokens [B, N, C] → images: transformer layers, then one linear map from a token to its patch of pixels."""

    def __init__(self, config: DecoderConfig, width: int, grid: int, patch: int, dtype, remat: Remat, rngs: nnx.Rngs):
        self.grid, self.patch, self.dtype = grid, patch, dtype
        tower = TowerConfig(config.width, config.depth, config.heads, 4 * config.width)
        self.linear_in = nnx.Linear(width, config.width, dtype=dtype, rngs=rngs)
        position = nnx.initializers.normal(0.02)(rngs.params(), (grid**2, config.width))
        self.position_embedding = nnx.Param(position)
        self.encoder = Encoder(tower, "plain", dtype, remat, config.depth, rngs)
        self.norm_out = layer_norm(config.width, dtype, rngs)
        self.linear_out = nnx.Linear(config.width, patch**2 * 3, dtype=dtype, rngs=rngs)

    def features(self, tokens: jax.Array) -> jax.Array:
        """Input of the last linear map, [B, N, C] → [B, N, width]."""
        x = self.linear_in(tokens.astype(self.dtype)) + self.position_embedding[...].astype(self.dtype)
        return self.norm_out(self.encoder(constrain_batch(x)))

    def output(self, features: jax.Array) -> jax.Array:
        """Patches put in place, [B, N, width] → [B, H, W, 3] float32."""
        x = self.linear_out(features).astype(jnp.float32)
        x = x.reshape(-1, self.grid, self.grid, self.patch, self.patch, 3)
        side = self.grid * self.patch
        return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, side, side, 3)

    @property
    def last_layer(self) -> str:
        """Name of the submodule that `output` applies."""
        return "linear_out"
