"""FID's Inception v3 up to pool_3, the network of the `pt_inception-2015-12-05` weights (Szegedy et al. 2015).

TensorFlow's graph of December 2015, which differs from torchvision's: average pools leave the padding out of the mean,
and the last mixed block pools by the maximum. Attributes are the weight file's names, in lower case.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

SIDE = 299  # pixels
CHANNELS = 2048
NORM_EPS = 1e-3


class Unit(nnx.Module):
    """Convolution without bias, BatchNorm with stored statistics, ReLU; float32 products on every platform.

    Padded to keep the size, or, where `valid`, not padded at all.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int | tuple, rngs: nnx.Rngs, stride: int = 1, valid=False):
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        self.kernel = nnx.Param(nnx.initializers.he_normal()(rngs.params(), (height, width, inputs, outputs)))
        self.scale, self.bias = nnx.Param(jnp.ones(outputs)), nnx.Param(jnp.zeros(outputs))
        self.mean, self.variance = nnx.Param(jnp.zeros(outputs)), nnx.Param(jnp.ones(outputs))
        self.stride, self.padding = stride, "VALID" if valid or stride > 1 else "SAME"

    def __call__(self, x: jax.Array) -> jax.Array:
        y = jax.lax.conv_general_dilated(
            x,
            self.kernel[...],
            (self.stride, self.stride),
            self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=jax.lax.Precision.HIGHEST,  # TPUs and TF32 GPUs would round the factors
        )
        scale = self.scale[...] * jax.lax.rsqrt(self.variance[...] + NORM_EPS)
        return nnx.relu((y - self.mean[...]) * scale + self.bias[...])


def _average(x: jax.Array) -> jax.Array:
    return nnx.avg_pool(x, (3, 3), strides=(1, 1), padding="SAME", count_include_pad=False)


def _maximum(x: jax.Array) -> jax.Array:
    return nnx.max_pool(x, (3, 3), strides=(1, 1), padding="SAME")


def _halve(x: jax.Array) -> jax.Array:
    return nnx.max_pool(x, (3, 3), strides=(2, 2))


def _join(*branches: jax.Array) -> jax.Array:
    return jnp.concatenate(branches, axis=-1)


