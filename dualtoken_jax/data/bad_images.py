"""Counts the images that had to be replaced, names the first few, and says when there are too many to go on."""

import collections
import logging
import re
import threading
from collections.abc import Sequence
from typing import NamedTuple

from dualtoken_jax.data.images import BadImage

WINDOW = 10_000  # examples the share is taken over
MAX_SHARE = 0.05
MIN_BAD = 20  # below this a share of a small window means nothing
LOGGED = 5  # file names written to the log and kept for the error
WORST = 10  # shards named in a report
REPORT_AT = tuple(10**power for power in range(1, 10))  # totals at which the report is logged

# A component of a path that is a file of many examples: 00012.tar, train-00003.parquet, x.array_record-00001-of-00010.
_SHARD = re.compile(r"(?P<source>.*?)/?(?P<shard>[^/]*\.(?:tar|parquet|array_record)(?:[-.][^/]*)?)(?:/.*)?", re.DOTALL)

_log = logging.getLogger(__name__)


class TooManyBadImages(RuntimeError):
    """More than MAX_SHARE of the last WINDOW images could not be used."""


class Place(NamedTuple):
    """Where examples lie together."""

    source: str  # folder or URL; empty where the source does not tell
    shard: str  # file in it that holds many examples; empty where every example is a file

    def __str__(self) -> str:
        return "/".join(part for part in self if part) or "(a source without names)"


def place_of(origin: str) -> Place:
    """The place named in an Example.origin: of "s3://laion/00012.tar/000120007" it is (s3://laion, 00012.tar)."""
    if found := _SHARD.fullmatch(origin):
        return Place(found["source"], found["shard"])
    return Place(origin.rpartition("/")[0], "")


class BadImageCounter:
    """Thread-safe; one per iterator, so the counts are this host's since the iterator began, read-ahead included."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recent: collections.deque[bool] = collections.deque(maxlen=WINDOW)
        self._seen = 0
        self._counts: collections.Counter[tuple[Place, str]] = collections.Counter()
        self._examples: dict[str, str] = {}  # by origin: the same file comes back every epoch
        self.trouble: str | None = None  # the report of the moment when there were too many

    @property
    def total(self) -> int:
        """Rows whose own image could not be used."""
        with self._lock:
            return self._counts.total()

    @property
    def by_reason(self) -> dict[str, int]:
        """The same rows by BadImage.reason, the most frequent first."""
        with self._lock:
            return self._by_reason()

    @property
    def by_place(self) -> dict[Place, dict[str, int]]:
        """The same rows by place and reason, the worst place first."""
        with self._lock:
            return self._by_place()

    def scalars(self) -> dict[str, float]:
        """For the metrics: bad_images/total, bad_images/share of all rows so far, and bad_images/REASON."""
        with self._lock:
            reasons = {f"bad_images/{reason}": float(count) for reason, count in self._by_reason().items()}
            total = float(self._counts.total())
            return {"bad_images/total": total, "bad_images/share": total / max(self._seen, 1), **reasons}

    def report(self) -> str:
        """Counts by reason, the WORST places with theirs, and the first examples, a line each."""
        with self._lock:
            return self._report()

    def record(self, problems: Sequence[tuple[str, BadImage] | None]) -> None:
        """Adds one batch: per row None for a good image, or (origin, error).

        There is `trouble` once more than MAX_SHARE of the last WINDOW rows, and at least MIN_BAD of them, were bad.
        """
        with self._lock:
            before = self._counts.total()
            for problem in problems:
                self._recent.append(problem is not None)
                if problem is not None:
                    self._add(*problem)
            self._seen += len(problems)
            bad, seen = sum(self._recent), len(self._recent)
            if self.trouble is None and bad >= MIN_BAD and bad > MAX_SHARE * seen:
                self.trouble = (
                    f"{bad} of the last {seen} images could not be used, more than {MAX_SHARE:.0%}. Since the start "
                    f"{self._report()}\nRepair or remove these files, then start the same command again; it resumes "
                    "behind them"
                )
            if any(before < mark <= self._counts.total() for mark in REPORT_AT):
                _log.warning("%s", self._report())

    def check(self, elsewhere: bool = False) -> None:
        """Raises TooManyBadImages where there is trouble; `elsewhere`: another process of the run has some."""
        if self.trouble is not None:
            raise TooManyBadImages(self.trouble)
        if elsewhere:
            raise TooManyBadImages("another process found too many images that cannot be used; its error names them")

    def _add(self, origin: str, error: BadImage) -> None:
        self._counts[place_of(origin), error.reason] += 1
        if len(self._examples) < LOGGED and origin not in self._examples:
            self._examples[origin] = f"{origin}: {error}"
            last = " (further ones are only counted)" if len(self._examples) == LOGGED else ""
            _log.warning("bad image, another takes its place: %s: %s%s", origin, error, last)

    def _by_reason(self) -> dict[str, int]:
        reasons: collections.Counter[str] = collections.Counter()
        for (_, reason), count in self._counts.items():
            reasons[reason] += count
        return dict(reasons.most_common())

    def _by_place(self) -> dict[Place, dict[str, int]]:
        places: dict[Place, dict[str, int]] = {}
        for (place, reason), count in self._counts.most_common():
            places.setdefault(place, {})[reason] = count
        return dict(sorted(places.items(), key=lambda item: -sum(item[1].values())))

    def _report(self) -> str:
        places = self._by_place()
        lines = [f"{self._counts.total()} of {self._seen} images were bad: {_listed(self._by_reason())}. Most were in"]
        lines += [f"  {place}: {_listed(reasons)}" for place, reasons in list(places.items())[:WORST]]
        lines += [f"  and {len(places) - WORST} more places"] if len(places) > WORST else []
        return "\n".join([*lines, "For example:", *(f"  {example}" for example in self._examples.values())])


def _listed(reasons: dict[str, int]) -> str:
    return ", ".join(f"{reason} × {count}" for reason, count in reasons.items())
