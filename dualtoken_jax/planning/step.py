"""The loop's train step, compiled for devices that need not be here: from shapes and shardings, nothing allocated."""

import dataclasses
import math
import re
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from dualtoken_jax import loop, sharding
from dualtoken_jax.config import Config
from dualtoken_jax.planning import flops
from dualtoken_jax.planning.flops import Flops
from dualtoken_jax.tasks import make_task
from dualtoken_jax.tasks.state import TrainState

# A fraction of the compile time; what has to be kept in memory and what has to be sent hardly change.
LOW_EFFORT = {"exec_time_optimization_effort": -1.0}
# The arguments are in both, although the first speaks of temporaries: 19.48G for a step of 11.5 GiB arguments whose
# temporaries are 4.1 GiB at a quarter of its batch.
_NEEDED = (
    r"required for HLO temporaries \((?P<needed>[\d.]+\w?)\) exceeds available HBM \((?P<available>[\d.]+\w?)\)",
    r"Used (?P<needed>[\d.]+\w?) of (?P<available>[\d.]+\w?) hbm",
)


class DoesNotFit(Exception):
    """The compiler gave up for want of memory; `needed` and `available` in bytes per device, where it named them."""

    def __init__(self, message: str):
        super().__init__(message)
        found = next((match for form in _NEEDED if (match := re.search(form, message))), None)
        self.needed, self.available = map(_bytes, found.group("needed", "available")) if found else (None, None)


@dataclasses.dataclass(frozen=True)
class Step:
    """A step that is traced but not compiled."""

    traced: Any  # jax.stages.Traced
    mesh: Mesh
    parameters: dict[str, int]  # by network
    state_bytes: int  # of one device's part of the train state

    def flops(self, tile: int) -> Flops:
        """Executed by all devices together, recomputation included."""
        return flops.count_jaxpr(self.traced.jaxpr.jaxpr, tile)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled step."""

    text: str  # optimised HLO of one device
    seconds: float  # to lower and compile
    memory: dict[str, int]  # bytes per device: arguments, outputs, aliased, temporaries, code

    @property
    def total(self) -> int:
        """Bytes per device while the step runs; outputs that take the place of arguments count once."""
        memory = self.memory
        return sum(memory.values()) - 2 * memory["aliased"]


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


def trace_step(config: Config, mesh: Mesh) -> Step:
    """Raises ValueError for a batch that does not split over the mesh."""
    sharding.check_batch(config.train.batch_size, config.train.accumulate, mesh)
    task, state, batch = abstract_step(config)
    places = sharding.place(state, mesh)
    rows = jax.tree.map(lambda _: NamedSharding(mesh, sharding.BATCH), batch)
    put = lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)  # noqa: E731
    state, batch = jax.tree.map(put, state, places), jax.tree.map(put, batch, rows)
    with jax.set_mesh(mesh):
        traced = loop.jit_step(task, places).trace(state, batch)
    return Step(traced, mesh, _parameters(state), _state_bytes(state))


def compile_step(step: Step, low_effort: bool) -> Compiled:
    """The loop's own step for the mesh's devices; raises DoesNotFit."""
    started = time.perf_counter()
    for_tpu = step.mesh.devices.flat[0].platform == "tpu"  # other compilers do not know the option
    with jax.set_mesh(step.mesh):
        lowered = step.traced.lower()
        try:
            compiled = lowered.compile(compiler_options=LOW_EFFORT if low_effort and for_tpu else None)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise DoesNotFit(str(error)) from None
    return Compiled(compiled.as_text(), time.perf_counter() - started, _memory(compiled.memory_analysis()))


def mathematics(config: Config) -> Config:
    """The same step, written so that what it executes is what it is about."""
    siglip = dataclasses.replace(config.model.siglip, remat="none", attention="plain")
    return dataclasses.replace(config, model=dataclasses.replace(config.model, siglip=siglip))


def model_flops(config: Config, tile: int) -> Flops:
    """Of the step's mathematics, nothing recomputed and nothing padded."""
    task, state, batch = abstract_step(mathematics(config))
    return flops.count(partial(loop.counted_step, task), state, batch, tile=tile)


def _parameters(state: TrainState) -> dict[str, int]:
    """By network, the largest parts of the trained and the frozen ones apart."""
    networks = {name: part for name, part in state.params.items()}
    networks |= {
        "discriminator": state.discriminator,
        "codebooks": {b: c["embedding"] for b, c in state.codebooks.items()},
    }
    siglip = state.frozen.get("siglip", {})
    networks |= {f"teacher {name}": siglip[name] for name in ("vision", "text") if name in siglip}
    networks["lpips"] = state.frozen.get("lpips", {})
    sizes = {name: sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(part)) for name, part in networks.items()}
    return {name: size for name, size in sizes.items() if size}


def _state_bytes(state: TrainState) -> int:
    part = lambda leaf: math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize  # noqa: E731
    return sum(part(leaf) for leaf in jax.tree.leaves(state))


def _memory(analysis) -> dict[str, int]:
    return {
        "arguments": analysis.argument_size_in_bytes,
        "outputs": analysis.output_size_in_bytes,
        "aliased": analysis.alias_size_in_bytes,
        "temporaries": analysis.temp_size_in_bytes,
        "code": analysis.generated_code_size_in_bytes,
    }


def _bytes(text: str) -> int:
    """Bytes of XLA's "30.80G"."""
    number, unit = re.fullmatch(r"([\d.]+)(\w?)", text).groups()
    return round(float(number) * 1024 ** "BKMGT".index(unit or "B"))
