"""What the frozen networks of a training say: the teacher of a batch, and how far one picture is from another.

All are pure functions of `frozen`, the weights in the train state: 'siglip', and 'lpips' where there is one.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dualtoken_jax import losses
from dualtoken_jax.config import SHALLOW, Config
from dualtoken_jax.models import bind, definition, init_params
from dualtoken_jax.models.siglip import Siglip
from dualtoken_jax.models.vgg import Lpips


def needs_lpips(config: Config) -> bool:
    """Whether a tokenizer's training reads LPIPS's weights."""
    loss = config.loss
    return config.model.reconstructs and loss.perceives and loss.perceptual_network == "lpips"


class Teaching(NamedTuple):
    """What the frozen teacher says of a batch."""

    shallow: list[jax.Array]  # h_1 … h_SHALLOW [B, N, C]; empty where LPIPS is used
    hidden: jax.Array  # t at the semantic layer [B, N, C] float32
    pooled: jax.Array  # t_p [B, C] float32


class FrozenNetworks:
    """The teacher and the perceptual network, closed over the config."""

    def __init__(self, config: Config):
        self.loss, self.layer = config.loss, config.model.semantic_layer
        dtype = jnp.dtype(config.model.siglip.dtype)
        self._make = {"siglip": lambda rngs: Siglip(config.model.siglip, rngs)}
        if needs_lpips(config):
            self._make["lpips"] = lambda rngs: Lpips(rngs=rngs, compute_dtype=dtype)
        self._graphdefs = {name: definition(make) for name, make in self._make.items()}

    def shapes(self) -> dict:
        """What `frozen` looks like."""
        key = jax.random.key(0)
        return {name: jax.eval_shape(partial(init_params, make), key) for name, make in self._make.items()}

    def siglip(self, frozen: dict) -> Siglip:
        """The teacher, both towers."""
        return bind(self._graphdefs["siglip"], frozen["siglip"])

    def teach(self, frozen: dict, images: jax.Array) -> Teaching:
        """The teacher's view of images [B, H, W, 3] in [−1, 1]."""
        vision = self.siglip(frozen).vision
        shallow, start, hidden = [], 0, vision.embed(images)
        if self.loss.perceptual_network == "teacher":
            shallow, start = self.shallow(frozen, images), SHALLOW
            hidden = shallow[-1]
        hidden = vision.encoder(hidden, start, self.layer)
        return Teaching(shallow, hidden.astype(jnp.float32), vision.pool(vision.encoder(hidden, self.layer)))

    def shallow(self, frozen: dict, images: jax.Array) -> list[jax.Array]:
        """h_1 … h_SHALLOW of the teacher, each [B, N, C]."""
        vision = self.siglip(frozen).vision
        hidden = [vision.embed(images)]
        for layer in range(SHALLOW):
            hidden.append(vision.encoder(hidden[-1], layer, layer + 1))
        return hidden[1:]

    def perceptual(self, frozen: dict, reconstruction: jax.Array, images: jax.Array, teaching: Teaching, weight):
        """LPIPS, or the same on the teacher's first layers, and the Gram term of the same features.

        `weight` [B] are the rows' weights, 1 on average. Returns the terms and a function from their weights to the
        weighted sum's gradient at x̂.
        """
        if not self.loss.perceives:
            return {"perceptual": jnp.float32(0.0)}, lambda weights: jnp.zeros_like(reconstruction)
        if self.loss.perceptual_network == "lpips":
            lpips = bind(self._graphdefs["lpips"], frozen["lpips"])
            features, target, distance = lpips.taps, lpips.taps(images), lpips.distance
        else:
            features, target, distance = partial(self.shallow, frozen), teaching.shallow, losses.feature_distance

        def terms(x):
            found = features(x)
            values = {"perceptual": distance(found, target)}
            if self.loss.gram > 0:
                values["gram"] = losses.gram_distance(found, target)
            return {name: jnp.mean(value * weight) for name, value in values.items()}

        values, pullback = jax.vjp(terms, reconstruction)
        return values, lambda weights: pullback({name: jnp.float32(weights.get(name, 0.0)) for name in values})[0]
