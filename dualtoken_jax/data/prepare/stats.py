"""python -m dualtoken_jax.data.prepare stats DATASET [--sample=2000] [--json=FILE] [--contact_sheet=FILE.png]

What a prepared dataset, or a folder of pictures, consists of. Totals come from the manifest; everything else is
measured on examples at even distances, the same ones every time.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dualtoken_jax.data.manifest import read_manifest
from dualtoken_jax.data.prepare import contact_sheet
from dualtoken_jax.data.prepare.inputs import Input, find_input, open_input
from dualtoken_jax.data.prepare.sample import Looked, look
from dualtoken_jax.flags import positive

PERCENTILES = (0, 5, 25, 50, 75, 95, 100)
_LABELS = 10  # most frequent labels shown
_SAID = 5  # bad pictures named
_SHEETS = (".png", ".jpg", ".jpeg", ".webp")  # kinds of contact sheets


def main(arguments: list[str] | None = None) -> None:
    """Flags → table, JSON and contact sheet."""
    parser = _parser()
    flags = parser.parse_args(arguments)
    if flags.contact_sheet and not flags.contact_sheet.lower().endswith(_SHEETS):
        parser.error(f"--contact_sheet={flags.contact_sheet} must end in one of {', '.join(_SHEETS)}")
    try:
        given = find_input(flags.dataset)
        source = open_input(given)
        looked = look(source, flags.sample)
        found = totals(given, len(source)) | summary(looked, source.class_names)
        if flags.json:
            Path(flags.json).write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")
        if flags.contact_sheet:
            tiles = contact_sheet.COLUMNS * contact_sheet.ROWS
            step = max(1, len(looked) // tiles)
            contact_sheet.draw(looked[::step], source.class_names).save(flags.contact_sheet)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(table(found))


def totals(given: Input, examples: int) -> dict:
    """Of all shards; of a folder of pictures only their number."""
    if given.kind != "dataset":
        return {"kind": "folder", "examples": examples}
    manifest = read_manifest(given.path)
    return {
        "kind": manifest.kind,
        "examples": examples,
        "shards": len(manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.shards),  # of whole files, filtered or not
        "examples per shard": _spread([shard.examples for shard in manifest.shards]),
        "classes": len(manifest.class_names),
        "filtered": manifest.filtered,
    }


def summary(looked: Sequence[Looked], class_names: Sequence[str]) -> dict:
    """Of a sample; distributions are percentiles by name, {} where there is nothing to measure."""
    good = [one for one in looked if not one.reason]
    captions = [one.caption for one in looked if one.caption is not None]
    labels = Counter(one.label for one in looked if one.label is not None)
    named = {class_names[n] if n < len(class_names) else str(n): count for n, count in labels.most_common(_LABELS)}
    return {
        "sample": len(looked),
        "formats": dict(Counter(one.format for one in good)),
        "width": _spread([one.width for one in good]),
        "height": _spread([one.height for one in good]),
        "aspect ratio": _spread([max(one.width, one.height) / min(one.width, one.height) for one in good]),
        "file bytes": _spread([one.bytes for one in good]),
        "with caption": len(captions),
        "caption characters": _spread([len(caption) for caption in captions]),
        "caption words": _spread([len(caption.split()) for caption in captions]),
        "with label": labels.total(),
        "labels seen": len(labels),
        "most frequent labels": named,
        "bad": dict(Counter(one.reason for one in looked if one.reason)),
        "bad ones": [one.detail for one in looked if one.reason][:_SAID],
    }


def table(found: dict) -> str:
    """For people: a line per value, a column per percentile."""
    spreads = [name for name, value in found.items() if isinstance(value, dict) and "median" in value]
    lines = [f"{name:<22}{_said(value)}" for name, value in found.items() if name not in spreads and value]
    head = f"{'':<22}" + "".join(f"{name:>10}" for name in next((found[name] for name in spreads), {}))
    rows = [f"{name:<22}" + "".join(f"{value:>10,.4g}" for value in found[name].values()) for name in spreads]
    return "\n".join([*lines, head, *rows])


def _said(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_said(one)}" for name, one in value.items())
    if isinstance(value, list):
        return "\n".join(["", *(f"  {one}" for one in value)])
    return f"{value:,}" if type(value) is int else str(value)


def _spread(values: Sequence[float]) -> dict[str, float]:
    names = ["least", *(f"{p} %" for p in PERCENTILES[1:3]), "median", *(f"{p} %" for p in PERCENTILES[4:-1]), "most"]
    return dict(zip(names, map(float, np.percentile(values, PERCENTILES)), strict=True)) if len(values) else {}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dualtoken_jax.data.prepare stats",
        description=__doc__.split("\n\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dataset", metavar="DATASET", help="folder or URL with a manifest.json, or folder of pictures")
    parser.add_argument("--sample", type=positive, default=2000, help="examples looked at; default: %(default)s")
    parser.add_argument("--json", metavar="FILE", help="the same as JSON")
    parser.add_argument("--contact_sheet", metavar="FILE", help="some of the pictures")
    return parser
