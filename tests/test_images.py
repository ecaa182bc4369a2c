"""Decoding of everything people keep in image folders, and the two crops."""

import io
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from torch_packages import imported

from dualtoken_jax.data import images
from dualtoken_jax.data.images import BadImage, decode, resize_crop


def encoded(image, file_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def noise(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def png_header(width, height):
    """A valid PNG that announces width × height grey pixels and holds next to none."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def reason(data):
    with pytest.raises(BadImage) as caught:
        decode(data)
    return caught.value.reason


@pytest.mark.parametrize("file_format, options", [("PNG", {}), ("WEBP", {"lossless": True})])
def test_lossless_formats_decode_exactly(file_format, options):
    pixels = noise(20, 31)
    decoded = decode(encoded(Image.fromarray(pixels), file_format, **options))
    np.testing.assert_array_equal(decoded, pixels)
    decoded[0] = 0  # an array of its own, writable


def test_jpeg_colours():
    for mode in ("RGB", "L", "CMYK"):
        decoded = decode(encoded(Image.new("RGB", (16, 24), (200, 200, 200)).convert(mode), "JPEG", quality=95))
        assert decoded.shape == (24, 16, 3) and decoded.dtype == np.uint8
        assert np.abs(decoded.astype(int) - 200).max() <= 3, mode


def test_palette_bilevel_and_grey():
    picture = Image.fromarray(np.repeat(np.array([[0, 255], [255, 0]], np.uint8), 8, 0).repeat(8, 1))
    for mode in ("1", "L", "P", "LA"):
        np.testing.assert_array_equal(decode(encoded(picture.convert(mode))), np.asarray(picture.convert("RGB")))


def test_sixteen_bit_grey_is_scaled_not_clipped():
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    decoded = decode(encoded(Image.fromarray(ramp)))
    np.testing.assert_array_equal(decoded[..., 0], ramp // 257)


def test_transparency_is_composited_on_white():
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert (decode(encoded(clear)) == 255).all()
    assert np.abs(decode(encoded(half)).astype(int) - 127).max() <= 1
    assert (decode(encoded(Image.new("LA", (4, 4), (0, 0)))) == 255).all()
    assert (decode(encoded(Image.new("P", (4, 4), 0), transparency=0)) == 255).all()
    assert (decode(encoded(Image.new("RGB", (4, 4), (9, 9, 9)), transparency=(9, 9, 9))) == 255).all()
    assert (decode(encoded(clear, "WEBP", lossless=True)) == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    """Stores each of the eight orientations of one picture and expects the upright one back."""
    upright = noise(6, 10)
    stored = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation](upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    np.testing.assert_array_equal(decode(data), upright)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_does_not_cost_the_picture():
    data = encoded(Image.fromarray(noise(8, 8)), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert decode(data).shape == (8, 8, 3)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_truncated_files_are_refused(file_format):
    data = encoded(Image.fromarray(noise(64, 64)), file_format)
    for share in (0.3, 0.6, 0.95):
        assert reason(data[: int(len(data) * share)]) in ("truncated", "undecodable")


def test_every_refusal_says_why(monkeypatch):
    assert reason(b"") == "empty"
    assert reason(b"a cat sits on a mat, and this is not a JPEG") == "not-an-image"
    assert reason(encoded(Image.new("RGB", (4, 4)), "GIF")) == "not-an-image"
    assert reason(b"\x89PNG\r\n\x1a\n") == "undecodable"
    assert reason(b"\xff\xd8\xff\xe0 and nothing that belongs there") == "undecodable"
    assert reason(png_header(210, 10)) == "extreme-aspect"
    monkeypatch.setattr(images, "MAX_BYTES", 100)
    assert reason(encoded(Image.fromarray(noise(16, 16)))) == "too-many-bytes"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [30_000, 9_500])
def test_bombs_are_refused_from_the_header(side, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("pixels were decoded"))
    data = png_header(side, side)
    assert len(data) < 100
    assert reason(data) == "too-many-pixels"


def test_random_bytes_behind_a_good_header_never_raise_anything_else():
    rng = np.random.default_rng(0)
    for file_format in ("JPEG", "PNG", "WEBP"):
        good = np.frombuffer(encoded(Image.fromarray(noise(24, 24)), file_format), np.uint8)
        for _ in range(60):
            spoiled = good.copy()
            places = rng.integers(12, len(good), 8)
            spoiled[places] = rng.integers(0, 256, 8)
            try:
                assert decode(spoiled.tobytes()).ndim == 3
            except BadImage:
                pass


def test_bad_image_survives_pickling():
    error = pickle.loads(pickle.dumps(BadImage("empty", "no bytes")))
    assert (error.reason, str(error)) == ("empty", "empty: no bytes")


def test_a_picture_of_the_right_size_passes_untouched():
    pixels = noise(32, 32)
    assert resize_crop(pixels, 32, None) is pixels


@pytest.mark.parametrize("height, width", [(48, 32), (32, 48), (47, 33), (16, 200), (8, 8), (100, 101), (1, 1)])
def test_both_crops_give_the_size_asked_for(height, width):
    pixels = noise(height, width)
    for rng in (None, np.random.default_rng(0)):
        assert resize_crop(pixels, 32, rng).shape == (32, 32, 3)


def test_centre_crop_keeps_the_centre():
    pixels = np.zeros((32, 96, 3), np.uint8)
    pixels[:, 32:64] = 255
    assert (resize_crop(pixels, 32, None) == 255).all()


def test_resizing_is_antialiased():
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    for rng in (None, np.random.default_rng(0)):
        assert np.abs(resize_crop(stripes, 32, rng).astype(int) - 127).max() < 12


def test_arrays_of_another_kind_are_refused():
    with pytest.raises(ValueError, match=r"float32 \(8, 8, 3\)"):
        resize_crop(np.zeros((8, 8, 3), np.float32), 8, None)


def test_random_crops_follow_the_stated_distribution():
    rng = np.random.default_rng(0)
    height, width = 600, 800
    boxes = np.array([images.random_crop_box(height, width, rng) for _ in range(2000)])
    top, left, crop_height, crop_width = boxes.T
    assert (top >= 0).all() and (left >= 0).all()
    assert (top + crop_height <= height).all() and (left + crop_width <= width).all()
    area = crop_height * crop_width / (height * width)
    ratio = crop_width / crop_height
    fits = area > 0.895
    assert fits.mean() > 0.95  # the rest is the fallback
    assert 0.9 - 0.005 < area.min() and area.max() <= 1 and ratio.min() > 0.74 and ratio.max() < 1.34
    slack = crop_height < height - 4  # crops are spread over the free space, and reach both of its ends
    share = top[slack] / (height - crop_height)[slack]
    assert 0.45 < share.mean() < 0.55 and share.min() < 0.02 and share.max() > 0.98


@pytest.mark.parametrize("height, width, expected", [(100, 400, (0, 133, 100, 133)), (400, 100, (133, 0, 133, 100))])
def test_long_pictures_fall_back_to_the_central_crop(height, width, expected):
    assert images.random_crop_box(height, width, np.random.default_rng(0)) == expected


def test_crops_are_drawn_as_torchvision_draws_them():
    """The share of tries that fit, and the mean area, against a direct simulation of the rule."""
    rng = np.random.default_rng(1)
    boxes = np.array([images.random_crop_box(500, 500, rng) for _ in range(4000)])
    area = boxes[:, 2] * boxes[:, 3] / 500**2
    drawn = np.random.default_rng(2).uniform(0.9, 1.0, (200_000,))
    ratio = np.exp(np.random.default_rng(3).uniform(np.log(3 / 4), np.log(4 / 3), 200_000))
    fits = (drawn * ratio <= 1) & (drawn / ratio <= 1)
    fallback = (1 - fits.mean()) ** images.CROP_TRIES
    expected = (1 - fallback) * drawn[fits].mean() + fallback * 1.0
    assert abs(area.mean() - expected) < 0.003


@pytest.mark.parametrize("height, width", [(97, 61), (61, 97), (40, 160), (24, 30), (301, 256)])
def test_centre_crop_is_torchvisions(height, width):
    """Within one step of 8 bits of torchvision on Pillow pictures, which is what the reference evaluates on."""
    transforms = imported("torchvision.transforms")
    rng = np.random.default_rng(height)
    smooth = np.asarray(Image.fromarray(noise(9, 7, seed=height)).resize((width, height), Image.Resampling.BICUBIC))
    pixels = np.clip(smooth + rng.normal(0, 20, smooth.shape), 0, 255).astype(np.uint8)
    bicubic = transforms.InterpolationMode.BICUBIC
    reference = transforms.Compose([transforms.Resize(48, bicubic, antialias=True), transforms.CenterCrop(48)])
    expected = np.asarray(reference(Image.fromarray(pixels))).astype(int)
    assert np.abs(resize_crop(pixels, 48, None).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("height, width", [(500, 500), (480, 640), (320, 400)])
def test_random_crops_have_torchvisions_distribution(height, width):
    """Area, aspect and place of 3000 crops each: Kolmogorov–Smirnov, and the share of fallbacks."""
    crop = imported("torchvision.transforms").RandomResizedCrop
    import torch

    torch.manual_seed(0)
    rng, picture = np.random.default_rng(0), torch.zeros(1, height, width)
    ours = np.array([images.random_crop_box(height, width, rng) for _ in range(3000)])
    theirs = np.array([crop.get_params(picture, images.CROP_SCALE, images.CROP_RATIO) for _ in range(3000)])
    for name, mine, other in zip(("area", "ratio", "top", "left"), traits(ours), traits(theirs), strict=True):
        assert stats.ks_2samp(mine, other).pvalue > 1e-3, name
    shrunken = traits(ours)[0] * 0.998  # the test sees a difference of a fiftieth of the range of areas
    assert stats.ks_2samp(shrunken, traits(theirs)[0]).pvalue < 1e-3


def traits(boxes):
    top, left, height, width = boxes.T
    return height * width, width / height, top, left
