"""One pass over the held-out examples: everything that evaluation.json holds."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from dualtoken_jax import sharding
from dualtoken_jax.agreement import anywhere
from dualtoken_jax.config import Config
from dualtoken_jax.data.dataset import open_source
from dualtoken_jax.data.pipeline import eval_batches
from dualtoken_jax.data.sources import Source
from dualtoken_jax.data.text import open_text_tokenizer
from dualtoken_jax.evaluation import metrics, zero_shot
from dualtoken_jax.evaluation.frechet import FeatureStatistics, frechet_distance
from dualtoken_jax.models.dualtoken import DualTokenConfig

# Whose embeddings are judged, and under which prefix: the run's own go without one.
_VIEWS = {"image": "", "teacher": "teacher_", "teacher_quantized": "teacher_quantized_"}
_PICTURES = 32  # examples whose pictures are kept, to be looked at


class Measurement(NamedTuple):
    """What one pass over the held-out examples gave."""

    results: dict[str, Any]  # evaluation.json: floats by name; codebook figures also per depth, as lists
    code_counts: dict[str, np.ndarray]  # branch → [D, K], how often each depth used each code
    images: np.ndarray  # uint8 [n, H, W, 3], the first examples
    predictions: list[zero_shot.Prediction]  # for the labelled ones among these images


class MeasurementStopped(Exception):
    """Somebody asked to stop in the middle."""


def measure(task, state, config: Config, mesh, stopping: Callable[[], bool] = lambda: False) -> Measurement:
    """Metrics, and what a report shows beside them.

    Exact on uneven last batches. Every host computes the same figures. Raises MeasurementStopped when `stopping`, which
    is asked at every batch, says so; TooManyBadImages, on every host, where one of them could not use too many.
    """
    source = open_source(config.data, config.seed, "eval")
    collected = _collect(task, state, source, config, mesh, stopping)
    classes = _class_embeddings(task, state, source, config, mesh)
    results: dict[str, Any] = {"examples": int(collected["weight"].sum())}
    results |= _classification(classes, collected)
    if collected["sums"]:
        results |= metrics.means(collected["sums"])
    if "reconstruction" in collected["embeddings"]:
        results["frechet_teacher"] = _frechet(collected)
    for branch, counts in collected["codes"].items():
        results |= codebook_use(branch, counts, config.model.quantizer(branch).shared_codebook)
    results |= bit_rates(config.model) if config.task == "tokenizer" else {}
    images = collected["image"]
    labels, embeddings = collected["label"][: len(images)], collected["embeddings"]["image"][: len(images)]
    predictions = zero_shot.predictions(embeddings, classes, labels, source.class_names)
    return Measurement(results, collected["codes"], images, predictions)


def _collect(task, state, source: Source, config: Config, mesh, stopping: Callable[[], bool]) -> dict[str, Any]:
    """Embeddings, labels and texts of all examples on every host, sums and code counts; the first few pictures."""
    siglip = config.model.siglip
    step = _compiled_step(task, mesh)
    batches = eval_batches(
        source,
        open_text_tokenizer(config.text_tokenizer, siglip.text_length).encode,
        resolution=siglip.image_size,
        batch_size=config.train.batch_size,
        limit=config.data.eval_examples,
        rows=sharding.host_rows(config.train.batch_size, mesh),
        decoding="exact",  # whatever training reads: figures must compare
        reading=config.data.reading,
    )
    rows, sums, codes, images = [], [], {}, []
    for batch in batches:
        if stopping():
            raise MeasurementStopped
        outputs, batch = jax.device_get(step(state, sharding.to_global(batch, mesh)))
        keep = batch["weight"] > 0
        embeddings = {name: value[keep] for name, value in outputs["embeddings"].items()}
        rows.append({"embeddings": embeddings, **{name: batch[name][keep] for name in ("text", "label", "weight")}})
        images += list(batch["image"][keep][: _PICTURES - len(images)])
        sums += [outputs["sums"]] if "sums" in outputs else []
        for branch, counts in outputs.get("codes", {}).items():
            codes[branch] = codes.get(branch, 0) + counts.astype(np.float64)
    batches.bad.check(anywhere(batches.bad.trouble is not None))
    joined = jax.tree.map(lambda *parts: np.concatenate(parts), *rows)
    return joined | {"sums": sums, "codes": codes, "image": np.array(images)}


@functools.lru_cache(maxsize=1)  # a new jit would compile again at every evaluation of a run
def _compiled_step(task, mesh):
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.jit(lambda state, batch: (task.eval_step(state, batch), batch), out_shardings=everywhere)


@functools.lru_cache(maxsize=1)
def _compiled_text(task, mesh):
    return jax.jit(task.embed_text, out_shardings=NamedSharding(mesh, PartitionSpec()))


def _class_embeddings(task, state, source: Source, config: Config, mesh) -> np.ndarray:
    """One unit vector per class; none where the source has no classes to choose from."""
    if len(source.class_names) < 2:
        return np.zeros((0, 1))
    return zero_shot.class_embeddings(
        source.class_names, templates(config), caption_embedder(task, state, config, mesh)
    )


def _classification(classes: np.ndarray, collected) -> dict[str, float]:
    embeddings, results = collected["embeddings"], {}
    captions = [ids.tobytes().hex() for ids in collected["text"]]
    described = collected["text"].any(axis=1)
    for view, prefix in _VIEWS.items():
        if view not in embeddings:
            continue
        shares = zero_shot.accuracy(embeddings[view], classes, collected["label"])
        results |= {f"{prefix}zero_shot_{name}": value for name, value in shares.items()}
        results |= {"zero_shot_chance": 1 / len(classes)} if shares else {}
        if described.all():
            found = metrics.retrieval_at_1(embeddings[view], embeddings["text"], captions)
            results |= {f"{prefix}retrieval_{name}_r1": value for name, value in found.items()}
    return results


def templates(config: Config) -> tuple[str, ...]:
    """The prompt templates that suit the run's pictures."""
    return zero_shot.SCENE_TEMPLATES if config.data.source == "scenes" else zero_shot.PHOTO_TEMPLATES


