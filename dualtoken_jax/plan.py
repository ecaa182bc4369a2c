"""python -m dualtoken_jax.plan --config=configs/tokenizer.py:so400m_384 --topology=v5e:16x16 [--sweep] [--json=FILE]

Will a training fit, and how fast could it be? Compiles the real step for chips that need not be here, and runs nothing.
TPU slices are compiled for with `libtpu` from PyPI; --topology=local is for what this machine has.
"""

import importlib.metadata
import json
import logging
import sys
from pathlib import Path

from absl import app, flags

from dualtoken_jax import exit_codes, recipe_flag
from dualtoken_jax.planning.topology import LOCAL, TopologyError, find_devices, prepare_environment

_CONFIG = recipe_flag.define_recipe("configs/tokenizer.py")
flags.declare_key_flag("config")  # for --help
_TOPOLOGY = flags.DEFINE_string(
    "topology", LOCAL, "TPU slice as kind and chips along each axis, such as v5e:2x4; 'local' is this machine."
)
_SWEEP = flags.DEFINE_bool("sweep", False, "Try batch sizes, remat policies and meshes; print the best.")
_JSON = flags.DEFINE_string("json", None, "File for all figures.")
_EFFORT = flags.DEFINE_enum(
    "effort",
    "low",
    ["low", "full"],
    "Of the compiler: 'low' takes a fraction of the time, 'full' is what training does.",
)


def main(argv: list[str]) -> None:
    """Prints the plan; exits with 1 where nothing fits or something is wrong."""
    if len(argv) > 1:
        print(f"error: unknown arguments {argv[1:]}; settings look like --config.train.batch_size=256", file=sys.stderr)
        sys.exit(exit_codes.USAGE)
    logging.getLogger("absl").setLevel(logging.WARNING)
    prepare_environment(_TOPOLOGY.value)
    from dualtoken_jax import config as config_lib
    from dualtoken_jax.config_checks import check

    try:
        config = check(config_lib.from_dict(_CONFIG.value))
        fits, figures = _plan(config)
    except (ValueError, TopologyError) as error:
        sys.exit(f"error: {error}")
    if _JSON.value:
        versions = {name: _version(name) for name in ("jax", "jaxlib", "libtpu")}
        everything = {"topology": _TOPOLOGY.value, "effort": _EFFORT.value, "versions": versions} | figures
        Path(_JSON.value).write_text(json.dumps(everything, indent=1) + "\n")
    sys.exit(0 if fits else 1)


def _plan(config) -> tuple[bool, dict]:
    """Whether anything fits, and all figures."""
    from dualtoken_jax.planning.advice import advice
    from dualtoken_jax.planning.figures import Planner
    from dualtoken_jax.planning.report import line, report
    from dualtoken_jax.planning.sweep import sweep

    planner = Planner(find_devices(_TOPOLOGY.value), low_effort=_EFFORT.value == "low")
    if not _SWEEP.value:
        plan = planner.plan(config)
        print(report(plan))
        return plan.fits, plan.to_json() | {"advice": advice(plan)}
    plans = sweep(config, planner, lambda plan: print(line(plan), flush=True))
    if plans[0].fits:
        print(f"\nbest\n{line(plans[0])}\n\n{report(plans[0])}")
    return plans[0].fits, {"best_first": [plan.to_json() for plan in plans]}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    app.run(main, flags_parser=recipe_flag.parse)
