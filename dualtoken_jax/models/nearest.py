"""The nearest code of every vector, without a buffer of vectors × codes."""

import jax
import jax.numpy as jnp

_BLOCK = 1024  # codes whose distances exist at one time


def nearest_code(vectors: jax.Array, embedding: jax.Array) -> jax.Array:
    """Index [N] int32 of the nearest row of `embedding` [K, E] for `vectors` [N, E]; ties take the lowest index."""
    codes, width = embedding.shape
    block = min(_BLOCK, codes)
    padding = -codes % block
    norms = jnp.pad((embedding**2).sum(-1), (0, padding), constant_values=jnp.inf).reshape(-1, block)
    blocks = jnp.pad(embedding, ((0, padding), (0, 0))).reshape(-1, block, width)
    squared, numbers = (vectors**2).sum(-1, keepdims=True), jnp.arange(block, dtype=jnp.int32)

    def closer(best, inputs):
        best_distance, best_index = best
        number, block_embedding, block_norms = inputs
        products = jnp.matmul(vectors, block_embedding.T, precision=jax.lax.Precision.HIGHEST)
        distance = squared + block_norms - 2 * products  # [N, block]
        # Two plain reductions, the lowest index of the minimum: argmin is several times slower on a CPU.
        smallest = distance.min(axis=-1)
        index = jnp.where(distance <= smallest[:, None], numbers, codes).min(axis=-1) + number * block
        improves = smallest < best_distance
        return (jnp.where(improves, smallest, best_distance), jnp.where(improves, index, best_index)), None

    # Derived from `vectors`, so that the carry is sharded as they are.
    start = (jnp.full_like(vectors[:, 0], jnp.inf), jnp.zeros_like(vectors[:, 0], dtype=jnp.int32))
    (_, index), _ = jax.lax.scan(closer, start, (jnp.arange(len(blocks), dtype=jnp.int32), blocks, norms))
    return index
