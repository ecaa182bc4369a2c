"""On what, when and by which command something was measured."""

import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version


def circumstances(module: str) -> dict:
    """For the head of a results file; `load` is the number of processes that wanted to run, other people's included."""
    return {
        "command": shlex.join(["python", "-m", module, *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "machine": f"{processor()}, {os.cpu_count()} cores; Python {platform.python_version()}, {packages()}",
        "load": [round(value, 1) for value in os.getloadavg()],
    }


def processor() -> str:
    """The CPU's name."""
    try:
        lines = open("/proc/cpuinfo").read().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def packages() -> str:
    """Versions of those that matter."""
    found = []
    for name in ("jax", "jaxlib", "flax", "torch"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join(found)
