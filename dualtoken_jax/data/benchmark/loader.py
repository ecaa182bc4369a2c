"""The training loader alone: source → order → decode → crop → host batches. Memory and requests on the way."""

import itertools
import multiprocessing
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dualtoken_jax.data.images import Decoding
from dualtoken_jax.data.order import Order
from dualtoken_jax.data.pipeline import Batches, batches
from dualtoken_jax.data.reading import Reading
from dualtoken_jax.data.sources import Source

WARM_UP = 4  # batches before the clock starts: threads, caches, read-ahead


class Setting(NamedTuple):
    """What is read, and how."""

    source: Source
    resolution: int
    batch_size: int
    decoding: Decoding
    reading: Reading
    augment: bool


def open_batches(setting: Setting) -> Batches:
    """The training batches of one host, without captions."""
    return batches(
        setting.source,
        lambda captions: np.zeros((len(captions), 1), np.int32),
        order=Order((len(setting.source),), (1,), 0),
        resolution=setting.resolution,
        batch_size=setting.batch_size,
        start=0,
        augment=setting.augment,
        decoding=setting.decoding,
        reading=setting.reading,
        rows=np.arange(setting.batch_size),
    )


def rate(batches: Iterator[Any], batch_size: int, count: int) -> dict[str, float]:
    """Pictures per second, and CPU time a picture, over `count` batches that follow WARM_UP others.

    Fits any iterator of batches. What else the machine does slows the first figure down, and hardly touches the second.
    """
    for _ in itertools.islice(batches, WARM_UP):
        pass
    begin, used = time.perf_counter(), cpu_seconds()
    done = batch_size * sum(1 for _ in itertools.islice(batches, count))
    seconds, used = time.perf_counter() - begin, cpu_seconds() - used
    return {"pictures_per_second": done / seconds, "cpu_ms_per_picture": 1000 * used / done}


def cpu_seconds() -> float:
    """CPU time of this process and, where there is /proc, of its living worker processes."""
    total = time.process_time()
    for worker in multiprocessing.active_children():
        try:
            fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
        except FileNotFoundError:
            continue
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime and stime (proc_pid_stat(5))
    return total


def measure(setting: Setting, count: int) -> dict[str, Any]:
    """Pictures per second, CPU time, resident memory, and requests per picture where the source counts them."""
    traffic = getattr(setting.source, "traffic", None)
    before = traffic.requests if traffic else 0
    reading = open_batches(setting)
    memory: list[tuple[int, float]] = []

    def watched() -> Iterator[Any]:
        for number, batch in enumerate(reading):
            memory.append((number, resident_mb()))
            yield batch

    try:
        found: dict[str, Any] = dict(rate(watched(), setting.batch_size, count))
    finally:
        reading.close()
    if traffic:  # of this process; workers count their own
        found["requests_per_picture"] = (traffic.requests - before) / (len(memory) * setting.batch_size)
    return found | {"bad_pictures": reading.bad.by_reason} | growth(memory)


def resident_mb() -> float:
    """Resident memory of this process in MB; its peak so far where there is no /proc."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def growth(memory: list[tuple[int, float]]) -> dict[str, float]:
    """Of (step, MB): the last value, and the slope of a line through the second half, in MB per 1,000 steps."""
    steps, resident = np.array(memory[len(memory) // 2 :], float).T
    slope = np.polyfit(steps, resident, 1)[0] if len(steps) > 2 else 0.0
    return {"resident_mb": float(resident[-1]), "growth_mb_per_1000_steps": float(slope * 1000), "steps": len(memory)}
