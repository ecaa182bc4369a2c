"""The full-size recipes: the released code's, the paper's, and an improved one (arXiv 2503.14324).

Numbers in the docstrings are the authors' own (METHOD section 8), measured by them; **nothing here was trained by us**:
hardware and time are not measured. One training image costs about 7.5 TFLOP at so400m_384 and 2.9 at so400m_256 (METHOD
section 12, an estimate). Verified here: that every recipe is a consistent config, that its parameters have the sizes of
METHOD section 12, and the released code's networks, losses and updates at tiny size (tests/test_released*.py).

All need the SigLIP that `_run` names in `weights/` (a copy of Hugging Face's folder google/NAME, tokenizer included),
LPIPS's weights in `weights/lpips` (see interop/lpips.py) and a folder of pictures in `data/images`; name others with
--config.teacher.path, --config.text_tokenizer, --config.loss.lpips_path and --config.data.path.
"""

import dataclasses

from dualtoken_jax.config import Config, LossConfig, TeacherConfig, TrainConfig
from dualtoken_jax.data.dataset import DataConfig
from dualtoken_jax.data.reading import Reading
from dualtoken_jax.models.decoder import DecoderConfig
from dualtoken_jax.models.dualtoken import DualTokenConfig
from dualtoken_jax.models.quantizer import QuantizerConfig
from dualtoken_jax.models.siglip import SiglipConfig, TowerConfig
from dualtoken_jax.optimizer import OptimizerConfig

_EPOCH = 10_000_000  # images; the released code trains 20 such epochs of CC12M
_LARGE = TowerConfig(1024, 24, 16, 4096)  # each tower of SigLIP-L
_DECODER_256 = DecoderConfig(latent_grid=16, attention_grids=(16,))


def so400m_384() -> Config:
    """SigLIP2-So400m/14 at 384 px, D = 8, as the released code trains it in stage 1.

    Command: python -m dualtoken_jax.main --config=configs/tokenizer.py:so400m_384
    Hardware: the released code's global batch is 8 × 32; time not measured. Expected, the paper's SigLIP-So/14-384:
    zero-shot 82.0, rFID 0.25, PSNR 28.69, SSIM .744. Unverified: all of that; the semantic codebook is updated as
    intended (`per_step`), which the released code is not (`per_step_aliased`).
    """
    siglip = SiglipConfig(vocabulary=256_000, dtype="bfloat16", attention="fused", remat="full")
    model = DualTokenConfig(siglip=siglip, pixel=_released_pixel(8), semantic=QuantizerConfig())
    return _run("so400m_384", model, "siglip2-so400m-patch14-384")


def so400m_256() -> Config:
    """SigLIP2-So400m/16 at 256 px, D = 4, as the released code trains it in stage 1.

    Command: python -m dualtoken_jax.main --config=configs/tokenizer.py:so400m_256
    Hardware and time as so400m_384. The paper's figures for this tower are of D = 8: zero-shot 82.3, rFID 0.52, PSNR
    28.03, SSIM .726; expect less of D = 4. Unverified: everything above.
    """
    siglip = SiglipConfig(image_size=256, patch_size=16, vocabulary=256_000, dtype="bfloat16", remat="full")
    model = DualTokenConfig(
        siglip=siglip, pixel=_released_pixel(4), semantic=QuantizerConfig(depth=4), decoder=_DECODER_256
    )
    return _run("so400m_256", model, "siglip2-so400m-patch16-256")


def paper_l16_256() -> Config:
    """SigLIP-L/16 at 256 px, D = 4: the paper's small model.

    Command: python -m dualtoken_jax.main --config=configs/tokenizer.py:paper_l16_256
    Hardware and time: not stated there, not measured here. Expected: zero-shot 79.8, rFID 1.06, PSNR 27.12, SSIM .693
    with ImageNet-1K, CC12M and 50M pictures of LAION-400M (2M samples at D = 8: 78.8 and rFID 0.78). Unverified: all
    of that. See `_as_in_the_paper` for what the paper leaves open.
    """
    siglip = SiglipConfig(256, 16, vision=_LARGE, text=_LARGE, dtype="bfloat16", remat="full")
    model = DualTokenConfig(siglip=siglip, semantic_layer=23, decoder=_DECODER_256)
    model = _as_in_the_paper(model, depth=4)
    return _run("paper_l16_256", model, "siglip-large-patch16-256", batch_size=64, discriminator="hinge")


def paper_so400m_384() -> Config:
    """SigLIP-So400m/14 at 384 px, D = 8: the paper's main model.

    Command: python -m dualtoken_jax.main --config=configs/tokenizer.py:paper_so400m_384
    Hardware and time: not stated there, not measured here. Expected: zero-shot 82.0, rFID 0.25, PSNR 28.69, SSIM .744
    with ImageNet-1K, CC12M and 50M pictures of LAION-400M. Unverified: all of that, and that the paper has no
    projections for this tower too. See `_as_in_the_paper` for what the paper leaves open.
    """
    siglip = SiglipConfig(dtype="bfloat16", attention="fused", remat="full")
    model = _as_in_the_paper(DualTokenConfig(siglip=siglip), depth=8)
    return _run("paper_so400m_384", model, "siglip-so400m-patch14-384", batch_size=64, discriminator="hinge")


