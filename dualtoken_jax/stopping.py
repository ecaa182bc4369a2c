"""SIGTERM and Ctrl-C as a request to stop at the next opportunity, and a way out where there is none."""

import contextlib
import itertools
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

from dualtoken_jax import exit_codes

log = logging.getLogger("dualtoken_jax")

_moments = itertools.count(1)  # of the process: JAX compares them with those of the other processes
GRACE = 4.0  # seconds for the loop to notice by itself; spot machines are gone about 15 s after the notice


class StopRequest:
    """While open, the first signal requests a stop, and a second Ctrl-C interrupts at once.

    With several processes all must stop at the same moment: JAX's own sync point, which listens to SIGTERM, decides; no
    process can leave by itself, so that a notice during a compilation waits for its end. A process that is alone has
    a way out: inside a compilation Python runs no signal handler, for minutes perhaps, but a thread sees the signal
    (the interpreter writes to a pipe at once), does what `rescue` says and ends the process.
    """

    def __init__(self):
        self.requested, self._asked, self._previous = False, False, {}
        self._rescue: Callable[[], None] | None = None
        self._noticed = threading.Event()

    def due(self) -> bool:
        """Whether to stop now; the same on every process, which must ask at the same moments."""
        if jax.process_count() > 1:  # the sync point is one moment, and whoever asks there need not be who acts on it
            self.requested = self.requested or multihost_utils.reached_preemption_sync_point(next(_moments))
        if self.requested:
            self._noticed.set()
        return self.requested

    def request(self) -> None:
        """Asks for a stop as a notice to this process would; harmless to call twice."""
        if jax.process_count() == 1:
            self.requested = True
        elif not self._asked:
            self._asked = True
            signal.raise_signal(signal.SIGTERM)  # JAX's own handler hears it and tells the other processes

    @contextlib.contextmanager
    def rescue(self, act: Callable[[], None]) -> Iterator[None]:
        """For a stretch in which the loop may be deaf: what to do, in another thread, before the process is ended."""
        self._rescue = act
        try:
            yield
        finally:
            self._rescue = None

    def __enter__(self) -> "StopRequest":
        if jax.process_count() > 1:
            return self
        self._previous = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(self._read,), name="signals", daemon=True).start()
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._previous:
            signal.set_wakeup_fd(self._wakeup)
            os.close(self._write)

    def _on_signal(self, number, frame):
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        log.warning("%s: saving at the next step, then stopping", signal.Signals(number).name)

    def _watch(self, pipe: int) -> None:
        """Until the pipe is closed: after a signal, waits for the loop, and acts in its place where it does not."""
        while numbers := os.read(pipe, 16):
            if signal.SIGTERM not in numbers or self._noticed.wait(GRACE) or self._rescue is None:
                continue
            try:
                self._rescue()
            except Exception:  # the loop has moved on meanwhile, and will notice by itself
                log.exception("the rescue failed")
                continue
            log.warning("stopped where the loop could not; the same command resumes")
            logging.shutdown()
            os._exit(exit_codes.RESTART)
        os.close(pipe)
