"""Where a training step's time goes, part by part, forward and backward, and how far each is from its floor.

    python -m benchmarks.parts --size=mid

A part's floor is the larger of two times: its matrix products and convolutions (counted) at the machine's measured rate
of large matrix products, and its arguments and results (the least that memory must carry) at the measured bandwidth.
Parts are compiled alone, so that their sum is not the step: what XLA fuses or shares across parts is counted twice.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp

from benchmarks import ours
from benchmarks.machine import circumstances
from benchmarks.operations import operations
from benchmarks.sizes import BATCHES, size
from benchmarks.step_parts import Part, step_parts


def call(function, arguments):
    """A compiled call, and the bytes of its arguments and results."""
    compiled = jax.jit(function).lower(*arguments).compile()
    memory = compiled.memory_analysis()
    carried = memory.argument_size_in_bytes + memory.output_size_in_bytes
    return lambda: jax.block_until_ready(compiled(*arguments)), carried


def backward(part: Part):
    """The part's forward and backward pass together, for a gradient of ones at its results."""

    def both(*arguments):
        own = arguments[: part.differentiated]
        results, pullback = jax.vjp(lambda *own: part.run(*own, *arguments[part.differentiated :]), *own)
        return results, pullback(jax.tree.map(jnp.ones_like, results))

    return both


def machine_rates() -> tuple[float, float]:
    """Operations per second of a large float32 matrix product, and bytes per second of a copy; the best of several."""
    side = 2048
    matrix, vector = jnp.ones((side, side)), jnp.ones(2**26)
    product, _ = call(lambda a: a @ a, (matrix,))
    copy, carried = call(lambda v: v + 1, (vector,))
    return 2 * side**3 / min(seconds(product, 8)), carried / min(seconds(copy, 8))


def seconds(function, rounds: int) -> list[float]:
    """Of so many calls after the first, which is not counted."""
    found = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        function()
        found.append(time.perf_counter() - began)
    return found[1:]


def rows(config, batch: int, rounds: int) -> list[dict]:
    """A row per part and pass, one of the whole step, and one of the machine; each is printed when it is there."""
    rate, bandwidth = machine_rates()
    machine = {"part": "machine", "gflop_per_second": rate / 1e9, "gigabytes_per_second": bandwidth / 1e9}
    found = []
    for part in step_parts(config, batch):
        passes = {"forward": part.run} | ({"both": backward(part)} if part.differentiated else {})
        for name, function in passes.items():
            run, carried = call(function, part.arguments)
            taken = statistics.median(seconds(run, rounds))
            count = operations(function, *part.arguments)
            floor = max(count / rate, carried / bandwidth)
            found.append(
                {"part": part.name, "pass": name, "milliseconds": 1e3 * taken, "gflop": count / 1e9,
                 "megabytes": carried / 1e6, "floor_milliseconds": 1e3 * floor, "of_floor": floor / taken}
            )  # fmt: skip
            print(f"{part.name}, {name}: {1e3 * taken:.4g} ms", file=sys.stderr, flush=True)
    del part, function, run  # with the weights that they hold: the step brings its own
    whole = statistics.median(seconds(ours.train(config, batch).call, rounds))
    for row in found:
        row["of_step"] = row["milliseconds"] / whole / 1e3
    return [*found, {"part": "whole step", "pass": "both", "milliseconds": 1e3 * whole}, machine]


def table(found: list[dict]) -> str:
    """Markdown."""
    lines = ["| part | pass | ms | GFLOP | floor ms | floor / time | of step |", "|---|---|---|---|---|---|---|"]
    for row in found[:-2]:
        lines.append(
            f"| {row['part']} | {row['pass']} | {row['milliseconds']:.3g} | {row['gflop']:.3g} | "
            f"{row['floor_milliseconds']:.3g} | {row['of_floor']:.0%} | {row['of_step']:.0%} |"
        )
    whole, machine = found[-2:]
    return "\n".join(lines) + (
        f"\n\nWhole step {whole['milliseconds']:.4g} ms. Machine: {machine['gflop_per_second']:.0f} GFLOP/s in float32 "
        f"products, {machine['gigabytes_per_second']:.0f} GB/s."
    )


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=tuple(BATCHES), default="tiny")
    parser.add_argument("--batch", type=int, help="images per step")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/parts.json"))
    flags = parser.parse_args()
    batch = flags.batch or BATCHES[flags.size][0]
    found = rows(size(flags.size), batch, flags.rounds)
    print(table(found))
    entries = json.loads(flags.output.read_text()) if flags.output.exists() else {}
    entries[flags.size] = circumstances("benchmarks.parts") | {"batch": batch, "rows": found}
    flags.output.write_text(json.dumps(dict(sorted(entries.items())), indent=1) + "\n")
    texts = [
        f"## {name}, {entry['batch']} images\n\n{table(entry['rows'])}\n\n`{entry['command']}`, {entry['date']}, load "
        f"{entry['load'][0]}; {entry['machine']}"
        for name, entry in sorted(entries.items())
    ]
    flags.output.with_suffix(".md").write_text("# Parts of a training step\n\n" + "\n\n".join(texts) + "\n")


if __name__ == "__main__":
    main()
