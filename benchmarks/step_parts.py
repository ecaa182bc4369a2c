"""The parts of a training step as functions of their own, with arguments of a config's shapes."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from benchmarks import ours
from dualtoken_jax.config import Config
from dualtoken_jax.models import bind
from dualtoken_jax.models.quantizer import quantize_and_update
from dualtoken_jax.tasks.state import normalise


@dataclasses.dataclass(frozen=True)
class Part:
    """`run(*arguments)`; the first `differentiated` of them have gradients in a step, 0 where none has."""

    name: str
    run: Callable
    arguments: tuple
    differentiated: int


def step_parts(config: Config, batch: int) -> list[Part]:
    """In the order in which a step runs them."""
    task, state = ours.train_state(config)
    images = normalise(jnp.asarray(ours.images(config, batch)))
    whole = jax.tree.map(lambda x: x, state.params)
    module = lambda name, params: getattr(bind(task.graphdef, whole | {name: params}), name)  # noqa: E731
    hidden = jnp.ones((batch, config.model.siglip.grid**2, config.model.siglip.vision.width))
    hidden = hidden.astype(config.model.siglip.dtype)
    vectors = {name: _vectors(config, name, batch) for name in config.model.branches}

    def tower(params, images):
        vision = module("vision", params)
        x = vision.encoder(vision.embed(images), 0, config.model.semantic_layer)
        return vision.pool(vision.encoder(x, config.model.semantic_layer))

    def projections(params, hidden, vectors):
        branches = bind(task.graphdef, whole | params)
        down = [getattr(branches, name).down(hidden) for name in vectors]
        if config.model.has_shortcut:
            down.append(branches.pixel.shortcut(hidden))
        return down, [getattr(branches, name).up(vector) for name, vector in vectors.items()]

    def quantizers(vectors, codebooks):
        return [
            quantize_and_update(codebooks[name], z, config.model.quantizer(name), jax.random.key(0))
            for name, z in vectors.items()
        ]

    def decoder(params, tokens):
        network = module("decoder", params)
        return network.output(network.features(tokens))

    def perceptual(made, frozen, images, teaching):
        return task.frozen.perceptual(frozen, made, images, teaching, jnp.ones(batch))[0]["perceptual"]

    def optimizer(gradients, optimizer, params):
        updates, optimizer = task.optimizer.update(gradients, optimizer, params)
        return optax.apply_updates(params, updates), optimizer

    branches = {name: state.params[name] for name in config.model.branches}
    teaching = jax.jit(task.frozen.teach)(state.frozen, images)
    return [
        Part("teacher", task.frozen.teach, (state.frozen, images), 0),
        Part("student tower", tower, (state.params["vision"], images), 1),
        Part("projections", projections, (branches, hidden, vectors), 2),
        Part("quantizers", quantizers, (vectors, state.codebooks), 0),
        Part("decoder", decoder, (state.params["decoder"], hidden), 2),
        Part("perceptual", perceptual, (images, state.frozen, images, teaching), 1),
        Part("discriminator", task.adversary.judge, (state, images, images), 0),
        Part("optimizer", optimizer, (state.params, state.optimizer, state.params), 0),
    ]


def _vectors(config: Config, branch: str, batch: int) -> jax.Array:
    shape = (batch, config.model.siglip.grid**2, config.model.quantizer(branch).channels)
    return jax.random.normal(jax.random.key(1), shape)
