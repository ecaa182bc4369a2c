"""Public figures of accelerators, and how many links a chip has in a slice."""

import dataclasses
import math


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


def links(chip: Chip, slice_shape: tuple[int, ...]) -> float:
    """Links over which a chip of a slice sends at the same time, when a ring or a line runs through every axis.

    A torus closes an axis to a ring where the slice spans it: 16 chips on v5e and v6e, any multiple of 4 on v5p. On an
    open line each chip sends one way at a time.
    """
    if chip.torus == 0:
        return 1.0
    closes = (lambda n: n == 16) if chip.torus == 2 else (lambda n: n % 4 == 0)
    return float(sum(0 if n == 1 else 2 if closes(n) else 1 for n in slice_shape))


def shape_of(devices) -> tuple[int, ...]:
    """Chips along each axis of the slice, from the devices' coordinates."""
    coordinates = {tuple(device.coords) for device in devices if hasattr(device, "coords")}
    if not coordinates:
        return (len(devices),)
    shape = tuple(len({c[axis] for c in coordinates}) for axis in range(3))
    assert math.prod(shape) == len(coordinates), f"no full slice: {shape} for {len(coordinates)} chips"
    return shape
