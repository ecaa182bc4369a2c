"""python -m dualtoken_jax.evaluate --workdir=DIR

Evaluates the newest checkpoint of a run again, tokenizer or teacher: prints the table, rewrites evaluation.json and the
report.
"""

import argparse
import sys
from pathlib import Path

from dualtoken_jax import job
from dualtoken_jax.checkpoint import load_config


def main(arguments: list[str] | None = None) -> None:
    """Flags → the job's last part."""
    parser = argparse.ArgumentParser(prog="python -m dualtoken_jax.evaluate", description="Evaluates a run again.")
    parser.add_argument("--workdir", type=Path, required=True, help="folder of the run")
    workdir = parser.parse_args(arguments).workdir

    try:
        config = load_config(workdir)
        job.conclude(config, workdir, job.load_state(config, workdir))
    except job.EXPECTED_ERRORS as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
