"""A plan in words and columns."""

from dualtoken_jax.planning.advice import advice
from dualtoken_jax.planning.figures import Plan

_GIB = 2**30


def report(plan: Plan) -> str:
    """Everything about one plan."""
    parts = [_head(plan), _parameters(plan), _flops(plan), _memory(plan)]
    if plan.fits:
        parts += [_collectives(plan), _roofline(plan)]
    if lines := advice(plan):
        parts.append("advice\n" + "\n".join(f"  - {line}" for line in lines))
    return "\n\n".join(parts)


def line(plan: Plan) -> str:
    """One plan of a sweep."""
    mesh = " × ".join(f"{name} {size}" for name, size in plan.mesh.items())
    start = f"{plan.rows:4} images/device  remat {plan.config.model.siglip.remat:5}  {mesh:32}"
    if not plan.fits:
        return start + "  does not fit"
    memory = f"  {plan.compiled.total / _GIB:6.1f} GiB"
    if plan.roofline is None:
        return start + memory
    best, worst = plan.roofline.rates().values()
    span = lambda name, form: f"{worst[name]:{form}} – {best[name]:{form}}"  # noqa: E731
    speed = f"{span('images_per_second', '8,.0f')} images/s  MFU {span('model_flops_utilisation', '4.0%')}"
    return f"{start}{memory}  {speed}  {plan.roofline.bound}"


def _head(plan: Plan) -> str:
    mesh = ", ".join(f"{name} {size}" for name, size in plan.mesh.items())
    train, siglip = plan.config.train, plan.config.model.siglip
    return (
        f"{plan.config.name} on {plan.devices} × {plan.kind}: mesh {mesh}; batch {train.batch_size}, "
        f"{plan.rows} images on a device; {siglip.dtype}, remat {siglip.remat}"
    )


def _parameters(plan: Plan) -> str:
    rows = [f"  {name:<16} {size / 1e6:9.1f} M" for name, size in plan.parameters.items()]
    return "parameters\n" + "\n".join(rows)


def _flops(plan: Plan) -> str:
    images = plan.config.train.batch_size
    executed, model = plan.executed.exact / images / 1e9, plan.model.exact / images / 1e9
    return (
        "GFLOP of matrix products for an image\n"
        f"  {'model':<16} {model:9,.1f}\n"
        f"  {'executed':<16} {executed:9,.1f}  with what remat computes again\n"
        f"  {'in tiles':<16} {plan.executed.tiled / images / 1e9:9,.1f}  with shapes rounded up to the matrix unit's"
    )


def _memory(plan: Plan) -> str:
    gib = lambda size: f"{size / _GIB:9.2f} GiB"  # noqa: E731
    rows = [f"  {'train state':<16} {gib(plan.state_bytes)}"]
    if plan.fits:
        rows += [f"  {name:<16} {gib(size)}" for name, size in plan.compiled.memory.items()]
        rows.append(f"  {'in all':<16} {gib(plan.compiled.total)}  (aliased outputs take the place of arguments)")
    elif plan.needed:
        rows.append(f"  {'needed in all':<16} {gib(plan.needed)}")
    if plan.available:
        rows.append(f"  {'of':<16} {gib(plan.available)}")
    return "memory of a device" + ("" if plan.fits else ": it does NOT fit") + "\n" + "\n".join(rows)


def _collectives(plan: Plan) -> str:
    if not plan.collectives:
        return "sent between devices\n  nothing"
    rows = [
        f"  {kind:<19} {one.count:6,.0f} ×  {one.bytes / 1e6:10,.1f} MB  {one.sent / 1e6:10,.1f} MB leave a device"
        for kind, one in plan.collectives.items()
    ]
    return "sent between devices in a step\n" + "\n".join(rows)


def _roofline(plan: Plan) -> str:
    bound = plan.roofline
    if bound is None:
        return f"no speed: there are no public figures here for {plan.kind!r} (planning/chips.py)"
    rows = [f"  {name:<16} {1e3 * getattr(bound, name):9.1f} ms" for name in ("compute", "memory", "network")]
    for name, rate in zip(("all overlapped", "one by one"), bound.rates().values(), strict=True):
        rows.append(
            f"  {name:<16} {1e3 * rate['seconds']:9.1f} ms  {rate['images_per_second']:10,.0f} images/s, model FLOPs "
            f"utilisation {rate['model_flops_utilisation']:.0%}"
        )
    source = f"  peaks of {plan.chip.name}: {plan.chip.source}; a prediction, nothing ran"
    return f"roofline of a step, bound by {bound.bound}\n" + "\n".join([*rows, source])
