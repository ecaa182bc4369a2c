"""The plans of several slices in one table, and how well they scale. Writes NAME.json and NAME.md.

    for slice in v5e:2x4 v5e:16x16 …; do
        python -m dualtoken_jax.plan --config=configs/tokenizer.py:so400m_256 --topology=$slice \
            --config.mesh.fsdp=8 --config.train.batch_size=… --json=runs/plans/so400m_256_$slice.json
    done
    python benchmarks/plan_table.py runs/plans/*.json
    python benchmarks/plan_table.py runs/earlier/*.json --name=plan_earlier --title='Before …'

All figures are predictions of `dualtoken_jax.plan`: the program is the real one, compiled for the chips; its speed is
a roofline, for which nothing ran.
"""

import argparse
import itertools
import json
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
GIB = 2**30


def command(plan: dict) -> str:
    """What gives these figures again."""
    options = {"mesh.fsdp": plan["mesh"]["fsdp"], "mesh.tensor": plan["mesh"]["tensor"]}
    options |= {"train.batch_size": plan["batch_size"], "model.siglip.remat": plan["remat"]}
    options |= {"model.siglip.attention": attention(plan)}
    settings = " ".join(f"--config.{name}={value}" for name, value in options.items())
    start = "python -m dualtoken_jax.plan --config=configs/tokenizer.py:"
    return f"{start}{plan['recipe']} --topology={plan['topology']} --effort={plan['effort']} {settings}"


def attention(plan: dict) -> str:
    """Plans that do not say it are from before there was a choice."""
    return plan.get("attention", "plain")


def row(plan: dict) -> list[str]:
    """One plan's line of the table."""
    memory, sizes = plan["memory_per_device"], plan["mesh"]
    start = [plan["recipe"], plan["topology"], f"{sizes['data']} × {sizes['fsdp']} × {sizes['tensor']}"]
    start += [f"{plan['batch_size']} ({plan['images_per_device']})", attention(plan), plan["remat"]]
    if not memory["fits"]:
        needed = memory["needed"]
        return (
            start
            + [f"does not fit: {needed / GIB:.1f} of {memory['available'] / GIB:.1f}" if needed else "does not fit"]
            + [""] * 7
        )
    bound, sent = plan["roofline"], sum(one["sent"] for one in plan["collectives_per_device"].values())
    worst, best = bound["one_by_one"], bound["overlapped"]
    span = lambda name, form: f"{worst[name]:{form}} – {best[name]:{form}}"  # noqa: E731
    return start + [
        f"{memory['total'] / GIB:.1f} of {memory['available'] / GIB:.0f}",
        *(f"{1e3 * bound['seconds'][name]:.0f}" for name in ("compute", "memory", "network")),
        f"{sent / 1e9:.1f}",
        span("images_per_second", ",.0f"),
        span("model_flops_utilisation", ".0%"),
        f"{plan['compile_seconds']:.0f}",
    ]


def scaling(plans: list[dict]) -> list[list[str]]:
    """Images/s per chip of the larger slice over the smaller one's: same recipe, chip and images on a chip."""
    rows = []
    for small, large in itertools.permutations([plan for plan in plans if "roofline" in plan], 2):
        same = all(small[name] == large[name] for name in ("recipe", "device_kind", "images_per_device", "remat"))
        same = same and attention(small) == attention(large)
        if same and small["devices"] < large["devices"]:
            rates = [
                large["roofline"][how]["images_per_second_per_chip"]
                / small["roofline"][how]["images_per_second_per_chip"]
                for how in ("one_by_one", "overlapped")
            ]
            chips = f"{small['devices']} → {large['devices']}"
            rows.append([large["recipe"], large["chip"]["name"], chips, *(f"{rate:.1%}" for rate in rates)])
    return rows


def table(columns: list[str], rows: list[list[str]]) -> str:
    """As Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def page(title: str, plans: list[dict]) -> str:
    """The Markdown file."""
    columns = ["recipe", "slice", "data × fsdp × tensor", "batch (a chip)", "attention", "remat", "GiB a chip"]
    columns += [
        "compute ms",
        "memory ms",
        "network ms",
        "GB sent a chip",
        "images/s",
        "model FLOPs utilisation",
        "compile s",
    ]
    flops = {
        plan["recipe"]: [f"{plan['flops_per_image'][name] / 1e12:.2f}" for name in ("model", "executed")]
        for plan in plans
        if plan["remat"] == "full"
    }
    versions = plans[0]["versions"]
    return f"""# {title}

Predictions of `python -m dualtoken_jax.plan`, jax {versions["jax"]} and libtpu {versions["libtpu"]}: the loop's own
step, compiled for each slice; nothing ran. Memory is what the compiler allots. Times are each part's alone at the
chip's peak (planning/chips.py names the sources); of the two figures for speed, the lower adds them up, the higher
lets them overlap entirely. Compile times are of two cores with much other
work.

{table(columns, [row(plan) for plan in plans])}

Images/s per chip on the larger slice over the smaller one's:

{table(["recipe", "chip", "chips", "one by one", "overlapped"], scaling(plans))}

TFLOP of matrix products for an image:

{table(["recipe", "model", "executed with remat full"], [[name, *both] for name, both in sorted(flops.items())])}

Commands:

```
{chr(10).join(command(plan) for plan in plans)}
```
"""


def main() -> None:
    """Reads the plans, writes both files."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("plans", nargs="+", type=Path, help="files of `dualtoken_jax.plan --json`")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for both files")
    parser.add_argument("--name", default="plan", help="of both files")
    parser.add_argument("--title", default="What TPU slices would make of the full recipes")
    flags = parser.parse_args()
    plans = [json.loads(file.read_text()) for file in flags.plans]
    plans.sort(key=lambda plan: (plan["recipe"], plan["topology"][:3], plan["devices"], plan["batch_size"]))
    (flags.output / f"{flags.name}.json").write_text(json.dumps(plans, indent=1) + "\n")
    (flags.output / f"{flags.name}.md").write_text(page(flags.title, plans))


if __name__ == "__main__":
    main()
