"""Real pictures that come with Python packages, as folders for --config.data.source=folder.

    python benchmarks/real_pictures.py --output=runs/pictures     # needs scikit-image and scikit-learn

`photos/`: tiles of 64 px of colour photographs, without labels. `digits/`: scikit-learn's handwritten digits, one
sub-folder per class. `imagenet_like/`: JPEGs of ImageNet's usual sizes, cut from the photographs. `laion_like/`: larger
ones, mosaics of such cuts, because a photograph enlarged would have no detail to decode. Both at quality 90 to 95.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data
from sklearn import datasets

TILE = 64  # pixels
IMAGENET_SIZES = ((500, 375), (500, 375), (500, 375), (500, 333), (375, 500), (400, 300), (640, 480))  # width, height
LAION_SIDES = (1024, 2049)  # from, below
PATCH = (500, 400)  # width and height of a mosaic's parts
DIGITS = "zero one two three four five six seven eight nine".split()


def photographs() -> dict[str, np.ndarray]:
    """Colour photographs that the packages ship, uint8 [H, W, 3]."""
    names = ("astronaut", "cat", "coffee", "rocket", "retina", "hubble_deep_field")
    shipped = {name: getattr(data, name)() for name in names}
    return shipped | {name: datasets.load_sample_image(f"{name}.jpg") for name in ("china", "flower")}


def write_tiles(folder: Path) -> int:
    """Tiles of every photograph, side by side: held-out ones share no pixel with the others. Returns their number."""
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for name, photo in photographs().items():
        for y in range(0, photo.shape[0] - TILE + 1, TILE):
            for x in range(0, photo.shape[1] - TILE + 1, TILE):
                Image.fromarray(photo[y : y + TILE, x : x + TILE]).save(folder / f"{name}_{y:04}_{x:04}.png")
                count += 1
    return count


def write_digits(folder: Path) -> int:
    """scikit-learn's 8 × 8 digits, enlarged to 32 px; returns their number."""
    digits = datasets.load_digits()
    for i, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / DIGITS[label] / f"{i:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        grey = Image.fromarray((pixels * 255 / 16).astype(np.uint8))
        grey.resize((32, 32), Image.Resampling.BICUBIC).convert("RGB").save(path)
    return len(digits.images)


def cut(photos: list[Image.Image], size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """A random part of a random photograph, at about its own scale, width × height."""
    photo, (width, height) = photos[rng.integers(len(photos))], size
    scale = min(photo.width / width, photo.height / height) * rng.uniform(0.7, 1.0)
    across, down = width * scale, height * scale
    left, top = rng.uniform(0, photo.width - across), rng.uniform(0, photo.height - down)
    return photo.resize(size, Image.Resampling.BICUBIC, box=(left, top, left + across, top + down))


def mosaic(photos: list[Image.Image], size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Cuts side by side, width × height."""
    canvas = Image.new("RGB", size)
    for left in range(0, size[0], PATCH[0]):
        for top in range(0, size[1], PATCH[1]):
            canvas.paste(cut(photos, PATCH, rng), (left, top))
    return canvas


def write_jpegs(output: Path, imagenet: int = 256, laion: int = 48) -> None:
    """So many JPEGs of either kind, the same ones every time."""
    photos, rng = [Image.fromarray(photo) for photo in photographs().values()], np.random.default_rng(0)
    pictures = {
        "imagenet_like": lambda: cut(photos, IMAGENET_SIZES[rng.integers(len(IMAGENET_SIZES))], rng),
        "laion_like": lambda: mosaic(photos, tuple(rng.integers(*LAION_SIDES, 2).tolist()), rng),
    }
    for (name, make), count in zip(pictures.items(), (imagenet, laion), strict=True):
        (output / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            make().save(output / name / f"{number:04}.jpg", quality=int(rng.integers(90, 96)))


def main() -> None:
    """Writes all folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/pictures"))
    output = parser.parse_args().output
    print(f"{write_tiles(output / 'photos')} tiles in {output / 'photos'}")
    print(f"{write_digits(output / 'digits')} digits in {output / 'digits'}")
    write_jpegs(output)
    print(f"JPEGs in {output / 'imagenet_like'} and {output / 'laion_like'}")


if __name__ == "__main__":
    main()
