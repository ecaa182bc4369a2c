"""Reads, decodes and crops one batch, and puts something in the place of what cannot be used."""

import logging
import time
from collections.abc import Callable

import numpy as np

from dualtoken_jax.data import images
from dualtoken_jax.data.images import BadImage
from dualtoken_jax.data.sources import Example, Source

Encode = Callable[[list[str]], np.ndarray]  # n captions → int32 [n, T]; called from several threads at once
Batch = dict[str, np.ndarray]
Problem = tuple[str, BadImage]  # where a bad image came from, and what is wrong with it

SUBSTITUTES = 5  # tried in turn for a bad training image; at 5 % bad files all of them fail 3 times in 10 million
PATIENCE = 600.0  # seconds for which storage that fails is asked again before its examples count as lost
RETRIES = 3  # for an example that cannot be had while others can
_FINAL = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)  # waiting mends none of these

_log = logging.getLogger(__name__)


class Reader:
    """Thread-safe, and fit to be sent to another process when its source and `encode` are."""

    def __init__(
        self,
        source: Source,
        encode: Encode,
        resolution: int,
        decoding: images.Decoding,
        substitute: Callable[[int, int], int] | None = None,
        patience: float = PATIENCE,
    ) -> None:
        """`substitute` gives the example to try in the place of (example, attempt); None leaves a zero image."""
        self._source, self._encode, self._resolution, self._decoding = source, encode, resolution, decoding
        self._substitute, self._patience = substitute, patience

    def batch(
        self, indices: np.ndarray, rngs: list[np.random.Generator | None]
    ) -> tuple[Batch, tuple[Problem | None, ...]]:
        """One row per generator, centre-cropped where it is None; rows beyond `indices` are padding of weight 0.

        The second value tells, for every index, what was wrong with its example.
        """
        rows, resolution = len(rngs), self._resolution
        batch = {
            "image": np.zeros((rows, resolution, resolution, 3), np.uint8),
            "label": np.full(rows, -1, np.int32),
            "weight": np.zeros(rows, np.float32),
        }
        captions: list[str | None] = [None] * rows
        problems: list[Problem | None] = []
        for row, first in enumerate(self._read(indices)):
            example, problem = self._usable(int(indices[row]), first, rngs[row])
            problems.append(problem)
            if example is not None:
                batch["image"][row], batch["weight"][row], captions[row] = example.image, 1, example.caption
                batch["label"][row] = -1 if example.label is None else example.label
        batch["text"] = self._tokens(captions)
        return batch, tuple(problems)

    def examples(self, indices: np.ndarray) -> list[tuple[Example | None, Problem | None]]:
        """Per index the cropped example, and (origin, error) of a bad image; without substitutes one is None."""
        return [self._usable(int(i), found, None) for i, found in zip(indices, self._read(indices), strict=True)]

    def _usable(
        self, index: int, found: Example | BadImage, rng: np.random.Generator | None
    ) -> tuple[Example | None, Problem | None]:
        """The example with its image cropped, or its first usable substitute; and what was wrong with the example."""
        problem = None
        for attempt in range(SUBSTITUTES + 1 if self._substitute else 1):
            if attempt:
                (found,) = self._read(np.array([self._substitute(index, attempt)]))
            try:
                return self._cropped(found, rng), problem
            except BadImage as error:
                problem = problem or (found.origin or f"example {index}", error)
        return None, problem

    def _cropped(self, found: Example | BadImage, rng: np.random.Generator | None) -> Example:
        if isinstance(found, BadImage):
            raise found
        return found._replace(image=images.load(found.image, self._resolution, rng, self._decoding))

    def _read(self, indices: np.ndarray) -> list[Example | BadImage]:
        """The examples; in the place of one that cannot be had, why.

        Where not one of them can be had, it is the storage that fails, and it is asked until patience ends; where some
        can, the others are asked for RETRIES times more.
        """
        deadline, pause, retries = time.monotonic() + self._patience, 1.0, 0
        found = self._ask(indices)
        while lost := [row for row, one in enumerate(found) if _may_pass(one)]:
            retries += len(lost) < len(found)
            if retries > RETRIES or time.monotonic() + pause > deadline:
                break
            _log.warning("storage fails, asking again in %.0f s: %s", pause, found[lost[0]])
            time.sleep(pause)
            pause = min(2 * pause, 30.0)
            for row, again in zip(lost, self._ask(np.asarray(indices)[lost]), strict=True):
                found[row] = again
        # A file that has gone is replaced and counted like one that does not decode.
        return [BadImage("unreadable", str(one)) if isinstance(one, OSError) else one for one in found]

    def _ask(self, indices: np.ndarray) -> list[Example | BadImage | OSError]:
        try:
            return self._source.read(indices)
        except (OSError, BadImage) as error:
            if len(indices) == 1:
                return [error]
            if _may_pass(error) and all(
                _may_pass(self._ask(indices[row : row + 1])[0]) for row in (0, len(indices) - 1)
            ):
                return [error] * len(indices)  # asking for every one would take as many timeouts
            return [one for index in indices for one in self._ask(np.array([index]))]  # to lose only what is lost

    def _tokens(self, captions: list[str | None]) -> np.ndarray:
        """int32 [b, T]; all rows go through the tokenizer, so that T is known for a batch without any caption."""
        tokens = np.array(self._encode([caption or "" for caption in captions]), np.int32)
        tokens[[caption is None for caption in captions]] = 0
        return tokens


def _may_pass(found: Example | BadImage | OSError) -> bool:
    return isinstance(found, OSError) and not isinstance(found, _FINAL)
