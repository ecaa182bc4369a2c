"""The Fréchet distance on Inception's features, picture by picture as a protocol prepares them."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from dualtoken_jax import sharding
from dualtoken_jax.evaluation.frechet import FeatureStatistics, frechet_distance
from dualtoken_jax.models import bind, definition
from dualtoken_jax.models.inception import CHANNELS, Inception

Prepare = Callable[[np.ndarray], np.ndarray]  # [H, W, 3] from 0 to 255 → float32 [299, 299, 3]


class InceptionFeatures:
    """float32 [n, 299, 299, 3] from 0 to 255 → pool_3 features [n, 2048] on the host, in batches of one shape."""

    channels = CHANNELS

    def __init__(self, params: dict, batch_size: int) -> None:
        """`params` of Inception; `batch_size` is rounded up to a multiple of the devices, which share each batch."""
        self._mesh = sharding.make_mesh(sharding.MeshConfig())
        self._batch_size = -(-batch_size // self._mesh.size) * self._mesh.size
        self._params = jax.device_put(params, NamedSharding(self._mesh, PartitionSpec()))
        graphdef: nnx.GraphDef = definition(Inception)
        self._run = jax.jit(lambda params, pixels: bind(graphdef, params)(pixels))

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        parts = []
        for start in range(0, len(pixels), self._batch_size):
            rows = pixels[start : start + self._batch_size]
            rows = np.pad(rows, [(0, self._batch_size - len(rows)), (0, 0), (0, 0), (0, 0)])
            parts.append(np.asarray(self._run(self._params, sharding.to_global({"x": rows}, self._mesh)["x"])))
        return np.concatenate(parts)[: len(pixels)]


class FrechetInception:
    """Inputs against reconstructions, batch by batch; what it keeps does not grow with their number."""

    def __init__(self, features: InceptionFeatures, prepare: Prepare) -> None:
        """`prepare` is called in threads."""
        self._features, self._prepare = features, prepare
        self._inputs = FeatureStatistics.empty(features.channels)
        self._reconstructions = FeatureStatistics.empty(features.channels)

    def add(self, images: np.ndarray, reconstructions: np.ndarray) -> None:
        """Two batches [n, H, W, 3] of values from 0 to 255, not rounded."""
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for statistics, pictures in ((self._inputs, images), (self._reconstructions, reconstructions)):
                pixels = np.stack(list(threads.map(self._prepare, pictures)))
                statistics.add(self._features(pixels), np.ones(len(pixels)))

    def distance(self) -> float:
        """ValueError for fewer than two pictures."""
        return frechet_distance(self._inputs, self._reconstructions)
