"""Bytes that a step moves between a device's main memory and its cores, read from the compiled program.

Each instruction that is not inside a fusion reads its operands and writes its results once. Slices count what they
take, not what they take it from, and arrays that the compiler keeps beside the cores count nothing.
"""

from collections.abc import Iterator

from dualtoken_jax.planning.hlo import Instruction, Module

# They name, group or order what others have written, or run computations that are counted by themselves.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "partition-id", "replica-id", "iota", "opt-barrier", "async-start", "async-update", "async-done", "domain",
}  # fmt: skip
_PART = {"dynamic-slice", "slice", "gather"}
_RENAMES = {"bitcast", "reshape", "copy", "convert"}


def traffic(module: Module) -> float:
    """Bytes read and written by one device in one step."""
    return sum(moved for _, moved in moves(module))


def moves(module: Module) -> Iterator[tuple[Instruction, float]]:
    """The bytes of each instruction, over all the times that it runs in one step."""
    runs, fused = module.runs(), _fused(module)
    for name, instructions in module.computations.items():
        if runs[name] and name not in fused:
            shapes = {instruction.name: instruction for instruction in instructions}
            for instruction in instructions:
                yield instruction, runs[name] * _moved(instruction, shapes, module)


def _fused(module: Module) -> set[str]:
    """Computations whose intermediate values never reach memory: bodies of fusions, reductions, sorts."""
    found = set()
    for instructions in module.computations.values():
        for instruction in instructions:
            if instruction.opcode not in ("while", "conditional", "call", "async-start"):
                found.update(instruction.called)
    return found


def _moved(instruction: Instruction, shapes: dict[str, Instruction], module: Module) -> float:
    if instruction.opcode in _FREE or instruction.opcode.endswith("-done"):
        return 0.0
    if instruction.opcode.endswith("-start"):  # a copy's shape is (destination, source, counters)
        return float(sum(array.bytes for array in instruction.arrays[:2] if not array.on_chip))
    if instruction.opcode in _PART:
        return 2.0 * _size(instruction)
    if instruction.opcode == "dynamic-update-slice":
        return 2.0 * _size(shapes.get(instruction.operands[1]))
    if instruction.opcode == "fusion":
        return _fusion(instruction, shapes, module)
    return _size(instruction) + sum(_size(shapes.get(name)) for name in instruction.operands)


def _fusion(instruction: Instruction, shapes: dict[str, Instruction], module: Module) -> float:
    body = module.computations[instruction.called[0]]
    inner = {one.name: one for one in body}
    results = _results(body, inner)
    updates = [one for one in results if one.opcode == "dynamic-update-slice"]
    overwritten = {_origin(update.operands[0], inner) for update in updates}
    moved = sum(2.0 * _unpadded(inner[update.operands[1]]) for update in updates)
    for one, array in zip(results, instruction.arrays, strict=True):
        moved += 0.0 if array.on_chip or one in updates else float(array.bytes)
    for name, parameter in zip(instruction.operands, _parameters(body), strict=True):
        size = _size(shapes.get(name))
        if parameter.name not in overwritten and size > 0:
            moved += min(size, _read(parameter, body, module, size))
    return moved


def _parameters(body: list[Instruction]) -> list[Instruction]:
    return sorted((one for one in body if one.opcode == "parameter"), key=lambda one: int(one.inside))


def _read(value: Instruction, body: list[Instruction], module: Module, whole: float) -> float:
    """Bytes that a fusion reads of a value: `whole`, or what slices take of it, in fusions within it too."""
    total = 0.0
    for user in (one for one in body if value.name in one.operands):
        if user.opcode in _PART and user.operands[0] == value.name:
            total += _unpadded(user)
        elif user.opcode == "bitcast":
            total += _read(user, body, module, whole)
        elif user.opcode == "fusion":
            within = module.computations[user.called[0]]
            total += _read(_parameters(within)[user.operands.index(value.name)], within, module, whole)
        else:
            return whole
    return total


def _results(body: list[Instruction], inner: dict[str, Instruction]) -> list[Instruction]:
    """What makes each result of a fusion; a slice written into an array that the fusion is given changes only that."""
    root = next(one for one in body if one.is_root)
    return [inner[_origin(name, inner)] for name in (root.operands if root.opcode == "tuple" else [root.name])]


def _origin(name: str, inner: dict[str, Instruction]) -> str:
    while inner[name].opcode in _RENAMES:
        name = inner[name].operands[0]
    return name


def _size(instruction: Instruction | None) -> float:
    """Bytes in main memory."""
    return float(sum(array.bytes for array in instruction.arrays if not array.on_chip)) if instruction else 0.0


def _unpadded(instruction: Instruction) -> float:
    return float(sum(array.bytes for array in instruction.arrays))
