"""python -m dualtoken_jax.data.prepare index PATH [PATH …] [--output=FOLDER]

Makes a dataset of shards that are there already: one pass over each finds its examples and its checksum, and nothing is
copied or extracted. PATH is a folder, a file, a pattern with *, or a URL of one (gs://…), of
  - tar shards as img2dataset and WebDataset write them: KEY.jpg (jpeg, png, webp), KEY.txt the caption, KEY.cls the
    label; each gets an index beside the manifest, and an example is then one ranged read;
  - Parquet shards with a column of pictures, as on the Hugging Face hub;
  - our own ArrayRecord shards, whose manifest was lost.
The same command again goes on where it was stopped, or adds and replaces shards whose size has changed.
@FILE stands for a file with one PATH per line.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import fsspec

from dualtoken_jax.data.manifest import FILE, Kind, Manifest, Shard, join, read_manifest, write_manifest
from dualtoken_jax.data.prepare import workers
from dualtoken_jax.data.prepare.found_shards import FoundShards, find_shards
from dualtoken_jax.data.prepare.index_shard import ShardIndexer
from dualtoken_jax.data.prepare.ledger import Ledger
from dualtoken_jax.data.prompts import read_prompts
from dualtoken_jax.data.storage import is_remote
from dualtoken_jax.flags import positive

MAX_LABELS = 1_000_000  # a larger label is no class
_SAID = 10  # damaged shards named


def main(arguments: list[str] | None = None) -> None:
    """Flags → manifest and indices; prints what was left out and why."""
    flags = _parser().parse_args(arguments)
    try:
        found = find_shards(flags.paths, flags.kind)
        output = flags.output or found.root
        output = output if is_remote(output) else os.path.abspath(os.path.expanduser(output))
        names = _read_names(flags.class_names) if flags.class_names else ()
        manifest = index(found, output, names, flags.workers)
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    print(summary(manifest, output))


def index(found: FoundShards, output: str, class_names: Sequence[str] = (), processes: int = 1) -> Manifest:
    """Writes manifest and indices of the shards to `output`, a folder or URL, and returns the manifest.

    Shards that an earlier run has finished are taken from it, if they still have their size.

    Raises:
      OSError: storage fails, or there is nothing to write to.
      ValueError: `output` holds something else, no shard has an example, or a label has no name.
    """
    ledger = Ledger(output)
    earlier = _finished(output, found)
    ledger.begin({"index": found.root, "kind": found.kind}, again=True)
    known = _still_there(earlier | _noted(ledger), found, output)
    job = ShardIndexer(found.kind, found.root, output)
    workers.run(job, [item for item in enumerate(found.sizes) if item[1] not in known], processes)
    now = {shard.name: (shard, notes) for shard, notes in _noted(ledger).values() if _has_size(shard, found)}
    known = now | known
    manifest = _conclude(found, output, [known[name] for name in found.sizes], tuple(class_names))
    write_manifest(output, manifest)
    ledger.close()
    return manifest


Entries = dict[str, tuple[Shard, dict]]  # shards, and ShardIndexer's notes on them


def _finished(output: str, found: FoundShards) -> Entries:
    """Shards of the manifest that is there already."""
    try:
        manifest = read_manifest(output)
    except FileNotFoundError:
        return {}
    if manifest.kind != found.kind or set(manifest.filtered) - {"index"} or (manifest.root or output) != found.root:
        raise ValueError(f"{output} holds another dataset, of {manifest.root or output}: choose another --output")
    names = manifest.class_names
    common = {"labels": len(names), "class_names": () if names == _numbers(len(names)) else names}
    notes = manifest.filtered.get("index", {})
    return {shard.name: (shard, common | notes.get(shard.name, {})) for shard in manifest.shards}


def _noted(ledger: Ledger) -> Entries:
    """Shards that a run which was stopped has finished; several of one name where it was replaced since."""
    return {f"{shard.name} {shard.bytes}": (shard, notes) for shard, notes in ledger.done().values()}


def _still_there(entries: Entries, found: FoundShards, output: str) -> Entries:
    """Those whose shard has the size that it had, and whose index is in its place."""
    files, inside = fsspec.core.url_to_fs(output)
    indices = {name.rsplit(f"{inside}/", 1)[-1] for name in files.find(join(inside, "index"))}
    return {
        shard.name: (shard, notes)
        for shard, notes in entries.values()
        if _has_size(shard, found) and (not shard.index or shard.index in indices)
    }


def _has_size(shard: Shard, found: FoundShards) -> bool:
    return found.sizes.get(shard.name) == shard.bytes


def _conclude(
    found: FoundShards, output: str, entries: list[tuple[Shard, dict]], class_names: tuple[str, ...]
) -> Manifest:
    shards = tuple(shard for shard, _ in entries if shard.examples)
    wrong = {
        shard.name: {name: notes[name] for name in ("left_out", "damage") if notes.get(name)}
        for shard, notes in entries
        if notes.get("left_out") or notes.get("damage")
    }
    if not shards:
        raise ValueError(f"none of {len(entries)} shards has an example: {list(wrong.items())[:_SAID]}")
    labels = max(notes.get("labels", 0) for _, notes in entries)
    own = next((tuple(notes["class_names"]) for _, notes in entries if notes.get("class_names")), ())
    return Manifest(
        found.kind,
        shards,
        root="" if output == found.root else found.root,
        class_names=_named(labels, class_names or own),
        filtered={"index": wrong} if wrong else {},
    )


def _named(labels: int, names: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the labels 0 … labels − 1: the given ones, else their numbers."""
    if names and labels > len(names):
        raise ValueError(f"there is a label {labels - 1}, and only {len(names)} names: give --class_names")
    if labels > MAX_LABELS:
        raise ValueError(f"there is a label {labels - 1}, which is no class (at most {MAX_LABELS}); give --class_names")
    return names or _numbers(labels)


