"""Convolution: its kernel's gradient on a CPU against XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dualtoken_jax.models import convolution


def both(height, width, inputs, outputs, size, stride, dtype=jnp.float32):
    """The kernel's gradient, ours and that of XLA's convolution."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, height, width, inputs), dtype)
    kernel = jax.random.normal(keys[1], (size, size, inputs, outputs), dtype)
    y, pullback = jax.vjp(lambda kernel: convolution._convolve(x, kernel, stride), kernel)
    gradient = jax.random.normal(keys[2], y.shape, dtype)
    return convolution.kernel_gradient(x, gradient, size, stride), pullback(gradient)[0]


@pytest.mark.parametrize("pixels", [4096, 40, 1])  # all rows at once, some, one
@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (1, 1)])
def test_kernel_gradient(size, stride, pixels, monkeypatch):
    monkeypatch.setattr(convolution, "_PIXELS", pixels)
    ours, theirs = both(12, 7, 3, 4, size, stride)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_bfloat16_sums_are_float32():
    """Each of 64 parts would round away a part of the sum."""
    ours, _ = both(64, 64, 2, 3, 3, 1, jnp.bfloat16)
    assert ours.dtype == jnp.bfloat16
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, 64, 64, 2), jnp.bfloat16).astype(jnp.float32)
    gradient = jax.random.normal(keys[2], (2, 64, 64, 3), jnp.bfloat16).astype(jnp.float32)
    exact = convolution.kernel_gradient(x, gradient, 3, 1)
    np.testing.assert_allclose(ours.astype(jnp.float32), exact, rtol=2**-8, atol=1e-2)


@pytest.mark.parametrize("stride", [1, 2])
def test_convolve_has_its_own_gradient(stride):
    """Through jit and remat, for the image and for the kernel."""
    keys = jax.random.split(jax.random.key(1), 2)
    x, kernel = jax.random.normal(keys[0], (2, 8, 8, 3)), jax.random.normal(keys[1], (3, 3, 3, 4))
    total = lambda how: lambda x, kernel: jnp.sum(how(x, kernel, stride) ** 2)  # noqa: E731
    ours = jax.jit(jax.grad(jax.checkpoint(total(convolution.convolve)), argnums=(0, 1)))(x, kernel)
    theirs = jax.jit(jax.grad(total(convolution._convolve), argnums=(0, 1)))(x, kernel)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("size", "stride", "height"), [(3, 1, 7), (3, 2, 7), (3, 2, 8), (1, 1, 7), (5, 3, 9)])
def test_image_gradient(size, stride, height):
    keys = jax.random.split(jax.random.key(2), 2)
    x, kernel = jax.random.normal(keys[0], (2, height, 6, 3)), jax.random.normal(keys[1], (size, size, 3, 4))
    y, pullback = jax.vjp(lambda x: convolution._convolve(x, kernel, stride), x)
    np.testing.assert_allclose(
        convolution.image_gradient(kernel, y, x.shape, stride), pullback(y)[0], rtol=1e-5, atol=1e-4
    )
