"""One run per workdir."""

import fcntl
import logging
import os
import socket
import time
from pathlib import Path

import jax

from dualtoken_jax.config import ConfigError

log = logging.getLogger("dualtoken_jax")

FILE = ".lock"
PATIENCE = 30.0  # seconds for a run that is just ending; a killed one lets go at once


class WorkdirLock:
    """While open, another run on the same workdir is refused with ConfigError. The first process holds it for all.

    It is the kernel's lock on a file, which ends with the process however that ends.
    """

    def __init__(self, workdir: Path, patience: float = PATIENCE):
        self._path, self._patience, self._file = Path(workdir) / FILE, patience, None

    def __enter__(self) -> "WorkdirLock":
        if jax.process_index() > 0:
            return self
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a+")
        deadline = time.monotonic() + self._patience
        while not self._acquired():
            if time.monotonic() > deadline:
                self._file.seek(0)
                raise ConfigError(
                    f"{self._path.parent} is in use by {self._file.read().strip() or 'another run'}; "
                    "stop that run, or use another --workdir"
                )
            time.sleep(0.5)
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%F %T')}\n")
        self._file.flush()
        return self

    def __exit__(self, *_) -> None:
        if self._file is not None:
            self._file.close()

    def _acquired(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            log.warning("%s cannot be locked (%s): nothing keeps a second run out", self._path.parent, error)
        return True