def _numbers(labels: int) -> tuple[str, ...]:
    return tuple(str(label) for label in range(labels))


def summary(manifest: Manifest, output: str) -> str:
    """For people: how much there is, what was left out and why, which shards are damaged."""
    wrong = manifest.filtered.get("index", {})
    size, examples = sum(shard.bytes for shard in manifest.shards), int(manifest.starts[-1])
    lines = [f"{examples:,} examples in {len(manifest.shards):,} shards, {size / 1e9:.2f} GB → {output}/{FILE}"]
    left_out: Counter[str] = Counter()
    for of_shard in wrong.values():
        left_out.update(of_shard.get("left_out", {}))
    lines += [f"left out: {reason} × {count:,}" for reason, count in left_out.most_common()]
    damaged = [f"damaged: {name}: {of_shard['damage']}" for name, of_shard in wrong.items() if of_shard.get("damage")]
    return "\n".join(lines + damaged[:_SAID] + ([f"… {len(damaged):,} shards are damaged"] if damaged[_SAID:] else []))


def _read_names(path: str) -> tuple[str, ...]:
    return read_prompts(path).classes if path.endswith(".json") else tuple(Path(path).read_text("utf-8").splitlines())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dualtoken_jax.data.prepare index",
        description=__doc__.split("\n\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        fromfile_prefix_chars="@",
    )
    parser.add_argument("paths", metavar="PATH", nargs="+", help="folder, file or pattern; path or URL")
    parser.add_argument("--output", help="folder or URL for manifest and indices; default: the shards' own folder")
    parser.add_argument("--kind", choices=get_args(Kind), help="of shards; default: the first of these that is there")
    parser.add_argument("--class_names", metavar="FILE", help='a name per line, or {"classes": […], "templates": […]}')
    parser.add_argument("--workers", type=positive, default=os.cpu_count(), help="processes; default: one per core")
    return parser
