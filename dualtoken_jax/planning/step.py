"""The train step of the loop, compiled for devices that need not be here: shapes and shardings only, nothing allocated."""

import dataclasses
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from dualtoken_jax import loop, sharding
from dualtoken_jax.config import Config
from dualtoken_jax.tasks import make_task
from dualtoken_jax.tasks.state import TrainState

# A quarter of the compile time. What remains of the compiler's search for speed changes neither what has to be
# kept in memory by much nor what has to be sent.
_LOW_EFFORT = {"exec_time_optimization_effort": -1.0}


class DoesNotFit(Exception):
    """The compiler gave up for want of device memory; `needed` and `available` in bytes per device, if it said so."""

    def __init__(self, message: str, needed: int | None, available: int | None):
        super().__init__(message)
        self.needed, self.available = needed, available


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled step."""

    text: str  # optimised HLO of one device
    seconds: float  # to lower and compile
    memory: dict[str, int]  # bytes per device: arguments, outputs, aliased, temporaries, code


def abstract_step(config: Config) -> tuple[Any, TrainState, dict[str, jax.ShapeDtypeStruct]]:
    """The task, and the shapes of its state and of a global batch."""
    task = make_task(config)
    frozen = task.frozen.shapes() if config.task == "tokenizer" else {}
    state = jax.eval_shape(task.init_state, jax.random.key(0), frozen)
    siglip, rows = config.model.siglip, config.train.batch_size
    batch = {
        "image": jax.ShapeDtypeStruct((rows, siglip.image_size, siglip.image_size, 3), jnp.uint8),
        "text": jax.ShapeDtypeStruct((rows, siglip.text_length), jnp.int32),
        "label": jax.ShapeDtypeStruct((rows,), jnp.int32),
        "weight": jax.ShapeDtypeStruct((rows,), jnp.float32),
    }
    return task, state, batch


def compile_step(config: Config, mesh: Mesh, low_effort: bool) -> Compiled:
    """The loop's own step for the mesh's devices; raises DoesNotFit, and ValueError for a batch that does not split."""
    sharding.check_batch(config.train.batch_size, mesh)
    task, state, batch = abstract_step(config)
    places = sharding.place(state, mesh)
    rows = jax.tree.map(lambda _: NamedSharding(mesh, sharding.BATCH), batch)
    put = lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)  # noqa: E731
    state, batch = jax.tree.map(put, state, places), jax.tree.map(put, batch, rows)
    started = time.perf_counter()
    with jax.set_mesh(mesh):
        lowered = loop.jit_step(task, places).lower(state, batch)
        try:
            compiled = lowered.compile(compiler_options=_LOW_EFFORT if low_effort else None)
        except jax.errors.JaxRuntimeError as error:
            raise _read(error) from None
    seconds = time.perf_counter() - started
    return Compiled(compiled.as_text(), seconds, _memory(compiled.memory_analysis()))


def _memory(analysis) -> dict[str, int]:
    return {
        "arguments": analysis.argument_size_in_bytes,
        "outputs": analysis.output_size_in_bytes,
        "aliased": analysis.alias_size_in_bytes,
        "temporaries": analysis.temp_size_in_bytes,
        "code": analysis.generated_code_size_in_bytes,
    }


def _read(error: Exception) -> Exception:
    """DoesNotFit in place of XLA's RESOURCE_EXHAUSTED, any other error as it is."""
    message = str(error)
    if "RESOURCE_EXHAUSTED" not in message:
        return error
    found = re.search(r"Used ([\d.]+\w?) of ([\d.]+\w?) hbm", message)
    needed, available = map(_bytes, found.groups()) if found else (None, None)
    return DoesNotFit(message, needed, available)


def _bytes(text: str) -> int:
    """Bytes of XLA's "30.80G"."""
    number, unit = re.fullmatch(r"([\d.]+)(\w?)", text).groups()
    return round(float(number) * 1024 ** "BKMGT".index(unit or "B"))
