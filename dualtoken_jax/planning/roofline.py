"""How fast a step could be: the longest of what its parts take at the chip's peak figures, and their sum.

A real step lies between: the compiler overlaps computing, reading and sending, but never all of it, and the vector unit
(norms, softmax, sorting) has no figure here.
"""

import dataclasses

from dualtoken_jax.planning.chips import Chip


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
    chip: Chip,
    chips: int,
    link_count: float,
    *,
    images: int,
    model_flops: float,
    tiled_flops: float,
    traffic: float,
    sent: float,
) -> Roofline:
    """`model_flops` and `tiled_flops` are the whole step's; `traffic` and `sent` bytes of one chip."""
    # One chip has no links, and sends nothing.
    network = sent / (link_count * chip.link_speed) if sent else 0.0
    return Roofline(
        compute=tiled_flops / chips / chip.flops,
        memory=traffic / chip.memory_speed,
        network=network,
        images=images,
        chips=chips,
        model_seconds=model_flops / chips / chip.flops,
    )
