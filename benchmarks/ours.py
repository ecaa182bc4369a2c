"""What is measured of our program: one compiled call per question."""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dualtoken_jax.config import Config
from dualtoken_jax.models import bind, definition, init_params
from dualtoken_jax.models.dualtoken import DualToken, decode
from dualtoken_jax.models.quantizer import init_codebook, quantize
from dualtoken_jax.models.siglip import Siglip
from dualtoken_jax.models.vgg import Lpips
from dualtoken_jax.tasks.state import TrainState, normalise
from dualtoken_jax.tasks.tokenizer import Tokenizer


class Work(NamedTuple):
    """A call to time, which returns when the result is there, and the seconds that its compilation took."""

    call: Callable[[], None]
    compile_seconds: float


def work(question: str, config: Config, batch: int) -> Work:
    """`train`, `encode` or `decode` of `batch` images."""
    return {"train": train, "encode": encode, "decode": decode_codes}[question](config, batch)


def images(config: Config, batch: int) -> np.ndarray:
    """Random uint8 pictures [B, R, R, 3]."""
    side = config.model.siglip.image_size
    return np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), dtype=np.uint8)


def train_state(config: Config) -> tuple[Tokenizer, TrainState]:
    """The task, and a state at step 0 with random weights."""
    task = Tokenizer(config)

    def init(key):
        frozen = {"siglip": init_params(lambda rngs: Siglip(config.model.siglip, rngs), key)}
        if config.loss.perceptual_network == "lpips" and config.loss.perceives:
            frozen["lpips"] = init_params(lambda rngs: Lpips(rngs=rngs), key)
        return task.init_state(key, frozen)

    return task, jax.jit(init)(jax.random.key(0))


def train(config: Config, batch: int) -> Work:
    """The whole step, its state donated as the loop does."""
    task, state = train_state(config)
    rows = {"image": jnp.asarray(images(config, batch)), "weight": jnp.ones(batch)}
    step, seconds = _compiled(jax.jit(task.train_step, donate_argnums=0), state, rows)
    kept = [state]

    def call():
        kept[0], metrics = step(kept[0], rows)
        jax.block_until_ready(metrics)

    return Work(call, seconds)


def encode(config: Config, batch: int) -> Work:
    """Pictures to the codes of both vocabularies."""
    graphdef, params, codebooks = _tokenizer(config)

    def run(params, codebooks, pictures):
        vectors = bind(graphdef, params).encode(normalise(pictures)).vectors
        return {name: quantize(codebooks[name], z, config.model.quantizer(name)).codes for name, z in vectors.items()}

    return _repeated(run, params, codebooks, jnp.asarray(images(config, batch)))


def decode_codes(config: Config, batch: int) -> Work:
    """Pixel codes to pictures."""
    graphdef, params, codebooks = _tokenizer(config)
    grid, pixel = config.model.siglip.grid, config.model.pixel
    codes = np.random.default_rng(0).integers(0, pixel.codes, (batch, grid, grid, pixel.depth))
    run = lambda params, codebooks, codes: decode(bind(graphdef, params), codebooks, codes)  # noqa: E731
    return _repeated(run, params, codebooks, jnp.asarray(codes))


def _tokenizer(config: Config):
    make = lambda rngs: DualToken(config.model, rngs)  # noqa: E731

    def init(key):
        books = {branch: init_codebook(config.model.quantizer(branch), key) for branch in config.model.branches}
        return init_params(make, key), books

    return definition(make), *jax.jit(init)(jax.random.key(0))


def _compiled(function, *arguments):
    start = time.perf_counter()
    compiled = function.lower(*arguments).compile()
    return compiled, time.perf_counter() - start


def _repeated(function, *arguments) -> Work:
    compiled, seconds = _compiled(jax.jit(function), *arguments)
    return Work(lambda: jax.block_until_ready(compiled(*arguments)), seconds)


def peak_device_bytes() -> int | None:
    """Of an accelerator's memory; None where the device does not say."""
    statistics = jax.devices()[0].memory_stats()
    return statistics.get("peak_bytes_in_use") if statistics else None
