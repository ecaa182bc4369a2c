"""Counts the images that had to be replaced, names the first few, and stops the run when there are too many."""

import collections
import logging
import threading

from dualtoken_jax.data.images import BadImage

WINDOW = 10_000  # examples the share is taken over
MAX_SHARE = 0.05
MIN_BAD = 20  # below this a share of a small window means nothing
LOGGED = 5  # file names written to the log and kept for the error

_log = logging.getLogger(__name__)


class TooManyBadImages(RuntimeError):
    """More than MAX_SHARE of the last WINDOW images could not be used."""


class BadImageCounter:
    """Thread-safe; one per iterator, so the counts are this host's since the iterator began, read-ahead included."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recent: collections.deque[bool] = collections.deque(maxlen=WINDOW)
        self._reasons: collections.Counter[str] = collections.Counter()
        self._examples: dict[str, str] = {}  # by origin: the same file comes back every epoch

    @property
    def total(self) -> int:
        """Rows whose own image could not be used."""
        with self._lock:
            return self._reasons.total()

    @property
    def by_reason(self) -> dict[str, int]:
        """The same rows by BadImage.reason."""
        with self._lock:
            return dict(self._reasons)

    def record(self, problems: list[tuple[str, BadImage] | None]) -> None:
        """Adds one batch: per row None for a good image, or (origin, error).

        Raises:
          TooManyBadImages: of the last WINDOW rows, more than MAX_SHARE and at least MIN_BAD were bad.
        """
        with self._lock:
            for problem in problems:
                self._recent.append(problem is not None)
                if problem is not None:
                    self._add(*problem)
            bad, seen = sum(self._recent), len(self._recent)
            if bad >= MIN_BAD and bad > MAX_SHARE * seen:
                raise TooManyBadImages(self._explanation(bad, seen))

    def _add(self, origin: str, error: BadImage) -> None:
        self._reasons[error.reason] += 1
        if len(self._examples) < LOGGED and origin not in self._examples:
            self._examples[origin] = f"{origin}: {error}"
            last = " (further ones are only counted)" if len(self._examples) == LOGGED else ""
            _log.warning("bad image, another takes its place: %s: %s%s", origin, error, last)

    def _explanation(self, bad: int, seen: int) -> str:
        reasons = ", ".join(f"{reason} × {count}" for reason, count in self._reasons.most_common())
        return (
            f"{bad} of the last {seen} images could not be used, more than {MAX_SHARE:.0%}: {reasons}. For example:\n  "
            + "\n  ".join(self._examples.values())
            + "\nRepair or remove these files, then resume from the last checkpoint."
        )
