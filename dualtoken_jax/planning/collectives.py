"""What the devices send each other in one step, read from the compiled program."""

import collections
import dataclasses
import math
import re

from dualtoken_jax.planning.hlo import Instruction, Module

# Bytes that leave a device per byte of the whole array, in a group of n that passes parts around a ring.
_SENT = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: (n - 1) / n,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "ragged-all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
    "collective-broadcast": lambda n: 1,
}
_FUSED_SCATTER = "all-reduce-scatter"  # TPU: an all-reduce of which each device keeps its part, as one instruction


@dataclasses.dataclass(frozen=True)
class Collective:
    """One kind in one step."""

    count: float  # how often it runs
    bytes: float  # whole arrays that are reduced, gathered, exchanged or passed on
    sent: float  # bytes that leave each device
    groups: dict[int, float]  # the same by the devices of a group; 0 where the program names pairs


def collectives(module: Module) -> dict[str, Collective]:
    """By kind, of a device; loops multiplied out, groups of one device left out."""
    totals: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    runs = module.runs()
    for name, instructions in module.computations.items():
        for instruction in instructions:
            kind = instruction.opcode.removesuffix("-start")
            if not runs[name] or kind not in _SENT:
                continue
            size, group = _whole(instruction, kind), _group(instruction.attributes)
            kind = "reduce-scatter" if name.startswith(_FUSED_SCATTER) else kind
            if group != 1:
                sent = size * (_SENT[kind](group) if group else 1) * runs[name]
                totals[kind].update({"count": runs[name], "bytes": size * runs[name], group or 0: sent})
    return {kind: _total(found) for kind, found in sorted(totals.items())}


def _total(found: collections.Counter) -> Collective:
    groups = {size: sent for size, sent in found.items() if isinstance(size, int)}
    return Collective(found["count"], found["bytes"], sum(groups.values()), groups)


def _whole(instruction: Instruction, kind: str) -> float:
    """Bytes of the whole arrays: the results, or all devices' parts of them."""
    results = [array.bytes for array in instruction.arrays]
    if instruction.opcode.endswith("-start") and kind != "all-reduce":
        # (operands, results, and for permutes two counters)
        half = len(instruction.operands)
        results = results[half : 2 * half]
    scale = (_group(instruction.attributes) or 1) if kind == "reduce-scatter" else 1
    return float(sum(results) * scale)


def _group(attributes: str) -> int | None:
    """Devices in a group; None where the collective names pairs, or nothing, instead."""
    if meshed := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\([^{]*\))? \{([^}]*)\}", attributes):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", meshed[1])}
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", meshed[2])  # an axis, or a part of one
        return math.prod(int(part) if part else sizes[name] for name, part in axes)
    if counted := re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes):
        return int(counted[2])
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return len(listed[1].split(","))
    return None
