"""SigLIP: a vision transformer and a text transformer with aligned pooled outputs (METHOD: encoder and its two taps).

Layers are stacked on a leading axis and scanned, so that compile time does not grow with depth and a caller can run any
segment of the tower: the tokenizer stops at its taps and goes on from a replaced hidden state.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from dualtoken_jax.models import bind
from dualtoken_jax.models.attention import OUTPUT, AttentionKind, attend
from dualtoken_jax.paths import names
from dualtoken_jax.sharding import constrain_batch

Remat = Literal["none", "dots", "full"]


@dataclasses.dataclass(frozen=True)
class TowerConfig:
    """One transformer."""

    width: int  # channels
    depth: int  # layers
    heads: int  # attention heads, divides width
    mlp_width: int  # hidden channels of the MLP


@dataclasses.dataclass(frozen=True)
class SiglipConfig:
    """Both towers; the defaults are the 384 px shape-optimised 400M model."""

    image_size: int = 384  # pixels, square
    patch_size: int = 14  # pixels; a remainder of image_size is cut off, as VALID padding does
    vision: TowerConfig = TowerConfig(1152, 27, 16, 4304)
    text: TowerConfig = TowerConfig(1152, 27, 16, 4304)
    vocabulary: int = 32_000  # text token ids
    text_length: int = 64  # tokens, padded
    # The SigLIP paper (section 3.2) starts at scale 10, bias −10; short trainings need a steeper start.
    initial_logit_scale: float = 10.0
    initial_logit_bias: float = -10.0
    dtype: Literal["float32", "bfloat16"] = "float32"  # compute type; parameters stay float32
    # Of the vision tower and the codebooks' projections: plain, or fused by the accelerator's kernel, which rounds
    # otherwise (models/attention.py).
    attention: AttentionKind = "plain"
    remat: Remat = "none"  # what the backward pass recomputes: nothing, all but matmuls, whole layers
    unroll: int = 1  # layers per scan iteration; more is faster to run and slower to compile

    @property
    def grid(self) -> int:
        """Tokens along one side of the image."""
        return self.image_size // self.patch_size


def _linear(inputs: int, outputs: int, dtype, rngs: nnx.Rngs, bias: bool = True) -> nnx.Linear:
    return nnx.Linear(
        inputs, outputs, use_bias=bias, dtype=dtype, kernel_init=nnx.initializers.xavier_uniform(), rngs=rngs
    )


def layer_norm(width: int, dtype, rngs: nnx.Rngs, epsilon: float = 1e-6) -> nnx.LayerNorm:
    """LayerNorm with the two-pass variance: the one-pass form loses digits where the mean is large."""
    return nnx.LayerNorm(width, epsilon=epsilon, use_fast_variance=False, dtype=dtype, rngs=rngs)


class Attention(nnx.Module):
    """Multi-head attention of queries `x` over `memory`."""

    def __init__(self, width: int, heads: int, kind: AttentionKind, dtype, rngs: nnx.Rngs):
        self.heads, self.kind = heads, kind
        self.query = _linear(width, width, dtype, rngs)
        self.key = _linear(width, width, dtype, rngs)
        self.value = _linear(width, width, dtype, rngs)
        self.out = _linear(width, width, dtype, rngs)

    def __call__(self, x: jax.Array, memory: jax.Array) -> jax.Array:
        split = lambda t: t.reshape(*t.shape[:-1], self.heads, -1)  # noqa: E731  [B, N, heads, head_dim]
        query, key, value = split(self.query(x)), split(self.key(memory)), split(self.value(memory))
        mixed = attend(query, key, value, self.kind)
        return self.out(mixed.reshape(x.shape))


class Mlp(nnx.Module):
    """Linear, tanh-GELU, linear."""

    def __init__(self, width: int, hidden: int, dtype, rngs: nnx.Rngs):
        self.fc1 = _linear(width, hidden, dtype, rngs)
        self.fc2 = _linear(hidden, width, dtype, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=True))


class Block(nnx.Module):
    """Pre-norm transformer layer, [B, N, C] → [B, N, C]."""

    def __init__(self, config: TowerConfig, kind: AttentionKind, dtype, rngs: nnx.Rngs):
        self.norm1 = layer_norm(config.width, dtype, rngs)
        self.attention = Attention(config.width, config.heads, kind, dtype, rngs)
        self.norm2 = layer_norm(config.width, dtype, rngs)
        self.mlp = Mlp(config.width, config.mlp_width, dtype, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.norm1(x)
        x = x + self.attention(y, y)
        return constrain_batch(x + self.mlp(self.norm2(x)))


def _all_but_weights(primitive, *_, **__) -> bool:
    # Saved for the backward pass, weights gathered for one layer would add up to the whole tower on every device.
    return primitive.name not in ("sharding_constraint", "convert_element_type")


_policies = jax.checkpoint_policies
_REMAT_POLICIES = {
    "none": _all_but_weights,
    "dots": _policies.save_from_both_policies(
        _policies.dots_with_no_batch_dims_saveable, _policies.save_only_these_names(OUTPUT)
    ),
    "full": _policies.nothing_saveable,
}


def _kernels_as(dtype, params):
    """Matrices in the type that they are multiplied in: done here, they are gathered over fsdp in half the bytes."""
    cast = lambda path, leaf: leaf.astype(dtype) if names(path)[-1] == "kernel" else leaf  # noqa: E731
    return jax.tree_util.tree_map_with_path(cast, params)


class Encoder(nnx.Module):
    """A stack of blocks; every parameter has a leading layer axis [L, ...]."""

    def __init__(self, config: TowerConfig, kind: AttentionKind, dtype, remat: Remat, unroll: int, rngs: nnx.Rngs):
        self.depth, self.dtype, self.remat, self.unroll = config.depth, dtype, remat, unroll
        make = nnx.vmap(lambda rngs: Block(config, kind, dtype, rngs), in_axes=0, out_axes=0)
        self.layers = nnx.split_rngs(splits=config.depth)(make)(rngs)

    def __call__(self, x: jax.Array, start: int = 0, stop: int | None = None) -> jax.Array:
        """Runs layers start+1 … stop (1-based, inclusive): `h_start` in, `h_stop` out."""
        stop = self.depth if stop is None else stop
        if start == stop:
            return x
        graphdef, state = nnx.split(self.layers)
        stacked = nnx.to_pure_dict(state)

        def layer(x, params):
            return bind(graphdef, _kernels_as(self.dtype, params))(x), None

        layer = jax.checkpoint(layer, policy=_REMAT_POLICIES[self.remat], prevent_cse=False)
        segment = jax.tree.map(lambda p: p[start:stop], stacked)
        return jax.lax.scan(layer, x, segment, unroll=min(self.unroll, stop - start))[0]


class AttentionPool(nnx.Module):
    """SigLIP's pooling head: a learned probe attends to all tokens, [B, N, C] → [B, C]."""

    def __init__(self, config: TowerConfig, dtype, rngs: nnx.Rngs):
        self.probe = nnx.Param(nnx.initializers.xavier_uniform()(rngs.params(), (1, 1, config.width)))
        self.attention = Attention(config.width, config.heads, "plain", dtype, rngs)  # one query
        self.norm = layer_norm(config.width, dtype, rngs)
        self.mlp = Mlp(config.width, config.mlp_width, dtype, rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        probe = jnp.broadcast_to(self.probe[...], (tokens.shape[0], 1, tokens.shape[2])).astype(tokens.dtype)
        x = self.attention(probe, tokens)
        return (x + self.mlp(self.norm(x)))[:, 0]


def sincos_positions(grid: int, width: int) -> jax.Array:
    """Sines and cosines of both coordinates at geometric frequencies, [grid², width] (width divisible by 4)."""
    quarter = width // 4
    frequencies = 1.0 / 10_000 ** (jnp.arange(quarter) / max(quarter - 1, 1))
    y, x = jnp.mgrid[:grid, :grid].reshape(2, -1, 1) * frequencies  # [grid², width / 4] each
    return jnp.concatenate([jnp.sin(x), jnp.cos(x), jnp.sin(y), jnp.cos(y)], axis=-1)


class VisionTower(nnx.Module):
    """Images [B, H, W, 3] in [−1, 1] → tokens; call `embed`, any segments of `encoder`, then `pool`."""

    def __init__(self, config: SiglipConfig, rngs: nnx.Rngs):
        tower, dtype, patch = config.vision, jnp.dtype(config.dtype), config.patch_size
        self.patch_embedding = nnx.Conv(
            3, tower.width, (patch, patch), strides=patch, padding="VALID", dtype=dtype, rngs=rngs
        )
        # Learned, but born knowing the plane: from random positions a small tower takes far longer to see shapes.
        self.position_embedding = nnx.Param(sincos_positions(config.grid, tower.width))
        self.encoder = Encoder(tower, config.attention, dtype, config.remat, config.unroll, rngs)
        self.norm = layer_norm(tower.width, dtype, rngs)
        self.head = AttentionPool(tower, dtype, rngs)

    def embed(self, images: jax.Array) -> jax.Array:
        """h_0: patches plus positions, [B, H, W, 3] → [B, N, C]."""
        x = self.patch_embedding(images)  # [B, h, w, C]
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        return constrain_batch(x + self.position_embedding[...].astype(x.dtype))

    def pool(self, hidden: jax.Array) -> jax.Array:
        """The final LayerNorm and attention pooling of h_L, [B, N, C] → [B, C] float32."""
        return self.head(self.norm(hidden)).astype(jnp.float32)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Image embeddings [B, C] float32, not normalised."""
        return self.pool(self.encoder(self.embed(images)))


class TextTower(nnx.Module):
    """Token ids [B, T] → text embeddings [B, C], read from the last position; padding is attended to, as in SigLIP."""

    def __init__(self, config: SiglipConfig, rngs: nnx.Rngs):
        tower, dtype = config.text, jnp.dtype(config.dtype)
        normal = nnx.initializers.normal(0.02)
        self.token_embedding = nnx.Param(normal(rngs.params(), (config.vocabulary, tower.width)))
        self.position_embedding = nnx.Param(normal(rngs.params(), (config.text_length, tower.width)))
        self.encoder = Encoder(tower, "plain", dtype, config.remat, config.unroll, rngs)  # few tokens
        self.norm = layer_norm(tower.width, dtype, rngs)
        self.head = _linear(tower.width, config.vision.width, dtype, rngs)
        self.dtype = dtype

    def __call__(self, ids: jax.Array) -> jax.Array:
        x = jnp.take(self.token_embedding[...], ids, axis=0) + self.position_embedding[...]
        x = self.norm(self.encoder(constrain_batch(x.astype(self.dtype))))
        return self.head(x[:, -1]).astype(jnp.float32)


class Siglip(nnx.Module):
    """Both towers with the sigmoid loss's scale (as a logarithm) and bias."""

    def __init__(self, config: SiglipConfig, rngs: nnx.Rngs):
        self.vision = VisionTower(config, rngs)
        self.text = TextTower(config, rngs)
        self.logit_scale = nnx.Param(jnp.log(jnp.full((1,), config.initial_logit_scale)))
        self.logit_bias = nnx.Param(jnp.full((1,), config.initial_logit_bias))
