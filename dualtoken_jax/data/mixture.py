"""Several sources as one, their examples numbered through."""

from collections.abc import Sequence

import numpy as np

from dualtoken_jax.data.sources import Example, Source, digest_of


class Mixture:
    """The examples of every source one after the other; `order.Order` says how they take turns.

    Labels are those of the first source: another's mean something else unless its classes have the same names.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        """Reads nothing."""
        self._sources = list(sources)
        self.sizes = tuple(map(len, self._sources))
        self._ends = np.cumsum(self.sizes)
        self.class_names = self._sources[0].class_names

    @property
    def fingerprint(self) -> str:
        """See Source."""
        return digest_of(self.fingerprints)

    @property
    def fingerprints(self) -> list[str]:
        """Every source's own, in order."""
        return [source.fingerprint for source in self._sources]

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, indices: np.ndarray) -> list[Example]:
        """As the sources'."""
        which = np.searchsorted(self._ends, indices, side="right")
        found: list[Example] = [None] * len(indices)
        for number in np.unique(which):
            rows = np.flatnonzero(which == number)
            first = int(self._ends[number]) - self.sizes[number]
            source = self._sources[number]
            for row, example in zip(rows, source.read(np.asarray(indices)[rows] - first), strict=True):
                same = source.class_names == self.class_names
                found[row] = example if same else example._replace(label=None)
        return found
