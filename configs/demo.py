"""The recipes on the embedded scenes: the demo, its ablations as data, and the same study for one GPU.

python -m dualtoken_jax.main --config=configs/tokenizer.py:demo
"""

import dataclasses
from typing import Any

from dualtoken_jax.config import Config, LossConfig, TeacherConfig, TrainConfig
from dualtoken_jax.data.dataset import DataConfig
from dualtoken_jax.data.reading import Reading
from dualtoken_jax.data.scenes import ScenesConfig
from dualtoken_jax.models.decoder import DecoderConfig
from dualtoken_jax.models.discriminator import DiscriminatorConfig
from dualtoken_jax.models.dualtoken import DualTokenConfig
from dualtoken_jax.models.quantizer import QuantizerConfig
from dualtoken_jax.models.siglip import SiglipConfig, TowerConfig
from dualtoken_jax.optimizer import OptimizerConfig

# In place of the GAN. The teacher's hidden states have large channels: at 1 the term's gradient at x̂ would be 800 times
# that of 5·MSE (measured on a trained demo), at this weight it is 1.6 times.
_GRAM = {"loss": {"generator": 0.0, "gram": 0.002}}
# The same 32 channels of z and the same bits. A codebook of its own for every depth gets 2 and 4 vectors per code and
# update, where the demo's shared ones get 16: the absolute restart threshold shrinks with them.
_PRODUCT: dict[str, Any] = {
    "model": {
        "pixel": {"kind": "product", "shared_codebook": False, "width": 4, "restart_threshold": 1 / 8},
        "semantic": {"kind": "product", "shared_codebook": False, "width": 8, "restart_threshold": 1 / 4},
    }
}
_NORMALISED = {"model": {"pixel": {"normalise": True}, "semantic": {"normalise": True}}}
# 0.9999 averages over 1 % of a full training; 0.95 over 20 steps, and longer ones lag behind in a short run.
_EMA = {"train": {"ema_decay": 0.95}}
_SLOW_ENCODER = {"optimizer": {"slow_modules": ("vision",), "slow_factor": 0.1}}

# What each recipe changes in `demo`, in order. The sources are in METHOD section 10 and beside the options.
ABLATIONS: dict[str, tuple[dict[str, Any], ...]] = {
    # the paper's conflict
    "demo_single": ({"model": {"supervision": "single"}},),
    "demo_dual_deep": ({"model": {"supervision": "dual_deep"}},),
    "demo_pixel_only": ({"model": {"supervision": "pixel_only"}},),
    "demo_semantic_only": ({"model": {"supervision": "semantic_only"}},),
    # what the released code does, where the demo does better
    "demo_aliased": ({"model": {"semantic": {"codebook_update": "per_step_aliased"}}},),
    "demo_causal": ({"model": {"post_attention": "causal"}},),
    "demo_released_betas": ({"optimizer": {"b1": 0.5, "b2": 0.9}},),
    # improvements, alone and together; normalised codes need product ones
    "demo_gram": (_GRAM,),
    "demo_product": (_PRODUCT,),
    "demo_normalised": (_PRODUCT, _NORMALISED),
    "demo_ema": (_EMA,),
    "demo_slow_encoder": (_SLOW_ENCODER,),
    "demo_improved": (_GRAM, _PRODUCT, _NORMALISED, _EMA, _SLOW_ENCODER),
}


def changed(config, changes: dict[str, Any]):
    """The dataclass with fields replaced by `changes`, whose nested dicts change nested dataclasses."""
    fields = {
        name: changed(getattr(config, name), value) if isinstance(value, dict) else value
        for name, value in changes.items()
    }
    return dataclasses.replace(config, **fields)


def ablation(name: str) -> Config:
    """The demo with the changes of that name."""
    config = demo()
    for changes in ABLATIONS[name]:
        config = changed(config, changes)
    return dataclasses.replace(config, name=name)


