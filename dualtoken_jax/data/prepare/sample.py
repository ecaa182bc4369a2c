"""Looks at some pictures of a source: what they measure, and what is wrong with them."""

import io
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image

from dualtoken_jax.data import images
from dualtoken_jax.data.images import BadImage
from dualtoken_jax.data.prepare.inputs import read_each
from dualtoken_jax.data.sources import Example, Source

THUMBNAIL = 128  # pixels of its longer side
_GROUP = 16  # pictures that a thread reads at once
_THREADS = 4


class Looked(NamedTuple):
    """What one example turned out to be."""

    reason: str  # why it cannot be used, as BadImage.reason; empty where it can
    detail: str  # the same as a sentence, with the file
    bytes: int  # of the file
    format: str  # JPEG, PNG or WEBP; empty for a bad one, as all that follows but caption and label
    width: int  # pixels, upright
    height: int
    thumbnail: np.ndarray | None  # uint8 [h, w, 3]
    caption: str | None
    label: int | None


def look(source: Source, count: int) -> list[Looked]:
    """Decodes at most `count` examples at even distances, the same ones every time. Raises OSError as the source."""
    count = min(count, len(source))
    indices = np.arange(count) * len(source) // count
    groups = [indices[first : first + _GROUP] for first in range(0, count, _GROUP)]
    with ThreadPoolExecutor(_THREADS) as threads:
        return [one for group in threads.map(lambda group: _look_at(source, group), groups) for one in group]


def _look_at(source: Source, indices: np.ndarray) -> list[Looked]:
    return [_looked(example) for example in read_each(source, indices)]


def _looked(example: Example | BadImage) -> Looked:
    if isinstance(example, BadImage):
        return Looked(example.reason, f"{example.origin}: {example.detail}", 0, "", 0, 0, None, None, None)
    about = (example.caption, example.label)
    try:
        pixels = images.decode(example.image)
    except BadImage as error:
        return Looked(error.reason, f"{example.origin}: {error.detail}", len(example.image), "", 0, 0, None, *about)
    height, width = pixels.shape[:2]
    thumbnail = Image.fromarray(pixels)
    thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
    kind = Image.open(io.BytesIO(example.image)).format
    return Looked("", "", len(example.image), kind, width, height, np.asarray(thumbnail), *about)
