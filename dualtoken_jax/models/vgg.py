"""VGG16 features and the LPIPS distance over them (METHOD section 5; Zhang et al. 2018, arXiv 1801.03924, v0.1)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

SHIFT = (-0.030, -0.088, -0.188)  # the lpips package's constants, for images in [-1, 1]
SCALE = (0.458, 0.448, 0.450)
NORM_EPS = 1e-10


@dataclass(frozen=True)
class VggConfig:
    """The shape of the trunk. The defaults are VGG16; anything else is for tests."""

    widths: tuple[int, ...] = (64, 128, 256, 512, 512)  # channels of each block
    depths: tuple[int, ...] = (2, 2, 3, 3, 3)  # 3×3 convolutions in each block

    def __post_init__(self):
        if len(self.widths) != len(self.depths):
            raise ValueError(
                f"widths has {len(self.widths)} blocks, depths has {len(self.depths)}; give one entry of each per block"
            )

    def convolutions(self) -> list[tuple[str, int, int]]:
        """(name, channels in, channels out) in forward order, under the usual names conv1_1 … conv5_3."""
        table, channels = [], 3
        for block, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True), start=1):
            for layer in range(1, depth + 1):
                table.append((f"conv{block}_{layer}", channels, width))
                channels = width
        return table


class Vgg16(nnx.Module):
    """VGG16 up to relu5_3.

    A float32 trunk multiplies in full float32 on every platform (TPUs and TF32 GPUs would round the factors otherwise),
    so that measured LPIPS means the same everywhere. Training asks for bfloat16.
    """

    def __init__(self, config: VggConfig, rngs: nnx.Rngs, compute_dtype: DTypeLike = jnp.float32):
        self.config = config
        full = jnp.dtype(compute_dtype) == jnp.float32
        self.convolutions = nnx.data(
            {
                name: nnx.Conv(
                    inputs,
                    outputs,
                    (3, 3),
                    dtype=compute_dtype,
                    precision=jax.lax.Precision.HIGHEST if full else None,
                    kernel_init=nnx.initializers.he_normal(),
                    rngs=rngs,
                )
                for name, inputs, outputs in config.convolutions()
            }
        )

    def __call__(self, x: Float[Array, "B H W 3"]) -> list[Float[Array, "B _ _ _"]]:
        """The taps relu1_2, 2_2, 3_3, 4_3, 5_3 in the compute dtype; tap i has H // 2^i rows and widths[i] channels.

        `x` is already shifted and scaled. Raises ValueError if the image is smaller than the deepest tap needs.
        """
        smallest = 2 ** (len(self.config.widths) - 1)
        if min(x.shape[1:3]) < smallest:
            raise ValueError(
                f"an image of {x.shape[1]}×{x.shape[2]} px is too small: use at least {smallest} px a side"
            )
        taps = []
        for block, depth in enumerate(self.config.depths, start=1):
            if block > 1:
                x = _halved(x)  # [B, H/2, W/2, C]
            for layer in range(1, depth + 1):
                x = nnx.relu(self.convolutions[f"conv{block}_{layer}"](x))  # [B, H, W, C]
            taps.append(x)
        return taps


def _halved(x: jax.Array) -> jax.Array:
    """Maxima of 2×2 windows; an odd last row or column is left out.

    Not a reduce-window, whose gradient is a scatter (on a CPU 3 to 12 times as slow: benchmarks/README.md). Equal
    maxima share the gradient where torch's first one takes it; after a ReLU most of them are zeros, which hand none on.
    """
    x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
    corners = [x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
    return jnp.maximum(jnp.maximum(corners[0], corners[1]), jnp.maximum(corners[2], corners[3]))


class Lpips(nnx.Module):
    """Learned perceptual distance. Freshly made it has random weights: put those of `interop.lpips` in their place."""

    def __init__(self, config: VggConfig = VggConfig(), *, rngs: nnx.Rngs, compute_dtype: DTypeLike = jnp.float32):
        self.trunk = Vgg16(config, rngs, compute_dtype)
        # Distance needs non-negative weights, as the published ones are.
        self.linear = nnx.data(
            {
                f"linear{block}": nnx.Param(jax.random.uniform(rngs.params(), (width,)))
                for block, width in enumerate(config.widths, start=1)
            }
        )

    def __call__(self, x: Float[Array, "B H W 3"], y: Float[Array, "B H W 3"]) -> Float[Array, " B"]:
        """Distance of each pair of images in [-1, 1], float32 and non-negative; METHOD section 5.

        Raises ValueError if the shapes differ or are not [B, H, W, 3].
        """
        if x.shape != y.shape or x.ndim != 4 or x.shape[-1] != 3:
            raise ValueError(f"LPIPS compares two batches [B, H, W, 3] of one shape, got {x.shape} and {y.shape}")
        # Two passes, not one over the concatenation: with a constant y its half of the backward pass disappears.
        return self.distance(self.taps(x), self.taps(y))

    def taps(self, x: Float[Array, "B H W 3"]) -> list[Float[Array, "B _ _ _"]]:
        """The trunk's features of images in [-1, 1]."""
        return self.trunk(_standardise(x))

    def distance(self, x: list[Float[Array, "B _ _ _"]], y: list[Float[Array, "B _ _ _"]]) -> Float[Array, " B"]:
        """Distance of each pair of images from their `taps`."""
        pairs = zip(x, y, self.linear.values(), strict=True)
        return sum(_tap_distance(a, b, weight[...]) for a, b, weight in pairs)


def _standardise(x: jax.Array) -> jax.Array:
    return (x.astype(jnp.float32) - jnp.array(SHIFT)) / jnp.array(SCALE)


def _tap_distance(a: jax.Array, b: jax.Array, weight: jax.Array) -> jax.Array:
    squared = jnp.square(_unit_channels(a) - _unit_channels(b))  # [B, h, w, C]
    return jnp.mean(jnp.sum(squared * weight, axis=-1), axis=(1, 2))  # [B]


def _unit_channels(x: jax.Array) -> jax.Array:
    x = x.astype(jnp.float32)
    # The root has no derivative where no channel fires; that NaN ends at the ReLU before it, which selects zeros there.
    norm = jnp.sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True))
    return x / (norm + NORM_EPS)  # eps outside the root, as the lpips package has it
