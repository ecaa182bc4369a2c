"""What a training step loses by waiting for real pictures: the recipe's own step, with its data and with one batch."""

import statistics
import time
from collections.abc import Callable
from functools import partial

import jax
import numpy as np

from dualtoken_jax import loop, sharding
from dualtoken_jax.config import Config, teacher_config
from dualtoken_jax.data.dataset import open_training
from dualtoken_jax.interop.lpips import load_lpips
from dualtoken_jax.tasks import make_task
from dualtoken_jax.tasks.state import TrainState


def compare(config: Config, steps: int, repeats: int) -> dict[str, float | list[float]]:
    """Milliseconds a step with the loader's batches and with one batch that is there, in turns of `steps` steps each.

    The ratio is of the medians of `repeats` turns. Weights are fresh ones, the teacher's too.
    """
    mesh = sharding.make_mesh(config.mesh)
    training = open_training(config.data, config.seed)
    data = loop.host_batches(training, config, mesh, 0)
    turns: dict[str, list[float]] = {"real": [], "synthetic": []}
    try:
        with jax.set_mesh(mesh):
            state, train_step = _step(config)
            kept = {name: np.copy(rows) for name, rows in next(data).items()}
            sources: dict[str, Callable[[], dict]] = {"synthetic": lambda: kept, "real": partial(next, data)}
            state, _ = _turn(sources["real"], state, train_step, mesh, steps)  # compiles, and fills the read-ahead
            for number in range(2 * repeats):
                name = ("real", "synthetic")[number % 2]
                state, seconds = _turn(sources[name], state, train_step, mesh, steps)
                turns[name].append(1000 * seconds / steps)
    finally:
        data.close()
    real, synthetic = (statistics.median(turns[name]) for name in ("real", "synthetic"))
    return {"real_ms": real, "synthetic_ms": synthetic, "real_over_synthetic": real / synthetic, "turns": turns}


def _step(config: Config) -> tuple[TrainState, Callable]:
    """A fresh state, and the loop's step."""
    task = make_task(config)
    frozen = {}
    if config.task == "tokenizer":
        teacher = make_task(teacher_config(config))
        frozen = {"siglip": jax.jit(lambda key: teacher.init_state(key, {}).params)(jax.random.key(1))}
        if config.loss.lpips_path:
            frozen["lpips"] = load_lpips(config.loss.lpips_path)
    state = jax.jit(task.init_state)(jax.random.key(config.seed), frozen)
    return state, jax.jit(partial(loop.counted_step, task), donate_argnums=0)


def _turn(source: Callable[[], dict], state: TrainState, train_step, mesh, steps: int) -> tuple[TrainState, float]:
    """As the loop: metrics are read one step late, so that the next batch is fetched while a step computes."""
    begin, pending = time.perf_counter(), None
    for _ in range(steps):
        state, metrics = train_step(state, sharding.to_global(source(), mesh))
        if pending is not None:
            jax.device_get(pending)
        pending = metrics
    jax.device_get(pending)
    return state, time.perf_counter() - begin
