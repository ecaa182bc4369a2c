"""python -m dualtoken_jax.data.prepare filter DATASET --output=FOLDER [RULES]

Drops examples by their metadata: writes a new manifest and new indices, of the examples that are left. Shards are not
touched, nor is the old manifest. For tar shards the metadata are in the parquet file that img2dataset writes beside
each (00000.tar, 00000.parquet) and are joined by key; for Parquet shards they are columns of the shard.

Unsafe rows are dropped unless you say otherwise, and a row without a tag or score counts as unsafe. Recommended data:
Re-LAION-5B research-safe, or DataComp (with --unsafe=keep: there is no column, its makers dropped unsafe pictures).
Nothing needs to be square, training crops: download without padding, with img2dataset's --resize_mode=keep_ratio or no,
not with its default "border".
"""

import argparse
import dataclasses
import os
import sys
import typing
from collections import Counter

from dualtoken_jax.data.manifest import Manifest, Shard, read_manifest, write_manifest
from dualtoken_jax.data.prepare import workers
from dualtoken_jax.data.prepare.filter_rules import SYNONYMS, Rules
from dualtoken_jax.data.prepare.filter_shard import ShardFilter
from dualtoken_jax.data.prepare.ledger import Ledger
from dualtoken_jax.data.storage import is_remote
from dualtoken_jax.flags import positive


def main(arguments: list[str] | None = None) -> None:
    """Flags → filtered dataset; prints what was dropped and why."""
    parser = _parser()
    flags = parser.parse_args(arguments)
    columns = dict(pair.split("=", 1) for pair in flags.column if "=" in pair)
    if len(columns) < len(flags.column) or not set(columns) <= set(SYNONYMS):
        parser.error(f"--column takes NAME=COLUMN, with NAME one of {', '.join(SYNONYMS)}; got {flags.column}")
    given = {field.name: vars(flags)[field.name] for field in dataclasses.fields(Rules) if field.name in vars(flags)}
    rules = Rules(**given, drop_unsafe=flags.unsafe == "drop", keep_unscored=flags.unscored == "keep")
    try:
        filtered = filter_dataset(flags.dataset, flags.output, rules, columns, flags.workers)
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    print(table(filtered))


def filter_dataset(dataset: str, output: str, rules: Rules, columns: dict[str, str], processes: int = 1) -> Manifest:
    """Writes the manifest of what the rules leave to `output`, a new folder, and returns it.

    Raises:
      FileNotFoundError: there is no manifest, or no parquet file beside a tar shard.
      FileExistsError: `output` holds a dataset already.
      ValueError: the dataset is of ArrayRecord shards, a column is missing or of the wrong type, metadata do not belong
        to their shard, or nothing would be left.
    """
    manifest = read_manifest(dataset)
    if manifest.kind == "array_record":
        raise ValueError(
            f"{dataset} consists of ArrayRecord shards, which have no metadata to filter by: filter the tar or Parquet "
            "shards that they were converted from, and convert what is left"
        )
    root = manifest.root or dataset
    root = root if is_remote(root) else os.path.abspath(os.path.expanduser(root))
    ledger = Ledger(output)
    ledger.begin({"filter": manifest.fingerprint, "rules": dataclasses.asdict(rules), "columns": columns})
    job, done = ShardFilter(manifest.kind, dataset, root, output, rules, columns), ledger.done()
    workers.run(job, [item for item in enumerate(manifest.shards) if item[0] not in done], processes)
    filtered = _conclude(manifest, root, rules, ledger.done())
    write_manifest(output, filtered)
    ledger.close()
    return filtered


def _conclude(manifest: Manifest, root: str, rules: Rules, done: dict[int, tuple[Shard, dict]]) -> Manifest:
    dropped: Counter[str] = Counter()
    for number in sorted(done):
        dropped.update(done[number][1])
    before = int(manifest.starts[-1])
    shards = tuple(done[number][0] for number in sorted(done) if done[number][0].examples)
    if not shards:
        raise ValueError(f"the rules leave none of {before} examples; they drop {dict(dropped)}")
    in_force = {name: value for name, value in dataclasses.asdict(rules).items() if value is not None}
    filtered = {"rules": in_force, "before": before, "dropped": dict(dropped)}
    if manifest.filtered:
        filtered["earlier"] = manifest.filtered
    return dataclasses.replace(manifest, shards=shards, root=root, filtered=filtered)


def table(filtered: Manifest) -> str:
    """What each rule dropped, for people. A row counts for the first rule that it fails, in this order."""
    before, left = filtered.filtered["before"], int(filtered.starts[-1])
    lines = [("examples before", before)]
    lines += [(f"– {rule}", count) for rule, count in filtered.filtered["dropped"].items()]
    lines += [("examples left", left)]
    return "\n".join(f"{name:<32}{count:>14,}{count / max(before, 1):>8.1%}" for name, count in lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dualtoken_jax.data.prepare filter",
        description=__doc__.split("\n\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("dataset", metavar="DATASET", help="folder or URL with a manifest.json")
    parser.add_argument("--output", required=True, help="folder or URL of the new manifest and indices")
    for field in dataclasses.fields(Rules):
        kinds = typing.get_args(field.type) or (field.type,)
        if bool not in kinds:
            parser.add_argument(f"--{field.name}", type=kinds[0], metavar="N", help=_HELP[field.name])
    parser.add_argument("--unsafe", choices=("drop", "keep"), default="drop", help="rows tagged so; default: drop")
    parser.add_argument(
        "--unscored",
        choices=("drop", "keep"),
        default="drop",
        help="rows that lack what a rule asks for; default: drop",
    )
    parser.add_argument(
        "--column", action="append", default=[], metavar="NAME=COLUMN", help=f"NAME is one of {', '.join(SYNONYMS)}"
    )
    parser.add_argument("--workers", type=positive, default=os.cpu_count(), help="processes; default: one per core")
    return parser


_HELP = {
    "min_characters": "of the caption",
    "max_characters": "of the caption",
    "min_words": "of the caption, separated by white space: not for languages that are written without",
    "min_side": "pixels of the shorter side, as stored",
    "min_original_side": "pixels of the shorter side, before img2dataset made the picture smaller",
    "max_aspect": "longer side / shorter side",
    "min_similarity": "CLIP's, of picture and caption",
    "max_punsafe": f"probability; default {Rules.max_punsafe:g}, LAION's recommendation",
    "max_watermark": "probability; LAION recommends 0.8",
    "min_aesthetic": "LAION's score, 1 … 10",
}
