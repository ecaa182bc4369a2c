"""The mesh, the one rule that places the whole train state, and the placement of batches."""

import dataclasses

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec(("data", "fsdp"))  # rows of a batch
_SMALL = 2**14  # elements; below this, splitting an array costs more in messages than it saves in memory


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis. `data` takes whatever the other axes leave."""

    fsdp: int = 1  # devices over which parameters, moments and batch rows are split
    tensor: int = 1  # devices over which wide matrices are split


def make_mesh(config: MeshConfig) -> Mesh:
    """All devices as a (data, fsdp, tensor) mesh.

    Raises ValueError when the axes do not divide the devices, or when parameters would be split over both.
    """
    if config.fsdp > 1 and config.tensor > 1:
        # Found by tests/test_tokenizer.py on a 2 × 2 × 2 mesh: either axis alone agrees with one device to 1e-5.
        raise ValueError(
            f"mesh.fsdp {config.fsdp} and mesh.tensor {config.tensor} together give other results than one device "
            "(a loss term 1 % off after one step, jax 0.10 and 0.12); use one of them, the other at 1"
        )
    devices = jax.device_count()
    if devices % (config.fsdp * config.tensor):
        raise ValueError(
            f"mesh.fsdp × mesh.tensor = {config.fsdp} × {config.tensor} does not divide the {devices} devices; "
            "choose factors of the device count"
        )
    shape = (devices // (config.fsdp * config.tensor), config.fsdp, config.tensor)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3)


def place(shapes, mesh: Mesh):
    """Shardings for every leaf of `shapes`: its largest divisible axis over fsdp, the next over tensor."""
    return jax.tree.map(lambda leaf: NamedSharding(mesh, _spec(leaf.shape, mesh)), shapes)


def _spec(shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    spec: list[str | None] = [None] * len(shape)
    if np.prod(shape, dtype=np.int64) >= _SMALL:
        for name in ("fsdp", "tensor"):
            size = mesh.shape[name]
            free = [a for a in range(len(shape)) if spec[a] is None and shape[a] % size == 0]
            if size > 1 and free:
                spec[max(free, key=lambda a: shape[a])] = name
    return PartitionSpec(*spec)


def check_batch(batch_size: int, mesh: Mesh) -> None:
    """Raises ValueError unless the global batch splits evenly over the devices that hold rows."""
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % rows:
        raise ValueError(f"batch_size {batch_size} is not divisible by the {rows} devices that share its rows")


def to_global(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This host's rows of a batch as global arrays, row r at position r whatever the number of hosts."""
    sharding = NamedSharding(mesh, BATCH)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def constrain_batch(x: jax.Array) -> jax.Array:
    """Keeps axis 0 split over the batch axes, lest the compiler gather activations. No-op without a mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, BATCH)
