"""What a person sees of a run: a progress bar on a terminal, plain log lines elsewhere, scalars in the logs."""

import logging
import sys
import time

import jax
from tqdm import tqdm

from dualtoken_jax.config import Config
from dualtoken_jax.data.bad_images import BadImageCounter
from dualtoken_jax.goodput import Clock
from dualtoken_jax.metric_writer import MetricWriter
from dualtoken_jax.stragglers import shares, slow_hosts

log = logging.getLogger("dualtoken_jax")

_SHOWN = ("loss", "mse", "hidden_cosine", "generator_weight")


class Progress:
    """Reads metrics one step late, so that the loop never waits for the step that it has just dispatched."""

    def __init__(self, config: Config, step: int, writer: MetricWriter, clock: Clock, bad: BadImageCounter):
        self._config, self._writer, self._clock, self._bad = config, writer, clock, bad
        self._pending: tuple[int, dict[str, jax.Array]] | None = None
        self._since = (time.perf_counter(), step)
        terminal = sys.stderr.isatty() and jax.process_index() == 0
        name = f"{config.name} {config.task}"
        self._bar = tqdm(total=config.train.steps, initial=step, desc=name, unit="step") if terminal else None

    def update(self, step: int, metrics: dict[str, jax.Array]) -> dict[str, float] | None:
        """Takes the metrics of the step just dispatched and returns those of the one before it."""
        ready, self._pending = self._read(), (step, metrics)
        return ready

    def finish(self) -> dict[str, float] | None:
        """The metrics of the last step; closes the bar."""
        ready = self._read()
        if self._bar is not None:
            self._bar.close()
        return ready

    def pause(self, what: str) -> None:
        """Announces something slow that is no step."""
        log.info("%s: %s", self._config.name, what)

    def _read(self) -> dict[str, float] | None:
        if self._pending is None:
            return None
        step, metrics = self._pending
        self._pending = None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if self._bar is not None:
            self._bar.update(1)
        if step % self._config.train.log_every == 0 or step == self._config.train.steps:
            self._log(step, values)
        return values | {"step": step}

    def _log(self, step: int, values: dict[str, float]) -> None:
        now, (then, last) = time.perf_counter(), self._since
        self._since = (now, step)
        rate = (step - last) * self._config.train.batch_size / max(now - then, 1e-9)
        spent = shares(self._clock.interval(), step - last)
        self._writer.write_scalars(step, values | {"images_per_second": rate} | spent | self._bad.scalars())
        if slow := slow_hosts(spent):
            log.warning("%s", slow)
        shown = "  ".join(f"{name} {values[name]:.3f}" for name in _SHOWN if name in values)
        if self._bar is not None:
            self._bar.set_postfix_str(f"{rate:.0f} images/s  {shown}")
            return
        left = (self._config.train.steps - step) * self._config.train.batch_size / max(rate, 1e-9)
        log.info(
            "%s  step %d/%d  %.0f images/s  %s  %.0f s left",
            self._config.name, step, self._config.train.steps, rate, shown, left,
        )  # fmt: skip
