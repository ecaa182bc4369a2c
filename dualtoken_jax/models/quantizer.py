"""Residual vector quantizer with EMA codebooks (METHOD: residual vector quantizer).

A codebook is a plain dict of float32 arrays with a leading axis of 1 (shared by all depths) or D (one each):
`embedding` [·, K, E], and its EMA statistics `count` [·, K] and `sum` [·, K, E]. All functions are pure. Everything
runs in float32, and no buffer grows with vectors × codes: distances go through blocks of codes, statistics through
segment sums.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

Codebook = dict[str, jax.Array]
_EPSILON = 1e-5  # Laplace smoothing of the counts
_BLOCK = 1024  # codes whose distances exist at one time


@dataclasses.dataclass(frozen=True)
class QuantizerConfig:
    """One vocabulary."""

    codes: int = 16384  # K, entries of a codebook
    width: int = 32  # E, channels of a code
    depth: int = 8  # D, residual steps
    shared_codebook: bool = True  # one codebook for all depths, or one each
    codebook_update: Literal["per_depth", "per_step", "per_step_aliased"] = "per_step"
    decay: float = 0.99  # γ of the EMA
    restart_threshold: float | None = 1.0  # codes with a smaller EMA count are redrawn; None never restarts


class Quantized(NamedTuple):
    """Result for vectors z [..., E]."""

    output: jax.Array  # [..., E] float32, ẑ with the straight-through gradient
    codes: jax.Array  # [..., D] int32
    commitment: jax.Array  # scalar, mean over depths


def init_codebook(config: QuantizerConfig, key: jax.Array) -> Codebook:
    """Normal embeddings, counts 0 and sums at the embeddings, as the released code starts."""
    books = 1 if config.shared_codebook else config.depth
    embedding = jax.random.normal(key, (books, config.codes, config.width))
    return {"embedding": embedding, "count": jnp.zeros(embedding.shape[:2]), "sum": embedding}


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


def embed_codes(codebook: Codebook, codes: jax.Array) -> jax.Array:
    """Cumulative de-quantized vectors [..., D, E] of codes [..., D]; the last depth is ẑ."""
    embedding = codebook["embedding"]
    depths = [jnp.take(embedding[d % len(embedding)], codes[..., d], axis=0) for d in range(codes.shape[-1])]
    return jnp.cumsum(jnp.stack(depths, axis=-2), axis=-2)


def quantize(codebook: Codebook, z: jax.Array, config: QuantizerConfig) -> Quantized:
    """Quantizes z [..., E] without touching the codebook (evaluation, or a frozen branch)."""
    return _quantize(codebook, z, config, key=None)[0]


def quantize_and_update(
    codebook: Codebook, z: jax.Array, config: QuantizerConfig, key: jax.Array
) -> tuple[Quantized, Codebook]:
    """Quantizes z [..., E] and moves the codebook by one EMA update over the global batch; `key` draws the restarts."""
    return _quantize(codebook, z, config, key)


def _quantize(codebook, z, config, key):
    codebook = jax.lax.stop_gradient(codebook)
    z = z.astype(jnp.float32)
    flat = jax.lax.stop_gradient(z).reshape(-1, z.shape[-1])  # [N, E]
    residual, total = flat, jnp.zeros_like(flat)
    residuals, codes, totals = [], [], []
    updated = codebook
    for depth in range(config.depth):
        book = 0 if config.shared_codebook else depth
        embedding = updated["embedding"][book] if config.codebook_update == "per_depth" else codebook["embedding"][book]
        index = nearest_code(residual, embedding)
        residuals.append(residual)
        if key is not None and config.codebook_update == "per_depth":
            fresh = _update_book(updated, book, residual[None], index[None], config, jax.random.fold_in(key, depth))
            updated = jax.tree.map(lambda all_books, one, book=book: all_books.at[book].set(one), updated, fresh)
        chosen = jnp.take(embedding, index, axis=0)
        residual, total = residual - chosen, total + chosen
        codes.append(index)
        totals.append(total)
    if key is not None and config.codebook_update != "per_depth":
        if config.codebook_update == "per_step_aliased":
            # The released code caches views of one buffer that it subtracts from in place.
            residuals = [residual] * config.depth
        updated = _update_all(codebook, jnp.stack(residuals), jnp.stack(codes), config, key)
    commitment = jnp.stack([jnp.mean((z - total.reshape(z.shape)) ** 2) for total in totals]).mean()
    output = z + jax.lax.stop_gradient(total.reshape(z.shape) - z)
    codes = jnp.stack(codes, axis=-1).reshape(*z.shape[:-1], config.depth)
    return Quantized(output, codes, commitment), updated


def _update_all(codebook, residuals, codes, config, key):
    """One update from all depths' residuals [D, N, E] and codes [D, N]."""
    if config.shared_codebook:
        fresh = [_update_book(codebook, 0, residuals, codes, config, key)]
    else:
        fresh = [
            _update_book(codebook, d, residuals[d : d + 1], codes[d : d + 1], config, jax.random.fold_in(key, d))
            for d in range(config.depth)
        ]
    return jax.tree.map(lambda *books: jnp.stack(books), *fresh)


def _update_book(codebook, book, vectors, codes, config, key):
    """EMA statistics of vectors [G, N, E] assigned to codes [G, N], restart, and the rewritten codebook [K, E]."""
    count, total = codebook["count"][book], codebook["sum"][book]
    add = lambda values, group: jax.ops.segment_sum(values, group, config.codes)  # noqa: E731
    new_count = sum(add(jnp.ones(group.shape, jnp.float32), group) for group in codes)
    new_total = sum(add(values, group) for values, group in zip(vectors, codes, strict=True))
    count = config.decay * count + (1 - config.decay) * new_count
    total = config.decay * total + (1 - config.decay) * new_total
    if config.restart_threshold is not None:
        dead = count < config.restart_threshold
        total = jnp.where(dead[:, None], _restart_vectors(vectors, config.codes, key), total)
        count = jnp.where(dead, 1.0, count)
    everything = count.sum()
    smoothed = everything * (count + _EPSILON) / (everything + config.codes * _EPSILON)
    return {"embedding": total / smoothed[:, None], "count": count, "sum": total}


def _restart_vectors(vectors: jax.Array, codes: int, key: jax.Array) -> jax.Array:
    """`codes` of the vectors [G, N, E] drawn without replacement; tiled with a little noise when there are too few."""
    vectors = vectors.reshape(-1, vectors.shape[-1])
    available, width = vectors.shape
    repeats = -(-codes // available)
    chosen, noise = _draw(key, repeats * available, codes, width)
    picked = jnp.take(vectors, chosen % available, axis=0)
    return picked if repeats == 1 else picked + noise * 0.01 / width**0.5


def _draw(key: jax.Array, available: int, codes: int, width: int) -> tuple[jax.Array, jax.Array]:
    """The update's only randomness: which vectors [K], and uniform noise [K, E]; the same on every device."""
    order, noise = jax.random.split(key)
    return jax.random.permutation(order, available)[:codes], jax.random.uniform(noise, (codes, width))
