"""python -m dualtoken_jax.tokenize --workdir=DIR --output=codes.npz [PICTURES]      pictures → codes
python -m dualtoken_jax.tokenize --workdir=DIR --output=FOLDER --decode=codes.npz   codes → PNGs

PICTURES are files (IMAGE…), a whole folder (--path=FOLDER) or the run's own data (--split=train|eval), each cut by
--limit=N. With --format=array_record --shards=N the output is a folder of shards and nothing is held in memory.
dualtoken_jax.data.codes.read_codes reads either format. A picture that cannot be used is named and left out, and the
exit code is 1.
"""

import argparse
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from dualtoken_jax import api, job
from dualtoken_jax.data.codes import CodesHeader, Record, read_codes, write_npz, write_shards
from dualtoken_jax.data.dataset import DataConfig, open_source
from dualtoken_jax.data.pictures import Picture, picture_groups
from dualtoken_jax.data.sources import Files, Source
from dualtoken_jax.flags import positive
from dualtoken_jax.models.dualtoken import DualTokenConfig
from dualtoken_jax.workdir import load_config


def main(arguments: list[str] | None = None) -> None:
    """Flags → encode or decode."""
    parser = _parser()
    flags = parser.parse_args(arguments)
    origins = [flags.images, flags.path, flags.split and not flags.path, flags.decode]
    if sum(map(bool, origins)) != 1:
        parser.error("say what to take: IMAGE…, --path=FOLDER, --split=train|eval, or --decode=CODES, one of them")

    try:
        tokenizer = api.load(flags.workdir, flags.model_config, batch_size=flags.batch_size)
        if flags.decode:
            count, failed = decode_codes(tokenizer, flags.decode, flags.output, flags.limit), 0
        else:
            count, failed = encode_pictures(tokenizer, flags)
    except job.EXPECTED_ERRORS as error:
        sys.exit(f"error: {error}")
    print(f"{count} pictures → {flags.output}")
    if failed:
        sys.exit(f"error: {failed} of {count + failed} pictures could not be used; those named above are left out")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dualtoken_jax.tokenize", description="Pictures → codes, and back.")
    parser.add_argument("images", type=Path, nargs="*", metavar="IMAGE", help="JPEG, PNG or WebP file")
    parser.add_argument(
        "--workdir", type=Path, required=True, help="folder of a tokenizer run, or anything that load opens"
    )
    parser.add_argument("--model_config", type=Path, help="config.json of a released checkpoint")
    parser.add_argument("--output", type=Path, required=True, help=".npz file, or folder of shards or PNGs")
    parser.add_argument("--source", default="folder", help="what --path is: a data.source of the recipes")
    parser.add_argument("--path", default="", help="pictures with their labels and captions")
    parser.add_argument(
        "--split", choices=("train", "eval"), help="of the run's own data, or of --path; else all of it"
    )
    parser.add_argument("--limit", type=positive, help="take the first N examples only")
    parser.add_argument("--format", choices=("npz", "array_record"), default="npz")
    parser.add_argument(
        "--shards", type=positive, default=1, help="files that --format=array_record spreads the codes over"
    )
    parser.add_argument("--decode", type=Path, metavar="CODES", help=".npz file or folder of shards to make PNGs of")
    parser.add_argument("--batch_size", type=positive, default=64, help="pictures computed at a time")
    return parser


def encode_pictures(tokenizer: api.ImageTokenizer, flags: argparse.Namespace) -> tuple[int, int]:
    """Writes the codes of all usable pictures; returns how many were written and how many could not be used."""
    source, threads = open_pictures(flags)
    groups = picture_groups(source, tokenizer.image_size, tokenizer.batch_size, flags.limit, threads)
    problems: list[str] = []
    records = encoded(tokenizer, groups, problems)
    if flags.format == "npz":
        return write_npz(flags.output, header(tokenizer), records), len(problems)
    return write_shards(flags.output, header(tokenizer), records, flags.shards), len(problems)


def open_pictures(flags: argparse.Namespace) -> tuple[Source, int]:
    """The source that the flags name, and the threads that read it."""
    if flags.images:
        return Files(flags.images), DataConfig().reading.threads
    if flags.path:
        data = DataConfig(source=flags.source, path=flags.path)
        return open_source(data, 0, flags.split or "all"), data.reading.threads
    config = load_config(flags.workdir)
    return open_source(config.data, config.seed, flags.split), config.data.reading.threads


def encoded(tokenizer: api.ImageTokenizer, groups: Iterator[list[Picture]], problems: list[str]) -> Iterator[Record]:
    """A record (see data.codes) for every usable picture; the others are printed and added to `problems`."""
    sizes = quantizer_sizes(tokenizer.model)
    types = {name: np.min_scalar_type(size["codes"] - 1) for name, size in sizes.items()}
    for group in groups:
        for picture in group:
            if picture.problem:
                problems.append(picture.problem)
                print(f"error: {picture.problem}", file=sys.stderr)
        usable = [picture for picture in group if picture.example]
        if not usable:
            continue
        codes = tokenizer.encode(np.stack([picture.example.image for picture in usable]))
        branches = {name: found for name, found in codes._asdict().items() if found is not None}
        for row, (index, example, _) in enumerate(usable):
            label = -1 if example.label is None else example.label
            words = {"label": label, "caption": example.caption or "", "origin": example.origin, "index": index}
            yield {name: found[row].astype(types[name]) for name, found in branches.items()} | words


def header(tokenizer: api.ImageTokenizer) -> CodesHeader:
    """Whose codes these are."""
    digest = hashlib.blake2b(digest_size=8)
    for branch in tokenizer.model.branches:
        digest.update(jax.device_get(tokenizer.codebooks[branch]["embedding"]).tobytes())
    sizes = quantizer_sizes(tokenizer.model)
    return CodesHeader(tokenizer.name, tokenizer.step, digest.hexdigest(), tokenizer.image_size, sizes)


def quantizer_sizes(model: DualTokenConfig) -> dict[str, dict[str, int]]:
    """Sizes by vocabulary, as CodesHeader has them."""
    sizes = {}
    for branch in model.branches:
        quantizer = model.quantizer(branch)
        sizes[branch] = {"codes": quantizer.codes, "depth": quantizer.depth, "grid": model.siglip.grid}
    return sizes


def decode_codes(tokenizer: api.ImageTokenizer, path: Path, output: Path, limit: int | None) -> int:
    """Writes OUTPUT/INDEX_NAME.png for every record and returns their number; ValueError for another model's codes."""
    stored, here, branch = read_codes(path), header(tokenizer), tokenizer.decoder_branch
    if stored.header != here:
        theirs, ours = (f"{h.model} at step {h.step}, codebooks {h.codebooks}" for h in (stored.header, here))
        raise ValueError(f"{path} holds codes of another model: {theirs}, while --workdir holds {ours}")
    output.mkdir(parents=True, exist_ok=True)
    count = len(stored) if limit is None else min(limit, len(stored))
    for start in range(0, count, tokenizer.batch_size):
        records = [stored[row] for row in range(start, min(start + tokenizer.batch_size, count))]
        images = tokenizer.decode(np.stack([record[branch] for record in records]))
        for record, image in zip(records, images, strict=True):
            name = f"{record['index']:08d}_{Path(record['origin']).stem}".rstrip("_")
            Image.fromarray(image).save(output / f"{name}.png")
    return count


if __name__ == "__main__":
    main()
