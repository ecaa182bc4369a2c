"""Bytes → checked, decoded and cropped arrays. Nothing here knows where the bytes came from."""

import io
import math

import numpy as np
from PIL import Image

MAX_BYTES = 64 * 2**20
MAX_PIXELS = 89_000_000  # 0.27 GB decoded; just under the size at which Pillow itself warns of a decompression bomb
MAX_ASPECT = 20.0  # long side / short side; beyond it a centre crop keeps under 5 % of the picture

# torchvision's RandomResizedCrop, with the milder scale used for training a tokenizer.
CROP_SCALE = (0.9, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)
CROP_TRIES = 10

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImage(ValueError):
    """Bytes that are not a picture we accept. `reason` is a short slug to count by, `detail` a sentence to read."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)  # both as args, so that it survives pickling
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


def decode(data: bytes) -> np.ndarray:
    """Decodes a JPEG, PNG or WebP file to uint8 [H, W, 3], upright, transparency composited on white.

    Colour profiles are ignored, 16-bit samples are reduced to 8, and of an animation the first frame is taken.

    Raises:
      BadImage: `reason` is one of empty, too-many-bytes, not-an-image, too-many-pixels, extreme-aspect, truncated,
        undecodable. The limits on size are applied to the header, before a pixel is decoded.
    """
    file_format = _format(data)
    try:
        image = Image.open(io.BytesIO(data), formats=[file_format])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage("too-many-pixels", str(error)) from error
    except Exception as error:  # Pillow's plugins raise a dozen kinds on broken headers, few of them worth reading
        raise BadImage(
            "undecodable", f"{len(data)} bytes that begin like {file_format}, with a broken header"
        ) from error
    _check_size(*image.size)
    try:
        image.load()
        return np.array(_upright_rgb(image))
    except Exception as error:
        reason = "truncated" if "truncated" in str(error).lower() else "undecodable"
        raise BadImage(reason, f"{file_format} of {len(data)} bytes: {error}") from error


def _format(data: bytes) -> str:
    if not data:
        raise BadImage("empty", "the file has no bytes")
    if len(data) > MAX_BYTES:
        raise BadImage("too-many-bytes", f"{len(data)} bytes, at most {MAX_BYTES} are accepted")
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    raise BadImage("not-an-image", f"begins with {data[:12]!r}, which is not JPEG, PNG or WebP whatever the name says")


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadImage("too-many-pixels", f"{width} × {height} pixels, at most {MAX_PIXELS} are accepted")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise BadImage("extreme-aspect", f"{width} × {height}, sides may differ by a factor of {MAX_ASPECT:g} at most")


def _upright_rgb(image: Image.Image) -> Image.Image:
    orientation = _orientation(image)
    if image.mode.startswith("I"):  # Pillow's own conversion of 16-bit grey clips at 255 instead of scaling
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    image = image.convert("RGB")
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 (broken EXIF raises all kinds, is common, and says nothing about the pixels)
        return 1


def resize_crop(image: np.ndarray, resolution: int, rng: np.random.Generator | None) -> np.ndarray:
    """Brings uint8 [H, W, 3] to uint8 [R, R, 3] with antialiased bicubic resizing.

    Args:
      image: the decoded picture; returned as it is when it already has the size and `rng` is None.
      resolution: R, in pixels.
      rng: None resizes the shortest side to R and crops the centre (evaluation); a generator draws torchvision's
        RandomResizedCrop with scale (0.9, 1.0) and ratio (3/4, 4/3) (training).

    Raises:
      ValueError: the array is not uint8 [H, W, 3].
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"resize_crop takes uint8 [H, W, 3], got {image.dtype} {image.shape}; decode() gives that")
    height, width = image.shape[:2]
    if rng is not None:
        top, left, crop_height, crop_width = random_crop_box(height, width, rng)
        box = (left, top, left + crop_width, top + crop_height)
        return np.array(Image.fromarray(image).resize((resolution, resolution), Image.Resampling.BICUBIC, box=box))
    if height == width == resolution:
        return image
    short = min(height, width)
    height, width = resolution * height // short, resolution * width // short
    top, left = round((height - resolution) / 2), round((width - resolution) / 2)  # torchvision's CenterCrop
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    return np.array(resized.crop((left, top, left + resolution, top + resolution)))


def random_crop_box(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draws (top, left, height, width) in pixels as torchvision's RandomResizedCrop.get_params does."""
    log_low, log_high = math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])
    for _ in range(CROP_TRIES):
        area = height * width * rng.uniform(*CROP_SCALE)
        ratio = math.exp(rng.uniform(log_low, log_high))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top, left = rng.integers(height - crop_height + 1), rng.integers(width - crop_width + 1)
            return int(top), int(left), crop_height, crop_width
    # Pictures much longer than 4:3 never fit a crop of 90 % of their area: the largest central crop of allowed ratio.
    crop_width = min(width, round(height * CROP_RATIO[1]))
    crop_height = min(height, round(width / CROP_RATIO[0]))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width
