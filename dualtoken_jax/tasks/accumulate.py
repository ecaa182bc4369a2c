"""A step in several parts of its batch, one after another: the memory of a part, the result of the whole."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from dualtoken_jax.sharding import constrain_batch


def accumulate(compute: Callable[[Any], tuple[Any, Any]], batch: Any, parts: int) -> tuple[Any, Any]:
    """`compute(part)` for every part of the batch, a pytree of arrays [B, ...]; the parts are of equal size.

    It gives two pytrees. Of the first, the mean over the parts is returned; of the second, arrays [B / parts, ...], all
    rows [B, ...] in the order of the batch.
    """
    if parts == 1:
        return compute(batch)

    def add(total, part):
        means, rows = compute(jax.tree.map(constrain_batch, part))
        return jax.tree.map(jnp.add, total, means), rows

    split = jax.tree.map(lambda rows: _split(rows, parts), batch)
    shapes = jax.eval_shape(compute, jax.tree.map(lambda rows: rows[0], split))[0]
    start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, rows = jax.lax.scan(add, start, split)
    return jax.tree.map(lambda leaf: leaf / parts, total), jax.tree.map(_join, rows)


def _split(rows: jax.Array, parts: int) -> jax.Array:
    """[B, ...] → [parts, B / parts, ...]; every part takes every parts-th row, so that no row leaves its device."""
    return jnp.swapaxes(rows.reshape(-1, parts, *rows.shape[1:]), 0, 1)


def _join(rows: jax.Array) -> jax.Array:
    """What `_split` has split, in order again."""
    return constrain_batch(jnp.swapaxes(rows, 0, 1).reshape(-1, *rows.shape[2:]))
