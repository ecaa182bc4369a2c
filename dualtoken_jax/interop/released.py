"""The released PyTorch checkpoints: their names, read into our parameter trees and written from them."""

import re

import numpy as np
from flax import nnx

from dualtoken_jax.interop.name_table import (
    FUSED_BIAS,
    FUSED_KERNEL,
    KERNEL,
    PADDED_ROWS,
    ZEROS,
    Entry,
    StateDict,
    linear,
    norm,
    part,
    to_state_dict,
    to_tree,
)
from dualtoken_jax.models.decoder import DecoderConfig
from dualtoken_jax.models.discriminator import Discriminator, DiscriminatorConfig
from dualtoken_jax.models.dualtoken import DualToken, DualTokenConfig
from dualtoken_jax.models.quantizer import QuantizerConfig
from dualtoken_jax.models.siglip import Siglip, SiglipConfig

_OLD_SPELLING = {"semantic": "sem", "pixel": "pix"}


def import_released(state_dict: StateDict, config: DualTokenConfig) -> dict:
    """A released checkpoint's `state_dict` as float32 host arrays.

    Returns `params` (of DualToken), `codebooks` by branch, `text` (of TextTower), `logit_scale` and `logit_bias`. Accepts a
    `module.` prefix and the older spelling of the branches. Raises ValueError with every missing, unexpected and
    mis-shaped name at once, and for a configuration that the released code does not have.
    """
    tensors = {_current_name(name): tensor for name, tensor in state_dict.items()}
    return to_tree(released_table(config), tensors, _shapes(config), "the checkpoint does not fit the configuration")


def export_released(tree: dict, config: DualTokenConfig) -> StateDict:
    """The inverse of `import_released`, bit for bit; shared codebooks appear once per depth, as in the released code."""
    return to_state_dict(released_table(config), tree)


def import_siglip(state_dict: StateDict, config: SiglipConfig) -> dict:
    """Hugging Face's SigLIP as the parameters of `Siglip`; raises ValueError as `import_released` does."""
    return to_tree(_siglip(config, "vision", "text"), state_dict, _module_shapes(Siglip, config), "this is not that SigLIP")


def export_siglip(params: dict, config: SiglipConfig) -> StateDict:
    """The inverse of `import_siglip`."""
    return to_state_dict(_siglip(config, "vision", "text"), params)


def import_discriminator(state_dict: StateDict, config: DiscriminatorConfig = DiscriminatorConfig()) -> dict:
    """The released discriminator as the parameters of `Discriminator`; raises ValueError as `import_released` does."""
    shapes = _module_shapes(Discriminator, config)
    return to_tree(_discriminator(), state_dict, shapes, "this is not the released discriminator")


def released_table(config: DualTokenConfig) -> list[Entry]:
    """Every tensor of the released state dict; raises ValueError for what the released code does not have."""
    _check(config)
    siglip = _siglip(config.siglip, "params.vision", "text")
    table = [entry.within("siglip_model", "") for entry in siglip]
    table = [_rootless(entry) for entry in table]
    for branch, short in (("semantic", "sem"), ("pixel", "pix")):
        table += part(f"prequant_{short}", f"params.{branch}.down", _projection())
        table += part(f"postquant_{short}", f"params.{branch}.up", _projection())
        table += _codebooks(f"quantizer_{short}", f"codebooks.{branch}", config.quantizer(branch))
    if config.has_shortcut:
        table += part("prequant_shortcut", "params.pixel.shortcut", _projection())
    return table + _decoder(config.decoder, config.siglip.vision.width)


def _check(config):
    for field, value, wanted in (
        ("supervision", config.supervision, "dual"),
        ("projection", config.projection, "attention"),
        ("decoder.kind", config.decoder.kind, "convolutional"),
    ):
        if value != wanted:
            raise ValueError(f"the released checkpoint format has {field} {wanted!r} only, got {value!r}")


def _current_name(name: str) -> str:
    name = name.removeprefix("module.")
    return re.sub(r"^(\w+_)(semantic|pixel)\.", lambda found: f"{found[1]}{_OLD_SPELLING[found[2]]}.", name)
