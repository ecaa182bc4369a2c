"""Decoding of everything people keep in image folders, and of what only looks like a picture."""

import io
import pickle
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from dualtoken_jax.data import images, jpeg
from dualtoken_jax.data.images import BadImage, decode


def encoded(image, file_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def noise(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def chunk(kind, body):
    """One chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width, height, pixels=b"\0", depth=8, colour=0, *more):
    """A PNG from its parts; by default it announces width × height grey pixels and holds next to none."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = [chunk(b"IHDR", header), *more, chunk(b"IDAT", zlib.compress(pixels)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def webp_header(kind, width, height):
    """The 30 bytes that announce the size of a WebP, and no picture behind them."""
    extended = b"\0" * 4 + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    lossless = b"\x2f" + ((width - 1 | height - 1 << 14) & 0xFFFFFFFF).to_bytes(4, "little")
    lossy = b"\x30\1\0\x9d\x01\x2a" + struct.pack("<HH", width & 0xFFFF, height & 0xFFFF)
    payload = {b"VP8X": extended, b"VP8L": lossless, b"VP8 ": lossy}[kind]
    return b"RIFF" + struct.pack("<I", 12 + len(payload)) + b"WEBP" + kind + struct.pack("<I", len(payload)) + payload


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


def adobe_transform(data, value):
    """The JPEG with another colour transform in its Adobe segment: 0 for CMYK, 2 for YCCK."""
    at = data.index(b"Adobe") + 11
    return data[:at] + bytes([value]) + data[at + 1 :]


def test_inverted_cmyk_and_ycck():
    """Adobe's files hold inverted inks, in CMYK or in YCCK; both come out as the colours that were put in."""
    inks = Image.new("CMYK", (16, 16), (0, 200, 100, 30))
    expected = np.asarray(inks.convert("RGB"))[0, 0].astype(int)
    cmyk = encoded(inks, "JPEG", quality=95)
    assert b"Adobe" in cmyk
    assert np.abs(decode(cmyk)[8, 8] - expected).max() <= 3
    red, green, blue = 0, 200, 100  # libjpeg makes inverted inks of YCC: read as RGB it holds the inks themselves
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    ycc = (luma, 128 + (blue - luma) / 1.772, 128 + (red - luma) / 1.402)
    # Pillow writes CMYK only: with what YCCK would hold as inks, and the mark of YCCK.
    held = Image.new("CMYK", (16, 16), (*(255 - round(value) for value in ycc), 30))
    assert np.abs(decode(adobe_transform(encoded(held, "JPEG", quality=95), 2))[8, 8] - expected).max() <= 4


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0", "4:1:1", "grey"])
def test_both_jpeg_decoders_give_the_same_bits(subsampling):
    """simplejpeg against Pillow, over odd sizes, scans and all scales; else hosts would disagree."""
    pytest.importorskip("simplejpeg")
    rng = np.random.default_rng(0)
    for progressive in (False, True):
        for width, height in rng.integers(17, 90, (6, 2)):
            picture = Image.fromarray(noise(5, 7)).resize((int(width), int(height)))
            options = {"quality": int(rng.integers(20, 99)), "progressive": progressive}
            if subsampling == "grey":
                data = encoded(picture.convert("L"), "JPEG", **options)
            else:
                data = encoded(picture, "JPEG", subsampling=subsampling, **options)
            for shrink in (1, 2, 4, 8):
                image = Image.open(io.BytesIO(data))
                found = jpeg.decode(data, image, shrink)
                image.draft(None, (width // shrink, height // shrink))
                np.testing.assert_array_equal(found, np.asarray(image.convert("RGB")))


def test_of_a_phones_double_picture_the_first_is_taken():
    """MPO: two JPEGs in one file."""
    first, second = (Image.fromarray(noise(9, 9, seed=seed)).resize((400, 300)) for seed in (0, 1))
    data = encoded(first, "MPO", save_all=True, append_images=[second], quality=95)
    assert len(data) > 1.5 * len(encoded(first, "JPEG", quality=95))
    assert np.abs(decode(data).astype(int) - np.asarray(first)).mean() < 3
    for how in ("exact", "fast"):
        found = images.load(data, 60, None, how).astype(int)
        assert np.abs(found - images.load(np.asarray(first), 60, None, how)).mean() < 3


def test_only_pillow_judges_damaged_and_unusual_jpegs():
    pytest.importorskip("simplejpeg")
    whole = encoded(Image.fromarray(noise(64, 64)), "JPEG")
    cut, inked = whole[: len(whole) // 2], encoded(Image.new("CMYK", (8, 8)), "JPEG")
    for data in (cut, inked):
        assert jpeg.decode(data, Image.open(io.BytesIO(data)), 1) is None


def test_palette_bilevel_and_grey():
    picture = Image.fromarray(np.repeat(np.array([[0, 255], [255, 0]], np.uint8), 8, 0).repeat(8, 1))
    for mode in ("1", "L", "P", "LA"):
        np.testing.assert_array_equal(decode(encoded(picture.convert(mode))), np.asarray(picture.convert("RGB")))


def test_sixteen_bit_grey_is_scaled_not_clipped():
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    decoded = decode(encoded(Image.fromarray(ramp)))
    np.testing.assert_array_equal(decoded[..., 0], ramp // 257)


@pytest.mark.parametrize("colour, channels", [(2, 3), (4, 2), (6, 4)])
def test_sixteen_bit_colours_keep_their_high_bytes(colour, channels):
    """PNG's RGB, grey with alpha and RGBA at 16 bits; opaque."""
    samples = np.random.default_rng(0).integers(0, 65536, (5, 6, channels)).astype(">u2")
    if channels % 2 == 0:
        samples[..., -1] = 65535
    rows = b"".join(b"\0" + row.tobytes() for row in samples)
    expected = (samples >> 8).astype(np.uint8)[..., : 3 if channels > 2 else 1]
    np.testing.assert_array_equal(decode(png(6, 5, rows, 16, colour)), np.broadcast_to(expected, (5, 6, 3)))


def test_of_an_animation_the_first_picture_is_taken():
    frames = [Image.new("RGB", (12, 10), colour) for colour in ("red", "green", "blue")]
    for file_format, options in (("PNG", {}), ("WEBP", {"lossless": True})):
        data = encoded(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
        assert (decode(data) == (255, 0, 0)).all() and decode(data).shape == (10, 12, 3)


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
    assert reason(png(210, 10)) == "extreme-aspect"
    monkeypatch.setattr(images, "MAX_BYTES", 100)
    assert reason(encoded(Image.fromarray(noise(16, 16)))) == "too-many-bytes"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [30_000, 9_500])
def test_bombs_are_refused_from_the_header(side, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("pixels were decoded"))
    data = png(side, side)
    assert len(data) < 100
    assert reason(data) == "too-many-pixels"


@pytest.mark.parametrize("kind, side", [(b"VP8X", 16_000_000), (b"VP8X", 9_500), (b"VP8L", 16_384), (b"VP8 ", 16_383)])
def test_giant_webps_are_refused_before_pillow_allocates_them(kind, side, monkeypatch):
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("Pillow saw it"))
    assert reason(webp_header(kind, side, side)) == "too-many-pixels"
    assert reason(webp_header(kind, 10, 2000)) == "extreme-aspect"


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"}])
def test_sizes_of_good_webps_are_read_right(options):
    for width, height in ((1, 1), (37, 91), (300, 17)):
        data = encoded(Image.new("RGB", (width, height)), "WEBP", **options)
        assert images._webp_size(data) == (width, height)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_giant_jpegs_are_refused_from_the_header(monkeypatch):
    data = encoded(Image.new("RGB", (8, 8)), "JPEG")
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("pixels were decoded"))
    at = data.index(b"\xff\xc0") + 5  # height and width, two bytes each
    for height, width, expected in ((65535, 65535, "too-many-pixels"), (9500, 9500, "too-many-pixels"),
                                    (40, 65535, "extreme-aspect"), (0, 100, "undecodable")):  # fmt: skip
        giant = data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]
        for how in ("exact", "fast"):
            with pytest.raises(BadImage) as caught:
                images.load(giant, 16, None, how)
            assert caught.value.reason == expected


def test_bombs_in_the_margin_of_a_picture_are_not_unpacked():
    """Texts and colour profiles that would unpack to 300 MB cost little memory, with the picture or without."""
    bomb, rows = zlib.compress(bytes(300 * 2**20)), b"\0ab" * 2
    chunks = [
        chunk(b"iCCP", b"name\0\0" + bomb),
        chunk(b"zTXt", b"key\0\0" + bomb),
        chunk(b"iTXt", b"key\0\1\0\0\0" + bomb),
    ]
    del bomb
    tracemalloc.start()
    for one in chunks:
        try:
            assert decode(png(2, 2, rows, 8, 0, one)).shape == (2, 2, 3)
        except BadImage:
            pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 * 2**20


def test_a_gif_by_the_name_of_jpeg_and_an_error_page_are_no_images():
    assert reason(b"GIF89a" + bytes(100)) == reason(b"<!DOCTYPE html><title>404</title>") == "not-an-image"
    assert reason(b"\0" * 5000) == "not-an-image"


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
