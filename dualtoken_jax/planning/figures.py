"""All that a plan knows about one step on one mesh, as plain figures."""

import dataclasses
from functools import cached_property
from typing import Any

import jax

from dualtoken_jax import sharding
from dualtoken_jax.config import Config
from dualtoken_jax.planning import chips, hlo
from dualtoken_jax.planning.collectives import Collective, collectives
from dualtoken_jax.planning.flops import Flops
from dualtoken_jax.planning.roofline import Roofline, network_seconds, roofline
from dualtoken_jax.planning.step import Compiled, DoesNotFit, Step, compile_step, mathematics, model_flops, trace_step
from dualtoken_jax.planning.traffic import traffic

_TILE = 128  # of a chip without figures


@dataclasses.dataclass(frozen=True)
class Plan:
    """One step on one mesh; bytes and counts are of one device, FLOPs of all together."""

    config: Config
    devices: int
    kind: str  # as JAX names the device
    chip: chips.Chip | None  # None where there are no public figures, as for a CPU
    mesh: dict[str, int]
    parameters: dict[str, int]
    state_bytes: int
    model: Flops
    executed: Flops
    compiled: Compiled | None  # None where it does not fit
    needed: int | None  # bytes in all that the compiler says it needs, where it does not fit
    available: int | None  # bytes of memory, where known
    program: hlo.Module | None
    links: dict[int, float]  # over which a device sends, by the devices of a group

    @property
    def fits(self) -> bool:
        """Whether the compiler found room; without a limit on memory everything fits."""
        return self.compiled is not None

    @property
    def rows(self) -> int:
        """Images of one device in a step; those of a tensor group share theirs."""
        return self.config.train.batch_size // (self.mesh["data"] * self.mesh["fsdp"])

    @cached_property
    def roofline(self) -> Roofline | None:
        """None where it does not fit or the chip has no figures."""
        if self.chip is None or self.program is None:
            return None
        return roofline(
            self.chip,
            self.devices,
            images=self.config.train.batch_size,
            model_flops=self.model.exact,
            tiled_flops=self.executed.tiled,
            traffic=self.traffic,
            network=network_seconds(self.chip, self.collectives.values(), self.links),
        )

    @cached_property
    def collectives(self) -> dict[str, Collective]:
        """What a device sends, by kind; only where it fits."""
        return collectives(self.program)

    @cached_property
    def traffic(self) -> float:
        """Bytes that a device reads and writes; only where it fits."""
        return traffic(self.program)

    def to_json(self) -> dict[str, Any]:
        """Every figure, with units in the names where they are not bytes or counts."""
        images, bound = self.config.train.batch_size, self.roofline
        figures: dict[str, Any] = {
            "recipe": self.config.name,
            "devices": self.devices,
            "device_kind": self.kind,
            "mesh": self.mesh,
            "batch_size": images,
            "images_per_device": self.rows,
            "remat": self.config.model.siglip.remat,
            "attention": self.config.model.siglip.attention,
            "parameters": self.parameters,
            "flops_per_image": {
                "model": self.model.exact / images,
                "executed": self.executed.exact / images,
                "executed_tiled": self.executed.tiled / images,
            },
            "memory_per_device": {"state": self.state_bytes, "available": self.available, "fits": self.fits},
        }
        if not self.fits:
            figures["memory_per_device"]["needed"] = self.needed
            return figures
        figures["memory_per_device"] |= self.compiled.memory | {"total": self.compiled.total}
        figures["collectives_per_device"] = {kind: dataclasses.asdict(c) for kind, c in self.collectives.items()}
        figures["traffic_per_device"] = self.traffic
        figures["loops_of_unknown_length"] = self.program.unknown_loops
        figures["compile_seconds"] = self.compiled.seconds
        if bound:
            seconds = {"compute": bound.compute, "memory": bound.memory, "network": bound.network}
            figures["roofline"] = {"seconds": seconds, "bound": bound.bound} | bound.rates()
            figures["chip"] = dataclasses.asdict(self.chip) | {"links": self.links}
        return figures


class Planner:
    """Plans steps for a set of devices; what several of them share is worked out once."""

    def __init__(self, devices: list[jax.Device], low_effort: bool):
        self.devices, self.low_effort = devices, low_effort
        self.kind = devices[0].device_kind
        self.chip = chips.find_chip(self.kind)
        self._model: dict[Any, Flops] = {}  # of one image

    def plan(self, config: Config) -> Plan:
        """Compiles the step; raises ValueError for a mesh or a batch that does not divide."""
        mesh = sharding.make_mesh(config.mesh, self.devices)
        step = trace_step(config, mesh)
        tile = self.chip.tile if self.chip else _TILE
        executed = step.flops(tile)
        try:
            compiled, needed, available = compile_step(step, self.low_effort), None, None
        except DoesNotFit as error:
            compiled, needed, available = None, error.needed, error.available
        if available is None and self.chip:
            available = int(self.chip.memory)
        return Plan(
            config=config,
            devices=len(self.devices),
            kind=self.kind,
            chip=self.chip,
            mesh=dict(mesh.shape),
            parameters=step.parameters,
            state_bytes=step.state_bytes,
            model=self._mathematics(config, step, executed, tile),
            executed=executed,
            compiled=compiled,
            needed=needed,
            available=available,
            program=hlo.parse(compiled.text) if compiled else None,
            links=chips.group_links(self.chip, mesh) if self.chip else {},
        )

    def _mathematics(self, config: Config, step: Step, executed: Flops, tile: int) -> Flops:
        plain, images = mathematics(config), config.train.batch_size
        if plain == config:
            return executed
        same = plain.model
        if same not in self._model:
            self._model[same] = model_flops(config, tile).times(1 / images)
        return self._model[same].times(images)
