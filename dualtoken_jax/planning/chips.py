"""Public figures of accelerators, and over how many links the chips of a slice reach each other."""

import dataclasses
import itertools

import numpy as np
from jax.sharding import Mesh


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator; figures are peaks from its maker's page."""

    name: str
    kind: str  # jax.Device.device_kind
    flops: float  # bfloat16 operations a second
    memory: float  # bytes
    memory_speed: float  # bytes a second
    link_speed: float  # bytes a second out of one link
    torus: int  # axes of the network: 2 or 3; 0 for one switch with a single link to each chip
    tile: int  # rows and columns of the matrix unit
    source: str


_GOOGLE = "https://docs.cloud.google.com/tpu/docs/"
_NVIDIA = "https://www.nvidia.com/en-us/data-center/"
# Google gives the bandwidth of a chip in both directions over all its ports: one way and one link is a half of it by
# the number of ports (4 on v5e and v6e, 6 on v5p).
CHIPS = (
    Chip("v5e", "TPU v5 lite", 197e12, 16 * 2**30, 819e9, 400e9 / 2 / 4, 2, 128, _GOOGLE + "v5e"),
    Chip("v5p", "TPU v5", 459e12, 95 * 2**30, 2765e9, 1200e9 / 2 / 6, 3, 128, _GOOGLE + "v5p"),
    Chip("v6e", "TPU v6 lite", 918e12, 32 * 2**30, 1600e9, 800e9 / 2 / 4, 2, 256, _GOOGLE + "v6e"),
    Chip("H100", "NVIDIA H100 80GB HBM3", 989e12, 80e9, 3350e9, 450e9, 0, 64, _NVIDIA + "h100"),
    Chip("H200", "NVIDIA H200", 989e12, 141e9, 4800e9, 450e9, 0, 64, _NVIDIA + "h200"),
)


def find_chip(kind: str) -> Chip | None:
    """The chip that JAX calls `kind`; None for one without figures here, such as a CPU."""
    return next((chip for chip in CHIPS if chip.kind == kind), None)


def group_links(chip: Chip, mesh: Mesh) -> dict[int, float]:
    """By the size of a group of devices along some axes of the mesh: links over which each sends at the same time.

    A group sends along every axis of the slice in which it extends: both ways where it fills an axis that the torus
    closes to a ring (16 chips on v5e and v6e, multiples of 4 on v5p), one way elsewhere. Of two groups of one size the
    worse one counts.
    """
    found: dict[int, float] = {}
    slice_shape = _extents(mesh.devices.flat)
    for count in range(1, len(mesh.shape) + 1):
        for axes in itertools.combinations(range(len(mesh.shape)), count):
            along = tuple(slice(None) if axis in axes else 0 for axis in range(len(mesh.shape)))
            group = np.ravel(mesh.devices[along])
            if len(group) > 1:
                links = _links(chip, _extents(group), slice_shape)
                found[len(group)] = min(links, found.get(len(group), links))
    return found


def _links(chip: Chip, extents: tuple[int, ...], slice_shape: tuple[int, ...]) -> float:
    if chip.torus == 0:
        return 1.0
    closes = (lambda n: n == 16) if chip.torus == 2 else (lambda n: n % 4 == 0)
    ring = lambda n, whole: n == whole and closes(whole)  # noqa: E731
    return float(sum(2 if ring(n, whole) else 1 for n, whole in zip(extents, slice_shape, strict=True) if n > 1))


def _extents(devices) -> tuple[int, ...]:
    """Chips along each axis of the slice that these devices stand on."""
    places = [tuple(device.coords) for device in devices if hasattr(device, "coords")]
    return tuple(len(set(axis)) for axis in zip(*places, strict=True))
