"""Fast decoding of JPEG, whole or at a half, a quarter or an eighth of its size, with the pixels that Pillow gives.

simplejpeg and Pillow both call libjpeg-turbo, with its exact DCT and smooth upsampling, so which of them decodes is a
matter of speed: tests/test_images.py compares them bit for bit over subsampling, sizes, scans and scales.
"""

import numpy as np
from PIL import Image

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

SHRINKS = (8, 4, 2)  # what libjpeg does on the coefficients, at a fraction of the cost of decoding and resizing
# A shrunk picture must keep this many times the pixels that the crop is resized to, along both axes. Measured on
# mosaics of photographs (benchmarks/decoding.py): crops of the half and the quarter are 50 and 48 dB from those of the
# whole at 2, 44 and 42 dB at 1.25; saving the crops as JPEG of quality 95 costs them down to 35 and 33 dB.
SPARE = 2


def shrink_for(crop_height: float, crop_width: float, resolution: int) -> int:
    """The largest of 8, 4, 2 by which a picture may be shrunk before that crop of it is resized to R × R; or 1."""
    short = min(crop_height, crop_width)
    return next((shrink for shrink in SHRINKS if short >= SPARE * shrink * resolution), 1)


def decode(data: bytes, image: Image.Image, shrink: int) -> np.ndarray | None:
    """uint8 [⌈H / shrink⌉, ⌈W / shrink⌉, 3]; None where only Pillow can tell what the file is worth.

    Args:
      data: the JPEG.
      image: the same, opened by Pillow and not loaded.
      shrink: 1, 2, 4 or 8.
    """
    if simplejpeg is None or image.mode not in ("RGB", "L"):
        return None
    width, height = (-(-side // shrink) for side in image.size)
    least = {"min_height": height, "min_width": width} if shrink > 1 else {}
    try:
        pixels = simplejpeg.decode_jpeg(data, strict=True, **least)
    except ValueError:  # damaged, truncated, or odd in a way that Pillow may yet accept
        return None
    return pixels if pixels.shape == (height, width, 3) else None
