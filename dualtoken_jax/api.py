"""A trained tokenizer in a few lines: images → codes → images, and embeddings of images and texts.

tokenizer = dualtoken_jax.load("runs/demo")
codes = tokenizer.encode(images)
tokenizer.decode(codes.pixel)
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dualtoken_jax import sharding
from dualtoken_jax.config import ConfigError
from dualtoken_jax.data.arrays import pictures_of
from dualtoken_jax.data.images import resize_crop
from dualtoken_jax.evaluation.metrics import unit
from dualtoken_jax.models import bind, definition
from dualtoken_jax.models.dualtoken import DualToken, decode, forward
from dualtoken_jax.models.quantizer import Codebook, quantize
from dualtoken_jax.models.siglip import TextTower
from dualtoken_jax.pretrained import Pretrained, open_pretrained
from dualtoken_jax.tasks.state import normalise

Images = np.ndarray | jax.Array | Sequence[np.ndarray]


class Codes(NamedTuple):
    """Codes int32 [B, h, w, D] by vocabulary; None for one that the model lacks."""

    pixel: np.ndarray | None
    semantic: np.ndarray | None


def load(
    path: str | Path,
    config: str | Path | None = None,
    text_tokenizer: str | Path | None = None,
    batch_size: int = 16,
) -> "ImageTokenizer":
    """The tokenizer in a workdir (finished or running), an export, or a released checkpoint.

    Every device holds all weights and computes its share of each batch.

    Args:
      path, config, text_tokenizer: see `pretrained.open_pretrained`, which also tells what is raised.
      batch_size: rows computed at a time, rounded up to a multiple of the devices; larger ones take more memory.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    return ImageTokenizer(open_pretrained(path, config, text_tokenizer), batch_size)


class ImageTokenizer:
    """What `load` returns. Results are numpy arrays and have a batch axis, for a single image too.

    Images are uint8, or floats in [−1, 1] (rounded to 8 bits, as training sees them): one [H, W, 3], a batch
    [B, H, W, 3], or a list of [H, W, 3] of any sizes. Another size than the model's is resized by its shortest side
    (bicubic, antialiased) and centre-cropped, as evaluation does. ValueError for anything else.
    """

    def __init__(self, pretrained: Pretrained, batch_size: int):
        self.name, self.step, self.model = pretrained.name, pretrained.step, pretrained.model
        self._text_tokenizer = pretrained.text_tokenizer
        self._mesh = sharding.make_mesh(sharding.MeshConfig())
        self.batch_size = -(-batch_size // self._mesh.size) * self._mesh.size
        self._tree = jax.device_put(pretrained.tree, NamedSharding(self._mesh, PartitionSpec()))
        self._graphdef = definition(lambda rngs: DualToken(self.model, rngs))
        self._text_tower = definition(lambda rngs: TextTower(self.model.siglip, rngs))
        self._encode, self._decode = jax.jit(self._encode_step), jax.jit(self._decode_step)
        self._embed_image, self._embed_text = jax.jit(self._embed_image_step), jax.jit(self._embed_text_step)

    @property
    def image_size(self) -> int:
        """Side of the model's square pictures, in pixels."""
        return self.model.siglip.image_size

    @property
    def embeds_text(self) -> bool:
        """Whether there are a text tower and a text tokenizer, without which `embed_text` raises."""
        return "text" in self._tree and self._text_tokenizer is not None

    @property
    def codebooks(self) -> dict[str, Codebook]:
        """By vocabulary."""
        return self._tree["codebooks"]

    @property
    def decoder_branch(self) -> str:
        """The vocabulary whose codes the decoder reads: 'pixel', or 'semantic' in a model with a single codebook."""
        return "pixel" if "pixel" in self.model.branches else "semantic"

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
        if not self.model.reconstructs:
            raise ConfigError(f"{self.name} was trained without a decoder (supervision 'semantic_only')")
        codes = getattr(codes, self.decoder_branch) if isinstance(codes, Codes) else codes
        return self._in_batches(self._decode, self._checked_codes(codes))

    def reconstruct(self, images: Images) -> np.ndarray:
        """What is left of images after encoding and decoding: uint8 [B, H, W, 3]."""
        return self.decode(self.encode(images))

    def embed_image(self, images: Images) -> np.ndarray:
        """Embeddings of the quantized images, float32 [B, C] of unit length, as the texts' are."""
        return unit(self._in_batches(self._embed_image, self.prepare(images)))

    def embed_text(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings of texts, float32 [n, C] of unit length."""
        if isinstance(texts, str) or not len(texts) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"embed_text takes a list of at least one string, got {texts!r}")
        if "text" not in self._tree:
            raise ValueError(f"{self.name} was exported without its text tower; export it with one to embed texts")
        if self._text_tokenizer is None:
            raise ValueError(
                f"{self.name} came without its text tokenizer: load(…, text_tokenizer='FOLDER/tokenizer.json')"
            )
        return unit(self._in_batches(self._embed_text, self._text_tokenizer.encode(list(texts))))

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
                parts.append(jax.device_get(step(self._tree, batch["rows"])))
        return jax.tree.map(lambda *arrays: np.concatenate(arrays)[: len(rows)], *parts)

    def _checked_codes(self, codes) -> np.ndarray:
        branch, side = self.decoder_branch, self.model.siglip.grid
        quantizer = self.model.quantizer(branch)
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

    def _encode_step(self, tree: dict, images: jax.Array) -> dict[str, jax.Array]:
        latents = bind(self._graphdef, tree["params"]).encode(normalise(images))
        side = self.model.siglip.grid
        codes = {
            b: quantize(tree["codebooks"][b], v, self.model.quantizer(b)).codes for b, v in latents.vectors.items()
        }
        return {branch: found.reshape(-1, side, side, found.shape[-1]) for branch, found in codes.items()}

    def _decode_step(self, tree: dict, codes: jax.Array) -> jax.Array:
        images = decode(bind(self._graphdef, tree["params"]), tree["codebooks"], codes)
        return jnp.clip(images.astype(jnp.float32), -1, 1)

    def _embed_image_step(self, tree: dict, images: jax.Array) -> jax.Array:
        return forward(bind(self._graphdef, tree["params"]), tree["codebooks"], normalise(images))[0].pooled

    def _embed_text_step(self, tree: dict, ids: jax.Array) -> jax.Array:
        return bind(self._text_tower, tree["text"])(ids)
