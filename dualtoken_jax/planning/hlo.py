"""Reads XLA's optimised HLO as text: instructions, how often each runs, and the bytes of shapes."""

import dataclasses
import math
import re
from functools import cached_property

_ARRAY = re.compile(r"(pred|bf16|[a-z]\d+(?:e\d+m\d+\w*)?|token)\[([\d,]*)\](?:\{([\d,]*)((?::[^{}]*)?)\})?")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_OPCODE = re.compile(r"\s([a-z][\w\-]*)\(")
_TILE = re.compile(r"T\(([\d,]+)\)")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|called_computations)=\{?%?([\w.\-]+)")
_BRANCHES = re.compile(r"(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+))")
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_TRIPS = re.compile(r'known_trip_count":?=?\{"?n"?[:=]"?(\d+)')


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a shape."""

    bytes: int  # with the padding of its tiles
    on_chip: bool  # in the memory beside the cores (TPU: VMEM, memory space 1), not in HBM


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line."""

    name: str
    opcode: str
    shape: str
    inside: str  # what its parentheses hold
    attributes: str  # all behind the operands
    is_root: bool

    @cached_property
    def arrays(self) -> list[Array]:
        """Its result, a tuple's parts one by one."""
        return arrays(self.shape)

    @cached_property
    def operands(self) -> list[str]:
        """Names of the instructions that it reads."""
        return re.findall(r"%([\w.\-]+)", self.inside)

    @property
    def called(self) -> list[str]:
        """Names of the computations that run once whenever this runs (a loop's body: once per turn)."""
        return _CALLED.findall(self.attributes)

    @property
    def branches(self) -> list[str]:
        """Names of the computations of which one runs."""
        found = [listed.split(",") if listed else [one] for listed, one in _BRANCHES.findall(self.attributes)]
        return [name.strip().lstrip("%") for names in found for name in names]


@dataclasses.dataclass(frozen=True)
class Module:
    """A program: instructions by computation, in order."""

    computations: dict[str, list[Instruction]]
    entry: str

    def runs(self) -> dict[str, float]:
        """How often each computation runs in one call of the program, inside fusions included."""
        counts = dict.fromkeys(self.computations, 0.0)
        self._visit(self.entry, 1.0, counts)
        return counts

    def trips(self, loop: Instruction) -> int | None:
        """Turns of a `while`: as the compiler notes them, or as its condition counts up to; None if neither says it."""
        if found := _TRIPS.search(loop.attributes):
            return int(found[1])
        condition = self.computations[_CONDITION.search(loop.attributes)[1]]
        test = next(one for one in condition if one.is_root)
        limits = [one.inside for one in condition if one.opcode == "constant" and one.name in test.operands]
        less = test.opcode == "compare" and "direction=LT" in test.attributes
        return int(limits[0]) if less and len(limits) == 1 and limits[0].isdecimal() else None

    @property
    def unknown_loops(self) -> int:
        """How many loops count as one turn because nothing says how many they take."""
        loops = [one for instructions in self.computations.values() for one in instructions if one.opcode == "while"]
        return sum(self.trips(loop) is None for loop in loops)

    def _visit(self, name: str, times: float, counts: dict[str, float]) -> None:
        counts[name] += times
        for instruction in self.computations[name]:
            turns = (self.trips(instruction) or 1) if instruction.opcode == "while" else 1
            for called in instruction.called:
                self._visit(called, times * turns, counts)
            if instruction.branches:  # a plan is about the dearest: the longest, which its length stands for
                longest = max(instruction.branches, key=lambda branch: self._length(branch))
                self._visit(longest, times, counts)

    def _length(self, name: str) -> int:
        inner = [called for instruction in self.computations[name] for called in instruction.called]
        return len(self.computations[name]) + sum(len(self.computations[called]) for called in inner)


def parse(text: str) -> Module:
    """The module of `compiled.as_text()`; raises ValueError for text that is none."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif current is not None and (found := _LINE.match(line)):
            current.append(_instruction(found[2], found[3], bool(found[1])))
    if not entry:
        raise ValueError("this is no HLO module: it has no ENTRY computation")
    return Module(computations, entry)


def _instruction(name: str, rest: str, is_root: bool) -> Instruction:
    shape_end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    opcode = _OPCODE.match(rest, shape_end)
    if opcode is None:
        raise ValueError(f"cannot read the HLO line {name} = {rest[:200]}")
    end = _closing(rest, opcode.end() - 1)
    return Instruction(name, opcode[1], rest[:shape_end], rest[opcode.end() : end - 1], rest[end:], is_root)


def _closing(text: str, start: int) -> int:
    """The index behind the parenthesis that closes the one at `start`."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, start):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.end()
    raise ValueError(f"unclosed parenthesis in the HLO text {text[:200]}")


def arrays(shape: str) -> list[Array]:
    """The arrays of a shape as HLO writes it, such as "(f32[8]{0:T(128)}, bf16[2,3]{1,0:T(8,128)(2,1)S(1)})"."""
    return [_array(*found.groups()) for found in _ARRAY.finditer(re.sub(r"/\*.*?\*/", "", shape))]


def _array(kind: str, sizes: str, order: str | None, layout: str | None) -> Array:
    shape, layout = [int(n) for n in sizes.split(",") if n], layout or ""
    if order:
        shape = [shape[int(axis)] for axis in reversed(order.split(","))]  # the fastest axis last
    if tile := _TILE.search(layout):
        tile_sizes = [int(n) for n in tile[1].split(",")]
        shape = [1] * (len(tile_sizes) - len(shape)) + shape
        for axis, size in enumerate(tile_sizes, start=len(shape) - len(tile_sizes)):
            shape[axis] = -(-shape[axis] // size) * size
    return Array(math.ceil(math.prod(shape) * _bits(kind) / 8), "S(1)" in layout)


def _bits(kind: str) -> int:
    if kind in ("pred", "token"):
        return 8 if kind == "pred" else 0
    return int(re.search(r"\d+", kind)[0])
