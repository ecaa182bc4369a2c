"""python -m dualtoken_jax.reconstruct IMAGE… --workdir=DIR --output=DIR

Writes OUTPUT/NAME_reconstructed.png for each picture: left what the model sees of it, right what it makes of its codes;
prints the PSNR of each. A picture that cannot be used is named, the others are done, and the exit code is 1.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from dualtoken_jax import api, job
from dualtoken_jax.data.pictures import Picture, picture_groups
from dualtoken_jax.data.sources import Files
from dualtoken_jax.evaluation import metrics


def main(arguments: list[str] | None = None) -> None:
    """Flags → pictures → PNGs."""
    parser = argparse.ArgumentParser(
        prog="python -m dualtoken_jax.reconstruct", description="Your pictures through a trained tokenizer and back."
    )
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="JPEG, PNG or WebP file")
    parser.add_argument(
        "--workdir", type=Path, required=True, help="folder of a tokenizer run, or anything that load opens"
    )
    parser.add_argument("--model_config", type=Path, help="config.json of a released checkpoint")
    parser.add_argument("--output", type=Path, required=True, help="folder for the PNGs, made if need be")
    flags = parser.parse_args(arguments)

    try:
        failed = reconstruct(api.load(flags.workdir, flags.model_config), flags.images, flags.output)
    except job.EXPECTED_ERRORS as error:
        sys.exit(f"error: {error}")
    if failed:
        sys.exit(f"error: {failed} of {len(flags.images)} pictures could not be used")


def reconstruct(tokenizer: api.ImageTokenizer, paths: list[Path], output: Path) -> int:
    """Writes the PNGs of all usable pictures and returns how many were not."""
    output.mkdir(parents=True, exist_ok=True)
    names, failed = file_names(paths), 0
    for group in picture_groups(Files(paths), tokenizer.image_size, tokenizer.batch_size):
        for picture in group:
            if picture.problem:
                failed += 1
                print(f"error: {picture.problem}", file=sys.stderr)
        usable = [picture for picture in group if picture.example]
        if usable:
            _write(tokenizer, usable, [output / names[picture.index] for picture in usable])
    return failed


def _write(tokenizer: api.ImageTokenizer, pictures: list[Picture], files: list[Path]) -> None:
    originals = np.stack([picture.example.image for picture in pictures])
    results = tokenizer.reconstruct(originals)
    psnr = np.asarray(metrics.psnr(originals / 255, results / 255))
    for file, original, result, value in zip(files, originals, results, psnr, strict=True):
        Image.fromarray(np.concatenate([original, result], axis=1)).save(file)
        print(f"{file}  PSNR {value:.2f} dB")


def file_names(paths: list[Path]) -> list[str]:
    """A name for the result of each picture; a number tells those of the same name in different folders apart."""
    names, seen = [], {}
    for path in paths:
        seen[path.stem] = count = seen.get(path.stem, 0) + 1
        names.append(f"{path.stem}_reconstructed{f'_{count}' if count > 1 else ''}.png")
    return names


if __name__ == "__main__":
    main()
