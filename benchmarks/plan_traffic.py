"""Which parts of a planned step move the bytes: what `dualtoken_jax.plan` adds up, by part. Nothing runs.

    python -m benchmarks.plan_traffic --topology=v6e:2x4 --recipe=so400m_384 --images=8

A part is told by the shapes that an instruction reads or writes: hidden states and attention have a number of tokens,
decoder, LPIPS and discriminator a number of pixels; the discriminator's are inside its cond. The rest is weights: their
gathering, gradients and the optimizer.
"""

import argparse
import collections
import dataclasses
import json
import re
from pathlib import Path

from benchmarks.machine import circumstances
from configs import tokenizer
from dualtoken_jax.planning.topology import find_devices, prepare_environment


def part_of(instruction, tokens: int, heads: int) -> str:
    """Of the step, by what the instruction says of itself."""
    name = (re.findall(r'op_name="([^"]*)"', instruction.attributes) or [""])[0]
    if "cond/branch" in name:
        return "discriminator"
    if instruction.opcode == "custom-call" and "splash" in instruction.name:
        return "fused attention"
    shapes = [[int(n) for n in found.split(",")] for found in re.findall(r"\[([\d,]+)\]", instruction.shape)]
    sizes = {size for shape in shapes for size in shape}
    if any(len(shape) == 4 and shape[-1] >= tokens and shape[-2] >= tokens for shape in shapes):
        return "plain attention"
    if any(len(shape) == 4 and shape[1] == shape[2] for shape in shapes):
        return "decoder and LPIPS"
    return "hidden states" if sizes & {tokens, -(-tokens // 128) * 128, tokens * heads} else "weights and the rest"


def main() -> None:
    """Compiles, adds up, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v6e:2x4")
    parser.add_argument("--recipe", default="so400m_384")
    parser.add_argument("--images", type=int, default=8, help="on each device")
    parser.add_argument("--fsdp", type=int, default=8)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/plan_traffic.json"))
    flags = parser.parse_args()
    prepare_environment(flags.topology)
    from dualtoken_jax.planning.figures import Planner
    from dualtoken_jax.planning.traffic import moves
    from dualtoken_jax.sharding import MeshConfig

    devices, config = find_devices(flags.topology), tokenizer.recipe(flags.recipe)
    train = dataclasses.replace(config.train, batch_size=flags.images * len(devices))
    config = dataclasses.replace(config, mesh=MeshConfig(data=None, fsdp=flags.fsdp), train=train)
    plan, totals = Planner(devices, low_effort=True).plan(config), collections.Counter()
    siglip = config.model.siglip
    for instruction, moved in moves(plan.program):
        totals[part_of(instruction, siglip.grid**2, siglip.vision.heads)] += moved / 1e9
    found = circumstances("benchmarks.plan_traffic") | {"gigabytes": dict(totals.most_common())}
    found |= {"gigabytes_in_all": totals.total(), "seconds": plan.roofline.memory}
    flags.output.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
