"""The mesh, the one rule that places the whole train state, and the placement of batches.

`fsdp` splits what is stored, never what is multiplied: a parameter is gathered over it where it is used (`for_use`) and
its gradient is split again. `tensor` splits both: the wide axis of a matrix, Megatron's way (arXiv 1909.08053).
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dualtoken_jax.paths import is_stacked, names

AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec(("data", "fsdp"))  # rows of a batch
_SMALL = 2**14  # elements; below this, splitting an array costs more in messages than it saves in memory
_ROWS = (
    8  # of a tile in a TPU's memory; of a 4304-wide matrix XLA gathers eight parts of 538 rows as twice as many bytes
)
_FROM_HEADS = "out"  # the linear map after attention; it reads the split heads, so that its rows are split


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; one of them may be None, which takes what the others leave."""

    data: int | None = None  # devices over which batch rows are split; the only axis that spans slices of TPUs
    fsdp: int | None = 1  # devices over which parameters, moments and batch rows are split
    tensor: int | None = 1  # devices over which wide matrices are split


def axis_sizes(config: MeshConfig, devices: int) -> tuple[int, int, int]:
    """Devices along AXES; raises ValueError when they are not `devices` together."""
    sizes = [getattr(config, name) for name in AXES]
    open_axes = [i for i, size in enumerate(sizes) if size is None]
    fixed = math.prod(size for size in sizes if size is not None)
    if len(open_axes) == 1 and devices % fixed == 0:
        sizes[open_axes[0]] = devices // fixed
    if None in sizes or math.prod(sizes) != devices:
        stated = ", ".join(f"mesh.{name} {getattr(config, name)}" for name in AXES)
        raise ValueError(
            f"{stated} do not make up the {devices} devices; choose factors of their number, and None for the one axis "
            "that takes what the others leave"
        )
    return tuple(sizes)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The devices (all, if none are given) as a (data, fsdp, tensor) mesh, each slice of a TPU a part of the data axis.

    Raises ValueError when the axes do not make up the devices, or fsdp and tensor do not fit into a slice.
    """
    devices, types = jax.devices() if devices is None else devices, (AxisType.Auto,) * 3
    sizes = axis_sizes(config, len(devices))
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        # Not jax.make_mesh: of a 16×16 v6e slice it makes no axis of 8, which is half a row.
        grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
        return Mesh(grid, AXES, axis_types=types)
    if sizes[0] % slices:
        raise ValueError(
            f"mesh.data {sizes[0]} is not divisible by the {slices} slices; between slices there is only a network, so "
            "that fsdp and tensor must fit into one: lower mesh.fsdp or mesh.tensor"
        )
    within = (sizes[0] // slices, *sizes[1:])
    grid = mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1), devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types=types)


def place(shapes, mesh: Mesh):
    """Shardings for every leaf of `shapes`: its largest divisible axis over tensor, the next over fsdp.

    Over fsdp rather one whose parts fill a TPU's tiles, even if it is smaller; over tensor Megatron says which.
    A stacked layer is placed as a single one is; the layer axis itself is never split.
    """
    place_leaf = lambda path, leaf: NamedSharding(mesh, PartitionSpec(*_stored(path, leaf.shape, mesh)))  # noqa: E731
    return jax.tree_util.tree_map_with_path(place_leaf, shapes)


def _stored(path, shape: tuple[int, ...], mesh) -> list[str | None]:
    if is_stacked(path) and shape:
        return [None, *_split(path, shape[1:], mesh)]
    return _split(path, shape, mesh)


def _split(path, shape: tuple[int, ...], mesh) -> list[str | None]:
    spec: list[str | None] = [None] * len(shape)
    if np.prod(shape, dtype=np.int64) >= _SMALL:
        # In square matrices the outputs are split; where the inputs come split from attention's heads, the inputs.
        first = -1 if _FROM_HEADS in names(path) else 1
        for name in ("tensor", "fsdp"):
            size = mesh.shape[name]
            free = [a for a in range(len(shape)) if spec[a] is None and shape[a] % size == 0]
            if size > 1 and free:
                tiled = [a for a in free if name == "fsdp" and shape[a] // size % _ROWS == 0]
                spec[max(tiled or free, key=lambda a: (shape[a], first * a))] = name
    return spec


def for_use(params):
    """Parameters gathered over fsdp, as they are multiplied; no-op without a mesh.

    Stacked layers stay as they are: gathered one at a time, by whoever takes them off the stack, they need no room.
    Gradients take the same way back: whole sums first, then split as the parameters are stored.
    """
    # Not only FSDP's definition: given a kernel that is split over fsdp as the batch is, XLA's partitioner miscounts
    # (jax 0.10.2 and 0.12.0.1). On a (2, 2, 2) mesh, jit(lambda x, w: constrain(x @ w, P(("data", "fsdp"), "tensor")))
    # of x: P(("data", "fsdp"), "tensor"), w: P("tensor", "fsdp") returns rows in another order than x @ w.
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape["fsdp"] == 1:
        return params
    constrain = jax.lax.with_sharding_constraint

    def gather(path, leaf):
        stored = _stored(path, leaf.shape, mesh)
        if is_stacked(path) or "fsdp" not in stored:
            return leaf
        used = [None if name == "fsdp" else name for name in stored]
        return constrain(constrain(leaf, PartitionSpec(*stored)), PartitionSpec(*used))

    return jax.tree_util.tree_map_with_path(gather, params)


def replicate(tree):
    """Arrays that every device needs whole; no-op without a mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, PartitionSpec()), tree)


def check_batch(batch_size: int, accumulate: int, mesh: Mesh) -> None:
    """Raises ValueError unless each part of the global batch splits evenly over the devices that hold rows."""
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % (rows * accumulate):
        parts = f" in {accumulate} parts (accumulate)" if accumulate > 1 else ""
        raise ValueError(f"batch_size {batch_size} is not divisible by the {rows} devices that share its rows{parts}")


def host_rows(batch_size: int, mesh: Mesh) -> np.ndarray:
    """Rows of the global batch that this host's devices hold, int64, ascending; they need not be neighbours.

    Hosts may share rows (where tensor spans them); each then reads them.
    """
    places = NamedSharding(mesh, BATCH).addressable_devices_indices_map((batch_size,))
    return np.unique(np.concatenate([np.arange(batch_size)[rows] for rows in places.values()]))


def to_global(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This host's rows of a batch (those of `host_rows`) as global arrays, row r at position r on every topology."""
    sharding, blocks = NamedSharding(mesh, BATCH), mesh.shape["data"] * mesh.shape["fsdp"]
    held = host_rows(blocks, mesh)  # the batch comes in as many blocks of rows

    def assemble(local: np.ndarray) -> jax.Array:
        size = len(local) // len(held)  # rows of a block

        def rows(index):
            first = int(np.searchsorted(held, (index[0].start or 0) // size)) * size
            return local[first : first + size]

        return jax.make_array_from_callback((size * blocks, *local.shape[1:]), sharding, rows)

    return {name: assemble(local) for name, local in batch.items()}


def constrain_batch(x: jax.Array) -> jax.Array:
    """Keeps axis 0 split over the batch axes, lest the compiler gather activations. No-op without a mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, BATCH)
