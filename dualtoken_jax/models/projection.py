"""The projections around a codebook (METHOD: projections around the codebooks; the released code's AttnProjection)."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from dualtoken_jax.models.attention import AttentionKind, attend
from dualtoken_jax.models.siglip import layer_norm
from dualtoken_jax.sharding import constrain_batch

Kind = Literal["attention", "linear", "none"]


class AttentionProjection(nnx.Module):
    """y = Linear(LN x) + Attn(LN x); y + GeGLU(LN y). [B, N, inputs] → [B, N, outputs], one width divides the other.

    Going down, the heads' outputs are averaged (head_dim = outputs); going up, they are concatenated.
    """

    def __init__(self, inputs: int, outputs: int, causal: bool, attention: AttentionKind, dtype, rngs: nnx.Rngs):
        wide, narrow = max(inputs, outputs), min(inputs, outputs)
        if wide % narrow:
            raise ValueError(f"projection widths must divide one another, got {inputs} → {outputs}")
        self.heads, self.causal, self.down = wide // narrow, causal, inputs > outputs
        self.kind = attention
        self.norm1 = layer_norm(inputs, dtype, rngs, epsilon=1e-5)
        self.norm2 = layer_norm(outputs, dtype, rngs, epsilon=1e-5)
        self.norm3 = layer_norm(inputs, dtype, rngs, epsilon=1e-5)
        self.qkv = nnx.Linear(inputs, 3 * wide, use_bias=False, dtype=dtype, rngs=rngs)
        self.query_bias = nnx.Param(jnp.zeros(wide))
        self.value_bias = nnx.Param(jnp.zeros(wide))
        self.attention_out = nnx.Linear(outputs, outputs, dtype=dtype, rngs=rngs)
        self.linear = nnx.Linear(inputs, outputs, dtype=dtype, rngs=rngs)
        self.mlp = GeGlu(outputs, dtype, rngs)

    def _attend(self, x: jax.Array) -> jax.Array:
        query, key, value = jnp.split(self.qkv(x), 3, axis=-1)
        query, value = query + self.query_bias[...].astype(x.dtype), value + self.value_bias[...].astype(x.dtype)
        split = lambda t: t.reshape(*t.shape[:-1], self.heads, -1)  # noqa: E731  [B, N, heads, head_dim]
        mixed = attend(split(query), split(key), split(value), self.kind, self.causal)
        mixed = mixed.mean(axis=-2) if self.down else mixed.reshape(*x.shape[:-1], -1)
        return self.attention_out(mixed)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.linear(self.norm3(x)) + self._attend(self.norm1(x))
        return constrain_batch(y + self.mlp(self.norm2(y)))


class GeGlu(nnx.Module):
    """Gated MLP with its own inner LayerNorm and tanh-GELU gate."""

    def __init__(self, width: int, dtype, rngs: nnx.Rngs):
        self.norm = layer_norm(width, dtype, rngs)
        self.gate = nnx.Linear(width, 2 * width, dtype=dtype, rngs=rngs)
        self.up = nnx.Linear(width, 2 * width, dtype=dtype, rngs=rngs)
        self.down = nnx.Linear(2 * width, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.norm(x)
        return self.down(jax.nn.gelu(self.gate(x), approximate=True) * self.up(x))


class Identity(nnx.Module):
    """No projection: the code width is the tower's width."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return x


def projection(
    kind: Kind, inputs: int, outputs: int, *, causal: bool, attention: AttentionKind, dtype, rngs: nnx.Rngs
) -> nnx.Module:
    """The projection of that kind; raises ValueError where the widths do not allow it."""
    if kind == "attention":
        return AttentionProjection(inputs, outputs, causal, attention, dtype, rngs)
    if kind == "linear":
        return nnx.Linear(inputs, outputs, dtype=dtype, rngs=rngs)
    if inputs != outputs:
        raise ValueError(f"projection 'none' needs code width = tower width, got {inputs} and {outputs}")
    return Identity()
