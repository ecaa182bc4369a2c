"""Metrics of images, codes and embeddings: sums on the device, results on the host (METHOD section 7).

Functions of batches give one value per example. `weighted_sums` reduces them under a weight that is 0 on padding rows,
and `means` turns the sums of all batches into results, so that an uneven last batch changes nothing.
"""

import functools
import math
from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

SSIM_RADIUS = 5  # 11 taps
SSIM_SIGMA = 1.5
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2  # (K1·L)² and (K2·L)² of Wang et al. 2004, range L = 1


def psnr(x: Float[Array, "B H W 3"], y: Float[Array, "B H W 3"]) -> Float[Array, " B"]:
    """Peak signal-to-noise ratio in dB of images in [0, 1]; infinite for identical images."""
    x, y = _float32(x, y)
    return -10.0 * jnp.log10(jnp.mean(jnp.square(x - y), axis=(1, 2, 3)))


def l1(x: Float[Array, "B H W 3"], y: Float[Array, "B H W 3"]) -> Float[Array, " B"]:
    """Mean absolute difference, in the unit of the images."""
    x, y = _float32(x, y)
    return jnp.mean(jnp.abs(x - y), axis=(1, 2, 3))


def ssim(x: Float[Array, "B H W 3"], y: Float[Array, "B H W 3"]) -> Float[Array, " B"]:
    """Structural similarity of images in [0, 1]: Gaussian window 11, σ 1.5, mean of the channels (Wang et al. 2004).

    The mean covers the places where the window lies inside the image, as scikit-image does it. Raises ValueError for
    images smaller than the window.
    """
    if min(x.shape[1:3]) < 2 * SSIM_RADIUS + 1:
        raise ValueError(f"SSIM needs at least {2 * SSIM_RADIUS + 1} px a side, got {x.shape[1]}×{x.shape[2]}")
    # Moments about mid-grey: in bright flat regions float32 would lose the variance, which is compared with a small C2.
    x, y = (image - 0.5 for image in _float32(x, y))
    mean_x, mean_y = _gaussian(x), _gaussian(y)  # [B, H-10, W-10, 3]
    variances = _gaussian(x * x + y * y) - mean_x**2 - mean_y**2
    covariance = _gaussian(x * y) - mean_x * mean_y
    mean_x, mean_y = mean_x + 0.5, mean_y + 0.5
    luminance = (2 * mean_x * mean_y + SSIM_C1) / (mean_x**2 + mean_y**2 + SSIM_C1)
    return jnp.mean(luminance * (2 * covariance + SSIM_C2) / (variances + SSIM_C2), axis=(1, 2, 3))


def _float32(*images: jax.Array) -> list[jax.Array]:
    return [image.astype(jnp.float32) for image in images]


def _gaussian(x: jax.Array) -> jax.Array:
    # Sums of shifted slices: float32 on every platform (TPUs round the factors of a convolution to bfloat16), and on a
    # CPU more than ten times faster than a depthwise convolution.
    taps = np.exp(-0.5 * (np.arange(-SSIM_RADIUS, SSIM_RADIUS + 1) / SSIM_SIGMA) ** 2)
    taps = [float(tap) for tap in taps / taps.sum()]
    height, width = x.shape[1] - 2 * SSIM_RADIUS, x.shape[2] - 2 * SSIM_RADIUS
    x = sum(tap * x[:, i : i + height] for i, tap in enumerate(taps))  # [B, H-10, W, C]
    return sum(tap * x[:, :, i : i + width] for i, tap in enumerate(taps))  # [B, H-10, W-10, C]


def topk_hits(logits: Float[Array, "B classes"], label: Int[Array, " B"], k: int) -> Float[Array, " B"]:
    """1 where the label is among the k greatest logits, else 0.

    Equal or NaN logits rank by class index, so that a collapsed model scores chance and not 100 %.
    """
    _, best = jax.lax.top_k(logits, k)  # [B, k]
    return jnp.any(best == label[:, None], axis=-1).astype(jnp.float32)


def weighted_sums(values: Mapping[str, Float[Array, " B"]], weight: Float[Array, " B"]) -> dict[str, jax.Array]:
    """Σ weight·value of every metric, and `count` = Σ weight. Rows of weight 0 may hold anything, NaN included."""
    sums = {name: jnp.sum(jnp.where(weight > 0, value * weight, 0.0)) for name, value in values.items()}
    return sums | {"count": jnp.sum(weight)}


def means(batches: Iterable[Mapping[str, jax.Array]]) -> dict[str, float]:
    """The weighted mean of every metric over the `weighted_sums` of all batches, added in float64 on the host.

    Raises ValueError if nothing was counted.
    """
    totals: dict[str, float] = {}
    for sums in batches:
        for name, value in jax.device_get(dict(sums)).items():
            totals[name] = totals.get(name, 0.0) + float(value)
    count = totals.pop("count", 0.0)
    if count <= 0:
        raise ValueError(f"the mean of {count:g} examples does not exist; the evaluation set or its weights are empty")
    return {name: total / count for name, total in totals.items()}


