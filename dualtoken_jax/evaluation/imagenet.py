"""Zero-shot classification of labelled pictures with class names and templates from a file (METHOD section 7)."""

from collections.abc import Callable

import numpy as np

from dualtoken_jax.data.prompts import Prompts
from dualtoken_jax.evaluation import zero_shot

CLASSES, TEMPLATES = 1000, 80  # of the protocol
_TOGETHER = 16  # classes whose captions are embedded at once


def check_labels(prompts: Prompts, class_names: tuple[str, ...], where: str) -> None:
    """Raises ValueError unless the pictures of `where` have as many labels as the prompts have classes."""
    if not class_names:
        raise ValueError(f"{where} has no labels: zero-shot needs a sub-folder for every class, named by its synset")
    if len(class_names) != len(prompts.classes):
        raise ValueError(
            f"{where} has {len(class_names)} labels ({class_names[0]} … {class_names[-1]}), and --classes names "
            f"{len(prompts.classes)} ({prompts.classes[0]} … {prompts.classes[-1]}); they must be the same classes, in "
            "the order of the sorted sub-folders"
        )


class ZeroShot:
    """Counts hits batch by batch; classes are embedded once."""

    def __init__(self, prompts: Prompts, embed_text: Callable[[list[str]], np.ndarray]) -> None:
        starts = range(0, len(prompts.classes), _TOGETHER)
        groups = [prompts.classes[start : start + _TOGETHER] for start in starts]
        self._classes = np.concatenate([zero_shot.class_embeddings(g, prompts.templates, embed_text) for g in groups])
        self._ranks: list[np.ndarray] = []

    def add(self, embeddings: np.ndarray, labels: np.ndarray) -> None:
        """Image embeddings [n, C] after quantization, and their classes [n]; −1 is left out."""
        known = labels >= 0
        self._ranks.append(zero_shot.rank_of_label(embeddings[known], self._classes, labels[known]))

    def results(self) -> dict[str, float]:
        """Shares of pictures, and how many classes there were to choose from."""
        ranks = np.concatenate(self._ranks)
        shares = {f"zero_shot_top{k}": float(np.mean(ranks < k)) for k in (1, 5)}
        return shares | {"zero_shot_classes": len(self._classes)}
