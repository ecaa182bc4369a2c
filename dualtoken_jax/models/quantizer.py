"""Vector quantizers with EMA codebooks: residual (METHOD: residual vector quantizer) and product (METHOD section 10).

A codebook is a plain dict of float32 arrays with a leading axis of 1 (shared by all depths) or D (one each):
`embedding` [·, K, E], and its EMA statistics `count` [·, K] and `sum` [·, K, E]. All functions are pure. Everything
runs in float32, and no buffer grows with vectors × codes: distances go through blocks of codes, statistics through
segment sums. `channels` of z are E in a residual quantizer and D·E in a product one.
"""

import dataclasses
import itertools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dualtoken_jax.models.nearest import nearest_code
from dualtoken_jax.sharding import constrain_batch, replicate

Codebook = dict[str, jax.Array]
_EPSILON = 1e-5  # Laplace smoothing of the counts


@dataclasses.dataclass(frozen=True)
class QuantizerConfig:
    """One vocabulary."""

    codes: int = 16384  # K, entries of a codebook
    width: int = 32  # E, channels of a code
    depth: int = 8  # D, codes per token
    # residual: code d describes what the codes before it left over · product: z is split into D groups of E channels,
    # and code d describes group d by a codebook of its own (UniTok, arXiv 2502.20321; METHOD section 10: rFID 0.55
    # against 3.46 of residual in the same code, 0.25 against 0.39 in DualToken's own appendix)
    kind: Literal["residual", "product"] = "residual"
    # Codes, and the groups of z, at unit length: lookup by cosine, codes born uniform on the sphere (ViT-VQGAN,
    # arXiv 2110.04627; METHOD section 10: rFID 11.37 → 5.34, codes in use 3 % → 100 %)
    normalise: bool = False
    shared_codebook: bool = True  # one codebook for all depths, or one each
    codebook_update: Literal["per_depth", "per_step", "per_step_aliased"] = "per_step"
    decay: float = 0.99  # γ of the EMA
    restart_threshold: float | None = 1.0  # codes with a smaller EMA count are redrawn; None never restarts

    @property
    def channels(self) -> int:
        """Channels of z, which the projections produce and take."""
        return self.width * (self.depth if self.kind == "product" else 1)


class Quantized(NamedTuple):
    """Result for vectors z [..., channels]."""

    output: jax.Array  # [..., channels] float32, ẑ with the straight-through gradient
    codes: jax.Array  # [..., D] int32
    commitment: jax.Array  # scalar, mean over depths
    residual: jax.Array  # [..., channels], z − ẑ (of the normalised z where codes are); no gradient
    assigned: jax.Array  # [..., D, E], the vectors that the codebook's update sums up by code; no gradient


def init_codebook(config: QuantizerConfig, key: jax.Array) -> Codebook:
    """Normal embeddings, at unit length with `normalise`; counts 0 and sums at the embeddings, as the released code."""
    books = 1 if config.shared_codebook else config.depth
    embedding = jax.random.normal(key, (books, config.codes, config.width))
    embedding = _unit(embedding) if config.normalise else embedding
    return {"embedding": embedding, "count": jnp.zeros(embedding.shape[:2]), "sum": embedding}


def embed_codes(codebook: Codebook, codes: jax.Array, config: QuantizerConfig) -> jax.Array:
    """Cumulative de-quantized vectors [..., D, channels] of codes [..., D]; the last depth is ẑ."""
    embedding = codebook["embedding"]
    depths = [jnp.take(embedding[d % len(embedding)], codes[..., d], axis=0) for d in range(config.depth)]
    parts = jnp.stack(depths, axis=-2)  # [..., D, E]
    if config.kind == "product":  # code d is zero outside group d
        parts = (jnp.eye(config.depth)[:, :, None] * parts[..., None, :]).reshape(*codes.shape, config.channels)
    return jnp.cumsum(parts, axis=-2)


def quantize(codebook: Codebook, z: jax.Array, config: QuantizerConfig) -> Quantized:
    """Quantizes z [..., channels] without touching the codebook (evaluation, or a frozen branch)."""
    return _quantize(codebook, z, config, key=None)[0]


def quantize_and_update(
    codebook: Codebook, z: jax.Array, config: QuantizerConfig, key: jax.Array
) -> tuple[Quantized, Codebook]:
    """Quantizes z [..., channels] and moves the codebook by one EMA update over the global batch.

    `key` draws the restarts.
    """
    return _quantize(codebook, z, config, key)


def update_codebook(
    codebook: Codebook, assigned: jax.Array, codes: jax.Array, config: QuantizerConfig, key: jax.Array
) -> Codebook:
    """The update that `quantize_and_update` makes, from the `assigned` and `codes` that `quantize` gave.

    Raises ValueError for `per_depth` of a shared codebook, whose lookups need the updates of the depths before.
    """
    if config.codebook_update == "per_depth" and config.shared_codebook:
        raise ValueError("codebook_update 'per_depth' of a shared codebook is part of the lookup; use 'per_step'")
    codebook = replicate(jax.lax.stop_gradient(codebook))
    by_depth = (
        jnp.moveaxis(x, 1, 0) for x in (assigned.reshape(-1, *assigned.shape[-2:]), codes.reshape(-1, config.depth))
    )
    return _update_all(codebook, *by_depth, config, key)