class MixedA(nnx.Module):
    """35 × 35: 1×1, 5×5, two 3×3, pool → 224 + `pooled` channels."""

    def __init__(self, inputs: int, pooled: int, rngs: nnx.Rngs):
        self.branch1x1 = Unit(inputs, 64, 1, rngs)
        self.branch5x5_1, self.branch5x5_2 = Unit(inputs, 48, 1, rngs), Unit(48, 64, 5, rngs)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Unit(inputs, 64, 1, rngs), Unit(64, 96, 3, rngs)
        self.branch3x3dbl_3 = Unit(96, 96, 3, rngs)
        self.branch_pool = Unit(inputs, pooled, 1, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return _join(self.branch1x1(x), five, three, self.branch_pool(_average(x)))


class ReduceB(nnx.Module):
    """35 × 35 → 17 × 17, 480 more channels."""

    def __init__(self, inputs: int, rngs: nnx.Rngs):
        self.branch3x3 = Unit(inputs, 384, 3, rngs, stride=2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Unit(inputs, 64, 1, rngs), Unit(64, 96, 3, rngs)
        self.branch3x3dbl_3 = Unit(96, 96, 3, rngs, stride=2)

    def __call__(self, x: jax.Array) -> jax.Array:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return _join(self.branch3x3(x), double, _halve(x))


class MixedC(nnx.Module):
    """17 × 17: 7×7 kernels as pairs of 1×7 and 7×1, `width` channels inside → 768."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        row, column = (1, 7), (7, 1)
        self.branch1x1 = Unit(768, 192, 1, rngs)
        self.branch7x7_1, self.branch7x7_2 = Unit(768, width, 1, rngs), Unit(width, width, row, rngs)
        self.branch7x7_3 = Unit(width, 192, column, rngs)
        self.branch7x7dbl_1, self.branch7x7dbl_2 = Unit(768, width, 1, rngs), Unit(width, width, column, rngs)
        self.branch7x7dbl_3, self.branch7x7dbl_4 = Unit(width, width, row, rngs), Unit(width, width, column, rngs)
        self.branch7x7dbl_5 = Unit(width, 192, row, rngs)
        self.branch_pool = Unit(768, 192, 1, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return _join(self.branch1x1(x), seven, double, self.branch_pool(_average(x)))


class ReduceD(nnx.Module):
    """17 × 17 → 8 × 8, 768 → 1280 channels."""

    def __init__(self, rngs: nnx.Rngs):
        self.branch3x3_1, self.branch3x3_2 = Unit(768, 192, 1, rngs), Unit(192, 320, 3, rngs, stride=2)
        self.branch7x7x3_1, self.branch7x7x3_2 = Unit(768, 192, 1, rngs), Unit(192, 192, (1, 7), rngs)
        self.branch7x7x3_3, self.branch7x7x3_4 = Unit(192, 192, (7, 1), rngs), Unit(192, 192, 3, rngs, stride=2)

    def __call__(self, x: jax.Array) -> jax.Array:
        seven = self.branch7x7x3_2(self.branch7x7x3_1(x))
        return _join(self.branch3x3_2(self.branch3x3_1(x)), self.branch7x7x3_4(self.branch7x7x3_3(seven)), _halve(x))


class MixedE(nnx.Module):
    """8 × 8: 3×3 kernels spread into 1×3 beside 3×1 → 2048 channels; `last` pools by the maximum."""

    def __init__(self, inputs: int, last: bool, rngs: nnx.Rngs):
        row, column = (1, 3), (3, 1)
        self.branch1x1 = Unit(inputs, 320, 1, rngs)
        self.branch3x3_1 = Unit(inputs, 384, 1, rngs)
        self.branch3x3_2a, self.branch3x3_2b = Unit(384, 384, row, rngs), Unit(384, 384, column, rngs)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Unit(inputs, 448, 1, rngs), Unit(448, 384, 3, rngs)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = Unit(384, 384, row, rngs), Unit(384, 384, column, rngs)
        self.branch_pool = Unit(inputs, 192, 1, rngs)
        self.last = last

    def __call__(self, x: jax.Array) -> jax.Array:
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        return _join(
            self.branch1x1(x),
            self.branch3x3_2a(three),
            self.branch3x3_2b(three),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(_maximum(x) if self.last else _average(x)),
        )


class Inception(nnx.Module):
    """Images → pool_3. Freshly made it has random weights: put those of `interop.inception` in their place."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv2d_1a_3x3 = Unit(3, 32, 3, rngs, stride=2)
        self.conv2d_2a_3x3 = Unit(32, 32, 3, rngs, valid=True)
        self.conv2d_2b_3x3 = Unit(32, 64, 3, rngs)
        self.conv2d_3b_1x1 = Unit(64, 80, 1, rngs)
        self.conv2d_4a_3x3 = Unit(80, 192, 3, rngs, valid=True)
        self.mixed_5b, self.mixed_5c, self.mixed_5d = (
            MixedA(192, 32, rngs),
            MixedA(256, 64, rngs),
            MixedA(288, 64, rngs),
        )
        self.mixed_6a = ReduceB(288, rngs)
        self.mixed_6b, self.mixed_6c = MixedC(128, rngs), MixedC(160, rngs)
        self.mixed_6d, self.mixed_6e = MixedC(160, rngs), MixedC(192, rngs)
        self.mixed_7a = ReduceD(rngs)
        self.mixed_7b, self.mixed_7c = MixedE(1280, False, rngs), MixedE(2048, True, rngs)

    def __call__(self, pixels: Float[Array, "B 299 299 3"]) -> Float[Array, "B 2048"]:
        """Values from 0 to 255, already resized, fractions kept. ValueError for another size."""
        if pixels.shape[1:] != (SIDE, SIDE, 3):
            raise ValueError(f"Inception takes [B, {SIDE}, {SIDE}, 3], got {list(pixels.shape)}; resize first")
        x = (pixels.astype(jnp.float32) - 128) / 128  # as the graph does it; not 2·x/255 − 1
        x = self.conv2d_2b_3x3(self.conv2d_2a_3x3(self.conv2d_1a_3x3(x)))  # [B, 147, 147, 64]
        x = self.conv2d_4a_3x3(self.conv2d_3b_1x1(_halve(x)))  # [B, 71, 71, 192]
        x = self.mixed_5d(self.mixed_5c(self.mixed_5b(_halve(x))))  # [B, 35, 35, 288]
        x = self.mixed_6c(self.mixed_6b(self.mixed_6a(x)))  # [B, 17, 17, 768]
        x = self.mixed_7a(self.mixed_6e(self.mixed_6d(x)))  # [B, 8, 8, 1280]
        x = self.mixed_7c(self.mixed_7b(x))  # [B, 8, 8, 2048]
        return jnp.mean(x, axis=(1, 2))
