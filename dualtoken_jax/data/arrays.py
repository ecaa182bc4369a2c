"""Pictures that a caller hands over as arrays → checked uint8."""

from collections.abc import Iterator, Sequence

import jax.numpy as jnp
import numpy as np

_TOLERANCE = 1e-3  # by which floats may leave [−1, 1]: the rounding of a resize


def pictures_of(images: np.ndarray | Sequence[np.ndarray]) -> list[np.ndarray]:
    """uint8 [H, W, 3] each, from one picture [H, W, 3], a batch [B, H, W, 3] or a list of them, of any sizes.

    Floats in [−1, 1] are rounded to 8 bits, which is what training sees. ValueError for other types, shapes and values.
    """
    arrays = images if isinstance(images, list | tuple) else [images]
    pictures = [picture for array in arrays for picture in _pictures(np.asarray(array))]
    if not pictures:
        raise ValueError("got no images; give at least one")
    return pictures


def _pictures(array: np.ndarray) -> Iterator[np.ndarray]:
    if array.ndim not in (3, 4) or array.shape[-1] != 3 or 0 in array.shape[-3:]:
        raise ValueError(
            f"images must be [H, W, 3] or [B, H, W, 3], got {list(array.shape)}: channels come last, and grey pictures "
            "or those with transparency must be converted to RGB"
        )
    array = array if array.dtype == np.uint8 else _rounded(array)
    yield from array[None] if array.ndim == 3 else array


def _rounded(array: np.ndarray) -> np.ndarray:
    if not jnp.issubdtype(array.dtype, jnp.floating):  # jnp: to numpy, bfloat16 is no float
        raise ValueError(
            f"images must be uint8, or floats in [-1, 1], got {array.dtype}; 0 … 255 fits .astype('uint8')"
        )
    values = array.astype(np.float32)
    low, high = values.min(initial=0), values.max(initial=0)
    if not (low >= -1 - _TOLERANCE and high <= 1 + _TOLERANCE):  # also where either is NaN
        raise ValueError(
            f"float images must lie in [-1, 1], got {low:g} … {high:g}; give uint8, or scale 0 … 255 by x / 127.5 - 1"
        )
    return np.round((np.clip(values, -1, 1) + 1) * 127.5).astype(np.uint8)
