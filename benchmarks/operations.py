"""How many operations a computation must do, counted from its jaxpr: XLA's own count takes a scan's body once."""

import math

import jax
from jax.extend import core


def operations(function, *arguments) -> int:
    """Multiply-adds times two of all matrix products and convolutions, each iteration of a scan counted."""
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: core.Jaxpr) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation) -> int:
    name, parameters = equation.primitive.name, equation.params
    outputs = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        return 2 * outputs * math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        return _of_convolution(equation)
    if name == "cond":  # of alternatives the most; those of platforms do the same
        return max(_count(branch.jaxpr) for branch in parameters["branches"])
    return parameters.get("length", 1) * sum(_count(inner) for inner in _inner(parameters))


def _of_convolution(equation) -> int:
    """Each product of a kernel element with an element of the image, not with a zero that dilation put in between."""
    kernel, numbers = equation.invars[1].aval.shape, equation.params["dimension_numbers"]
    outputs = math.prod(equation.outvars[0].aval.shape)
    per_output = math.prod(kernel) // kernel[numbers.rhs_spec[0]]
    return 2 * outputs * per_output // math.prod(equation.params["lhs_dilation"])


def _inner(parameters: dict) -> list[core.Jaxpr]:
    found = []
    for value in parameters.values():
        for item in value if isinstance(value, (tuple, list)) else [value]:
            if isinstance(item, core.ClosedJaxpr):
                found.append(item.jaxpr)
            elif isinstance(item, core.Jaxpr):
                found.append(item)
    return found