def caption_embedder(task, state, config: Config, mesh):
    """A function from captions to embeddings [n, C] on the host, in batches of one shape."""
    encode = open_text_tokenizer(config.text_tokenizer, config.model.siglip.text_length).encode
    embed, size = _compiled_text(task, mesh), config.train.batch_size

    def embed_captions(captions: list[str]) -> np.ndarray:
        ids = encode(captions)
        padded = np.pad(ids, ((0, -len(ids) % size), (0, 0)))
        parts = [np.asarray(embed(state, padded[i : i + size])) for i in range(0, len(padded), size)]
        return np.concatenate(parts)[: len(ids)]

    return embed_captions


def _frechet(collected) -> float:
    """Fréchet distance on the teacher's pooled features; its scale is this teacher's own and no rFID."""
    pair = []
    for name in ("teacher", "reconstruction"):
        features = collected["embeddings"][name]
        pair.append(FeatureStatistics.empty(features.shape[1]))
        pair[-1].add(features, collected["weight"])
    return frechet_distance(*pair)


def codebook_use(branch: str, counts: np.ndarray, shared: bool) -> dict[str, Any]:
    """Use, perplexity and KL of one vocabulary from counts [D, K], all depths together and as lists by depth."""
    found = metrics.codebook_statistics(counts, shared)
    results: dict[str, Any] = {}
    for name, value in found["overall"].items():
        results[f"codebook_{name}_{branch}"] = value
        results[f"codebook_{name}_{branch}_per_depth"] = found["per_depth"][name].tolist()
    return results


def bit_rates(model: DualTokenConfig) -> dict[str, float]:
    """Bits per pixel: `bits_per_pixel` of the codes that the decoder reads, `bits_per_pixel_all` of every branch."""
    results = {}
    tokens, side = model.siglip.grid**2, model.siglip.image_size
    rates = {
        branch: metrics.bits_per_pixel(tokens, model.quantizer(branch).depth, model.quantizer(branch).codes, side)
        for branch in model.branches
    }
    if model.reconstructs:
        results["bits_per_pixel"] = rates.get("pixel", rates.get("semantic"))
    return results | {"bits_per_pixel_all": sum(rates.values())}
