"""Ends a process that has stopped making progress, so that a launcher starts it again."""

import collections
import contextlib
import faulthandler
import logging
import os
import statistics
import sys
import threading
import time
from collections.abc import Iterator

from dualtoken_jax import exit_codes

log = logging.getLogger("dualtoken_jax")

FACTOR = 10  # times the median step
_STEPS = 101  # over which the median is taken
_LOOK = 1.0  # seconds between two looks


class Watchdog:
    """While open: no step within max(floor, FACTOR × median) seconds → the stacks of all threads, then exit RESTART.

    What takes longer than a step announces itself with `patience`.
    """

    def __init__(self, floor: float):
        """`floor` is in seconds."""
        self._floor = floor
        self._durations: collections.deque[float] = collections.deque(maxlen=_STEPS)
        self._last, self._what, self._limit = time.monotonic(), "the first step", None
        self._closed = threading.Event()

    @property
    def limit(self) -> float:
        """Seconds that may pass now without a sign of life."""
        if self._limit is not None:
            return self._limit
        return max(self._floor, FACTOR * statistics.median(self._durations)) if self._durations else self._floor

    def step(self) -> None:
        """A step was done."""
        now = time.monotonic()
        self._durations.append(now - self._last)
        self._last, self._what = now, "a step"

    @contextlib.contextmanager
    def patience(self, what: str, seconds: float) -> Iterator[None]:
        """`what` may take this long."""
        before = self._what, self._limit
        self._last, self._what, self._limit = time.monotonic(), what, seconds
        try:
            yield
        finally:
            self._last, (self._what, self._limit) = time.monotonic(), before

    def __enter__(self) -> "Watchdog":
        self._last = time.monotonic()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(_LOOK):
            waited = time.monotonic() - self._last
            if waited > self.limit:
                self._end(waited)

    def _end(self, waited: float) -> None:
        log.error(
            "waiting for %s for %.0f s, more than %.0f s: the run hangs. The stacks:", self._what, waited, self.limit
        )
        logging.shutdown()
        faulthandler.dump_traceback(file=sys.__stderr__, all_threads=True)
        sys.__stderr__.flush()
        os._exit(exit_codes.RESTART)
