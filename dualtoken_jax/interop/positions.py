"""Position embeddings of one patch grid resampled to another, as each family of checkpoints does it itself.

The two differ, so that a tower at a new resolution gives the numbers of the program that its file belongs to:
transformers' `interpolate_pos_encoding` is bicubic with half-pixel centres and big_vision's `resample_posemb` bilinear
with aligned corners. Neither antialiases: the embeddings are smooth over the grid, and both programs were only ever
used and measured this way.
"""

import numpy as np
from scipy import ndimage

_SHARPNESS = -0.75  # of torch's bicubic kernel without antialiasing; Keys' own value is −0.5


def bicubic(positions: np.ndarray, grid: int) -> np.ndarray:
    """[n², C] → [grid², C] float32 as torch's `interpolate(mode='bicubic', align_corners=False)`."""
    plane = _plane(positions)
    weights = _bicubic_weights(plane.shape[0], grid)
    resized = np.einsum("yi,xj,ijc->yxc", weights, weights, plane, optimize=True)
    return resized.reshape(grid * grid, -1).astype(np.float32)


def bilinear(positions: np.ndarray, grid: int) -> np.ndarray:
    """[n², C] → [grid², C] float32 as `scipy.ndimage.zoom(order=1)`, which is what big_vision calls."""
    plane = _plane(positions)
    zoom = grid / plane.shape[0]
    return ndimage.zoom(plane, (zoom, zoom, 1), order=1).reshape(grid * grid, -1)


def _plane(positions: np.ndarray) -> np.ndarray:
    side = round(len(positions) ** 0.5)
    if side * side != len(positions):
        raise ValueError(f"{len(positions)} position embeddings are no square grid and cannot be resampled")
    return positions.reshape(side, side, -1).astype(np.float32)


def _bicubic_weights(old: int, new: int) -> np.ndarray:
    """[new, old]: each row weighs the four nearest old positions; beyond the border the last one repeats."""
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    weights = np.zeros((new, old))
    for offset in (-1, 0, 1, 2):
        neighbours = np.floor(centres).astype(int) + offset
        kernel = _bicubic_kernel(np.abs(centres - neighbours))
        np.add.at(weights, (np.arange(new), np.clip(neighbours, 0, old - 1)), kernel)
    return weights


def _bicubic_kernel(distance: np.ndarray) -> np.ndarray:
    a, d = _SHARPNESS, distance
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = a * (((d - 5) * d + 8) * d - 4)
    return np.where(d <= 1, near, np.where(d < 2, far, 0))
