"""Counts the matrix multiplications of a traced function: two operations per multiply-add, loops multiplied out.

Everything else (norms, softmax, elementwise, gathers) counts nothing: it costs bandwidth, not matrix units.
Pallas kernels count, all their blocks; cuDNN's attention, which shows nothing of itself, does not.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.interpreters.partial_eval import dce_jaxpr

_ROWS = 8  # sublanes: a tile of the moving operand has a multiple of so many rows
# Passes through a bfloat16 matrix unit that a float32 product takes, as XLA's TPU backend splits its factors.
_PASSES = {"HIGHEST": 6, "HIGH": 3}


@dataclasses.dataclass(frozen=True)
class Flops:
    """Operations of a program on all devices together."""

    exact: float  # of the mathematics
    tiled: float  # of the matrix units: shapes rounded up to their tiles, float32 factors in several passes

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(self.exact + other.exact, self.tiled + other.tiled)

    def times(self, factor: float) -> "Flops":
        """The same, so many times."""
        return Flops(self.exact * factor, self.tiled * factor)


def count(function: Callable, *shapes, tile: int = 128) -> Flops:
    """Of `function(*shapes)`, which is traced only; `tile` is the side of the matrix unit."""
    return count_jaxpr(jax.make_jaxpr(function)(*shapes).jaxpr, tile)


def count_jaxpr(jaxpr: Jaxpr, tile: int) -> Flops:
    """Of one call of a traced function; what nothing reads is not executed, as the compiler sees too."""
    return _count(dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0], tile)


def _count(jaxpr: Jaxpr, tile: int) -> Flops:
    return sum((_equation(eqn, tile) for eqn in jaxpr.eqns), Flops(0.0, 0.0))


def _equation(eqn, tile: int) -> Flops:
    name = eqn.primitive.name
    if name == "dot_general":
        return _dot(eqn, tile)
    if name == "conv_general_dilated":
        return _convolution(eqn, tile)
    inner = [_count(jaxpr, tile) for jaxpr in _inner(eqn.params)]
    if name == "cond":  # one branch runs; a plan is about the dearest
        return max(inner, key=lambda flops: flops.exact)
    return sum(inner, Flops(0.0, 0.0)).times(_turns(eqn))


def _turns(eqn) -> int:
    """How often the inside of an equation runs, on all devices together."""
    params = eqn.params
    if eqn.primitive.name == "pallas_call":  # its inside is one block's
        return math.prod(params["grid_mapping"].grid)
    if eqn.primitive.name == "shard_map":  # one device's, of all axes of the mesh
        return params["mesh"].size
    return params["length"] if eqn.primitive.name == "scan" else 1


def _inner(params: dict) -> Iterator[Jaxpr]:
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item


def _dot(eqn, tile: int) -> Flops:
    (contract_left, contract_right), (batch_left, batch_right) = eqn.params["dimension_numbers"]
    left, right = (variable.aval.shape for variable in eqn.invars)
    size = lambda shape, axes: math.prod(shape[a] for a in axes)  # noqa: E731
    free = lambda shape, *taken: math.prod(n for a, n in enumerate(shape) if a not in {*taken[0], *taken[1]})  # noqa: E731
    batch, inner = size(left, batch_left), size(left, contract_left)
    rows, columns = free(left, contract_left, batch_left), free(right, contract_right, batch_right)
    return _product(eqn, batch, rows, inner, columns, tile)


def _convolution(eqn, tile: int) -> Flops:
    numbers, right, out = eqn.params["dimension_numbers"], eqn.invars[1].aval.shape, eqn.outvars[0].aval.shape
    groups = eqn.params["feature_group_count"] * eqn.params["batch_group_count"]
    # Zeros between the inputs, which the gradient of a strided convolution has, are not multiplied.
    dilation = math.prod(eqn.params["lhs_dilation"])
    taps = math.prod(right[a] for a in numbers.rhs_spec[2:])
    inputs, outputs = right[numbers.rhs_spec[1]], out[numbers.out_spec[1]]
    positions = math.prod(out) // outputs
    return _product(eqn, groups, positions / dilation, taps * inputs, outputs / groups, tile)


def _product(eqn, batch: float, rows: float, inner: float, columns: float, tile: int) -> Flops:
    """[rows, inner] × [inner, columns], `batch` times; the smaller of the outer sides is the one that stays put."""
    exact = 2.0 * batch * rows * inner * columns
    moving, standing = max(rows, columns), min(rows, columns)
    up = lambda size, to: math.ceil(size / to) * to  # noqa: E731
    tiled = 2.0 * batch * up(moving, _ROWS) * up(inner, tile) * up(standing, tile)
    return Flops(exact, tiled * _passes(eqn))


def _passes(eqn) -> int:
    if not any(variable.aval.dtype == "float32" for variable in eqn.invars):
        return 1
    precision = eqn.params["precision"]
    stated = precision if isinstance(precision, tuple) else (precision,)
    return max(_PASSES.get(getattr(one, "name", str(one)), 1) for one in stated)
