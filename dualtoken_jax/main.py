"""python -m dualtoken_jax.main --config=configs/tokenizer.py[:VARIANT] [--workdir=DIR] [--config.FIELD=VALUE …]

Trains, evaluates and reports; started again on the same workdir it resumes. Exit codes are in exit_codes.py.
"""

import logging
import os
import sys
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", "configs/tokenizer.py", "Recipe, with ':VARIANT' after the file.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; runs/NAME of the recipe when left out.")


def main(argv: list[str]) -> None:
    """Flags → jax.distributed → the run."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}; settings look like --config.train.steps=100")
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    logging.getLogger("dualtoken_jax").setLevel(logging.INFO)
    for talkative in ("absl", "jax"):  # Orbax tells every step of every save, jax every backend that is not there
        logging.getLogger(talkative).setLevel(logging.WARNING)
    import jax

    from dualtoken_jax import config as config_lib
    from dualtoken_jax import distributed, exit_codes, job
    from dualtoken_jax.config_checks import check

    distributed.join()
    try:
        config = check(config_lib.from_dict(_CONFIG.value))
        workdir = _WORKDIR.value or f"runs/{config.name}"
        if "://" in workdir:
            raise config_lib.ConfigError(
                f"workdir {workdir} is a URL: mount the bucket and give a folder (launch/README.md)"
            )
        job.run(config, Path(workdir))
    except job.RESTARTABLE as reason:
        print(reason, file=sys.stderr)
        _leave(exit_codes.RESTART)
    except job.EXPECTED_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        _leave(exit_codes.FAILED)
    except Exception as error:
        if jax.process_count() == 1:
            raise
        logging.exception("this process cannot go on")
        # A step fails on everybody when somebody has died.
        _leave(exit_codes.RESTART if isinstance(error, jax.errors.JaxRuntimeError) else exit_codes.FAILED)


def _leave(code: int) -> None:
    """Ends the process. An ordinary end waits for the other processes, which may wait for this one in a step."""
    import jax

    if jax.process_count() > 1:
        logging.shutdown()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    app.run(main)
