"""Our code in float64, for comparisons that the rounding of one machine must not decide."""

import contextlib

import jax
import jax.numpy as jnp
import pytest

from dualtoken_jax.tasks import adversary, tokenizer


@contextlib.contextmanager
def float64():
    """Our code asks for float32 by this one name, so that is where it gets float64; jax's attention cannot be asked."""
    with pytest.MonkeyPatch.context() as patch, jax.enable_x64(True):
        patch.setattr(jnp, "float32", jnp.float64)
        patch.setattr(jax.nn, "dot_product_attention", _attention)
        for module, name in ((tokenizer, "schedule"), (adversary, "discriminator_schedule")):
            patch.setattr(module, name, _exact(getattr(module, name)))
        yield


def doubled(tree):
    """Every leaf as float64."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), tree)


def _exact(schedule):
    """That schedule in float64: of an int32 step it makes float32."""
    return lambda config, steps: lambda step: schedule(config, steps)(jnp.asarray(step, jnp.float64))


def _attention(query, key, value, is_causal=False):
    """jax.nn's over [B, N, heads, head_dim], whose softmax is float32 whatever it is given."""
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
    seen = jnp.tril(jnp.ones(logits.shape[-2:], bool)) if is_causal else True
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(jnp.where(seen, logits, -jnp.inf)), value)
