"""Eight CPU devices for every test, and one tiny trained tokenizer for all that need one."""

import dataclasses
import os
import sys
from pathlib import Path

# Before the first import of jax, which reads them once. The tests compile far more than they compute: hence programs that
# are hardly optimised, and kept for the next test, for commands in other processes and for the next session.
os.environ["JAX_PLATFORMS"] = "cpu"
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    flags = " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + flags
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "jax"))
sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests use the recipes, which are no part of the package

import pytest


def tiny_config(name: str = "demo"):
    """The demo recipe shrunken to 16 px, 2 × 2 tokens and two steps each for teacher and tokenizer."""
    from configs import tokenizer
    from dualtoken_jax.models.decoder import DecoderConfig
    from dualtoken_jax.models.siglip import TowerConfig

    config = tokenizer.recipe(name)
    tower = TowerConfig(width=32, depth=3, heads=2, mlp_width=32)
    text = dataclasses.replace(tower, depth=1)
    siglip = dataclasses.replace(config.model.siglip, image_size=16, patch_size=8, vision=tower, text=text, unroll=1)
    quantizer = dataclasses.replace(config.model.pixel, codes=64, width=16, depth=2)
    model = dataclasses.replace(
        config.model,
        siglip=siglip,
        pixel_layer=1,
        semantic_layer=2,
        pixel=quantizer,
        semantic=dataclasses.replace(quantizer, depth=3),
        decoder=DecoderConfig(kind="transformer", width=32, depth=1, heads=2),
    )
    train = dataclasses.replace(config.train, steps=2, batch_size=16, checkpoint_every=2)
    scenes = dataclasses.replace(config.data.scenes, resolution=16)
    return dataclasses.replace(
        config,
        model=model,
        train=dataclasses.replace(train, ema_decay=0.5),
        data=dataclasses.replace(config.data, scenes=scenes, eval_examples=64),
        loss=dataclasses.replace(config.loss, generator=0.0),
        teacher=dataclasses.replace(config.teacher, train=train),
    )


@pytest.fixture(scope="session")
def tokenizer_workdir(tmp_path_factory) -> Path:
    """The workdir of a finished tokenizer run."""
    from dualtoken_jax import job

    config, workdir = tiny_config(), tmp_path_factory.mktemp("runs") / "tokenizer"
    model = dataclasses.replace(config.model, projection="linear")  # half the time to compile
    job.run(dataclasses.replace(config, model=model), workdir)
    return workdir