def _quantize(codebook, z, config, key):
    codebook = replicate(jax.lax.stop_gradient(codebook))
    z = z.astype(jnp.float32)
    if config.normalise:
        z = _unit(z.reshape(*z.shape[:-1], -1, config.width)).reshape(z.shape)
    flat = constrain_batch(jax.lax.stop_gradient(z).reshape(-1, config.channels))  # [N, channels]
    assigned, codes, chosen, updated = _assign(codebook, flat, config, key)
    if config.kind == "product":
        totals = [jnp.concatenate(chosen, axis=-1)]  # its mean square is the mean over the groups
    else:
        totals = list(itertools.accumulate(chosen))
    if config.codebook_update == "per_step_aliased":
        # The released code caches views of one buffer that it subtracts from in place.
        assigned = [assigned[-1] - chosen[-1]] * config.depth
    if key is not None and config.codebook_update != "per_depth":
        updated = _update_all(codebook, jnp.stack(assigned), jnp.stack(codes), config, key)
    totals = [total.reshape(z.shape) for total in totals]
    commitment = jnp.stack([jnp.mean((z - total) ** 2) for total in totals]).mean()
    residual = jax.lax.stop_gradient(totals[-1] - z)
    codes = jnp.stack(codes, axis=-1).reshape(*z.shape[:-1], config.depth)
    assigned = jnp.stack(assigned, axis=-2).reshape(*codes.shape, config.width)
    return Quantized(z + residual, codes, commitment, -residual, assigned), updated


def _assign(codebook, flat, config, key):
    """Per depth the vectors [N, E], their codes [N] and the codes' embeddings [N, E]; the codebook after `per_depth`.

    `flat` [N, channels]. Each depth's lookup and embedding precede its own update.
    """
    groups = jnp.split(flat, flat.shape[-1] // config.width, axis=-1)  # one group in a residual quantizer
    vectors, updated = groups[0], codebook
    assigned, codes, chosen = [], [], []
    for depth in range(config.depth):
        vectors = groups[depth] if config.kind == "product" else vectors
        book = 0 if config.shared_codebook else depth
        embedding = updated["embedding"][book]
        index = nearest_code(vectors, embedding)
        assigned.append(vectors)
        codes.append(index)
        chosen.append(jnp.take(embedding, index, axis=0))
        if key is not None and config.codebook_update == "per_depth":
            fresh = _update_book(updated, book, vectors[None], index[None], config, jax.random.fold_in(key, depth))
            updated = jax.tree.map(lambda all_books, one, book=book: all_books.at[book].set(one), updated, fresh)
        vectors = vectors - chosen[-1]
    return assigned, codes, chosen, updated


def _unit(vectors: jax.Array) -> jax.Array:
    """Vectors [..., E] at length 1; a zero vector stays zero, with a finite gradient."""
    return vectors * jax.lax.rsqrt(jnp.maximum((vectors**2).sum(-1, keepdims=True), 1e-12))


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
    new_count, new_total = replicate((new_count, new_total))  # sums over the global batch, on every device
    count = config.decay * count + (1 - config.decay) * new_count
    total = config.decay * total + (1 - config.decay) * new_total
    if config.restart_threshold is not None:
        dead = count < config.restart_threshold
        total = jnp.where(dead[:, None], _restart_vectors(vectors, config.codes, key), total)
        count = jnp.where(dead, 1.0, count)
    return {"embedding": _means(codebook["embedding"][book], count, total, config), "count": count, "sum": total}


def _means(embedding, count, total, config):
    """The codes [K, E] that the EMA statistics give."""
    if config.normalise:
        # The direction of a sum is that of its mean. A code that nothing uses keeps its place as its sum fades to 0.
        faded = (total**2).sum(-1, keepdims=True) < 1e-10
        return jnp.where(faded, embedding, _unit(total))
    everything = count.sum()
    smoothed = everything * (count + _EPSILON) / (everything + config.codes * _EPSILON)
    return total / smoothed[:, None]


def _restart_vectors(vectors: jax.Array, codes: int, key: jax.Array) -> jax.Array:
    """`codes` of the vectors [G, N, E] drawn without replacement; tiled with a little noise when there are too few."""
    groups, each, width = vectors.shape
    available = groups * each
    repeats = -(-codes // available)
    chosen, noise = _draw(key, repeats * available, codes, width)
    chosen = chosen % available
    # With rows in front the batch stays split: each device looks for its own, and only what is found is added up.
    # Groups in front, all vectors of the global batch would be gathered on every device.
    rows = constrain_batch(jnp.swapaxes(vectors, 0, 1).reshape(available, width))
    picked = replicate(jnp.take(rows, chosen % each * groups + chosen // each, axis=0))
    return picked if repeats == 1 else picked + noise * 0.01 / width**0.5


def _draw(key: jax.Array, available: int, codes: int, width: int) -> tuple[jax.Array, jax.Array]:
    """The update's only randomness: which vectors [K], and uniform noise [K, E]; the same on every device.

    One vector from each of K equal parts, in random order: a permutation of all would sort the global batch on every
    device. `available` is at least K.
    """
    order, place, noise = jax.random.split(key, 3)
    edges = np.arange(codes + 1, dtype=np.int64) * available // codes
    places = edges[:-1].astype(np.int32) + jax.random.randint(place, (codes,), 0, np.diff(edges).astype(np.int32))
    return jax.random.permutation(order, places), jax.random.uniform(noise, (codes, width))
