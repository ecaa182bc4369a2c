"""Shapes and textures of the scenes as signed distance functions.

Each takes coordinates (float32 arrays of one shape, x to the right and y down, in units of the object's radius) and
returns the distance to the nearest edge in the same units, negative inside. Every shape fits the unit circle.
"""

import numpy as np


def _circle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sqrt(x * x + y * y) - np.float32(0.92)


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - np.float32(0.7)


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    y = y - np.float32(0.075)  # lower than its centroid, which looks centred
    side = np.float32(0.8660254) * np.abs(x) - np.float32(0.5) * y
    return np.maximum(y, side) - np.float32(0.48)


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = np.abs(x), np.abs(y)
    return np.maximum(np.maximum(x, y) - np.float32(0.93), np.minimum(x, y) - np.float32(0.28))


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.abs(np.sqrt(x * x + y * y) - np.float32(0.67)) - np.float32(0.25)


SHAPES = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
    "ring": _ring,
}


def _no_mark(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.full_like(x, 1e3)


def _stripe_distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Diagonal stripes 0.38 radii wide: two pixels on the smallest object at 32 px."""
    along = (x + y) * np.float32(0.70710678 / 0.76)
    along -= np.floor(along)
    return (np.abs(along - np.float32(0.5)) - np.float32(0.25)) * np.float32(0.76)


def _dot_distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Dots on a square grid with one at the centre, so that every shape shows several."""
    across = x - np.float32(0.54) * np.floor(x * np.float32(1 / 0.54) + np.float32(0.5))
    down = y - np.float32(0.54) * np.floor(y * np.float32(1 / 0.54) + np.float32(0.5))
    return np.sqrt(across * across + down * down) - np.float32(0.18)


TEXTURES = {"plain": _no_mark, "striped": _stripe_distance, "dotted": _dot_distance}
