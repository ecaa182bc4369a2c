"""What a protocol does to a picture between the tokenizer and Inception: the file it is written to, the resize."""

import io

import numpy as np
from PIL import Image

from dualtoken_jax.models.inception import SIDE

JPEG_QUALITY = 95


def through_jpeg(values: np.ndarray) -> np.ndarray:
    """[H, W, 3] from 0 to 255 → truncated to uint8, written as JPEG (quality 95, 4:2:0) and read again."""
    buffer = io.BytesIO()
    picture = Image.fromarray(values.astype(np.uint8))  # truncates, as the released evaluation does
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling="4:2:0")
    return np.asarray(Image.open(buffer, formats=["JPEG"]).convert("RGB"))


def through_png(values: np.ndarray) -> np.ndarray:
    """[H, W, 3] from 0 to 255 → rounded to uint8: a PNG gives back what is written to it."""
    return np.round(values).astype(np.uint8)


def clean_bicubic(image: np.ndarray) -> np.ndarray:
    """clean-fid's resize (Parmar et al. 2022, arXiv 2104.11222): uint8 [H, W, 3] → float32 [299, 299, 3].

    Pillow's antialiased bicubic, each channel in float32, clipped to 0 … 255 and not rounded.
    """
    channels = [Image.fromarray(image[:, :, channel].astype(np.float32)) for channel in range(3)]
    resized = [np.asarray(channel.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for channel in channels]
    return np.stack(resized, axis=-1).clip(0, 255)


def tensorflow_bilinear(image: np.ndarray) -> np.ndarray:
    """TensorFlow 1's bilinear resize: uint8 [H, W, 3] → float32 [299, 299, 3].

    Output pixel i reads position i · size / 299, with neither half-pixel centres nor antialiasing. It stands inside the
    graph that ADM's evaluation runs, and torch-fidelity reproduces it; pytorch-fid's differs by the half pixel.
    """
    rows, columns = (_neighbours(size) for size in image.shape[:2])
    image = image.astype(np.float32)
    low, high, share = columns
    image = image[:, low] + (image[:, high] - image[:, low]) * share[:, None]  # [H, 299, 3]
    low, high, share = rows
    return image[low] + (image[high] - image[low]) * share[:, None, None]


def _neighbours(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    position = np.arange(SIDE, dtype=np.float32) * np.float32(size / SIDE)
    low = position.astype(np.int64)
    return low, np.minimum(low + 1, size - 1), position - low.astype(np.float32)