def improved_384() -> Config:
    """SigLIP2-So400m/16 at 384 px with the best-evidenced changes to the released recipe; each can be switched back.

    Command: python -m dualtoken_jax.main --config=configs/tokenizer.py:improved_384
    Hardware and time as so400m_384 (576 tokens instead of 729, no discriminator). Expected: better than so400m_384's
    rFID 0.25; nobody has trained this combination, and the figures below are of other models, each alone. Unverified:
    all of it, the weight of the Gram term above all (compare the logged `gram` with `perceptual` in the first hundred
    steps); benchmarks/improvements.py shows each change at demo size.
    """
    # 24 × 24 tokens cover the image, and the decoder's grid needs no resizing (METHOD section 10: patch16-384).
    siglip = SiglipConfig(patch_size=16, vocabulary=256_000, dtype="bfloat16", remat="full")
    # Product and l2-normalised: sources beside the options. D·E = 128 channels, which divide the tower's 1152.
    quantizer = QuantizerConfig(
        width=16, depth=8, kind="product", normalise=True, shared_codebook=False,
        restart_threshold=_restart_threshold(256 * siglip.grid**2),
    )  # fmt: skip
    # Every token sees the whole image on the way up (METHOD section 2: the better-behaved alternative to causal).
    model = DualTokenConfig(siglip=siglip, post_attention="full", pixel=quantizer, semantic=quantizer)
    config = _run("improved_384", model, "siglip2-so400m-patch16-384")
    return dataclasses.replace(
        config,
        # Gram in place of the GAN: AToken, arXiv 2509.14476 (METHOD section 10: rFID 0.258 at 256 px).
        loss=dataclasses.replace(config.loss, generator=0.0, gram=1.0),
        # METHOD section 10: β (.9, .99) instead of (.5, .9), rFID 9.56 → 3.39; encoder's rate × 0.1.
        optimizer=OptimizerConfig(b1=0.9, b2=0.99, slow_modules=("vision",), slow_factor=0.1),
        # METHOD section 10: weight EMA 0.999 – 0.9999.
        train=dataclasses.replace(config.train, ema_decay=0.9999),
    )


def _released_pixel(depth: int) -> QuantizerConfig:
    """The released pixel codebook is rewritten after every depth; its semantic one once a step."""
    return QuantizerConfig(depth=depth, codebook_update="per_depth")


def _as_in_the_paper(model: DualTokenConfig, depth: int) -> DualTokenConfig:
    """No shortcut and no projections: codes are as wide as the tower.

    The paper gives K, D, the taps, batch 64 and the data. Not given, and the released code's here: loss weights,
    optimisation, length, augmentation, the update orders, γ and the decoder. The restart threshold is the released one
    at its own number of vectors per code. The GAN loss is the usual hinge: the released leaky one is unbounded below.
    """
    vectors = 64 * model.siglip.grid**2  # of a batch, at each depth
    quantizer = QuantizerConfig(width=model.siglip.vision.width, depth=depth)
    pixel = dataclasses.replace(quantizer, codebook_update="per_depth", restart_threshold=_restart_threshold(vectors))
    semantic = dataclasses.replace(quantizer, restart_threshold=_restart_threshold(vectors * depth))
    return dataclasses.replace(model, shortcut_layer=None, projection="none", pixel=pixel, semantic=semantic)


def _restart_threshold(vectors: int) -> float:
    """The released threshold, 1 at 11.4 vectors per code and update, for fewer `vectors` (METHOD section 3)."""
    return min(1.0, vectors / QuantizerConfig().codes / 11.4)


def _run(name: str, model: DualTokenConfig, teacher: str, batch_size: int = 256, discriminator="leaky_hinge") -> Config:
    epoch = _EPOCH // batch_size  # steps
    # Discriminator on half-way through the first epoch, its loss scaled from the second one on.
    return Config(
        name=name,
        task="tokenizer",
        model=model,
        data=DataConfig(
            source="folder", path="data/images", augment=True, reading=Reading(threads=16), eval_examples=50_000
        ),
        train=TrainConfig(steps=20 * epoch, batch_size=batch_size, checkpoint_every=2_000),
        optimizer=OptimizerConfig(),
        loss=LossConfig(
            discriminator=discriminator,
            discriminator_start=epoch // 2,
            discriminator_settled=epoch,
            lpips_path="weights/lpips",
        ),
        discriminator_optimizer=OptimizerConfig(weight_decay=0.0, warmup_steps=epoch // 2, final_learning_rate=4e-5),
        teacher=TeacherConfig(path=f"weights/{teacher}"),
        text_tokenizer=f"weights/{teacher}",
    )
