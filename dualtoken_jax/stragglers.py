"""Which hosts keep the others waiting: seconds per step for data, transfer and the step itself, host by host."""

import jax
import numpy as np
from jax.experimental import multihost_utils

_KINDS = ("data", "transfer", "step")
_SLOW = 1.5  # times the median host, and
_WORTH = 0.02  # seconds per step beyond it, which are worth a line


def shares(spent: dict[str, float], steps: int) -> dict[str, float]:
    """Seconds per step of each kind, named for the logs."""
    return {f"seconds_per_step/{kind}": spent.get(kind, 0.0) / max(steps, 1) for kind in _KINDS}


def slow_hosts(mine: dict[str, float]) -> str:
    """What to tell of hosts whose `shares` are far above the median, '' when there are none.

    Every process must ask at the same step. All hosts wait for the slowest inside the step, so a slow one shows in its
    data and transfer, and the others in their steps.
    """
    if jax.process_count() == 1:
        return ""
    return describe(np.asarray(multihost_utils.process_allgather(np.array(list(mine.values()), np.float32))))


def describe(seconds: np.ndarray) -> str:
    """As `slow_hosts`, from float [hosts, kinds]."""
    lines = []
    for kind, column in zip(_KINDS[:2], seconds.T, strict=False):  # waiting inside the step is nobody's own fault
        usual = float(np.median(column))
        for host in np.flatnonzero((column > _SLOW * usual) & (column > usual + _WORTH)):
            lines.append(f"host {host} takes {column[host]:.3f} s per step for {kind}, the median host {usual:.3f} s")
    return "; ".join(lines)
