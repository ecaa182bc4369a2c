"""Zero-shot classification and image–text retrieval from embeddings (METHOD: evaluation protocols)."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dualtoken_jax.evaluation.metrics import unit

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


class Prediction(NamedTuple):
    """What zero-shot classification says of one example."""

    example: int  # its row
    truth: str
    best: list[tuple[str, float]]  # class and cosine similarity, greatest first

    @property
    def right(self) -> bool:
        """Whether the first guess is the truth."""
        return self.best[0][0] == self.truth


def class_embeddings(
    class_names: tuple[str, ...], templates: tuple[str, ...], embed_captions: Callable[[list[str]], np.ndarray]
) -> np.ndarray:
    """One unit vector [C] per class: normalised embeddings of every template, averaged, normalised."""
    captions = [template.format(name.replace("_", " ")) for name in class_names for template in templates]
    vectors = unit(embed_captions(captions)).reshape(len(class_names), len(templates), -1)
    return unit(vectors.mean(axis=1))


def accuracy(embeddings: np.ndarray, classes: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Top-1 and top-5 as shares of the examples that have a label (≥ 0); {} where none has.

    `embeddings` [n, C], `classes` [m, C], `labels` [n].
    """
    labelled = labels >= 0
    if not labelled.any() or len(classes) < 2:
        return {}
    ranks = rank_of_label(embeddings[labelled], classes, labels[labelled])
    return {"top1": float(np.mean(ranks < 1)), "top5": float(np.mean(ranks < 5))}


def predictions(
    embeddings: np.ndarray, classes: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...], best: int = 3
) -> list[Prediction]:
    """The `best` classes for each example that has a label; arguments as in `accuracy`, `class_names` [m]."""
    if len(classes) < 2:
        return []
    rows = np.flatnonzero(labels >= 0)
    scores = unit(embeddings[rows]) @ classes.T  # [n, m]
    order = np.argsort(-scores, axis=1)[:, :best]
    return [
        Prediction(int(row), class_names[labels[row]], [(class_names[c], float(score[c])) for c in chosen])
        for row, score, chosen in zip(rows, scores, order, strict=True)
    ]


def rank_of_label(embeddings: np.ndarray, classes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many classes do not score lower than the true one, itself left out: ties and NaN count against it."""
    logits = unit(embeddings) @ classes.T  # [n, m]
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    return (~(logits < own)).sum(axis=1) - 1
