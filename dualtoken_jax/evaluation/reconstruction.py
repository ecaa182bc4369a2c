"""What a tokenizer makes of a few pictures, as pictures: reconstructions, features, codes."""

from functools import lru_cache, partial
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dualtoken_jax.models import bind
from dualtoken_jax.models.dualtoken import forward
from dualtoken_jax.tasks.state import normalise
from dualtoken_jax.tasks.tokenizer import Tokenizer

_GAP = 4  # pixels between the pictures of a grid


class Samples(NamedTuple):
    """Host arrays of B pictures."""

    columns: dict[str, np.ndarray]  # title → uint8 [B, H, W, 3]; the input first, then whatever the run has
    codes: dict[str, np.ndarray]  # branch → int32 [B, h, w, D]


def sample(task: Tokenizer, state, images: np.ndarray, mesh: Mesh) -> Samples:
    """Runs the tokenizer on `images`, uint8 [B, H, W, 3], the same on every host.

    Columns: `input`; `reconstruction`, clamped, where there is a decoder; `teacher`, the frozen teacher's hidden state
    at the semantic layer; `semantic`, the features u de-quantized from the semantic codes, where there are any. The
    last two are three principal components as RGB, in one basis fitted on the teacher, so that their colours compare.
    """
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    padded = np.pad(images, ((0, -len(images) % rows), (0, 0), (0, 0), (0, 0)))
    seen = jax.device_get(_compiled_look(task, mesh)(state, padded))
    seen = jax.tree.map(lambda value: value[: len(images)], seen)
    grid, columns = task.config.model.siglip.grid, {"input": images}
    if seen["reconstruction"] is not None:
        columns["reconstruction"] = _to_uint8(seen["reconstruction"])
    for name, view in zip(("teacher", "semantic"), feature_colours(seen["features"]), strict=False):
        columns[name] = enlarge(view.reshape(-1, grid, grid, 3), images.shape[1])
    codes = {name: value.reshape(len(images), grid, grid, -1) for name, value in seen["codes"].items()}
    return Samples(columns, codes)


@lru_cache(maxsize=1)  # a new jit would compile again at every evaluation of a run
def _compiled_look(task: Tokenizer, mesh: Mesh):
    return jax.jit(partial(_look, task), out_shardings=NamedSharding(mesh, PartitionSpec()))


def _look(task: Tokenizer, state, images: jax.Array) -> dict:
    images, model = normalise(images), bind(task.graphdef, state.averaged)
    teacher = task.frozen.siglip(state.frozen).vision
    outputs, _ = forward(model, state.codebooks, images)
    features = [teacher.encoder(teacher.embed(images), 0, task.config.model.semantic_layer)]
    features += [outputs.hidden] if task.semantic else []
    return {
        "reconstruction": outputs.reconstruction,
        "features": [value.astype("float32") for value in features],
        "codes": {name: quantized.codes for name, quantized in outputs.quantized.items()},
    }


def _to_uint8(images: np.ndarray) -> np.ndarray:
    return np.round((np.clip(images.astype(np.float32), -1, 1) + 1) * 127.5).astype(np.uint8)


def feature_colours(features: list[np.ndarray]) -> list[np.ndarray]:
    """Features [B, N, C] → RGB uint8 [B, N, 3] each, by the principal components of the first array."""
    flat = features[0].reshape(-1, features[0].shape[-1]).astype(np.float64)
    centre = flat.mean(axis=0)
    basis = np.linalg.eigh(np.cov((flat - centre).T))[1][:, :-4:-1]  # [C, 3]
    # A principal component has no sign of its own: without this, colours would flip from one evaluation to the next.
    basis = basis * np.sign(basis[np.abs(basis).argmax(axis=0), np.arange(basis.shape[1])])
    # Percentiles, because a few tokens of a transformer stand far off and would leave the rest grey.
    low, high = np.percentile((flat - centre) @ basis, (1, 99), axis=0)
    span = np.maximum(high - low, 1e-12)
    return [
        np.round(np.clip(((value - centre) @ basis - low) / span, 0, 1) * 255).astype(np.uint8) for value in features
    ]


def enlarge(images: np.ndarray, side: int) -> np.ndarray:
    """[B, h, w, ...] → [B, side, side, ...] by nearest neighbours."""
    rows, columns = (np.arange(side) * size // side for size in images.shape[1:3])
    return images[:, rows][:, :, columns]


def grid(samples: Samples, rows: int = 8, smallest: int = 96) -> np.ndarray:
    """One picture uint8 [H, W, 3] of the first `rows` examples: a row each, the columns of `Samples` in their order.

    Pictures narrower than `smallest` pixels are enlarged by whole numbers.
    """
    side = samples.columns["input"].shape[1]
    side *= -(-smallest // side)
    frame = ((0, 0), (0, _GAP), (0, _GAP), (0, 0))
    cells = [np.pad(enlarge(column[:rows], side), frame, constant_values=255) for column in samples.columns.values()]
    lines = np.concatenate(cells, axis=2)  # [rows, side, W, 3]
    return np.concatenate(lines)[:-_GAP, :-_GAP]
