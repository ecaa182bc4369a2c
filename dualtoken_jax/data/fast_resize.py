"""Pillow's antialiased bicubic resize on vector instructions: the crate fast_image_resize, by its Python package.

The arithmetic is integer and the same with AVX2, SSE 4.1, NEON and none of them, so that every host gets the same
pixels. It is not Pillow's: coefficients have 16 bits instead of 22, and one value in forty differs by 1.
"""

import threading
from typing import NamedTuple

import numpy as np

try:
    import cykooz_resizer as fir
except ImportError:  # it has no wheels for Linux on ARM
    fir = None

_local = threading.local()


class _Tools(NamedTuple):
    """One per thread: a resizer is locked while it works."""

    resizer: "fir.Resizer"
    algorithm: "fir.ResizeAlg"


def check_installed() -> None:
    """Raises ValueError where the package is missing: to fall back to Pillow in silence would change the pixels."""
    if fir is None:
        raise ValueError(
            "data.decoding 'fast' needs the package cykooz-resizer, which is not installed here (there are no wheels "
            "for Linux on ARM); install it, or take 'exact' on every host of the run, whose pixels differ by rounding"
        )


def resize(pixels: np.ndarray, box: tuple[float, float, float, float], resolution: int) -> np.ndarray:
    """uint8 [R, R, 3] from the part `box` (top, left, height, width) of uint8 [H, W, 3].

    Rows first, then columns: in this order Pillow up to 12.3 resizes everything, and 13 all but some portraits.
    """
    check_installed()
    top, left, height, width = box
    rows, columns = pixels.shape[:2]
    tools = _tools()
    whole = fir.ImageData(columns, rows, fir.PixelType.U8x3, pixels.tobytes())
    narrow = fir.ImageData(resolution, rows, fir.PixelType.U8x3)
    result = fir.ImageData(resolution, resolution, fir.PixelType.U8x3)
    _pass(tools, whole, narrow, fir.CropBox(left, 0, width, rows))
    _pass(tools, narrow, result, fir.CropBox(0, top, resolution, height))
    return np.frombuffer(result.get_buffer(), np.uint8).reshape(resolution, resolution, 3)


def _pass(tools: _Tools, source: "fir.ImageData", target: "fir.ImageData", box: "fir.CropBox") -> None:
    options = fir.ResizeOptions(resize_alg=tools.algorithm, crop_box=box, use_alpha=False)
    tools.resizer.resize(source, target, options)


def _tools() -> _Tools:
    if not hasattr(_local, "tools"):
        # Catmull–Rom is the cubic with a = −1/2, Pillow's bicubic.
        _local.tools = _Tools(fir.Resizer(), fir.ResizeAlg.convolution(fir.FilterType.catmull_rom))
    return _local.tools
