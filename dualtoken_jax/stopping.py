"""SIGTERM and Ctrl-C as a request to stop at the next step boundary."""

import logging
import signal

import jax
from jax.experimental import multihost_utils

log = logging.getLogger("dualtoken_jax")


class StopRequest:
    """While open, the first signal requests a stop and the second one interrupts at once.

    With several processes all must stop at the same step: JAX's own sync point, which listens to SIGTERM, decides.
    """

    def __init__(self):
        self.requested, self._previous = False, {}

    def at(self, step: int) -> bool:
        """Whether to stop at `step`; the same on every process."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self.requested

    def __enter__(self) -> "StopRequest":
        if jax.process_count() > 1:
            return self
        self._previous = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number, frame):
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        log.warning("%s: saving at the next step, then stopping", signal.Signals(number).name)
