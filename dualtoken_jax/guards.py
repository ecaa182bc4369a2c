"""What watches over a run: the lock on its workdir, requests to stop, the watchdog, and the clock."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import jax

from dualtoken_jax.config import TrainConfig
from dualtoken_jax.goodput import Clock
from dualtoken_jax.stopping import StopRequest
from dualtoken_jax.watchdog import Watchdog
from dualtoken_jax.workdir_lock import WorkdirLock

# How long things that are no steps may take, in seconds, by the kinds of goodput.py.
_PATIENCE = {
    "restore": 1800.0,
    "compile": 3600.0,
    "evaluate": 7200.0,
    "save": 1800.0,
    "data": 1800.0,
    "transfer": 300.0,
}


class Guards:
    """All of them, open together."""

    def __init__(self, workdir: Path, train: TrainConfig):
        self.stop, self.clock, self._watchdog = StopRequest(), Clock(workdir), Watchdog(train.hang_seconds)
        self._all = (WorkdirLock(workdir), self.stop, self._watchdog, self.clock)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Guards":
        with contextlib.ExitStack() as stack:
            for one in self._all:
                stack.enter_context(one)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error) -> None:
        self._stack.__exit__(*error)

    @contextlib.contextmanager
    def busy(self, kind: str, rescue: Callable[[], None] | None = None) -> Iterator[None]:
        """Something that is no step; `rescue` as for StopRequest, where the loop may be deaf meanwhile."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.clock.spend(kind))
            stack.enter_context(self._watchdog.patience(kind, _PATIENCE[kind]))
            if rescue:
                stack.enter_context(self.stop.rescue(rescue))
            yield

    def stepped(self, step: int, result: jax.Array) -> None:
        """A step is dispatched, and the one before it is done; `result` is any that it will have."""
        self._watchdog.step()
        self.clock.step(step, result)
