"""DualToken: one vision tower, a pixel vocabulary on a shallow layer and a semantic one on a deep layer."""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from dualtoken_jax.models.decoder import DecoderConfig, make_decoder
from dualtoken_jax.models.projection import Kind, projection
from dualtoken_jax.models.quantizer import (
    Codebook,
    Quantized,
    QuantizerConfig,
    embed_codes,
    quantize,
    quantize_and_update,
)
from dualtoken_jax.models.siglip import SiglipConfig, VisionTower

Supervision = Literal["dual", "single", "dual_deep", "pixel_only", "semantic_only"]


@dataclasses.dataclass(frozen=True)
class DualTokenConfig:
    """The tokenizer; the defaults are the released 384 px configuration."""

    siglip: SiglipConfig = SiglipConfig()
    # dual: the paper · single: one codebook at the deep layer for both losses · dual_deep: two codebooks at the deep
    # layer · pixel_only / semantic_only: one branch, its losses only
    supervision: Supervision = "dual"
    pixel_layer: int = 6  # the pixel branch taps h_6 (1-based: the hidden state after layer 6)
    semantic_layer: int = 26  # the semantic branch taps and replaces h_26
    shortcut_layer: int | None = (
        4  # h_4 is added to the pixel branch through a projection of its own; None as in the paper
    )
    shortcut_weight: float = 0.6
    projection: Kind = "attention"
    post_attention: Literal["causal", "full"] = "causal"  # attention of the up-projections, in raster order
    pixel: QuantizerConfig = QuantizerConfig()
    semantic: QuantizerConfig = QuantizerConfig()
    decoder: DecoderConfig = DecoderConfig()

    @property
    def branches(self) -> tuple[str, ...]:
        """Names of the vocabularies that exist; the single one serves both losses under the name `semantic`."""
        return {"single": ("semantic",), "pixel_only": ("pixel",), "semantic_only": ("semantic",)}.get(
            self.supervision, ("pixel", "semantic")
        )

    @property
    def reconstructs(self) -> bool:
        """Whether there is a decoder."""
        return self.supervision != "semantic_only"

    @property
    def has_shortcut(self) -> bool:
        """Whether the pixel branch adds a shallower tap."""
        return self.shortcut_layer is not None and self.supervision in ("dual", "pixel_only")

    @property
    def pixel_tap(self) -> int:
        """The layer that the decoder's codes are taken from."""
        return self.semantic_layer if self.supervision in ("single", "dual_deep") else self.pixel_layer

    def quantizer(self, branch: str) -> QuantizerConfig:
        """The vocabulary of that branch."""
        return self.pixel if branch == "pixel" else self.semantic


class Latents(NamedTuple):
    """What goes into the codebooks, and where the tower stopped."""

    vectors: dict[str, jax.Array]  # per branch [B, N, channels of z]
    hidden: jax.Array  # h_semantic [B, N, C], not quantized


class Branch(nnx.Module):
    """The projections around one vocabulary: C → channels of z, and back; `up_pixel` feeds a single one's decoder."""

    def __init__(self, config: DualTokenConfig, branch: str, rngs: nnx.Rngs):
        width, code = config.siglip.vision.width, config.quantizer(branch).channels
        options = {"attention": config.siglip.attention, "dtype": jnp.dtype(config.siglip.dtype), "rngs": rngs}
        causal = config.post_attention == "causal"
        self.down = projection(config.projection, width, code, causal=False, **options)
        self.up = projection(config.projection, code, width, causal=causal, **options)
        if branch == "pixel" and config.has_shortcut:
            self.shortcut = projection(config.projection, width, code, causal=False, **options)
        if config.supervision == "single":
            self.up_pixel = projection(config.projection, code, width, causal=causal, **options)


