"""python -m dualtoken_jax.main --config=configs/tokenizer.py[:VARIANT] [--workdir=DIR] [--config.FIELD=VALUE …]

Trains, evaluates and reports; started again on the same workdir it resumes. Exit codes are in exit_codes.py.
"""

import logging
import os
import sys
import time
from pathlib import Path

from absl import app, flags

from dualtoken_jax import exit_codes, recipe_flag

_CONFIG = recipe_flag.define_recipe("configs/tokenizer.py")
flags.declare_key_flag("config")  # for --help
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; runs/NAME of the recipe when left out.")

_LAST = 1.0  # seconds for the other processes, which end with the same error, to do so
_MEMORY = (
    "The devices' memory is too small: lower train.batch_size, raise train.accumulate, or share the state by "
    "mesh.fsdp; `python -m dualtoken_jax.plan` tells beforehand what fits"
)


def main(argv: list[str]) -> None:
    """Flags → jax.distributed → the run."""
    if len(argv) > 1:
        print(f"error: unknown arguments {argv[1:]}; settings look like --config.train.steps=100", file=sys.stderr)
        sys.exit(exit_codes.USAGE)
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    logging.getLogger("dualtoken_jax").setLevel(logging.INFO)
    for talkative in ("absl", "jax"):  # Orbax tells every step of every save, jax every backend that is not there
        logging.getLogger(talkative).setLevel(logging.WARNING)
    import jax

    from dualtoken_jax import config as config_lib
    from dualtoken_jax import distributed, job
    from dualtoken_jax.config_checks import check

    try:
        distributed.join()
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
    except Exception as error:
        if job.is_expected(error):
            print(f"error: {error}", file=sys.stderr)
            _leave(exit_codes.FAILED)
        if "RESOURCE_EXHAUSTED" in str(error):
            print(f"error: {error}\n{_MEMORY}", file=sys.stderr)
            _leave(exit_codes.FAILED)
        if not jax.distributed.is_initialized():
            raise
        logging.exception("this process cannot go on")
        # A step fails on everybody when somebody has died.
        _leave(exit_codes.RESTART if isinstance(error, jax.errors.JaxRuntimeError) else exit_codes.FAILED)


def _leave(code: int) -> None:
    """Ends the process. An ordinary end waits for the other processes, which may wait for this one in a step."""
    import jax

    if jax.distributed.is_initialized():
        logging.shutdown()
        sys.stderr.flush()
        if code == exit_codes.FAILED and jax.process_index() == 0:  # it hosts what the others die without, by a signal
            time.sleep(_LAST)
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    app.run(main, flags_parser=recipe_flag.parse)