def demo() -> Config:
    """The tokenizer of the paper at 32 px on rendered scenes, for any laptop.

    Command: python -m dualtoken_jax.main --config=configs/tokenizer.py
    Hardware and time: about a quarter of an hour on two CPU cores, teacher included. Expected: see README, measured.
    """
    tower = TowerConfig(width=128, depth=4, heads=4, mlp_width=384)
    text = TowerConfig(width=64, depth=2, heads=2, mlp_width=192)
    siglip = SiglipConfig(32, 8, tower, text, vocabulary=512, text_length=20, initial_logit_scale=20.0, unroll=4)
    model = DualTokenConfig(
        siglip=siglip,
        pixel_layer=1,
        semantic_layer=3,
        shortcut_layer=None,
        post_attention="full",
        pixel=QuantizerConfig(codes=512, width=32, depth=8),
        semantic=QuantizerConfig(codes=256, width=32, depth=4),
        decoder=DecoderConfig(kind="transformer", width=128, depth=3, heads=4),
    )
    return Config(
        name="demo",
        task="tokenizer",
        model=model,
        data=DataConfig(scenes=ScenesConfig(single_fraction=0.9, detail=0.1, difficulty=0.4)),
        train=TrainConfig(steps=1_600, batch_size=64, log_every=50, checkpoint_every=500),
        optimizer=OptimizerConfig(learning_rate=1.5e-3, b1=0.9, b2=0.99, warmup_steps=100, clip_norm=1.0),
        # At 32 px w sticks to its lower limit, 0.3, which is far too much: a small weight makes up for it.
        loss=LossConfig(
            perceptual=0.25,
            generator=0.005,
            discriminator="hinge",  # the leaky one is unbounded below, and a winning discriminator ran away with it
            perceptual_network="teacher",
            discriminator_start=1_250,
            discriminator_settled=1_420,
        ),
        discriminator=DiscriminatorConfig(channels=16, groups=8),
        discriminator_optimizer=OptimizerConfig(
            learning_rate=3e-4, weight_decay=0.0, warmup_steps=50, final_learning_rate=1e-4
        ),
        teacher=TeacherConfig(
            # A text tower as fast as the images' first learns to ignore what they cannot show yet, the shapes.
            contrastive="softmax",
            train=TrainConfig(steps=3_000, batch_size=64, log_every=50, checkpoint_every=500),
            optimizer=OptimizerConfig(
                learning_rate=1e-3, b1=0.9, b2=0.98, warmup_steps=100, clip_norm=1.0, slow_modules=("text",)
            ),
        ),
    )


def demo_large() -> Config:
    """The demo's study at 128 px with the paper's decoder, for one GPU.

    Command: python -m dualtoken_jax.main --config=configs/tokenizer.py:demo_large
    Hardware: one GPU is what it is meant for. Time and score: not measured, never run here.
    """
    small = demo()
    tower = TowerConfig(width=384, depth=12, heads=6, mlp_width=1536)
    text = TowerConfig(width=256, depth=4, heads=4, mlp_width=1024)
    siglip = SiglipConfig(128, 8, tower, text, vocabulary=512, text_length=24, dtype="bfloat16", remat="dots")
    quantizer = QuantizerConfig(codes=4096, width=32, depth=4)
    decoder = DecoderConfig(
        channels=64, multipliers=(1, 2, 4, 4), residual_blocks=2, latent_grid=16, attention_grids=(16,)
    )
    model = DualTokenConfig(
        siglip=siglip, pixel_layer=3, semantic_layer=11, shortcut_layer=2, pixel=quantizer, semantic=quantizer,
        decoder=decoder,
    )  # fmt: skip
    return dataclasses.replace(
        small,
        name="demo_large",
        model=model,
        data=DataConfig(scenes=ScenesConfig(resolution=128), reading=Reading(threads=8)),
        train=TrainConfig(steps=30_000, batch_size=128, checkpoint_every=2_000, ema_decay=0.999),
        optimizer=OptimizerConfig(learning_rate=3e-4, b1=0.9, b2=0.99, warmup_steps=1_000, clip_norm=1.0),
        loss=LossConfig(perceptual_network="teacher", discriminator_start=10_000, discriminator_settled=20_000),
        discriminator=DiscriminatorConfig(),
        discriminator_optimizer=OptimizerConfig(
            learning_rate=1e-4, weight_decay=0.0, warmup_steps=1_000, final_learning_rate=4e-5
        ),
        teacher=TeacherConfig(
            train=TrainConfig(steps=10_000, batch_size=512, checkpoint_every=2_000),
            optimizer=OptimizerConfig(learning_rate=1e-3, b1=0.9, b2=0.98, warmup_steps=1_000, clip_norm=1.0),
        ),
    )
