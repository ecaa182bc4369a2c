"""A trained tokenizer in a few lines: images → codes → images, and embeddings of images and texts.

tokenizer = dualtoken_jax.load("runs/demo")
codes = tokenizer.encode(images)
tokenizer.decode(codes.pixel)
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dualtoken_jax import job, sharding
from dualtoken_jax.checkpoint import CheckpointError, load_config
from dualtoken_jax.config import Config, ConfigError
from dualtoken_jax.data.arrays import pictures_of
from dualtoken_jax.data.images import resize_crop
from dualtoken_jax.evaluation.measure import caption_embedder
from dualtoken_jax.models import bind
from dualtoken_jax.models.dualtoken import DualTokenConfig, decode, forward
from dualtoken_jax.models.quantizer import Codebook, quantize
from dualtoken_jax.tasks import make_task
from dualtoken_jax.tasks.state import TrainState, normalise

Images = np.ndarray | jax.Array | Sequence[np.ndarray]


class Codes(NamedTuple):
    """Codes int32 [B, h, w, D] by vocabulary; None for one that the model lacks."""

    pixel: np.ndarray | None
    semantic: np.ndarray | None


def load(workdir: str | Path, batch_size: int = 16) -> "ImageTokenizer":
    """The tokenizer of a finished or running tokenizer run, with its averaged weights where it keeps an average.

    Reads config.json, the newest checkpoint and `frozen/`; changes nothing. Every device holds all weights and computes
    its share of each batch, whatever the devices of the training.

    Args:
      workdir: folder of the run.
      batch_size: rows computed at a time, rounded up to a multiple of the devices; larger ones take more memory.

    Raises:
      ConfigError: no workdir, or one of another task.
      CheckpointError: nothing is saved there yet.
    """
    workdir = Path(workdir)
    config = dataclasses.replace(load_config(workdir), mesh=sharding.MeshConfig())
    if config.task != "tokenizer":
        raise ConfigError(
            f"{workdir} holds a {config.task} run, which has no codes; give the workdir of a tokenizer run"
        )
    if not (workdir / "frozen").exists():
        raise CheckpointError(
            f"{workdir} has no folder 'frozen', which holds the teacher's weights: its run is still "
            "training the teacher, or it was copied without it"
        )
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    return ImageTokenizer(config, job.load_state(config, workdir), batch_size)


class ImageTokenizer:
    """What `load` returns. Results are numpy arrays and have a batch axis, for a single image too.

    Images are uint8, or floats in [−1, 1] (rounded to 8 bits, as training sees them): one [H, W, 3], a batch
    [B, H, W, 3], or a list of [H, W, 3] of any sizes. Another size than the model's is resized by its shortest side
    (bicubic, antialiased) and centre-cropped, as evaluation does. ValueError for anything else.
    """

    def __init__(self, config: Config, state: TrainState, batch_size: int):
        self.config, self._task = config, make_task(config)
        self.step = int(state.step)  # of the checkpoint
        self._mesh = sharding.make_mesh(config.mesh)
        self.batch_size = -(-batch_size // self._mesh.size) * self._mesh.size
        # The moments and the discriminator are as large as the model, and nothing here reads them.
        nothing = {"optimizer": (), "ema": {}, "discriminator": {}, "discriminator_optimizer": ()}
        self._state = state.replace(params=state.averaged, **nothing)
        self._encode, self._decode = jax.jit(self._encode_step), jax.jit(self._decode_step)
        self._embed_image = jax.jit(self._embed_step)
        self._embed_text = caption_embedder(self._task, self._state, config, self._mesh)

    @property
    def name(self) -> str:
        """Of the recipe."""
        return self.config.name

    @property
    def model(self) -> DualTokenConfig:
        """The shape of the model."""
        return self.config.model

    @property
    def image_size(self) -> int:
        """Side of the model's square pictures, in pixels."""
        return self.config.model.siglip.image_size

    @property
    def codebooks(self) -> dict[str, Codebook]:
        """By vocabulary."""
        return self._state.codebooks

    @property
    def decoder_branch(self) -> str:
        """The vocabulary whose codes the decoder reads: 'pixel', or 'semantic' in a model with a single codebook."""
        return "pixel" if "pixel" in self.config.model.branches else "semantic"

    def encode(self, images: Images) -> Codes:
        """Codes int32 [B, h, w, D] of images."""
        found = self._in_batches(self._encode, self.prepare(images))
        return Codes(found.get("pixel"), found.get("semantic"))

    def decode(self, codes: Codes | np.ndarray) -> np.ndarray:
        """Images uint8 [B, H, W, 3] of the codes [B, h, w, D] of `decoder_branch`, or of those in a Codes.

        Raises what `decode_float` raises.
        """
        return np.round((self.decode_float(codes) + 1) * np.float32(127.5)).astype(np.uint8)

    def decode_float(self, codes: Codes | np.ndarray) -> np.ndarray:
        """As `decode`, clamped and not rounded: float32 [B, H, W, 3] in [−1, 1], which metrics are defined on.

        Raises ConfigError for a model without a decoder, ValueError for codes of another shape, type or range.
        """
        if not self.config.model.reconstructs:
            raise ConfigError(f"{self.config.name} was trained without a decoder (supervision 'semantic_only')")
        codes = getattr(codes, self.decoder_branch) if isinstance(codes, Codes) else codes
        return self._in_batches(self._decode, self._checked_codes(codes))

    def reconstruct(self, images: Images) -> np.ndarray:
        """What is left of images after encoding and decoding: uint8 [B, H, W, 3]."""
        return self.decode(self.encode(images))

    def embed_image(self, images: Images) -> np.ndarray:
        """Embeddings of the quantized images, float32 [B, C] of unit length, as the texts' are."""
        return _unit(self._in_batches(self._embed_image, self.prepare(images)))

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings of texts, float32 [n, C] of unit length."""
        if isinstance(texts, str) or not len(texts) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"embed_text takes a list of at least one string, got {texts!r}")
        with jax.set_mesh(self._mesh):
            return _unit(self._embed_text(list(texts)))

    def prepare(self, images: Images) -> np.ndarray:
        """The images as the model sees them: uint8 [B, R, R, 3] of the model's resolution R."""
        return np.stack([resize_crop(picture, self.image_size, None) for picture in pictures_of(images)])

    def _in_batches(self, step: Callable, rows: np.ndarray):
        """`step` over rows in batches of one shape, so that it is compiled once whatever their number."""
        parts = []
        with jax.set_mesh(self._mesh):
            for start in range(0, len(rows), self.batch_size):
                batch = rows[start : start + self.batch_size]
                padding = [(0, self.batch_size - len(batch))] + [(0, 0)] * (rows.ndim - 1)
                batch = sharding.to_global({"rows": np.pad(batch, padding)}, self._mesh)
                parts.append(jax.device_get(step(self._state, batch["rows"])))
        return jax.tree.map(lambda *arrays: np.concatenate(arrays)[: len(rows)], *parts)

    def _checked_codes(self, codes) -> np.ndarray:
        branch, side = self.decoder_branch, self.config.model.siglip.grid
        quantizer = self.config.model.quantizer(branch)
        if codes is None:
            raise ValueError(f"got no codes (None); this model decodes its {branch} codes: decode(codes.{branch})")
        codes = np.asarray(codes)
        if codes.ndim != 4 or codes.shape[1:] != (side, side, quantizer.depth) or not len(codes):
            expected = f"[B, {side}, {side}, {quantizer.depth}]"
            raise ValueError(f"{branch} codes must have shape {expected}, got {list(codes.shape)}; give encode's own")
        if not np.issubdtype(codes.dtype, np.integer):
            raise ValueError(f"{branch} codes must be integers, got {codes.dtype}")
        if codes.min() < 0 or codes.max() >= quantizer.codes:
            raise ValueError(
                f"{branch} codes must lie in [0, {quantizer.codes}), got {codes.min()} … {codes.max()}; "
                "they are of another model or another branch"
            )
        return codes.astype(np.int32)

    def _encode_step(self, state: TrainState, images: jax.Array) -> dict[str, jax.Array]:
        latents = bind(self._task.graphdef, state.params).encode(normalise(images))
        model, side = self.config.model, self.config.model.siglip.grid
        codes = {b: quantize(state.codebooks[b], v, model.quantizer(b)).codes for b, v in latents.vectors.items()}
        return {branch: found.reshape(-1, side, side, found.shape[-1]) for branch, found in codes.items()}

    def _decode_step(self, state: TrainState, codes: jax.Array) -> jax.Array:
        images = decode(bind(self._task.graphdef, state.params), state.codebooks, codes)
        return jnp.clip(images.astype(jnp.float32), -1, 1)

    def _embed_step(self, state: TrainState, images: jax.Array) -> jax.Array:
        return forward(bind(self._task.graphdef, state.params), state.codebooks, normalise(images))[0].pooled


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-8)
