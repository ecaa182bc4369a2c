"""THE loop, once for all tasks: evaluate, checkpoint, next batch, step.

The order matters. A checkpoint is taken before the batch that follows it is read, so that the saved position is the
next one to train on; an evaluation comes before the checkpoint of the same step, so that a crash in it loses nothing
that a restart does not do again.
"""

import contextlib
import logging
import math
from functools import partial
from pathlib import Path

import jax
from jax.sharding import Mesh

from dualtoken_jax import sharding
from dualtoken_jax.agreement import anywhere
from dualtoken_jax.checkpoint import CheckpointError, Checkpoints
from dualtoken_jax.config import Config
from dualtoken_jax.data.bad_images import TooManyBadImages
from dualtoken_jax.data.dataset import TrainingData, open_training
from dualtoken_jax.data.pipeline import Batches, batches
from dualtoken_jax.data.text import open_text_tokenizer
from dualtoken_jax.evaluation.measure import Measurement, MeasurementStopped, measure
from dualtoken_jax.evaluation.reconstruction import Samples, grid, sample
from dualtoken_jax.frozen_weights import save_frozen
from dualtoken_jax.guards import Guards
from dualtoken_jax.metric_writer import MetricWriter
from dualtoken_jax.progress import Progress
from dualtoken_jax.rollbacks import Rollbacks, read_rollbacks, write_rollbacks
from dualtoken_jax.saver import NonFiniteState, Saver
from dualtoken_jax.tasks import make_task
from dualtoken_jax.tasks.state import TrainState
from dualtoken_jax.text_tokenizer_copy import keep_text_tokenizer
from dualtoken_jax.workdir import claim_workdir

log = logging.getLogger("dualtoken_jax")
_SAMPLES = 16  # held-out pictures that are looked at


class NonFiniteError(RuntimeError):
    """Too many steps in a row had non-finite values, again and again."""


class Interrupted(Exception):
    """The run was asked to stop; its state is saved."""


def run(config: Config, workdir: Path, frozen: dict | None = None, begin: dict | None = None) -> TrainState:
    """Trains to `config.train.steps`, from the newest checkpoint in `workdir` if there is one, and returns the state.

    `begin` replaces fields of a fresh state, as an earlier stage left them.
    Raises ConfigError for a workdir of another config or one in use, NonFiniteError, CheckpointError, what reading data
    raises; when everything is saved, Interrupted after SIGTERM or Ctrl-C, and TooManyBadImages.
    """
    workdir, train = Path(workdir), config.train
    mesh = sharding.make_mesh(config.mesh)
    sharding.check_batch(train.batch_size, train.accumulate, mesh)
    claim_workdir(config, workdir)
    with jax.set_mesh(mesh), Guards(workdir, train) as guards:
        with guards.busy("save"):
            config = keep_text_tokenizer(config, workdir)
            if frozen:
                save_frozen(workdir, frozen)
            rollbacks = read_rollbacks(workdir)
        while True:
            try:
                return _train(config, workdir, mesh, guards, (frozen or {}, begin or {}), rollbacks.position)
            except _RolledBack as error:
                if rollbacks.count >= train.max_rollbacks:
                    raise NonFiniteError(
                        f"{error}, and so it was after going back {rollbacks.count} times since the run began; "
                        f"train.max_rollbacks is {train.max_rollbacks}, and with a higher one the same command goes on"
                    ) from error
                rollbacks = Rollbacks(rollbacks.count + 1, error.position)
                write_rollbacks(workdir, rollbacks)
                log.error(
                    "%s. The newest checkpoint is good; examples up to number %d are passed over", error, error.position
                )


class _RolledBack(Exception):
    """Steps in a row that were skipped; training goes on at `position`."""

    def __init__(self, message: str, position: int):
        super().__init__(message)
        self.position = position


def _train(
    config: Config, workdir: Path, mesh: Mesh, guards: Guards, given: tuple[dict, dict], first: int
) -> TrainState:
    """From the newest checkpoint on, at its position, which is `first` at least."""
    train, task = config.train, make_task(config)
    checkpoints = Checkpoints(workdir, train.keep_checkpoints)
    saver, training = Saver(checkpoints, train, guards), open_training(config.data, config.seed)
    with guards.busy("restore"):
        state, saved = start_state(task, config, mesh, checkpoints, *given)
    position = max(first, training.position(saved) if saved else 0)
    step, compiled = int(state.step), False
    guards.clock.resumed(step)
    data, writer = host_batches(training, config, mesh, position), MetricWriter(workdir, step)
    progress = Progress(config, step, writer, guards.clock, data.bad)
    places = jax.tree.map(lambda leaf: leaf.sharding, state)
    train_step = jit_step(task, places)
    try:
        while True:
            if _due(step, train.evaluate_every, train.steps):
                progress.pause("evaluating")
                try:
                    with guards.busy("evaluate", rescue=partial(saver.rescue, state, training.state(position))):
                        _evaluate_unless_stopped(task, state, config, mesh, writer, guards)
                except TooManyBadImages:
                    _save(saver, state, training.state(position), True)
                    raise
            stopping = guards.stop.due()
            done = step >= train.steps or stopping
            if done or saver.due(step):
                _save(saver, state, training.state(position), done)
            if done:
                break
            with guards.busy("data", rescue=partial(saver.rescue, state, training.state(position))):
                rows = next(data)
            if data.bad.trouble is not None:  # perhaps here only: all stop together, a step or a few later
                guards.stop.request()
            with guards.busy("transfer"):
                batch = sharding.to_global(rows, mesh)
            del rows  # of a worker they lie in shared memory, and an error's traceback would keep them there
            # There is nothing to rescue from the first step: it starts from what is saved, or from nothing.
            with contextlib.nullcontext() if compiled else guards.busy("compile", rescue=lambda: None):
                state, metrics = train_step(state, batch)
            step, position, compiled = step + 1, position + train.batch_size, True
            _check(progress.update(step, metrics), config, position)
            guards.stepped(step, metrics["consecutive_skips"])
        _check(progress.finish(), config, position)
    except jax.errors.JaxRuntimeError:
        raise  # somebody has died, and whoever waits for a save waits for the dead
    except BaseException:
        with contextlib.suppress(CheckpointError):  # the first error is the one to tell
            checkpoints.close()
        raise
    finally:
        data.close()
        writer.close()
    with guards.busy("save"):
        checkpoints.close()
    if stopping or guards.stop.requested:  # also while the last step was saved
        data.bad.check(anywhere(data.bad.trouble is not None))
        raise Interrupted(f"stopped after step {step} of {train.steps}; saved in {workdir}, the same command resumes")
    return state


