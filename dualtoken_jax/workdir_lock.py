"""One run per workdir."""

import fcntl
import logging
import os
import socket
import time
from pathlib import Path

from dualtoken_jax.agreement import by_first
from dualtoken_jax.config import ConfigError

log = logging.getLogger("dualtoken_jax")

FILE = ".lock"
PATIENCE = 30.0  # seconds for a run that is just ending; a killed one lets go at once


class WorkdirLock:
    """While open, another run on the same workdir is refused with ConfigError, on all its processes.

    The first process holds it for all. It is the kernel's lock on a file, which ends with the process however that
    ends. NFS tells it to other machines; FUSE file systems without locks of their own, gcsfuse and s3fs among them,
    leave it to the kernel of each machine, and there it keeps out a second run of the same machine only.
    """

    def __init__(self, workdir: Path, patience: float = PATIENCE):
        self._path, self._patience, self._file = Path(workdir) / FILE, patience, None

    def __enter__(self) -> "WorkdirLock":
        by_first(self._acquire, ConfigError)
        return self

    def _acquire(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a+")
        deadline = time.monotonic() + self._patience
        while not self._is_locked():
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

    def __exit__(self, *_) -> None:
        if self._file is not None:
            self._file.close()

    def _is_locked(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            log.warning("%s cannot be locked (%s): nothing keeps a second run out", self._path.parent, error)
        return True
