"""Loads the record of the released code that stands in data/released_tiny (see its README)."""

import functools
import json
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from released_draws import normal, twister, uniform

from dualtoken_jax.models.decoder import DecoderConfig
from dualtoken_jax.models.dualtoken import DualTokenConfig
from dualtoken_jax.models.quantizer import QuantizerConfig
from dualtoken_jax.models.siglip import SiglipConfig, TowerConfig

DATA = Path(__file__).parent / "data" / "released_tiny"
CONFIG = DualTokenConfig(
    siglip=SiglipConfig(32, 4, TowerConfig(64, 4, 4, 128), TowerConfig(64, 2, 4, 128), vocabulary=100, text_length=8),
    pixel_layer=2,
    semantic_layer=3,
    shortcut_layer=1,
    pixel=QuantizerConfig(64, 16, 4, codebook_update="per_depth"),
    semantic=QuantizerConfig(64, 16, 4, codebook_update="per_step_aliased"),
    decoder=DecoderConfig(channels=32, multipliers=(1, 2), residual_blocks=1, latent_grid=16, attention_grids=(16,)),
)


# These programs run once: compiling them takes longer than running them.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def load(name: str) -> dict[str, np.ndarray]:
    """All arrays of one file."""
    with np.load(DATA / f"{name}.npz") as archive:
        return dict(archive)


def weights(group: str, file: str = "weights") -> dict[str, np.ndarray]:
    """A PyTorch state dict: `model`, `teacher` or `discriminator`, or another group of another file."""
    found = {n.removeprefix(f"{group}/"): x for n, x in load(file).items() if n.startswith(f"{group}/")}
    for name, (distribution, seed, offset, scale, shape) in json.loads((DATA / "drawn_weights.json").read_text())[
        group
    ].items():
        integers = twister(seed)[offset : offset + np.prod(shape)]
        found[name] = {"uniform": uniform, "normal": normal}[distribution](integers, scale).reshape(shape)
    for name in [n for n in found if ".codebooks.0." in n]:
        found |= {name.replace(".codebooks.0.", f".codebooks.{d}."): found[name] for d in range(1, 4)}
    return found


def channels_last(x: np.ndarray) -> np.ndarray:
    """[B, C, H, W] → [B, H, W, C]."""
    return x.transpose(0, 2, 3, 1)


ERRORS: dict[str, float] = {}  # largest error of each comparison, to be read in a debugger


def assert_close(ours, theirs, name: str, tolerance: float = 1e-5) -> None:
    """Largest difference relative to the largest value."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape, name
    ERRORS[name] = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    assert ERRORS[name] < tolerance, f"{name}: relative error {ERRORS[name]:.1e}"


def first_draws(key, available: int, codes: int, width: int):
    """The record's stand-in for `quantizer._draw`."""
    return jax.numpy.arange(available)[:codes], jax.numpy.full((codes, width), 0.5)


def traced(monkeypatch, model: nnx.Module, names: list[str]) -> dict[str, tuple]:
    """From now on keeps (first argument, result) of the named submodules' calls."""
    modules = {id(functools.reduce(getattr, name.split("."), model)): name for name in names}
    calls: dict[str, tuple] = {}

    def watch(original):
        def call(self, x, *rest):
            y = original(self, x, *rest)
            if id(self) in modules:
                calls[modules[id(self)]] = x, y
            return y

        return call

    for kind in {type(functools.reduce(getattr, name.split("."), model)) for name in names}:
        monkeypatch.setattr(kind, "__call__", watch(kind.__call__))
    return calls