class DualToken(nnx.Module):
    """The trainable modules. Codebooks are not modules: callers quantize between `encode` and `decode` / `finish`."""

    def __init__(self, config: DualTokenConfig, rngs: nnx.Rngs):
        siglip, self.config = config.siglip, config
        self.vision = VisionTower(siglip, rngs)
        for branch in config.branches:
            setattr(self, branch, Branch(config, branch, rngs))
        if config.reconstructs:
            self.decoder = make_decoder(
                config.decoder,
                siglip.vision.width,
                siglip.grid,
                siglip.patch_size,
                jnp.dtype(siglip.dtype),
                siglip.remat,
                rngs,
            )

    def encode(self, images: jax.Array) -> Latents:
        """Images [B, H, W, 3] in [−1, 1] → the vectors to quantize."""
        config, encoder = self.config, self.vision.encoder
        hidden, layer, taps = self.vision.embed(images), 0, {}
        for stop in sorted({*self._taps(), config.semantic_layer}):
            hidden, layer = encoder(hidden, layer, stop), stop
            taps[layer] = hidden
        vectors = {}
        if "pixel" in config.branches:
            vectors["pixel"] = self.pixel.down(taps[config.pixel_tap])
            if config.has_shortcut:
                vectors["pixel"] += config.shortcut_weight * self.pixel.shortcut(taps[config.shortcut_layer])
        if "semantic" in config.branches:
            vectors["semantic"] = self.semantic.down(taps[config.semantic_layer])
        return Latents({name: v.astype(jnp.float32) for name, v in vectors.items()}, hidden)

    def _taps(self) -> set[int]:
        shortcut = {self.config.shortcut_layer} if self.config.has_shortcut else set()
        return shortcut | ({self.config.pixel_tap} if "pixel" in self.config.branches else set())

    def decoder_features(self, quantized: dict[str, jax.Array]) -> jax.Array:
        """Input of the decoder's last layer from de-quantized vectors [B, N, channels] by branch."""
        if self.config.supervision == "single":
            tokens = self.semantic.up_pixel(quantized["semantic"])
        else:
            tokens = self.pixel.up(quantized["pixel"])
        return self.decoder.features(tokens)

    def semantic_features(self, quantized: dict[str, jax.Array], hidden: jax.Array) -> jax.Array:
        """u: the tensor [B, N, C] that replaces h_semantic; without a semantic codebook that is `hidden` itself."""
        if "semantic" not in self.config.branches:
            return hidden
        return self.semantic.up(quantized["semantic"])

    def finish(self, features: jax.Array) -> jax.Array:
        """The rest of the tower: u [B, N, C] → pooled image embedding [B, C] float32."""
        return self.vision.pool(self.vision.encoder(features, self.config.semantic_layer))


class Outputs(NamedTuple):
    """Everything that losses and metrics read from one forward pass."""

    quantized: dict[str, Quantized]  # per branch
    decoder_features: jax.Array | None  # input of the decoder's last layer
    reconstruction: jax.Array | None  # [B, H, W, 3], not clamped
    hidden: jax.Array  # u [B, N, C], the tensor that replaces h_semantic
    pooled: jax.Array  # p [B, C], the image embedding


def forward(
    model: DualToken,
    codebooks: dict[str, Codebook],
    images: jax.Array,
    key: jax.Array | None = None,
    fixed: tuple[str, ...] = (),
) -> tuple[Outputs, dict[str, Codebook]]:
    """Images [B, H, W, 3] in [−1, 1] through the whole tokenizer.

    With a `key`, the codebooks of all branches but the `fixed` ones are updated; the second result holds them.
    """
    latents = model.encode(images)
    quantized, updated = {}, dict(codebooks)
    for index, branch in enumerate(model.config.branches):
        config, vectors = model.config.quantizer(branch), latents.vectors[branch]
        if key is None or branch in fixed:
            quantized[branch] = quantize(codebooks[branch], vectors, config)
        else:
            quantized[branch], updated[branch] = quantize_and_update(
                codebooks[branch], vectors, config, jax.random.fold_in(key, index)
            )
    vectors = {branch: q.output for branch, q in quantized.items()}
    hidden = model.semantic_features(vectors, latents.hidden)
    features = image = None
    if model.config.reconstructs:
        features = model.decoder_features(vectors)
        image = model.decoder.output(features)
    return Outputs(quantized, features, image, hidden, model.finish(hidden)), updated


def decode(model: DualToken, codebooks: dict[str, Codebook], codes: jax.Array) -> jax.Array:
    """Pixel codes [B, h, w, D] → images [B, H, W, 3], not clamped."""
    branch = "semantic" if model.config.supervision == "single" else "pixel"
    vectors = embed_codes(codebooks[branch], codes, model.config.quantizer(branch))[..., -1, :]
    return model.decoder.output(model.decoder_features({branch: vectors.reshape(len(codes), -1, vectors.shape[-1])}))
