"""When a run saves, and what it does while storage fails: it trains on and tries again."""

import logging
import time
from collections.abc import Callable
from functools import partial

import jax

from dualtoken_jax.agreement import anywhere
from dualtoken_jax.checkpoint import CheckpointError, Checkpoints
from dualtoken_jax.config import TrainConfig
from dualtoken_jax.guards import Guards
from dualtoken_jax.tasks.state import TrainState, all_finite

log = logging.getLogger("dualtoken_jax")

PATIENCE = 1800.0  # seconds of failing saves after which the run stops
_PAUSE = 10.0  # seconds between tries of the last save, after which there are no steps to do meanwhile


class NonFiniteState(RuntimeError):
    """The state has values that are not finite, and is not saved."""


class Saver:
    """Saves every `train.checkpoint_every` steps, and while saving fails ten times as often."""

    def __init__(self, checkpoints: Checkpoints, train: TrainConfig, guards: Guards):
        self._checkpoints, self._guards = checkpoints, guards
        self._every, self._log_every = train.checkpoint_every, train.log_every
        self._failing_since: float | None = None
        self._finite = jax.jit(all_finite)

    def due(self, step: int) -> bool:
        """Whether to save before the next step."""
        often = max(1, self._every // 10)
        # The hosts have just exchanged their times to log them (progress.py, stragglers.py): another exchange costs
        # nothing here, while at other moments it would make all of them wait for the step that runs.
        if (step - 1) % self._log_every == 0 and self._failing_since is None:
            self._try(self._checkpoints.check)  # a write in the background that failed since the last save
        return step > 0 and step % (self._every if self._failing_since is None else often) == 0

    def save(self, state: TrainState, data: dict, last: bool = False) -> None:
        """Starts a save; the `last` one it waits for.

        Raises NonFiniteState, or CheckpointError when saving has failed for PATIENCE seconds.
        """
        jax.block_until_ready(state)  # the rest of a step is not time that saving takes
        with self._guards.busy("save"):
            if not self._finite(state.replace(frozen={})):
                raise NonFiniteState(f"step {int(state.step)}: the state is not finite and is not saved")
            write = partial(self._checkpoints.save, state, data)
            started = self._try(write)
            while last and not (started and self._try(self._checkpoints.wait)):
                time.sleep(_PAUSE)
                started = self._try(write)

    def rescue(self, state: TrainState, data: dict) -> None:
        """Saves from another thread while the loop is deaf; raises where that fails."""
        self._checkpoints.save(state, data)
        self._checkpoints.wait()

    def _try(self, act: Callable[[], None]) -> bool:
        """Whether it went well, on every host."""
        error = None
        try:
            act()
        except CheckpointError as caught:
            error = caught
        if not anywhere(error is not None):
            self._failing_since = None
            return True
        now = time.monotonic()
        self._failing_since = now if self._failing_since is None else self._failing_since
        if anywhere(now - self._failing_since > PATIENCE):
            raise error or CheckpointError("another host has been unable to save for too long")
        log.error("%s. Training goes on, and saving is tried again", error or "another host could not save")
        self._checkpoints.reopen()
        return False
