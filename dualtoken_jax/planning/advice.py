"""What to change when a step does not fit, or wastes the chips."""

import dataclasses

from dualtoken_jax.config import Config, ConfigError
from dualtoken_jax.config_checks import check
from dualtoken_jax.planning.figures import Plan

_GIB = 2**30
_LIGHTER = {"none": "dots", "dots": "full"}  # the remat policy that keeps less
_ROOM = 0.6  # of the memory: below this, something could be kept instead of computed again, or the batch be larger
_TOKENS = 256  # of an image; of so many, attention's weights are no larger than the MLP's activations
_LARGE = 0.25  # of the memory: above this, the state is worth splitting


def advice(plan: Plan) -> list[str]:
    """One line each, the most useful first; empty where nothing needs to change."""
    return _to_fit(plan) if not plan.fits else _to_be_faster(plan)


def _to_fit(plan: Plan) -> list[str]:
    lines, remat = [], plan.config.model.siglip.remat
    state, room = plan.state_bytes, plan.available
    unsplit = plan.devices // (plan.mesh["fsdp"] * plan.mesh["tensor"])
    if unsplit > 1 and (room is None or state > _LARGE * room):
        fsdp = plan.mesh["fsdp"] * min(unsplit, 8)
        lines.append(
            f"the train state takes {state / _GIB:.1f} GiB on every device; split it: --config.mesh.fsdp={fsdp}"
        )
    if remat in _LIGHTER:
        lines.append(f"keep less for the backward pass: --config.model.siglip.remat={_LIGHTER[remat]}")
    if plan.rows > 1:
        rows = fitting_rows(plan)
        parts = plan.config.train.accumulate * plan.rows // rows
        if _may_accumulate(plan.config, parts):
            lines.append(f"the batch in {parts} parts, one after another: --config.train.accumulate={parts}")
        batch = rows * plan.mesh["data"] * plan.mesh["fsdp"]
        lines.append(
            f"fewer images on a device, {rows} instead of {plan.rows}: --config.train.batch_size={batch}, "
            "or as many more devices"
        )
    return lines or ["one image on a device is too much, with everything split and computed again: use larger chips"]


def _may_accumulate(config: Config, parts: int) -> bool:
    try:
        check(dataclasses.replace(config, train=dataclasses.replace(config.train, accumulate=parts)))
    except ConfigError:
        return False  # codebooks that are rewritten within a lookup need the whole batch
    return True


def fitting_rows(plan: Plan) -> int:
    """The largest power of two of images on a device that should fit, by proportion; half of them if nothing is known.

    What is needed beside the state grows in proportion to the rows at most.
    """
    total = plan.compiled.total if plan.fits else plan.needed
    if total is None or plan.available is None or total <= plan.state_bytes:
        return max(1, plan.rows * (2 if plan.fits else 1) // 2)
    most = (plan.available - plan.state_bytes) / ((total - plan.state_bytes) / plan.rows)
    rows = 1
    while 2 * rows <= most:
        rows *= 2
    return rows if plan.fits else min(rows, max(1, plan.rows // 2))


def _to_be_faster(plan: Plan) -> list[str]:
    lines, bound = [], plan.roofline
    if bound is None:
        return lines
    used, siglip = plan.compiled.total / plan.available, plan.config.model.siglip
    if bound.bound == "memory" and siglip.attention == "plain" and siglip.grid**2 > _TOKENS:
        lines.append("attention writes and reads its weights: --config.model.siglip.attention=fused")
    batch = fitting_rows(plan) * plan.mesh["data"] * plan.mesh["fsdp"]
    if bound.bound != "compute" and batch > plan.config.train.batch_size:
        what = {"memory": "reading and writing memory", "network": "sending"}[bound.bound]
        lines.append(f"{what} takes longest; a larger batch shares it: --config.train.batch_size={batch}")
    if bound.bound == "network" and plan.mesh["fsdp"] > 1:
        lines.append("parameters are gathered for every step; fewer devices may do it: lower mesh.fsdp")
    if used < _ROOM and siglip.remat != "none" and bound.bound == "compute":
        lines.append(
            f"{used:.0%} of the memory is used and {plan.executed.exact / plan.model.exact - 1:.0%} is computed again; "
            "keep more: --config.model.siglip.remat=dots"
        )
    return lines
