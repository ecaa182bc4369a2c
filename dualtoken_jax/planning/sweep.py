"""Tries batch sizes, remat policies and meshes, and ranks those that fit."""

import dataclasses
from collections.abc import Callable, Iterator

from dualtoken_jax.config import Config
from dualtoken_jax.planning.advice import fitting_rows
from dualtoken_jax.planning.figures import Plan, Planner

REMATS = ("none", "dots", "full")
_FSDP = 8  # devices; more of them gather over longer ways, and what they save is small by then
_TRIES = 3  # compilations for one mesh and policy
_MOST_ROWS = 64  # images on a device; beyond it nothing gets faster


def sweep(config: Config, planner: Planner, told: Callable[[Plan], None]) -> list[Plan]:
    """All that was compiled, the fastest per device first and what does not fit last; `told` hears of each at once.

    The global batch changes with the images on a device: learning rate and schedule are the reader's to adapt.
    """
    plans = []
    for start in candidates(config, len(planner.devices)):
        for plan in _largest(start, planner):
            told(plan)
            plans.append(plan)
    return sorted(plans, key=speed, reverse=True)


def candidates(config: Config, devices: int) -> Iterator[Config]:
    """The config on each mesh with each remat policy."""
    for fsdp in sorted({1, min(_FSDP, devices)}):
        if devices % (fsdp * (config.mesh.tensor or 1)) == 0:
            mesh = dataclasses.replace(config.mesh, data=None, fsdp=fsdp)
            for remat in REMATS:
                siglip = dataclasses.replace(config.model.siglip, remat=remat)
                model = dataclasses.replace(config.model, siglip=siglip)
                yield dataclasses.replace(config, mesh=mesh, model=model)


def _largest(config: Config, planner: Planner) -> Iterator[Plan]:
    """Plans towards the largest power of two of images on a device that fits."""
    rows, groups, tried = 8, len(planner.devices) // (config.mesh.tensor or 1), set()
    for _ in range(_TRIES):
        if rows in tried:
            return
        tried.add(rows)
        train = dataclasses.replace(config.train, batch_size=rows * groups)
        plan = planner.plan(dataclasses.replace(config, train=train))
        yield plan
        if plan.state_bytes > (plan.available or float("inf")):
            return  # no batch is small enough
        rows = min(fitting_rows(plan), _MOST_ROWS)


def speed(plan: Plan) -> float:
    """Images a second of a device: between both bounds of the roofline, 0 where it does not fit or none is known."""
    if plan.roofline is None:
        return 0.0
    rates = plan.roofline.rates().values()
    return len(rates) / sum(1 / rate["images_per_second_per_chip"] for rate in rates)
