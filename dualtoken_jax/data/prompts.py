"""What classes are called: their names and the templates that make captions of them, from a file of the user's.

RECIPE makes the file of ImageNet's 1000 names and the 80 templates, as open_clip has them. The names are in the order
of the synsets, and so are the sorted sub-folders n01440764 … n15075141.
"""

import json
from pathlib import Path
from typing import NamedTuple

RECIPE = """python -c "import json, open_clip as o; json.dump({'classes': list(o.IMAGENET_CLASSNAMES), \
'templates': [t('{}') for t in o.OPENAI_IMAGENET_TEMPLATES]}, open('imagenet.json', 'w'))\""""


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
