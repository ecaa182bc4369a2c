"""Which part of a picture a crop takes, and the resizing of that part to R × R pixels."""

import math
from typing import NamedTuple

import numpy as np
from PIL import Image

from dualtoken_jax.data import fast_resize

# torchvision's RandomResizedCrop, with the milder scale used for training a tokenizer.
CROP_SCALE = (0.9, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)
CROP_TRIES = 10


class Box(NamedTuple):
    """A part of a picture, in pixels of that picture; fractions of pixels are meant."""

    top: float
    left: float
    height: float
    width: float


def random_crop_box(height: int, width: int, rng: np.random.Generator) -> Box:
    """Draws a box of whole pixels as torchvision's RandomResizedCrop.get_params does."""
    log_low, log_high = math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])
    for _ in range(CROP_TRIES):
        area = height * width * rng.uniform(*CROP_SCALE)
        ratio = math.exp(rng.uniform(log_low, log_high))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top, left = rng.integers(height - crop_height + 1), rng.integers(width - crop_width + 1)
            return Box(int(top), int(left), crop_height, crop_width)
    # Pictures much longer than 4:3 never fit a crop of 90 % of their area: the largest central crop of allowed ratio.
    crop_width = min(width, round(height * CROP_RATIO[1]))
    crop_height = min(height, round(width / CROP_RATIO[0]))
    return Box((height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width)


def exact(image: Image.Image, resolution: int, rng: np.random.Generator | None) -> np.ndarray:
    """uint8 [R, R, 3], bit for bit what torchvision's Resize and CenterCrop (rng None) or RandomResizedCrop give.

    Both crop with Pillow, antialiased and bicubic; the random box is ours.
    """
    width, height = image.size
    if rng is not None:
        top, left, crop_height, crop_width = random_crop_box(height, width, rng)
        image = image.crop((left, top, left + crop_width, top + crop_height))
        return np.asarray(image.resize((resolution, resolution), Image.Resampling.BICUBIC))
    height, width, top, left = _centre(height, width, resolution)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + resolution, top + resolution)))


def _centre(height: int, width: int, resolution: int) -> tuple[int, int, int, int]:
    """Size of the whole picture with its short side at R, and top and left of the centre in it, all as torchvision."""
    short = min(height, width)
    height, width = resolution * height // short, resolution * width // short
    return height, width, round((height - resolution) / 2), round((width - resolution) / 2)


def box_of(height: int, width: int, resolution: int, rng: np.random.Generator | None) -> Box:
    """The part of the full picture that `exact` would resize to R × R."""
    if rng is not None:
        return random_crop_box(height, width, rng)
    whole_height, whole_width, top, left = _centre(height, width, resolution)
    down, across = height / whole_height, width / whole_width
    return Box(top * down, left * across, resolution * down, resolution * across)


def fast(pixels: np.ndarray, shrunk: int, box: Box, resolution: int, clip: bool) -> np.ndarray:
    """uint8 [R, R, 3] from a box of the full picture; `exact` but for the rounding where the picture is not shrunk.

    Args:
      pixels: uint8 [⌈H / shrunk⌉, ⌈W / shrunk⌉, 3].
      shrunk: by how much the picture was decoded smaller than it is.
      box: in pixels of the full picture.
      resolution: R, in pixels.
      clip: nothing outside the box has a share in its border, as in torchvision's random crop but not its centre crop.
    """
    top, left, height, width = (side / shrunk for side in box)
    first_row, first_column = (math.floor(top), math.floor(left)) if clip else (0, 0)
    if clip:
        pixels = pixels[first_row : math.ceil(top + height), first_column : math.ceil(left + width)]
    rows, columns = pixels.shape[:2]
    top, left = top - first_row, left - first_column
    # A shrunk picture's last row and column may stand for less than `shrunk` pixels, and sums of floats round.
    inner = Box(top, left, min(height, rows - top), min(width, columns - left))
    return fast_resize.resize(pixels, inner, resolution)
