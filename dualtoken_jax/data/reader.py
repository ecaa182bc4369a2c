"""Reads, decodes and crops one batch, and puts something in the place of what cannot be used."""

from collections.abc import Callable

import numpy as np

from dualtoken_jax.data import images, order
from dualtoken_jax.data.bad_images import BadImageCounter
from dualtoken_jax.data.images import BadImage
from dualtoken_jax.data.sources import Example, Source

Encode = Callable[[list[str]], np.ndarray]  # n captions → int32 [n, T]; called from several threads at once
Batch = dict[str, np.ndarray]


class Reader:
    """Thread-safe; `bad` counts what had to be replaced."""

    def __init__(self, source: Source, encode: Encode, resolution: int, substitutes: int) -> None:
        """`substitutes` is how many other examples are tried in the place of a bad one, before a zero image."""
        self._source, self._encode, self._resolution, self._substitutes = source, encode, resolution, substitutes
        self.size = len(source)
        self.bad = BadImageCounter()

    def batch(self, indices: np.ndarray, rngs: list[np.random.Generator | None]) -> Batch:
        """One row per generator, centre-cropped where it is None; rows beyond `indices` are padding of weight 0.

        Raises:
          TooManyBadImages: see BadImageCounter.record.
        """
        rows, resolution = len(rngs), self._resolution
        batch = {
            "image": np.zeros((rows, resolution, resolution, 3), np.uint8),
            "label": np.full(rows, -1, np.int32),
            "weight": np.zeros(rows, np.float32),
        }
        captions: list[str | None] = [None] * rows
        problems: list[tuple[str, BadImage] | None] = []
        for row, first in enumerate(self._read(indices)):
            example, problem = self._usable(int(indices[row]), first, rngs[row])
            problems.append(problem)
            if example is not None:
                batch["image"][row], batch["weight"][row], captions[row] = example.image, 1, example.caption
                batch["label"][row] = -1 if example.label is None else example.label
        self.bad.record(problems)
        batch["text"] = self._tokens(captions)
        return batch

    def examples(self, indices: np.ndarray) -> list[tuple[Example | None, tuple[str, BadImage] | None]]:
        """Per index the cropped example, and (origin, error) of a bad image; without substitutes one is None."""
        return [self._usable(int(i), found, None) for i, found in zip(indices, self._read(indices), strict=True)]

    def _usable(
        self, index: int, found: Example | BadImage, rng: np.random.Generator | None
    ) -> tuple[Example | None, tuple[str, BadImage] | None]:
        """The example with its image cropped, or its first usable substitute; and what was wrong with the example."""
        problem = None
        for attempt in range(self._substitutes + 1):
            if attempt:
                (found,) = self._read(np.array([order.substitute_index(index, attempt, self.size)]))
            try:
                return self._cropped(found, rng), problem
            except BadImage as error:
                origin = found.origin if isinstance(found, Example) else ""
                problem = problem or (origin or f"example {index}", error)
        return None, problem

    def _cropped(self, found: Example | BadImage, rng: np.random.Generator | None) -> Example:
        if isinstance(found, BadImage):
            raise found
        picture = images.decode(found.image) if isinstance(found.image, bytes) else found.image
        return found._replace(image=images.resize_crop(picture, self._resolution, rng))

    def _read(self, indices: np.ndarray) -> list[Example | BadImage]:
        try:
            return self._source.read(indices)
        except OSError as error:
            if len(indices) > 1:  # one by one, to lose only what is lost
                return [found for index in indices for found in self._read(np.array([index]))]
            # A file that has gone is replaced and counted like one that does not decode.
            return [BadImage("unreadable", str(error))]

    def _tokens(self, captions: list[str | None]) -> np.ndarray:
        """int32 [b, T]; all rows go through the tokenizer, so that T is known for a batch without any caption."""
        tokens = np.array(self._encode([caption or "" for caption in captions]), np.int32)
        tokens[[caption is None for caption in captions]] = 0
        return tokens
