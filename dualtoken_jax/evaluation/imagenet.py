"""Zero-shot classification of a labelled folder with class names and templates from a file (METHOD section 7).

RECIPE makes the file of ImageNet's 1000 names and the 80 templates, as open_clip has them. The names are in the order
of the synsets, and so are the sorted sub-folders n01440764 … n15075141.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dualtoken_jax.evaluation import zero_shot

RECIPE = """python -c "import json, open_clip as o; json.dump({'classes': list(o.IMAGENET_CLASSNAMES), \
'templates': [t('{}') for t in o.OPENAI_IMAGENET_TEMPLATES]}, open('imagenet.json', 'w'))\""""
CLASSES, TEMPLATES = 1000, 80  # of the protocol
_TOGETHER = 16  # classes whose captions are embedded at once


class Prompts(NamedTuple):
    """What classes are called."""

    classes: tuple[str, ...]
    templates: tuple[str, ...]  # with {} in the place of the class


def read_prompts(path: str | Path) -> Prompts:
    """Class names and templates from {"classes": […], "templates": […]}; ValueError for anything else."""
    path = Path(path)
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file: {error}; make it with {RECIPE}") from error
    lists = [found.get(name) for name in Prompts._fields] if isinstance(found, dict) else []
    if len(lists) != 2 or not all(_strings(items) for items in lists):
        raise ValueError(
            f'{path} must hold {{"classes": […], "templates": […]}}, lists of strings; make it with {RECIPE}'
        )
    prompts = Prompts(*map(tuple, lists))
    if wrong := [template for template in prompts.templates if template.count("{}") != 1]:
        raise ValueError(f"{path}: templates need one {{}} in the place of the class, unlike {wrong[0]!r}")
    return prompts


def _strings(items) -> bool:
    return isinstance(items, list) and bool(items) and all(isinstance(item, str) for item in items)


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
