"""How fast training, encoding and decoding are, beside the same in PyTorch, in one run.

    python -m benchmarks.speed train --size=mid
    python -m benchmarks.speed encode --size=mid
    python -m benchmarks.speed decode --size=mid
    python -m benchmarks.speed train --size=so400m_384 --sides=ours,released,tuned,tuned_compiled   # on a GPU

Every side is a process of its own with the same number of threads, and they take turns. Printed: images per second by
the median call, our ratio to each, peak memory, seconds to compile, and seconds from the process's start to the end of
its first call. One result per question and size is kept in --output. The discriminator is on, with random weights and
pictures: a step's time does not depend on them. Needs PyTorch and transformers. tuned_autocast is tuned in bfloat16,
which is what every PyTorch side runs where the size's config asks for bfloat16.
"""

import argparse
import dataclasses
import json
from pathlib import Path

from benchmarks.machine import circumstances
from benchmarks.race import race
from benchmarks.sizes import BATCHES, size

FORMS = {
    "released": {"tuned": False},
    "released_compiled": {"tuned": False, "compiled": True},
    "tuned": {"tuned": True},
    "tuned_compiled": {"tuned": True, "compiled": True},
    "tuned_autocast": {"tuned": True, "autocast": True},
}


def specifications(sides: list[str], question: str, name: str, batch: int, threads: int) -> dict[str, dict]:
    """A worker's specification by name of the side."""
    config = size(name)
    siglip = config.model.siglip
    common = {"question": question, "config": dataclasses.asdict(config), "batch": batch, "threads": threads}
    extra = {"checkpoint": siglip.remat != "none"}
    extra |= {"autocast": True} if siglip.dtype == "bfloat16" else {}
    forms = {side: FORMS[side] | extra for side in sides if side != "ours"}
    return {
        side: common | ({"side": "ours"} if side == "ours" else {"side": "theirs", "form": forms[side]})
        for side in sides
    }


def table(results: dict[str, dict]) -> str:
    """Markdown, a row per side."""
    lines = ["| side | images/s | ours is | peak memory | compile | start to first call |", "|---|---|---|---|---|---|"]
    ours = results.get("ours", {}).get("images_per_second")
    for name, found in results.items():
        if "error" in found:
            lines.append(f"| {name} | {found['error']} | | | | |")
            continue
        speed = found["images_per_second"]
        ratio = f"{ours / speed:.2f} ×" if ours else ""
        peak = (found["device_peak_bytes"] or found["host_peak_bytes"]) / 2**30
        compiled = "–" if found["compile_seconds"] is None else f"{found['compile_seconds']:.1f} s"
        start = found["start_to_first_call_seconds"]
        lines.append(
            f"| {name} | {found['images_per_second']:.3g} | {ratio} | {peak:.2f} GiB | {compiled} | {start:.1f} s |"
        )
    return "\n".join(lines)


def keep(path: Path, key: str, entry: dict) -> None:
    """Puts the entry into the file, in place of an older one of that key, and the tables beside it."""
    entries = json.loads(path.read_text()) if path.exists() else {}
    entries[key] = entry
    path.write_text(json.dumps(dict(sorted(entries.items())), indent=1) + "\n")
    parts = [
        f"## {name}, {found['batch']} images\n\n{table(found['results'])}\n\n"
        f"`{found['command']}`, {found['date']}, load {found['load'][0]}; {found['machine']}"
        for name, found in sorted(entries.items())
    ]
    path.with_suffix(".md").write_text("# Speed\n\n" + "\n\n".join(parts) + "\n")


def main() -> None:
    """Races and keeps the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=("train", "encode", "decode"))
    parser.add_argument("--size", choices=tuple(BATCHES), default="tiny")
    parser.add_argument("--sides", default="ours,released,tuned", help=f"ours, {', '.join(FORMS)}")
    parser.add_argument("--batch", type=int, help="images per call")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--calls", type=int, default=2, help="calls per turn")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/speed.json"))
    flags = parser.parse_args()
    batch = flags.batch or BATCHES[flags.size][flags.question != "train"]
    sides = specifications(flags.sides.split(","), flags.question, flags.size, batch, flags.threads)
    results = race(sides, batch, flags.rounds, flags.calls)
    print(table(results))
    entry = circumstances("benchmarks.speed") | {"batch": batch, "threads": flags.threads, "results": results}
    keep(flags.output, f"{flags.question} {flags.size}", entry)


if __name__ == "__main__":
    main()
