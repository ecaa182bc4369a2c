"""Convolution whose gradients are also fast on a CPU (measured: benchmarks/README.md)."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

_PIXELS = 1024  # positions whose neighbourhoods exist at one time: they must stay in a CPU's cache


class Conv(nnx.Module):
    """Square convolution with torch's symmetric padding (kernel // 2), [B, H, W, inputs] → [B, H/s, W/s, outputs]."""

    def __init__(self, inputs: int, outputs: int, kernel: int, rngs: nnx.Rngs, stride: int = 1, dtype=None, init=None):
        init = init or nnx.initializers.lecun_normal()
        self.kernel = nnx.Param(init(rngs.params(), (kernel, kernel, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))
        self.stride, self.dtype = stride, dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        x, kernel, bias = nnx.nn.dtypes.promote_dtype((x, self.kernel[...], self.bias[...]), dtype=self.dtype)
        return convolve(x, kernel, self.stride) + bias


def _convolve(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """x [B, H, W, inputs] with kernel [k, k, inputs, outputs], padded by k // 2 → [B, H/stride, W/stride, outputs]."""
    margin = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), [(margin, margin)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _forward(x, kernel, stride):
    return _convolve(x, kernel, stride), (x, kernel)


def _backward(stride, saved, gradient):
    x, kernel = saved
    by_convolution = lambda x, g: jax.linear_transpose(lambda k: _convolve(x, k, stride), kernel)(g)[0]  # noqa: E731
    by_matmuls = partial(kernel_gradient, size=kernel.shape[0], stride=stride)
    of_kernel = jax.lax.platform_dependent(x, gradient, cpu=by_matmuls, default=by_convolution)
    return image_gradient(kernel, gradient, x.shape, stride), of_kernel


convolve = jax.custom_vjp(_convolve, nondiff_argnums=(2,))
convolve.defvjp(_forward, _backward)


def image_gradient(kernel: jax.Array, gradient: jax.Array, shape: tuple[int, ...], stride: int) -> jax.Array:
    """What `convolve`'s gradient [B, h, w, outputs] says of its image [B, H, W, inputs], whose `shape` that is."""
    # What JAX's transposition does, but for the kernel's axes, which it names in another order: inside a cond or a
    # scan XLA's CPU backend (0.10.2) turns a convolution with such names into loops of one number at a time.
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    size = kernel.shape[0]
    before = size - 1 - size // 2
    margins = [
        (before, whole + size // 2 - stride * (part - 1) - 1)
        for whole, part in zip(shape[1:3], gradient.shape[1:3], strict=True)
    ]
    return jax.lax.conv_general_dilated(
        gradient, turned, (1, 1), margins, lhs_dilation=(stride, stride), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def kernel_gradient(x: jax.Array, gradient: jax.Array, size: int, stride: int) -> jax.Array:
    """What `convolve`'s gradient [B, h, w, outputs] says of its kernel: one matrix product per few rows of pixels.

    A product's factors are the neighbourhoods [positions, size² · inputs] of all images' rows and the gradients there.
    """
    (batch, height, width, outputs), inputs, margin = gradient.shape, x.shape[3], size // 2
    rows = max(r for r in range(1, height + 1) if height % r == 0 and (r == 1 or batch * r * width <= _PIXELS))
    x = jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    taken, dtype = stride * (rows - 1) + size, jnp.promote_types(x.dtype, jnp.float32)

    def part(start):
        own = jax.lax.dynamic_slice_in_dim(gradient, start, rows, axis=1).reshape(-1, outputs)
        window = jax.lax.dynamic_slice_in_dim(x, start * stride, taken, axis=1)
        seen = _neighbourhoods(window, rows, width, size, stride)
        return jnp.matmul(own.T, seen, preferred_element_type=dtype)

    if rows == height:
        total = part(0)
    else:
        starts = rows * jnp.arange(1, height // rows)
        total, _ = jax.lax.scan(lambda total, start: (total + part(start), None), part(0), starts)
    return total.T.reshape(size, size, inputs, outputs).astype(x.dtype)


def _neighbourhoods(x: jax.Array, height: int, width: int, size: int, stride: int) -> jax.Array:
    """Of padded x [B, ·, ·, inputs], what each output position sees: [B · height · width, size² · inputs]."""

    def shifted(i: int, j: int) -> jax.Array:
        stop = (x.shape[0], i + stride * (height - 1) + 1, j + stride * (width - 1) + 1, x.shape[3])
        return jax.lax.slice(x, (0, i, j, 0), stop, (1, stride, stride, 1))

    seen = [shifted(i, j) for i in range(size) for j in range(size)]
    return jnp.concatenate(seen, axis=-1).reshape(-1, size * size * x.shape[3])
