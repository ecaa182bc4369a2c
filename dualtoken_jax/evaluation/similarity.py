"""Pictures against their reconstructions, one by one: PSNR, SSIM, L1 and LPIPS as means over all batches."""

import jax
import numpy as np

from dualtoken_jax.evaluation import metrics
from dualtoken_jax.models import bind, definition
from dualtoken_jax.models.vgg import Lpips


class Similarity:
    """Means over pictures, added batch by batch."""

    def __init__(self, batch_size: int, lpips: dict | None) -> None:
        """Batches have at most `batch_size` pictures; `lpips` are parameters of Lpips, without which it is left out."""
        self._batch_size, self._sums = batch_size, []
        self._lpips = None if lpips is None else jax.device_put(lpips)  # once, not with every batch
        self._step = jax.jit(_compare if lpips is None else _compare_with_lpips)

    def add(self, images: np.ndarray, reconstructions: np.ndarray) -> None:
        """Two batches float32 [n, H, W, 3] in [−1, 1]."""
        missing = self._batch_size - len(images)
        weight = np.pad(np.ones(len(images), np.float32), (0, missing))
        x, y = (np.pad(batch, [(0, missing), (0, 0), (0, 0), (0, 0)]) for batch in (images, reconstructions))
        arguments = (x, y, weight) if self._lpips is None else (x, y, weight, self._lpips)
        self._sums.append(jax.device_get(self._step(*arguments)))

    def results(self) -> dict[str, float]:
        """ValueError where nothing was added."""
        found = metrics.means(self._sums)
        return {name: found[name] for name in ("psnr", "ssim", "l1", "lpips") if name in found}


def _compare(x: jax.Array, y: jax.Array, weight: jax.Array) -> dict[str, jax.Array]:
    return metrics.weighted_sums(_plain(x, y), weight)


def _compare_with_lpips(x: jax.Array, y: jax.Array, weight: jax.Array, params: dict) -> dict[str, jax.Array]:
    distance = bind(definition(lambda rngs: Lpips(rngs=rngs)), params)
    return metrics.weighted_sums(_plain(x, y) | {"lpips": distance(x, y)}, weight)


def _plain(x: jax.Array, y: jax.Array) -> dict[str, jax.Array]:
    x, y = (x + 1) / 2, (y + 1) / 2
    return {"psnr": metrics.psnr(x, y), "ssim": metrics.ssim(x, y), "l1": metrics.l1(x, y)}