def _save(saver: Saver, state: TrainState, data: dict, last: bool) -> None:
    try:
        saver.save(state, data, last)
    except NonFiniteState as error:
        raise _RolledBack(str(error), data["position"]) from error


def _evaluate_unless_stopped(task, state, config: Config, mesh: Mesh, writer: MetricWriter, guards: Guards) -> None:
    try:
        evaluate(task, state, config, mesh, writer, guards.stop.due)
    except MeasurementStopped:
        log.warning("the evaluation at step %d was given up, to stop", int(state.step))


def counted_step(task, state: TrainState, batch: dict[str, jax.Array]) -> tuple[TrainState, dict[str, jax.Array]]:
    """The task's step, with the skip counters among its metrics."""
    state, metrics = task.train_step(state, batch)
    return state, metrics | {"consecutive_skips": state.consecutive_skips, "total_skips": state.total_skips}


def jit_step(task, places: TrainState):
    """The compiled form of `counted_step` for a state with these shardings, which it takes and gives back."""
    # The state keeps its placement; left to the compiler it may move, and the second step compiles again.
    return jax.jit(partial(counted_step, task), donate_argnums=0, out_shardings=(places, None))


def start_state(
    task, config: Config, mesh: Mesh, checkpoints: Checkpoints, frozen: dict, begin: dict
) -> tuple[TrainState, dict]:
    """The newest checkpoint with its data's state, or a fresh state, born sharded, with {}."""
    key = jax.random.key(config.seed)
    shapes = jax.eval_shape(task.init_state, key, frozen)
    places = sharding.place(shapes, mesh)
    frozen = jax.device_put(frozen, places.frozen)
    if checkpoints.latest is None:
        state = jax.jit(task.init_state, out_shardings=places)(key, frozen)
        return state.replace(**{name: jax.device_put(v, getattr(places, name)) for name, v in begin.items()}), {}
    like = jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, places)
    state, data = checkpoints.restore(like)
    log.info("resuming from step %d in %s", int(state.step), checkpoints.workdir)
    return state.replace(frozen=frozen), data


def host_batches(training: TrainingData, config: Config, mesh: Mesh, position: int) -> Batches:
    """This host's training batches from `position` on."""
    siglip = config.model.siglip
    return batches(
        training.source,
        open_text_tokenizer(config.text_tokenizer, siglip.text_length).encode,
        resolution=siglip.image_size,
        batch_size=config.train.batch_size,
        order=training.order,
        start=position,
        augment=config.data.augment,
        decoding=config.data.decoding,
        reading=config.data.reading,
        rows=sharding.host_rows(config.train.batch_size, mesh),
    )


def evaluate(
    task, state: TrainState, config: Config, mesh: Mesh, writer: MetricWriter, stopping=lambda: False
) -> tuple[Measurement, Samples | None]:
    """Measures a state on the held-out examples and logs figures, pictures and use of the codes at its step.

    Samples are None for a task without a tokenizer. Every process takes part and gets the same. Raises
    MeasurementStopped as `measure`.
    """
    step, measurement, samples = int(state.step), measure(task, state, config, mesh, stopping), None
    writer.write_scalars(step, scalars(measurement.results, "eval/"))
    for branch, counts in measurement.code_counts.items():
        # Relative to even use, so that evaluations of any size compare; dead codes stand at 0.
        relative = counts / counts.mean(axis=1, keepdims=True)
        writer.write_histograms(step, {f"code_use/{branch}/depth{d + 1}": row for d, row in enumerate(relative)})
    if config.task == "tokenizer":
        samples = sample(task, state, measurement.images[:_SAMPLES], mesh)
        writer.write_images(step, {"pictures/" + "_".join(samples.columns): grid(samples)})
    return measurement, samples


def scalars(results: dict, prefix: str) -> dict[str, float]:
    """The plain numbers among results, renamed."""
    return {prefix + name: value for name, value in results.items() if isinstance(value, (int, float))}


def _due(step: int, every: int | None, last: int) -> bool:
    return every is not None and 0 < step < last and step % every == 0


def _check(metrics: dict[str, float] | None, config: Config, position: int) -> None:
    if metrics is None or metrics["consecutive_skips"] < config.train.max_consecutive_skips:
        return
    bad = sorted(name for name, value in metrics.items() if not math.isfinite(value))
    raise _RolledBack(
        f"step {int(metrics['step'])}: {int(metrics['consecutive_skips'])} steps in a row were skipped because these "
        f"are not finite: {', '.join(bad) or 'the updated weights'}. Lower optimizer.learning_rate, set "
        "optimizer.clip_norm, or look at the pictures around this position",
        position,
    )
