"""How often a run has gone back to a checkpoint, and behind which examples it went on; its restarts know it too."""

import json
import logging
from pathlib import Path
from typing import NamedTuple

import jax

from dualtoken_jax.agreement import by_first
from dualtoken_jax.config import ConfigError
from dualtoken_jax.data.storage import write_whole

FILE = "rollbacks.json"

log = logging.getLogger("dualtoken_jax")


class Rollbacks(NamedTuple):
    """Of a whole run, over all its starts."""

    count: int = 0
    position: int = 0  # no example before it is trained on again


def read_rollbacks(workdir: Path) -> Rollbacks:
    """What the workdir tells; the same on every process. Raises ConfigError for a damaged file."""
    file = Path(workdir) / FILE

    def read() -> list[int]:
        try:
            count, position = json.loads(file.read_text()).values() if file.exists() else Rollbacks()
            return [int(count), int(position)]
        except (AttributeError, TypeError, ValueError) as error:
            raise ConfigError(f"{file} is damaged: {error!r}; remove it, and the run has never gone back") from error

    return Rollbacks(*by_first(read, ConfigError))


def write_rollbacks(workdir: Path, rollbacks: Rollbacks) -> None:
    """For the next start. A failing storage is logged: this start knows it anyway."""
    if jax.process_index() > 0:
        return
    try:
        write_whole(str(Path(workdir) / FILE), json.dumps(rollbacks._asdict()).encode())
    except OSError as error:
        log.error("a restart will not know that the run went back to a checkpoint: %s", error)
