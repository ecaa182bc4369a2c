"""Real pictures that come with Python packages, as folders for --config.data.source=folder.

    python benchmarks/real_pictures.py --output=runs/pictures     # needs scikit-image and scikit-learn

`photos/`: tiles of 64 px of colour photographs, without labels. `digits/`: scikit-learn's handwritten digits, one
sub-folder per class.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data
from sklearn import datasets

TILE = 64  # pixels
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


def main() -> None:
    """Writes both folders."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/pictures"))
    output = parser.parse_args().output
    print(f"{write_tiles(output / 'photos')} tiles in {output / 'photos'}")
    print(f"{write_digits(output / 'digits')} digits in {output / 'digits'}")


if __name__ == "__main__":
    main()
