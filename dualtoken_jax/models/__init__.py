"""Networks only. Outside this package a model is a graph definition plus a plain nested dict of arrays."""

from collections.abc import Callable

import jax
from flax import nnx

from dualtoken_jax.sharding import for_use

Params = dict  # nested dict of arrays, keys are attribute names


def definition(make: Callable[[nnx.Rngs], nnx.Module]) -> nnx.GraphDef:
    """The static half of the module that `make` builds; allocates nothing."""
    return nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))[0]


def init_params(make: Callable[[nnx.Rngs], nnx.Module], key: jax.Array) -> Params:
    """The parameters of a freshly initialised module as a plain dict."""
    return nnx.to_pure_dict(nnx.state(make(nnx.Rngs(key)), nnx.Param))


def bind(graphdef: nnx.GraphDef, params: Params) -> nnx.Module:
    """The module again, to be called inside a traced function; its parameters are gathered for use.

    Stacked layers stay as they are stored: whoever scans them binds one at a time, so that one at a time is gathered.
    """
    return nnx.merge(graphdef, nnx.State(for_use(params)))
