"""SIGTERM and Ctrl-C as a request to stop at the next step boundary."""

import logging
import signal

log = logging.getLogger("dualtoken_jax")


class StopRequest:
    """While open, the first signal sets `requested` and the second one interrupts at once."""

    def __init__(self):
        self.requested = False

    def __enter__(self) -> "StopRequest":
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
