"""The sizes that are measured: configs whose full loss, discriminator included, counts from the first step."""

import dataclasses

from configs import tokenizer
from dualtoken_jax.config import Config
from dualtoken_jax.models.decoder import DecoderConfig
from dualtoken_jax.models.dualtoken import DualTokenConfig
from dualtoken_jax.models.quantizer import QuantizerConfig
from dualtoken_jax.models.siglip import SiglipConfig, TowerConfig

# Images per step, and per call of encode and decode.
BATCHES = {"smallest": (2, 2), "tiny": (64, 64), "mid": (2, 4), "so400m_256": (32, 64), "so400m_384": (16, 32)}
_WORDS = TowerConfig(width=64, depth=1, heads=1, mlp_width=64)  # no step runs the text tower, and the peer has none


def size(name: str) -> Config:
    """smallest: of the tests · tiny: the demo · mid: ViT-B/16 at 224 px · so400m_256 and so400m_384: for a GPU."""
    config = {"smallest": smallest, "tiny": lambda: tokenizer.recipe("demo"), "mid": mid}.get(
        name, lambda: tokenizer.recipe(name)
    )()
    siglip = dataclasses.replace(config.model.siglip, text=_WORDS, vocabulary=512, text_length=16)
    model = dataclasses.replace(config.model, siglip=siglip)
    loss = dataclasses.replace(config.loss, discriminator_start=0)
    return dataclasses.replace(config, model=model, loss=loss)


def mid() -> Config:
    """The released recipe around a ViT-B/16 at 224 px with half the decoder's channels, in float32."""
    config = tokenizer.recipe("so400m_256")
    quantizer = QuantizerConfig(codes=16384, width=32, depth=4)
    model = DualTokenConfig(
        siglip=SiglipConfig(224, 16, TowerConfig(768, 12, 12, 3072), _WORDS),
        pixel_layer=3,
        semantic_layer=11,
        shortcut_layer=2,
        pixel=dataclasses.replace(quantizer, codebook_update="per_depth"),
        semantic=quantizer,
        decoder=DecoderConfig(channels=64, latent_grid=14, attention_grids=(14,)),
    )
    return dataclasses.replace(config, model=model)


def smallest() -> Config:
    """Every part of `mid`, but LPIPS, at a size that compiles in seconds."""
    config = mid()
    tower = TowerConfig(32, 3, 2, 48)
    quantizer = {"codes": 32, "width": 8, "depth": 2}
    model = dataclasses.replace(
        config.model,
        siglip=dataclasses.replace(config.model.siglip, image_size=16, patch_size=8, vision=tower),
        pixel_layer=1,
        semantic_layer=2,
        shortcut_layer=None,
        projection="linear",
        pixel=dataclasses.replace(config.model.pixel, **quantizer),
        semantic=dataclasses.replace(config.model.semantic, **quantizer),
        decoder=DecoderConfig(kind="transformer", width=16, depth=1, heads=2),
    )
    discriminator = dataclasses.replace(config.discriminator, channels=8, groups=4)
    loss = dataclasses.replace(config.loss, perceptual_network="teacher")
    return dataclasses.replace(config, model=model, discriminator=discriminator, loss=loss)
