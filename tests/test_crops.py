"""The two crops: torchvision's pixels, and the fast ones beside them."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy import stats
from torch_packages import imported

from dualtoken_jax.data import crops, fast_resize, jpeg
from dualtoken_jax.data.images import load, resize_crop


def noise(height, width, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def photograph(height, width, seed=0):
    """Smooth shapes, edges and some noise: uint8 [H, W, 3]."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(noise(9, 7, seed=seed)).resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(coarse) + rng.normal(0, 8, (height, width, 3))
    rows, columns = np.mgrid[:height, :width]
    pixels[(rows // 37 + columns // 53) % 5 == 0] *= 0.4
    return np.clip(pixels, 0, 255).astype(np.uint8)


def jpeg_file(pixels, **options):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=92, **options)
    return buffer.getvalue()


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
    boxes = np.array([crops.random_crop_box(height, width, rng) for _ in range(2000)])
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
    assert crops.random_crop_box(height, width, np.random.default_rng(0)) == expected


def test_crops_are_drawn_as_torchvision_draws_them():
    """The share of tries that fit, and the mean area, against a direct simulation of the rule."""
    rng = np.random.default_rng(1)
    boxes = np.array([crops.random_crop_box(500, 500, rng) for _ in range(4000)])
    area = boxes[:, 2] * boxes[:, 3] / 500**2
    drawn = np.random.default_rng(2).uniform(0.9, 1.0, (200_000,))
    ratio = np.exp(np.random.default_rng(3).uniform(np.log(3 / 4), np.log(4 / 3), 200_000))
    fits = (drawn * ratio <= 1) & (drawn / ratio <= 1)
    fallback = (1 - fits.mean()) ** crops.CROP_TRIES
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
    ours = np.array([crops.random_crop_box(height, width, rng) for _ in range(3000)])
    theirs = np.array([crop.get_params(picture, crops.CROP_SCALE, crops.CROP_RATIO) for _ in range(3000)])
    for name, mine, other in zip(("area", "ratio", "top", "left"), traits(ours), traits(theirs), strict=True):
        assert stats.ks_2samp(mine, other).pvalue > 1e-3, name
    shrunken = traits(ours)[0] * 0.998  # the test sees a difference of a fiftieth of the range of areas
    assert stats.ks_2samp(shrunken, traits(theirs)[0]).pvalue < 1e-3


def traits(boxes):
    top, left, height, width = boxes.T
    return height * width, width / height, top, left


SIZES = [(375, 500), (500, 375), (333, 90), (48, 64), (20, 20), (700, 900)]


@pytest.mark.parametrize("height, width", SIZES)
def test_exact_crops_are_torchvisions_bit_for_bit(height, width):
    transforms = imported("torchvision.transforms")
    pixels, bicubic = photograph(height, width), transforms.InterpolationMode.BICUBIC
    box = crops.random_crop_box(height, width, np.random.default_rng(5))
    expected = transforms.functional.resized_crop(Image.fromarray(pixels), *box, [64, 64], bicubic, antialias=True)
    np.testing.assert_array_equal(resize_crop(pixels, 64, np.random.default_rng(5)), np.asarray(expected))


def rows_then_columns(pixels, resolution):
    """Pillow's resize in a fixed order; Pillow 13 takes the other one for some portraits."""
    narrow = Image.fromarray(pixels).resize((resolution, len(pixels)), Image.Resampling.BICUBIC)
    return np.asarray(narrow.resize((resolution, resolution), Image.Resampling.BICUBIC)).astype(int)


@pytest.mark.parametrize("height, width", SIZES)
@pytest.mark.parametrize("resolution", [64, 128])
def test_fast_random_crops_differ_from_pillow_by_rounding(height, width, resolution):
    pixels = photograph(height, width)
    top, left, down, across = crops.random_crop_box(height, width, np.random.default_rng(5))
    expected = rows_then_columns(np.ascontiguousarray(pixels[top : top + down, left : left + across]), resolution)
    difference = np.abs(load(pixels, resolution, np.random.default_rng(5), "fast") - expected)
    assert difference.max() <= 2 and (difference > 1).mean() < 1e-4 and (difference > 0).mean() < 0.06
    shifted = np.abs(load(np.roll(pixels, 1, axis=1), resolution, np.random.default_rng(5), "fast") - expected)
    assert (shifted > 2).mean() > 0.05  # one pixel aside would be seen


@pytest.mark.parametrize("height, width", SIZES)
def test_fast_centre_crops_differ_by_rounding(height, width):
    pixels = photograph(height, width)
    exact = load(pixels, 64, None, "exact").astype(int)
    difference = np.abs(load(pixels, 64, None, "fast") - exact)
    # Pillow 13 goes through some portraits columns first: rounding and clipping in between are others.
    assert (difference > 1).mean() < 0.01 and (difference > 2).mean() < 1e-3


@pytest.mark.parametrize("rng_seed", [None, 3])
def test_large_jpegs_are_decoded_small_and_look_the_same(rng_seed, monkeypatch):
    data, shrinks = jpeg_file(photograph(1000, 1301)), []
    original = jpeg.decode
    monkeypatch.setattr(jpeg, "decode", lambda *of: (shrinks.append(of[2]), original(*of))[1])
    for resolution in (64, 128, 300):
        draws = [rng_seed and np.random.default_rng(rng_seed) for _ in range(2)]
        exact, fast = (load(data, resolution, *way).astype(int) for way in zip(draws, ("exact", "fast"), strict=True))
        assert 10 * np.log10(255**2 / np.square(exact - fast).mean()) > 44
    assert shrinks == [4, 2, 1]


def test_a_picture_is_shrunk_only_while_twice_the_crop_is_left():
    assert [jpeg.shrink_for(side, 2 * side, 100) for side in (200, 399, 400, 799, 800, 1599, 1600, 9999)] == [
        1, 1, 2, 2, 4, 4, 8, 8,
    ]  # fmt: skip
    assert jpeg.shrink_for(5000, 300, 100) == 1


@pytest.mark.parametrize("seed", range(3))
def test_the_random_box_does_not_depend_on_decoder_or_orientation(seed):
    """A turned picture is cropped upright, small or whole, with simplejpeg or without."""
    upright = photograph(520, 640)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = jpeg_file(np.rot90(upright).copy(), exif=exif, subsampling=0)
    expected = load(jpeg_file(upright, subsampling=0), 100, np.random.default_rng(seed), "exact").astype(int)
    for how in ("exact", "fast"):
        found = load(turned, 100, np.random.default_rng(seed), how)
        assert 10 * np.log10(255**2 / np.square(found - expected).mean()) > 38  # another JPEG of the same picture


def test_pixels_do_not_depend_on_whether_simplejpeg_is_there(monkeypatch):
    files = [jpeg_file(photograph(400, 500)), jpeg_file(photograph(1203, 907), progressive=True)]
    with_it = [load(data, 96, np.random.default_rng(1), "fast") for data in files]
    monkeypatch.setattr(jpeg, "simplejpeg", None)
    for data, expected in zip(files, with_it, strict=True):
        np.testing.assert_array_equal(load(data, 96, np.random.default_rng(1), "fast"), expected)


def test_fast_without_its_package_is_refused_and_not_replaced(monkeypatch):
    monkeypatch.setattr(fast_resize, "fir", None)
    for data in (photograph(50, 60), jpeg_file(photograph(50, 60))):
        with pytest.raises(ValueError, match="cykooz-resizer.*'exact' on every host"):
            load(data, 32, None, "fast")


def test_pictures_of_the_right_size_pass_both_ways():
    pixels = noise(32, 32)
    assert all(load(pixels, 32, None, how) is pixels for how in ("exact", "fast"))


def test_all_processors_give_the_same_pixels():
    """The vector instructions of this machine against none, whatever they are."""
    if fast_resize.fir is None:
        pytest.skip("needs cykooz-resizer")
    pixels, box = photograph(211, 307), (1.5, 2.25, 190.0, 300.0)
    usual = fast_resize.resize(pixels, box, 96)
    resizer = fast_resize._tools().resizer
    before = resizer.cpu_extensions
    try:
        resizer.cpu_extensions = fast_resize.fir.CpuExtensions.none
        np.testing.assert_array_equal(fast_resize.resize(pixels, box, 96), usual)
    finally:
        resizer.cpu_extensions = before
