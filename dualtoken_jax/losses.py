"""Loss terms as pure functions of float32 arrays (METHOD: losses)."""

import jax
import jax.numpy as jnp


def cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Cosine over the channel axis, mean over tokens: [B, ..., C] twice → [B]."""
    norms = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    return _per_example(jnp.sum(a * b, axis=-1) / jnp.maximum(norms, 1e-8))


def squared_error(a: jax.Array, b: jax.Array) -> jax.Array:
    """Mean squared error of each example: [B, ...] twice → [B]."""
    return _per_example((a - b) ** 2)


def _per_example(values: jax.Array) -> jax.Array:
    return values.reshape(values.shape[0], -1).mean(axis=-1)


def feature_distance(a: list[jax.Array], b: list[jax.Array]) -> jax.Array:
    """LPIPS's form without learned weights: unit-length channels, squared, averaged over tokens, summed over layers.

    The perceptual term where no VGG weights are at hand; `a` and `b` are hidden states [B, N, C] of a frozen tower.
    """
    unit = lambda x: x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-10)  # noqa: E731
    return sum(((unit(x) - unit(y)) ** 2).sum(axis=-1).mean(axis=-1) for x, y in zip(a, b, strict=True))


def gram_distance(a: list[jax.Array], b: list[jax.Array]) -> jax.Array:
    """How far the channels' co-occurrences, the texture, of two images differ: lists of [B, ..., C] twice → [B].

    Per layer G = FᵀF / (positions · C) [C, C] of its features F [positions, C], squared difference summed over G, then
    over layers. The form is Gatys et al.'s style loss (CVPR 2016, equations 3 and 4, without its factor ¼); in place of
    a GAN it is AToken's (arXiv 2509.14476; METHOD section 10: rFID 0.258 at 256 px).
    """

    def gram(features):
        features = features.astype(jnp.float32).reshape(len(features), -1, features.shape[-1])  # [B, positions, C]
        products = jnp.einsum("bnc,bnd->bcd", features, features, precision=jax.lax.Precision.HIGHEST)
        return products / (features.shape[1] * features.shape[2])

    return sum(((gram(x) - gram(y)) ** 2).sum(axis=(1, 2)) for x, y in zip(a, b, strict=True))


def adaptive_weight(reconstruction_gradient: jax.Array, generator_gradient: jax.Array) -> jax.Array:
    """w: how strongly the generator loss counts, from both gradients at the decoder's last layer."""
    ratio = jnp.linalg.norm(reconstruction_gradient) / (jnp.linalg.norm(generator_gradient) + 1e-4)
    return jax.lax.stop_gradient(jnp.clip(ratio, 0.3, 10.0))


def discriminator_loss(real: jax.Array, fake: jax.Array, kind: str) -> jax.Array:
    """Hinge loss of logits; `leaky_hinge` keeps a slope of 0.01 past the margin, as the released code does."""
    slope = 0.01 if kind == "leaky_hinge" else 0.0
    hinge = lambda x: jax.nn.leaky_relu(x, slope)  # noqa: E731
    return 0.5 * (hinge(1 - real).mean() + hinge(1 + fake).mean())


def sigmoid_contrastive(cosines: jax.Array, scale: jax.Array, bias: jax.Array, same: jax.Array, weight: jax.Array):
    """SigLIP's pairwise sigmoid loss (Zhai et al. 2023, algorithm 1).

    `cosines` [B, B] of images (rows) and texts, `scale` a logarithm, `same` [B, B] marks the positives, `weight` [B] is
    0 for rows that do not count.
    """
    logits = jnp.exp(scale) * cosines + bias
    pairs = -jax.nn.log_sigmoid(jnp.where(same, logits, -logits)) * weight[:, None] * weight[None]
    return pairs.sum() / weight.sum()


def softmax_contrastive(cosines: jax.Array, scale: jax.Array, bias: jax.Array, same: jax.Array, weight: jax.Array):
    """CLIP's symmetric softmax loss (Radford et al. 2021), arguments as above; the bias has no effect.

    An image or text with several positives shares its probability among them.
    """
    pairs = same * weight[:, None] * weight[None]
    logits = jnp.exp(scale) * cosines + 0 * bias
    logits = jnp.where(weight[:, None] * weight[None] > 0, logits, -1e9)

    def one_way(logits, pairs):
        share = pairs / jnp.maximum(pairs.sum(axis=-1, keepdims=True), 1e-8)
        return -(share * jax.nn.log_softmax(logits, axis=-1)).sum() / weight.sum()

    return (one_way(logits, pairs) + one_way(logits.T, pairs.T)) / 2


def unit(x: jax.Array) -> jax.Array:
    """x [..., C] at length 1."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-8)
