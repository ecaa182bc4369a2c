"""DualToken tokenizers (Song et al., ICLR 2026, arXiv 2503.14324).

    python -m dualtoken_jax.main --config=configs/tokenizer.py:VARIANT[,stage=0|1|2]

demo             any laptop: trains a small teacher, then the tokenizer, on rendered scenes (default)
demo_single      the paper's conflict: one codebook at the deep layer for both losses
demo_dual_deep   two codebooks, both at the deep layer
demo_pixel_only / demo_semantic_only   one branch alone
demo_aliased / demo_causal / demo_released_betas   the demo with a habit of the released code
demo_gram / demo_product / demo_normalised / demo_ema / demo_slow_encoder / demo_improved
                 the demo with what others found better, one by one and together
demo_large       the demo's study at a size for one GPU
so400m_256 / so400m_384               the released code's recipes
paper_l16_256 / paper_so400m_384      the paper's
improved_384     the released recipe with what others found better

What each full recipe costs and should reach stands in configs/paper.py; none of them was trained here.
"""

import dataclasses

from configs import demo, paper
from dualtoken_jax.config import Config, to_config_dict
from dualtoken_jax.optimizer import FreezeConfig

RECIPES = {
    "demo": demo.demo,
    "demo_large": demo.demo_large,
    "so400m_256": paper.so400m_256,
    "so400m_384": paper.so400m_384,
    "paper_l16_256": paper.paper_l16_256,
    "paper_so400m_384": paper.paper_so400m_384,
    "improved_384": paper.improved_384,
}


def get_config(variant: str = "demo"):
    """The recipe as a ConfigDict, whose fields the command line can override."""
    name, _, stage = variant.partition(",stage=")
    return to_config_dict(with_stage(recipe(name), int(stage or 1)))


def recipe(name: str) -> Config:
    """The recipe of that name, at stage 1."""
    if name in demo.ABLATIONS:
        return demo.ablation(name)
    if name not in RECIPES:
        known = ", ".join([*RECIPES, *demo.ABLATIONS])
        raise ValueError(f"configs/tokenizer.py has no recipe {name!r}; there are {known}")
    return RECIPES[name]()


def with_stage(config: Config, stage: int) -> Config:
    """A stage is losses and what is frozen: 0 warm-up without GAN, 1 everything, 2 semantic branch only."""
    if stage == 0:
        freeze = FreezeConfig(("vision/patch_embedding",), config.model.semantic_layer)
        weights = {"hidden_mse": 0.0, "hidden_cosine": 0.0, "pooled_mse": 5.0, "pooled_cosine": 5.0, "generator": 0.0}
    elif stage == 2:
        pixel = ("vision/patch_embedding", "vision/position_embedding", "pixel", "decoder")
        freeze = FreezeConfig(pixel, config.model.pixel_tap)
        weights = {"hidden_mse": 0.0, "hidden_cosine": 1.0, "pooled_mse": 5.0, "pooled_cosine": 5.0}
        weights |= dict.fromkeys(("commitment_pixel", "mse", "perceptual", "gram", "generator"), 0.0)
    elif stage == 1:
        return config
    else:
        raise ValueError(f"there is no stage {stage}; choose 0, 1 or 2")
    loss = dataclasses.replace(config.loss, **weights)
    return dataclasses.replace(config, name=f"{config.name}_stage{stage}", loss=loss, freeze=freeze)
