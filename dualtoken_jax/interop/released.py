"""The released PyTorch checkpoints: their names, read into our parameter trees and written from them."""

import functools
import re

import jax
from flax import nnx

from dualtoken_jax.interop.name_table import StateDict, to_state_dict, to_tree
from dualtoken_jax.interop.released_names import discriminator_table, released_table, siglip_table
from dualtoken_jax.models.discriminator import Discriminator, DiscriminatorConfig
from dualtoken_jax.models.dualtoken import DualToken, DualTokenConfig
from dualtoken_jax.models.quantizer import init_codebook
from dualtoken_jax.models.siglip import Siglip, SiglipConfig

_OLD_SPELLING = {"semantic": "sem", "pixel": "pix"}


def import_released(state_dict: StateDict, config: DualTokenConfig) -> dict:
    """A released checkpoint's `state_dict` as float32 host arrays.

    Returns `params` (of DualToken), `codebooks` by branch, and where the text tower is there `text` (of TextTower),
    `logit_scale` and `logit_bias`.
    Accepts a `module.` prefix and the older spelling of the branches. Raises ValueError with every missing, unexpected
    and mis-shaped name at once, and for a configuration that the released code does not have.
    """
    tensors = current_names(state_dict)
    text = has_text(tensors)
    return to_tree(
        released_table(config, text),
        tensors,
        model_shapes(config, text),
        "the checkpoint does not fit the configuration",
    )


def export_released(tree: dict, config: DualTokenConfig) -> StateDict:
    """The inverse of `import_released`, bit for bit; a shared codebook appears once per depth, as it does there."""
    return to_state_dict(released_table(config, "text" in tree), tree)


def has_text(tensors: StateDict) -> bool:
    """Whether any of these tensors is of the text tower or belongs to its logits."""
    return any(name.startswith(("siglip_model.text_model.", "siglip_model.logit_")) for name in tensors)


def import_siglip(state_dict: StateDict, config: SiglipConfig) -> dict:
    """Hugging Face's SigLIP as the parameters of `Siglip`; raises ValueError as `import_released` does."""
    return to_tree(siglip_table(config), state_dict, module_shapes(Siglip, config), "this is not that SigLIP")


def export_siglip(params: dict, config: SiglipConfig) -> StateDict:
    """The inverse of `import_siglip`."""
    return to_state_dict(siglip_table(config), params)


def export_siglip_vision(params: dict, config: SiglipConfig) -> StateDict:
    """The vision tower of `export_siglip` alone, under the same names."""
    table = [entry for entry in siglip_table(config) if entry.name.startswith("vision_model.")]
    return to_state_dict(table, params)


def import_discriminator(state_dict: StateDict) -> dict:
    """The released discriminator as the parameters of `Discriminator`; raises ValueError as `import_released` does."""
    shapes = module_shapes(Discriminator, DiscriminatorConfig())
    return to_tree(discriminator_table(), state_dict, shapes, "this is not the released discriminator")


def current_names(state_dict: StateDict) -> StateDict:
    """The tensors without the prefix that DistributedDataParallel adds, and with the newer spelling of the branches."""

    def current(name):
        name = name.removeprefix("module.")
        return re.sub(r"^(\w+_)(semantic|pixel)\.", lambda found: f"{found[1]}{_OLD_SPELLING[found[2]]}.", name)

    return {current(name): tensor for name, tensor in state_dict.items()}


@functools.cache
def module_shapes(module, config) -> dict:
    """Shapes of `module(config)`'s parameters as a nested dict; allocates nothing."""
    return nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: module(config, nnx.Rngs(0))), nnx.Param))


def model_shapes(config: DualTokenConfig, text: bool = True) -> dict:
    """The tree that `import_released` returns, as shapes; allocates nothing."""
    siglip = module_shapes(Siglip, config.siglip)
    return {
        "params": module_shapes(DualToken, config),
        "codebooks": {branch: _codebook_shapes(config.quantizer(branch)) for branch in config.branches},
        **({name: siglip[name] for name in ("text", "logit_scale", "logit_bias")} if text else {}),
    }


def _codebook_shapes(config):
    return jax.eval_shape(lambda: init_codebook(config, jax.random.key(0)))
