"""Fréchet distance between two sets of features, the formula of rFID; protocols and networks live elsewhere."""

from dataclasses import dataclass

import numpy as np
from scipy import linalg


@dataclass
class FeatureStatistics:
    """Mean and covariance of features seen batch by batch, as float64 sums on the host.

    Sums merge by addition in any order, over batches, hosts or files. Move them between hosts as float64: JAX would
    round them to float32.
    """

    count: float
    total: np.ndarray  # [C] Σ w·f
    outer: np.ndarray  # [C, C] Σ w·f·fᵀ

    @classmethod
    def empty(cls, channels: int) -> "FeatureStatistics":
        """Statistics of no example, to add batches to."""
        return cls(0.0, np.zeros(channels), np.zeros((channels, channels)))

    def add(self, features: np.ndarray, weight: np.ndarray) -> None:
        """Counts a batch [B, C]; `weight` [B] is 1 for an example, 0 for padding (which may hold anything), n for n.

        Raises ValueError if the shapes disagree, or for a feature that is not finite: one would spoil the distance.
        """
        features, weight = np.asarray(features, np.float64), np.asarray(weight, np.float64)
        if features.shape != (len(weight), len(self.total)):
            raise ValueError(
                f"features {features.shape} with {len(weight)} weights; expected [{len(weight)}, {len(self.total)}]"
            )
        features, weight = features[weight > 0], weight[weight > 0]
        if bad := int(np.sum(~np.isfinite(features).all(axis=1))):
            raise ValueError(
                f"{bad} of {len(features)} feature vectors are not finite; check the images or the network"
            )
        self.count += weight.sum()
        self.total += weight @ features
        self.outer += (features * weight[:, None]).T @ features

    def merge(self, other: "FeatureStatistics") -> "FeatureStatistics":
        """The statistics of both sets together."""
        return FeatureStatistics(self.count + other.count, self.total + other.total, self.outer + other.outer)

    def mean(self) -> np.ndarray:
        """[C]"""
        return self.total / self.count

    def covariance(self) -> np.ndarray:
        """[C, C], divided by n - 1 as numpy.cov does. Raises ValueError for fewer than two examples."""
        if self.count < 2:
            raise ValueError(f"the covariance of {self.count:g} examples does not exist; count at least 2")
        mean = self.mean()
        return (self.outer - self.count * np.outer(mean, mean)) / (self.count - 1)


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """‖μ_a − μ_b‖² + tr Σ_a + tr Σ_b − 2 tr (Σ_a Σ_b)^½  (Heusel et al. 2017, arXiv 1706.08500, equation 6).

    The last trace is the sum of the singular values of Σ_a^½ Σ_b^½. The usual matrix square root of the product is not
    symmetric, and with fewer examples than channels it turns complex or needs a ridge. The singular values are real and
    the same for (a, b) and (b, a), and directions without variance need no special case. Raises ValueError for fewer
    than two examples or different numbers of channels.
    """
    if len(a.total) != len(b.total):
        raise ValueError(f"features of {len(a.total)} and {len(b.total)} channels come from different networks")
    shift = a.mean() - b.mean()
    cov_a, cov_b = a.covariance(), b.covariance()
    cross = linalg.svdvals(_root(cov_a).T @ _root(cov_b)).sum()
    return float(shift @ shift + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def _root(covariance: np.ndarray) -> np.ndarray:
    values, vectors = linalg.eigh(covariance)
    return vectors * np.sqrt(
        np.maximum(values, 0.0)
    )  # R with R Rᵀ = Σ; the rotation left out leaves singular values alone
