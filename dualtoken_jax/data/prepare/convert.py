"""python -m dualtoken_jax.data.prepare convert FROM --output=FOLDER

Writes ArrayRecord shards, which hold what training reads and nothing else, in a fixed or shuffled order, from
  - a prepared dataset: a folder or URL with a manifest.json, whole or filtered, of whatever kind of shards;
  - a folder of pictures, with sub-folders as classes and .txt files as captions;
  - ILSVRC2012_img_train.tar, of which nothing is extracted;
  - ILSVRC2012_img_val.tar with --labels=FILE: a synset per line, or the development kit's
    ILSVRC2012_validation_ground_truth.txt with its meta.mat beside it.
Pictures are copied as they are. The same input gives the same bytes whatever the number of workers; stopped and started
again, it goes on. With --runner it is an Apache Beam pipeline, for a cluster whose machines all see FROM and --output;
flags that are not listed below go to Beam:
  … convert gs://B/laion --output=gs://B/records --runner=DataflowRunner --project=P --region=R --temp_location=gs://B/tmp
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Collection

import fsspec

from dualtoken_jax.data.manifest import Manifest, Shard, join, read_manifest, write_manifest
from dualtoken_jax.data.prepare import workers
from dualtoken_jax.data.prepare.convert_shard import ShardWriter
from dualtoken_jax.data.prepare.inputs import Input, find_input, imagenet_input, open_input
from dualtoken_jax.data.prepare.ledger import Ledger
from dualtoken_jax.flags import positive


def main(arguments: list[str] | None = None) -> None:
    """Flags → converted dataset."""
    parser = _parser()
    flags, for_beam = parser.parse_known_args(arguments)
    if for_beam and not flags.runner:
        parser.error(f"unrecognized arguments: {' '.join(for_beam)}")
    if (flags.labels or flags.class_names) and not flags.given.endswith(".tar"):
        parser.error("--labels and --class_names are for ImageNet's tar files")

    def run(job: ShardWriter, numbers: Collection[int]) -> None:
        if not flags.runner:
            return workers.run(job, numbers, flags.workers)
        from dualtoken_jax.data.prepare.beam import run_pipeline

        return run_pipeline(job, numbers, [f"--runner={flags.runner}", *for_beam])

    try:
        manifest = convert(
            _given(flags), flags.output, flags.examples_per_shard, flags.shuffle_seed, flags.drop_bad, run
        )
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")
    examples, size = int(manifest.starts[-1]), sum(shard.bytes for shard in manifest.shards)
    print(f"{examples:,} examples in {len(manifest.shards)} shards, {size / 1e9:.2f} GB → {flags.output}")
    for reason, count in manifest.filtered.get("left out", {}).items():
        print(f"left out: {reason} × {count}")


def convert(
    given: Input,
    output: str,
    examples_per_shard: int,
    shuffle_seed: int | None,
    drop_bad: bool,
    run: Callable[[ShardWriter, Collection[int]], None],
) -> Manifest:
    """Writes shards of about `examples_per_shard` and the manifest to `output`, a new folder or URL.

    Args:
      shuffle_seed: spreads the examples over all shards, which takes a read for each of them; None keeps their order.
      drop_bad: decodes every picture and leaves out those that training could not use.
      run: calls the job for every number that it is given, wherever and in whichever order.

    Raises:
      FileExistsError: `output` holds a dataset already.
      ValueError: it holds the beginning of another conversion, or nothing is left of the input.
      OSError: as the input's.
    """
    source = open_input(given)
    shards = -(-len(source) // examples_per_shard)
    ledger = Ledger(output)
    plan = {"convert": source.fingerprint, "shards": shards, "shuffle_seed": shuffle_seed, "drop_bad": drop_bad}
    ledger.begin(plan)
    done = _in_place(output, ledger.done())
    run(ShardWriter(given, output, shards, shuffle_seed, drop_bad), [n for n in range(shards) if n not in done])
    manifest = _conclude(given, source.class_names, ledger.done())
    write_manifest(output, manifest)
    ledger.close()
    return manifest


def _in_place(output: str, done: dict[int, tuple[Shard, dict]]) -> set[int]:
    """Numbers of the finished shards whose files are still there, in the size that they had."""
    files, path = fsspec.core.url_to_fs(output)
    sizes = {entry["name"].rsplit("/", 1)[-1]: entry["size"] for entry in files.ls(path, detail=True)}
    return {number for number, (shard, _) in done.items() if sizes.get(shard.name) == shard.bytes}


def _conclude(given: Input, class_names: tuple[str, ...], done: dict[int, tuple[Shard, dict]]) -> Manifest:
    left_out: Counter[str] = Counter()
    for number in sorted(done):
        left_out.update(done[number][1])
    shards = tuple(done[number][0] for number in sorted(done) if done[number][0].examples)
    if not shards:
        raise ValueError(f"nothing is left of {given.path}: {dict(left_out)}")
    filtered = read_manifest(given.path).filtered if given.kind == "dataset" else {}
    return Manifest(
        "array_record",
        shards,
        class_names=tuple(class_names),
        filtered=filtered | ({"left out": dict(left_out)} if left_out else {}),
    )


def _given(flags: argparse.Namespace) -> Input:
    if flags.given.endswith(".tar"):
        index = join(flags.output, "unfinished/imagenet.npy")
        return imagenet_input(flags.given, flags.labels, flags.class_names, index)
    return find_input(flags.given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dualtoken_jax.data.prepare convert",
        description=__doc__.split("\n\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "given", metavar="FROM", type=os.path.expanduser, help="dataset, folder of pictures, or tar file of ImageNet"
    )
    parser.add_argument("--output", type=os.path.expanduser, required=True, help="new folder or URL")
    parser.add_argument("--examples_per_shard", type=positive, default=10_000, help="default: %(default)s")
    parser.add_argument("--shuffle_seed", type=int, help="spreads the examples over the shards; default: their order")
    parser.add_argument("--drop_bad", action="store_true", help="decode every picture and leave out the broken ones")
    parser.add_argument("--labels", metavar="FILE", help="classes of ImageNet's validation pictures")
    parser.add_argument(
        "--class_names",
        metavar="FILE",
        help='lines such as "n01440764 tench, Tinca tinca", or {"classes": […], "templates": […]}; default: synsets',
    )
    parser.add_argument("--workers", type=positive, default=os.cpu_count(), help="processes; default: one per core")
    parser.add_argument("--runner", help="of Apache Beam (pip install apache-beam): DirectRunner, DataflowRunner, …")
    return parser
