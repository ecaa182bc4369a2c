"""Eight CPU devices for every test, and one tiny trained tokenizer for all that need one."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

# Before the first import of jax, which reads them once. The tests compile far more than they compute: hence programs
# that are hardly optimised, and kept for the next test, for commands in other processes and for the next session.
_FLAGS = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("XLA_FLAGS", f"{_FLAGS}=8")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "jax"))
sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests use the recipes, which are no part of the package

import pytest  # noqa: E402


def tiny_config(name: str = "demo"):
    """A recipe of the demo shrunken to 16 px, 2 × 2 tokens and two steps each for teacher and tokenizer."""
    from configs import tokenizer
    from dualtoken_jax.models.decoder import DecoderConfig
    from dualtoken_jax.models.siglip import TowerConfig

    config = tokenizer.recipe(name)
    tower = TowerConfig(width=32, depth=3, heads=2, mlp_width=32)
    text = dataclasses.replace(tower, depth=1)
    siglip = dataclasses.replace(config.model.siglip, image_size=16, patch_size=8, vision=tower, text=text, unroll=1)
    pixel = dataclasses.replace(config.model.pixel, codes=64, width=16, depth=2)
    depth = 3 if config.model.semantic.kind == "residual" else 2  # product: D·16 channels, which divide the tower's
    semantic = dataclasses.replace(config.model.semantic, codes=64, width=16, depth=depth)
    model = dataclasses.replace(
        config.model,
        siglip=siglip,
        pixel_layer=1,
        semantic_layer=2,
        pixel=pixel,
        semantic=semantic,
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


def python(*arguments, devices: int = 1) -> subprocess.CompletedProcess:
    """The outcome of `python ARGUMENTS` in a process of its own, with that many CPU devices."""
    root = Path(__file__).parents[1]
    environment = os.environ | {"XLA_FLAGS": f"{_FLAGS}={devices}", "PYTHONPATH": f"{root}:{root / 'tests'}"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=1200)


def train_tiny(workdir: str) -> None:
    """The main job on the tiny recipe."""
    from dualtoken_jax import job

    config = tiny_config()
    model = dataclasses.replace(config.model, projection="linear")  # half the time to compile
    job.run(dataclasses.replace(config, model=model), Path(workdir))


@pytest.fixture(scope="session")
def tokenizer_workdir(tmp_path_factory) -> Path:
    """The workdir of a finished tokenizer run, trained on one device."""
    workdir = tmp_path_factory.mktemp("runs") / "tokenizer"
    done = python("-c", "import sys, conftest; conftest.train_tiny(sys.argv[1])", workdir)
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.fixture(scope="session")
def exported(tokenizer_workdir, tmp_path_factory) -> Path:
    """The finished run's Hugging Face export, in several shards."""
    from dualtoken_jax import export

    output = tmp_path_factory.mktemp("export") / "model"
    export.main([f"--workdir={tokenizer_workdir}", f"--output={output}", "--format=huggingface", "--max_shard_gb=1e-4"])
    return output


@pytest.fixture
def memory(request):
    """A URL of fsspec's files in memory, emptied afterwards."""
    import fsspec

    files = fsspec.filesystem("memory")
    yield f"memory://{request.node.name}"
    files.store.clear()
    files.pseudo_dirs[:] = [""]
