"""A PyTorch DataLoader at the same work, as the released code reads its pictures. Needs torch and torchvision.

    python -m dualtoken_jax.data.benchmark.peer --folder=DIR

Pillow decodes, torchvision crops (RandomResizedCrop, scale 0.9 to 1, bicubic, antialiased); then ToTensor and
Normalize, or, with --uint8, PILToTensor alone.
"""

import argparse
import json
from pathlib import Path

from PIL import Image

from dualtoken_jax.data.benchmark.loader import WARM_UP, rate
from dualtoken_jax.data.crops import CROP_SCALE
from dualtoken_jax.data.sources import IMAGE_EXTENSIONS
from dualtoken_jax.flags import positive


class Pictures:
    """A map-style dataset of `length` pictures, the files over and over."""

    def __init__(self, files: list[Path], length: int, transform) -> None:
        self.files, self.length, self.transform = files, length, transform

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int):
        with open(self.files[index % len(self.files)], "rb") as file:
            return self.transform(Image.open(file).convert("RGB"))


def transform(resolution: int, uint8: bool):
    """What the DataLoader does to a picture."""
    import torch

    if not hasattr(torch.ops.torchvision, "nms"):  # torchvision's wheel may lack operators, and fail at import
        transform.library = torch.library.Library("torchvision", "DEF")  # forgotten with the object that made them
        transform.library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        transform.library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from torchvision import transforms

    bicubic = transforms.InterpolationMode.BICUBIC
    crop = transforms.RandomResizedCrop(resolution, scale=CROP_SCALE, interpolation=bicubic, antialias=True)
    if uint8:
        return transforms.Compose([crop, transforms.PILToTensor()])
    normalise = transforms.Normalize((0.5,) * 3, (0.5,) * 3)
    return transforms.Compose([crop, transforms.ToTensor(), normalise])


def main() -> None:
    """Prints what `rate` finds as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--resolution", type=positive, default=384)
    parser.add_argument("--batch_size", type=positive, default=64)
    parser.add_argument("--workers", type=positive, default=2)
    parser.add_argument("--batches", type=positive, default=20, help="measured, after a warm-up")
    parser.add_argument("--uint8", action="store_true", help="stop at bytes, as dualtoken_jax's batches do")
    flags = parser.parse_args()
    from torch.utils.data import DataLoader

    files = sorted(file for file in flags.folder.rglob("*") if file.suffix.lower() in IMAGE_EXTENSIONS)
    # Further batches than are counted, so that the workers are as busy at the end as in the middle.
    length = (WARM_UP + flags.batches + 2 * flags.workers) * flags.batch_size
    dataset = Pictures(files, length, transform(flags.resolution, flags.uint8))
    loader = DataLoader(
        dataset, flags.batch_size, shuffle=True, num_workers=flags.workers, persistent_workers=True, drop_last=True
    )
    print(json.dumps(rate(iter(loader), flags.batch_size, flags.batches)))


if __name__ == "__main__":
    main()
