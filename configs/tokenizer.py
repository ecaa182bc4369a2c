"""DualToken tokenizers (Song et al., ICLR 2026, arXiv 2503.14324).

    python -m dualtoken_jax.main --config=configs/tokenizer.py:VARIANT[,stage=0|1|2]

demo             any laptop: trains a small teacher, then the tokenizer, on rendered scenes (default)
demo_single      the paper's conflict: one codebook at the deep layer for both losses
demo_dual_deep   two codebooks, both at the deep layer
demo_pixel_only / demo_semantic_only   one branch alone
demo_large       the demo's study at a size for one GPU
so400m_256 / so400m_384   the paper's recipes (released code: 8 GPUs, global batch 256, 20 epochs of 10M images).
                 Authors' numbers: so400m_384 rFID 0.25, PSNR 28.69, zero-shot 82.0 %. Not trained here.
"""

import dataclasses

from dualtoken_jax.config import Config, LossConfig, TeacherConfig, TrainConfig, to_config_dict
from dualtoken_jax.data.dataset import DataConfig
from dualtoken_jax.data.scenes import ScenesConfig
from dualtoken_jax.models.decoder import DecoderConfig
from dualtoken_jax.models.discriminator import DiscriminatorConfig
from dualtoken_jax.models.dualtoken import DualTokenConfig
from dualtoken_jax.models.quantizer import QuantizerConfig
from dualtoken_jax.models.siglip import SiglipConfig, TowerConfig
from dualtoken_jax.optimizer import FreezeConfig, OptimizerConfig

SUPERVISIONS = ("single", "dual_deep", "pixel_only", "semantic_only")


def get_config(variant: str = "demo"):
    """The recipe as a ConfigDict, whose fields the command line can override."""
    name, _, stage = variant.partition(",stage=")
    return to_config_dict(with_stage(recipe(name), int(stage or 1)))


def recipe(name: str) -> Config:
    """The recipe of that name, at stage 1."""
    if name in ("demo", *(f"demo_{supervision}" for supervision in SUPERVISIONS)):
        return demo(name)
    recipes = {"demo_large": demo_large, "so400m_256": so400m_256, "so400m_384": so400m_384}
    if name not in recipes:
        known = ["demo", *(f"demo_{s}" for s in SUPERVISIONS), *recipes]
        raise ValueError(f"configs/tokenizer.py has no recipe {name!r}; there are {', '.join(known)}")
    return recipes[name]()


def with_stage(config: Config, stage: int) -> Config:
    """A stage is losses and what is frozen: 0 warm-up without GAN, 1 everything, 2 semantic branch only."""
    if stage == 0:
        freeze = FreezeConfig(("vision/patch_embedding",), config.model.semantic_layer)
        weights = {"hidden_mse": 0.0, "hidden_cosine": 0.0, "pooled_mse": 5.0, "pooled_cosine": 5.0, "generator": 0.0}
    elif stage == 2:
        pixel = ("vision/patch_embedding", "vision/position_embedding", "pixel", "decoder")
        freeze = FreezeConfig(pixel, config.model.pixel_tap)
        weights = {"hidden_mse": 0.0, "hidden_cosine": 1.0, "pooled_mse": 5.0, "pooled_cosine": 5.0}
        weights |= dict.fromkeys(("commitment_pixel", "mse", "perceptual", "generator"), 0.0)
    elif stage == 1:
        return config
    else:
        raise ValueError(f"there is no stage {stage}; choose 0, 1 or 2")
    loss = dataclasses.replace(config.loss, **weights)
    return dataclasses.replace(config, name=f"{config.name}_stage{stage}", loss=loss, freeze=freeze)


