"""Zero-shot classification and image–text retrieval from embeddings (METHOD: evaluation protocols)."""

from collections.abc import Callable

import numpy as np

# Captions of the scenes name size and texture before the colour; photographs get CLIP's seven best templates.
SCENE_TEMPLATES = (
    "a {}",
    "a small {}",
    "a large {}",
    "a plain {}",
    "a striped {}",
    "a dotted {}",
)
PHOTO_TEMPLATES = (
    "a photo of a {}",
    "a good photo of a {}",
    "a close-up photo of a {}",
    "a bright photo of a {}",
    "a dark photo of a {}",
    "a cropped photo of a {}",
    "a picture of a {}",
)


def class_embeddings(
    class_names: tuple[str, ...], templates: tuple[str, ...], embed_captions: Callable[[list[str]], np.ndarray]
) -> np.ndarray:
    """One unit vector [C] per class: normalised embeddings of every template, averaged, normalised."""
    captions = [template.format(name.replace("_", " ")) for name in class_names for template in templates]
    vectors = _unit(embed_captions(captions)).reshape(len(class_names), len(templates), -1)
    return _unit(vectors.mean(axis=1))


def accuracy(embeddings: np.ndarray, classes: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Top-1 and top-5 as shares of the examples that have a label (≥ 0); {} where none has.

    `embeddings` [n, C], `classes` [m, C], `labels` [n].
    """
    labelled = labels >= 0
    if not labelled.any() or len(classes) < 2:
        return {}
    ranks = rank_of_label(embeddings[labelled], classes, labels[labelled])
    return {"top1": float(np.mean(ranks < 1)), "top5": float(np.mean(ranks < 5))}


def rank_of_label(embeddings: np.ndarray, classes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many classes score at least as high as the true one, itself left out, so that ties count against it."""
    logits = _unit(embeddings) @ classes.T  # [n, m]
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    return (logits >= own).sum(axis=1) - 1


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-8)
