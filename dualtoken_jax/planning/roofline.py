"""How fast a step could be: the longest of what its parts take at the chip's peak figures, and their sum.

A real step lies between: the compiler overlaps computing, reading and sending, but never all of it, and the vector unit
(norms, softmax, sorting) has no figure here.
"""

import dataclasses
from collections.abc import Iterable

from dualtoken_jax.planning.chips import Chip
from dualtoken_jax.planning.collectives import Collective


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds of one step, and what follows from them."""

    compute: float  # executed matrix products, shapes rounded up to the matrix unit's tiles
    memory: float
    network: float
    images: int  # rows of the global batch
    chips: int
    model_seconds: float  # the step's mathematics, nothing recomputed, at the peak

    @property
    def bound(self) -> str:
        """What takes longest."""
        return max(("compute", "memory", "network"), key=lambda name: getattr(self, name))

    @property
    def best(self) -> float:
        """Seconds when everything overlaps."""
        return max(self.compute, self.memory, self.network)

    @property
    def worst(self) -> float:
        """Seconds when nothing does."""
        return self.compute + self.memory + self.network

    def rates(self) -> dict[str, dict[str, float]]:
        """By 'overlapped' and 'one_by_one': seconds, images/s, images/s per chip, model FLOPs utilisation."""
        return {name: self._rate(s) for name, s in (("overlapped", self.best), ("one_by_one", self.worst))}

    def _rate(self, seconds: float) -> dict[str, float]:
        rate = self.images / seconds
        return {
            "seconds": seconds,
            "images_per_second": rate,
            "images_per_second_per_chip": rate / self.chips,
            "model_flops_utilisation": self.model_seconds / seconds,
        }


def roofline(
    chip: Chip, chips: int, *, images: int, model_flops: float, tiled_flops: float, traffic: float, network: float
) -> Roofline:
    """`model_flops` and `tiled_flops` are the whole step's; `traffic` the bytes, `network` the seconds of one chip."""
    return Roofline(
        compute=tiled_flops / chips / chip.flops,
        memory=traffic / chip.memory_speed,
        network=network,
        images=images,
        chips=chips,
        model_seconds=model_flops / chips / chip.flops,
    )


def network_seconds(chip: Chip, found: Iterable[Collective], links: dict[int, float]) -> float:
    """What sending takes, one collective after the other; a group of a size that no mesh axis has gets one link."""
    groups = [item for one in found for item in one.groups.items()]
    return sum(sent / (links.get(size, 1.0) * chip.link_speed) for size, sent in groups)