def demo(name: str = "demo") -> Config:
    """About a quarter of an hour on two CPU cores; see README for what it reaches."""
    tower = TowerConfig(width=128, depth=4, heads=4, mlp_width=384)
    text = TowerConfig(width=64, depth=2, heads=2, mlp_width=192)
    siglip = SiglipConfig(32, 8, tower, text, vocabulary=512, text_length=20, initial_logit_scale=20.0, unroll=4)
    model = DualTokenConfig(
        siglip=siglip,
        supervision=name.removeprefix("demo_") if name != "demo" else "dual",
        pixel_layer=1,
        semantic_layer=3,
        shortcut_layer=None,
        post_attention="full",
        pixel=QuantizerConfig(codes=512, width=32, depth=8),
        semantic=QuantizerConfig(codes=256, width=32, depth=4),
        decoder=DecoderConfig(kind="transformer", width=128, depth=3, heads=4),
    )
    return Config(
        name=name,
        task="tokenizer",
        model=model,
        data=DataConfig(scenes=ScenesConfig(single_fraction=0.9, detail=0.1, difficulty=0.4)),
        train=TrainConfig(steps=1_300, batch_size=64, log_every=50, checkpoint_every=500),
        optimizer=OptimizerConfig(learning_rate=1.5e-3, b1=0.9, b2=0.99, warmup_steps=100, clip_norm=1.0),
        # At 32 px w sticks to its lower limit, 0.3, which is far too much: a small weight makes up for it.
        loss=LossConfig(
            perceptual=0.25,
            generator=0.005,
            discriminator="hinge",  # the leaky one is unbounded below, and a winning discriminator ran away with it
            perceptual_network="teacher",
            discriminator_start=1_000,
            discriminator_settled=1_150,
        ),
        discriminator=DiscriminatorConfig(channels=16, groups=8),
        discriminator_optimizer=OptimizerConfig(
            learning_rate=3e-4, weight_decay=0.0, warmup_steps=50, final_learning_rate=1e-4
        ),
        teacher=TeacherConfig(
            # A text tower as fast as the images' first learns to ignore what they cannot show yet, the shapes.
            contrastive="softmax",
            train=TrainConfig(steps=2_600, batch_size=64, log_every=50, checkpoint_every=500),
            optimizer=OptimizerConfig(
                learning_rate=1e-3, b1=0.9, b2=0.98, warmup_steps=100, clip_norm=1.0, slow_modules=("text",)
            ),
        ),
    )


def demo_large() -> Config:
    """The demo's study at 128 px with the paper's decoder, for one GPU. Not run here."""
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
        data=DataConfig(scenes=ScenesConfig(resolution=128), threads=8),
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


def so400m_384() -> Config:
    """SigLIP-So400m/14 at 384 px, D = 8, as the released code trains it in stage 1.

    Teacher and tokenizer: google/siglip-so400m-patch14-384 of Hugging Face, its folder copied to weights/.
    """
    siglip = SiglipConfig(dtype="bfloat16", remat="full")
    return _paper("so400m_384", DualTokenConfig(siglip=siglip), "weights/siglip-so400m-patch14-384")


def so400m_256() -> Config:
    """SigLIP2-So400m/16 at 256 px, D = 4 as released (the paper also reports D = 8).

    Teacher and tokenizer: google/siglip2-so400m-patch16-256 of Hugging Face, its folder copied to weights/.
    """
    siglip = SiglipConfig(image_size=256, patch_size=16, vocabulary=256_000, dtype="bfloat16", remat="full")
    quantizer = QuantizerConfig(depth=4)
    decoder = DecoderConfig(latent_grid=16, attention_grids=(16,))
    model = DualTokenConfig(siglip=siglip, pixel=quantizer, semantic=quantizer, decoder=decoder)
    return _paper("so400m_256", model, "weights/siglip2-so400m-patch16-256")


def _paper(name: str, model: DualTokenConfig, teacher: str) -> Config:
    epoch = 10_000_000 // 256  # steps
    # Discriminator on half-way through the first epoch, its loss scaled from the second one on.
    return Config(
        name=name,
        task="tokenizer",
        model=model,
        data=DataConfig(source="folder", path="data/images", augment=True, threads=16, eval_examples=50_000),
        train=TrainConfig(steps=20 * epoch, batch_size=256, checkpoint_every=2_000),
        optimizer=OptimizerConfig(),
        tokenizer=teacher,
        loss=LossConfig(discriminator_start=epoch // 2, discriminator_settled=epoch, lpips_path="weights/lpips"),
        discriminator_optimizer=OptimizerConfig(weight_decay=0.0, warmup_steps=epoch // 2, final_learning_rate=4e-5),
        teacher=TeacherConfig(path=teacher),
    )