def code_counts(codes: Int[Array, "B h w D"], size: int, weight: Float[Array, " B"]) -> Float[Array, "D {size}"]:
    """How often each depth used each code of a codebook of `size` entries, images weighted by `weight`.

    Counts are exact up to 2^24 per batch; add batches on the host in float64. Codes outside [0, size) are not counted.
    """
    per_token = jnp.broadcast_to(weight[:, None, None].astype(jnp.float32), codes.shape[:3]).reshape(-1)  # [N]
    count = functools.partial(jax.ops.segment_sum, per_token, num_segments=size)
    return jax.vmap(count, in_axes=-1)(codes.reshape(-1, codes.shape[-1]))  # [D, K]


def codebook_statistics(counts: np.ndarray, shared: bool = True) -> dict[str, dict[str, float | np.ndarray]]:
    """How well a codebook is used, from counts [D, K] of an evaluation set.

    `use` is the fraction of codes met at least once, `perplexity` exp(entropy): K if uniform, 1 for one code; `kl` is
    the divergence from uniform in nats. `per_depth` holds arrays [D]; `overall` is of the K codes that all depths
    share, or of D·K where each depth has its own (not `shared`). With few tokens per code `use` and `perplexity` come
    out low: state how many there were. Raises ValueError if a depth counted nothing.
    """
    counts = np.asarray(counts, np.float64)
    if (empty := np.flatnonzero(counts.sum(axis=1) <= 0)).size:
        raise ValueError(
            f"depths {empty.tolist()} of {len(counts)} counted no code; accumulate counts before reading statistics"
        )
    overall = _usage(counts.sum(axis=0, keepdims=True) if shared else counts.reshape(1, -1))
    return {"per_depth": _usage(counts), "overall": {name: float(value[0]) for name, value in overall.items()}}


def _usage(counts: np.ndarray) -> dict[str, np.ndarray]:
    share = counts / counts.sum(axis=1, keepdims=True)  # [D, K]
    entropy = -np.sum(share * np.log(np.where(share > 0, share, 1.0)), axis=1)  # [D]
    kl = np.maximum(math.log(counts.shape[1]) - entropy, 0.0)  # rounding would print -0
    return {"use": np.mean(counts > 0, axis=1), "perplexity": np.exp(entropy), "kl": kl}


def bits_per_pixel(tokens: int, depth: int, codes: int, resolution: int) -> float:
    """N·D·log2 K / (H·W) of one branch, for a square image of `resolution` px; add the branches for both."""
    return tokens * depth * math.log2(codes) / resolution**2


def retrieval_at_1(
    image_emb: np.ndarray,
    text_emb: np.ndarray,
    captions: Sequence[str],
    image_of_text: np.ndarray | None = None,
    chunk: int = 1024,
) -> dict[str, float]:
    """Recall at 1 both ways by cosine similarity, on the host, `chunk` queries at a time.

    `image_emb` [m, C], `text_emb` [n, C], `captions` n strings. `image_of_text` [n] says which image each caption
    describes (Flickr8K: five captions an image); None means that row i describes image i. Identical captions count as
    the same text: a caption found is right if it reads like one of the image's own, an image found is right if one of
    its captions reads like the query. Raises ValueError if the numbers disagree.
    """
    owner = np.arange(len(image_emb)) if image_of_text is None else np.asarray(image_of_text)
    if not len(text_emb) == len(captions) == len(owner):
        raise ValueError(
            f"{len(text_emb)} text embeddings, {len(captions)} captions and {len(owner)} images of texts must agree in "
            "number; give image_of_text where an image has several captions"
        )
    names, text = np.unique(np.asarray(captions), return_inverse=True)  # [n]
    true_pairs = owner * len(names) + text  # [n] one integer per (image, caption)
    image, phrase = unit(image_emb), unit(text_emb)
    found_text = text[_nearest(image, phrase, chunk)]  # [m]
    found_image = _nearest(phrase, image, chunk)  # [n]
    return {
        "image_to_text": float(np.mean(np.isin(np.arange(len(image)) * len(names) + found_text, true_pairs))),
        "text_to_image": float(np.mean(np.isin(found_image * len(names) + text, true_pairs))),
    }


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors [..., C] as float32 of length 1 on the host; zeros stay zeros."""
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-8)


def _nearest(queries: np.ndarray, keys: np.ndarray, chunk: int) -> np.ndarray:
    starts = range(0, len(queries), chunk)
    return np.concatenate([np.argmax(queries[start : start + chunk] @ keys.T, axis=1) for start in starts])
