"""PyTorch's CPU random numbers, bit for bit: large initial weights of the record are kept as seed and offset only.

A float32 normal draw is Box–Muller with the logarithm, sine and cosine of the Cephes library's single-precision
polynomials, in fused multiply-adds. numpy's own differ in the last bits, which is enough to put a LeakyReLU of the
discriminator on its other side by the seventh training step.
"""

import functools

import numpy as np

LOGARITHM = (
    7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
    -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
)  # fmt: skip
COSINE = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
SINE = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
LOG2 = (-2.12194440e-4, 0.693359375)  # its sum is log 2; the second has few bits
QUARTER_PI = (-0.78515625, -2.4187564849853515625e-4, -3.77489497744594108e-8)  # minus π/4, in parts of few bits

f32 = np.float32


@functools.cache
def twister(seed: int) -> np.ndarray:
    """The 24 random bits of each draw, as PyTorch's CPU generator takes them."""
    return np.random.RandomState(seed).randint(0, 2**32, size=3_500_000, dtype=np.uint32) & 0xFFFFFF


def uniform(integers: np.ndarray, bound: float) -> np.ndarray:
    """torch.Tensor.uniform_(−bound, bound), which rounds once."""
    low = np.float32(-bound)
    return (integers * 2.0**-24 * np.float64(np.float32(bound) - low) + np.float64(low)).astype(np.float32)


def normal(integers: np.ndarray, deviation: float) -> np.ndarray:
    """torch.Tensor.normal_(0, deviation): Box–Muller in groups of 16; the number of integers is a multiple of 16."""
    first, second = (integers.reshape(-1, 2, 8) * f32(2**-24)).astype(f32).transpose(1, 0, 2)
    radius = np.sqrt(f32(-2) * _log(f32(1) - first))
    sine, cosine = _sine_and_cosine(f32(2 * np.pi) * second)
    return np.stack([radius * cosine, radius * sine], axis=1) * f32(deviation)


def _fma(a, b, c) -> np.ndarray:
    """a · b + c of float32, rounded once."""
    return (np.float64(a) * np.float64(b) + np.float64(c)).astype(f32)


def _polynomial(x, coefficients) -> np.ndarray:
    value = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = _fma(value, x, f32(coefficient))
    return value


def _log(x: np.ndarray) -> np.ndarray:
    mantissa, exponent = np.frexp(x)
    small = mantissa < f32(np.sqrt(0.5))
    exponent = (exponent - small).astype(f32)
    x = mantissa - f32(1) + np.where(small, mantissa, f32(0))
    square = x * x
    y = _fma(_polynomial(x, LOGARITHM) * x, square, exponent * f32(LOG2[0]))
    return _fma(exponent, f32(LOG2[1]), x + _fma(-square, f32(0.5), y))


def _sine_and_cosine(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of x ≥ 0: polynomials on the nearest even multiple of π/4, swapped and signed by the octant."""
    octant = ((x * f32(4 / np.pi)).astype(np.int32) + 1) & ~1
    for piece in QUARTER_PI:
        x = _fma(octant.astype(f32), f32(piece), x)
    square = x * x
    cosine = _fma(_polynomial(square, COSINE) * square, square, square * f32(-0.5)) + f32(1)
    sine = _fma(_polynomial(square, SINE) * square, x, x)
    swapped = (octant & 2) != 0
    sine, cosine = np.where(swapped, cosine, sine), np.where(swapped, sine, cosine)
    return np.where(octant & 4, -sine, sine), np.where((octant + 2) & 4, -cosine, cosine)
