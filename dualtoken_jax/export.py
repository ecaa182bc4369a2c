"""python -m dualtoken_jax.export --workdir=DIR --output=OUT --format=released|huggingface

released     a checkpoint that the released PyTorch code loads, its config.json and the SigLIP that it builds on
huggingface  a folder that AutoModel.from_pretrained(OUT, trust_remote_code=True) opens, with its code and model card

OUT is complete or not there at all. dualtoken_jax.load opens either.
"""

import argparse
import json
import sys
from pathlib import Path

from dualtoken_jax import job
from dualtoken_jax.data.words import WordTokenizer
from dualtoken_jax.frozen_weights import load_frozen
from dualtoken_jax.interop.huggingface import Export, write_export
from dualtoken_jax.interop.model_card import model_card
from dualtoken_jax.interop.output import new_folder
from dualtoken_jax.interop.released_config import not_in_released
from dualtoken_jax.interop.released_files import write_released
from dualtoken_jax.interop.released_names import released_table
from dualtoken_jax.pretrained import open_workdir
from dualtoken_jax.text_tokenizer_copy import with_kept_text_tokenizer
from dualtoken_jax.workdir import load_config


def main(arguments: list[str] | None = None) -> None:
    """Flags → the folder."""
    parser = _parser()
    flags = parser.parse_args(arguments)
    for flag, of in (("file", "released"), ("max_shard_gb", "huggingface")):
        if getattr(flags, flag) is not None and flags.format != of:
            parser.error(f"--{flag} is of --format={of}, not of {flags.format}")
    try:
        export(flags)
    except job.EXPECTED_ERRORS as error:
        sys.exit(f"error: {error}")
    print(f"{flags.workdir} → {flags.output} ({flags.format})")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dualtoken_jax.export", description="A trained tokenizer, to go.")
    parser.add_argument("--workdir", type=Path, required=True, help="folder of a tokenizer run")
    parser.add_argument("--output", type=Path, required=True, help="folder to make")
    parser.add_argument("--format", choices=("released", "huggingface"), required=True)
    parser.add_argument("--weights", choices=("ema", "raw"), help="default: the average where the run keeps one")
    parser.add_argument("--without_text", action="store_true", help="leave the text tower out")
    parser.add_argument("--file", choices=("pt", "safetensors"), help="of --format=released; default: safetensors")
    parser.add_argument("--max_shard_gb", type=float, help="of --format=huggingface; default: 4")
    return parser


def export(flags: argparse.Namespace) -> None:
    """Writes the export that the flags name."""
    with new_folder(flags.output) as folder:
        config = load_config(flags.workdir)
        if flags.format == "released" and config.task == "tokenizer":
            released_table(config.model)  # before gigabytes are read
        found = open_workdir(flags.workdir, flags.weights)
        tokenizer = with_kept_text_tokenizer(config, flags.workdir).text_tokenizer
        if flags.without_text:
            tree = {name: found.tree[name] for name in ("params", "codebooks")}
            found, tokenizer = found._replace(tree=tree, text_tokenizer=None), ""
        if flags.format == "released":
            siglip = load_frozen(flags.workdir)["siglip"]
            write_released(folder, found.model, found.tree, siglip, found.name, tokenizer, flags.file or "safetensors")
            print("".join(f"note: {line}\n" for line in not_in_released(found.model)), end="")
            return
        weights = flags.weights or ("raw" if config.train.ema_decay is None else "ema")
        words = found.text_tokenizer.words if isinstance(found.text_tokenizer, WordTokenizer) else None
        results = _results(flags.workdir, found.step, weights)
        card = model_card(config, found.step, weights, results, words is not None, "text" in found.tree)
        export = Export(found.model, found.tree, found.name, found.step, tokenizer, words)
        write_export(folder, export, weights, card, int((flags.max_shard_gb or 4) * 1e9))


def _results(workdir: Path, step: int, weights: str) -> dict | None:
    """What was measured of these very weights; None without."""
    file = workdir / "evaluation.json"
    found = json.loads(file.read_text()) if file.exists() else {}
    if (found.pop("step", None), found.pop("weights", None)) != (step, weights):
        return None
    return found


if __name__ == "__main__":
    main()
