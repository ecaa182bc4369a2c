"""Bytes → checked, decoded and cropped arrays. Nothing here knows where the bytes came from."""

import contextlib
import io
from collections.abc import Iterator
from typing import Literal

import numpy as np
from PIL import Image

from dualtoken_jax.data import crops, fast_resize, jpeg

MAX_BYTES = 64 * 2**20
MAX_PIXELS = 89_000_000  # 0.27 GB decoded; just under the size at which Pillow itself warns of a decompression bomb
MAX_ASPECT = 20.0  # long side / short side; beyond it a centre crop keeps under 5 % of the picture

# "exact" is Pillow throughout: torchvision's pixels. "fast" decodes large JPEGs at a half, a quarter or an eighth and
# resizes on vector instructions: other pixels by about one in 255, the same ones on every host.
Decoding = Literal["exact", "fast"]

_JPEG = ("JPEG", "MPO")  # MPO: a JPEG with further pictures behind it, as phones write
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
_ON_ITS_SIDE = (5, 6, 7, 8)


class BadImage(ValueError):
    """Bytes that are not a picture we accept.

    `reason` is a short slug to count by, `detail` a sentence to read; `origin` the file or shard member, as
    Example.origin, where whoever raises it knows.
    """

    def __init__(self, reason: str, detail: str = "", origin: str = "") -> None:
        super().__init__(reason, detail, origin)  # all as args, so that it survives pickling
        self.reason = reason
        self.detail = detail
        self.origin = origin

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


def load(data: bytes | np.ndarray, resolution: int, rng: np.random.Generator | None, decoding: Decoding) -> np.ndarray:
    """uint8 [R, R, 3]: a file or a decoded picture uint8 [H, W, 3], cropped as `resize_crop` does.

    Random boxes are drawn from the full picture's size, so they do not depend on `decoding`.

    Raises:
      BadImage: as `decode`.
      ValueError: the array is not uint8 [H, W, 3], or "fast" is not installed here.
    """
    if isinstance(data, bytes):
        return _load_exact(data, resolution, rng) if decoding == "exact" else _load_fast(data, resolution, rng)
    if decoding == "exact" or _fits(data, resolution, rng):
        return resize_crop(data, resolution, rng)
    box = crops.box_of(*_checked_array(data).shape[:2], resolution, rng)
    return crops.fast(data, 1, box, resolution, clip=rng is not None)


def _load_exact(data: bytes, resolution: int, rng: np.random.Generator | None) -> np.ndarray:
    image = _opened(data)
    return crops.exact(_loaded(data, image), resolution, rng)


def _load_fast(data: bytes, resolution: int, rng: np.random.Generator | None) -> np.ndarray:
    fast_resize.check_installed()
    image = _opened(data)
    if image.format not in _JPEG:
        return load(np.asarray(_loaded(data, image)), resolution, rng, "fast")
    orientation = _orientation(image)
    width, height = image.size[::-1] if orientation in _ON_ITS_SIDE else image.size
    box = crops.box_of(height, width, resolution, rng)
    # libjpeg's last row and column of a shrunk picture may stand for a part of one: turned, they would come first.
    shrink = 1 if orientation in _UPRIGHT else jpeg.shrink_for(box.height, box.width, resolution)
    pixels = _jpeg_pixels(data, image, orientation, shrink)
    if pixels.shape[:2] == (height, width):  # some kinds of JPEG are decoded whole whatever one asks
        shrink = 1
    return crops.fast(pixels, shrink, box, resolution, clip=rng is not None)


def decode(data: bytes) -> np.ndarray:
    """Decodes a JPEG, PNG or WebP file to uint8 [H, W, 3], upright, transparency composited on white.

    Colour profiles are ignored, 16-bit samples are reduced to 8, and of an animation the first frame is taken.

    Raises:
      BadImage: `reason` is one of empty, too-many-bytes, not-an-image, too-many-pixels, extreme-aspect, truncated,
        undecodable. The limits on size are applied to the header, before a pixel is decoded.
    """
    return np.array(_loaded(data, _opened(data)))


def _opened(data: bytes) -> Image.Image:
    """The header, checked; pixels are not decoded yet."""
    file_format = _format(data)
    if file_format == "WEBP":  # Pillow allocates the whole canvas when it opens one
        _check_size(*_webp_size(data))
    try:
        image = Image.open(io.BytesIO(data), formats=[file_format])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage("too-many-pixels", str(error)) from error
    except Exception as error:  # Pillow's plugins raise a dozen kinds on broken headers, few of them worth reading
        raise _broken_header(data, file_format) from error
    _check_size(*image.size)
    return image


def _broken_header(data: bytes, file_format: str) -> BadImage:
    return BadImage("undecodable", f"{len(data)} bytes that begin like {file_format}, with a broken header")


def _loaded(data: bytes, image: Image.Image) -> Image.Image:
    """The decoded picture, upright and RGB."""
    with _decoding_errors(data, image):
        image.load()
        return _upright_rgb(image)


def _jpeg_pixels(data: bytes, image: Image.Image, orientation: int, shrink: int) -> np.ndarray:
    """uint8 [⌈H / shrink⌉, ⌈W / shrink⌉, 3], upright."""
    if orientation not in _UPRIGHT and (pixels := jpeg.decode(data, image, shrink)) is not None:
        return pixels
    with _decoding_errors(data, image):
        if shrink > 1:
            image.draft(None, tuple(side // shrink for side in image.size))
        image.load()
        return np.asarray(_upright_rgb(image))


@contextlib.contextmanager
def _decoding_errors(data: bytes, image: Image.Image) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        reason = "truncated" if "truncated" in str(error).lower() else "undecodable"
        raise BadImage(reason, f"{image.format} of {len(data)} bytes: {error}") from error


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


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height of a WebP, from whichever of its three kinds of header comes first (RFC 9649, section 2)."""
    kind, header = data[12:16], data[20:30].ljust(10, b"\0")
    if kind == b"VP8X":
        return 1 + int.from_bytes(header[4:7], "little"), 1 + int.from_bytes(header[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(header[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        return int.from_bytes(header[6:8], "little") & 0x3FFF, int.from_bytes(header[8:10], "little") & 0x3FFF
    raise _broken_header(data, "WEBP")


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
    if image.mode != "RGB":  # Pillow would copy one that is
        image = image.convert("RGB")
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # noqa: BLE001 (broken EXIF raises all kinds, is common, and says nothing about the pixels)
        return 1


def resize_crop(image: np.ndarray, resolution: int, rng: np.random.Generator | None) -> np.ndarray:
    """Brings uint8 [H, W, 3] to uint8 [R, R, 3] with antialiased bicubic resizing, to torchvision's pixels.

    Args:
      image: the decoded picture; returned as it is when it already has the size and `rng` is None.
      resolution: R, in pixels.
      rng: None resizes the shortest side to R and crops the centre (evaluation); a generator draws torchvision's
        RandomResizedCrop with scale (0.9, 1.0) and ratio (3/4, 4/3) (training).

    Raises:
      ValueError: the array is not uint8 [H, W, 3].
    """
    if _fits(_checked_array(image), resolution, rng):
        return image
    return crops.exact(Image.fromarray(image), resolution, rng)


def _fits(image: np.ndarray, resolution: int, rng: np.random.Generator | None) -> bool:
    return rng is None and image.shape[:2] == (resolution, resolution)


def _checked_array(image: np.ndarray) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"resize_crop takes uint8 [H, W, 3], got {image.dtype} {image.shape}; decode() gives that")
    return image
