"""Threads, worker processes and what becomes of those that die or hang: none of it changes a batch."""

import gc
import logging
import os
import signal
import threading
import time
import weakref
from pathlib import Path

import grain
import numpy as np
import pytest
from test_pipeline import RESOLUTION, Listed, Numbered, assert_same, encode, joined, png, train

from dualtoken_jax.data import pipeline, reader
from dualtoken_jax.data.mixture import Mixture
from dualtoken_jax.data.order import Order
from dualtoken_jax.data.reading import DataError, ReadAhead, Reading
from dualtoken_jax.data.sources import Example


def mixed(count, reading, *, start=0, host=0, hosts=1, batch_size=16):
    """Batches of two sources, three to one, blocks of 4 in windows of 8, with random crops."""
    source = Mixture([Numbered(200, side=11), Numbered(48, side=9)])
    iterator = pipeline.batches(
        source,
        encode,
        order=Order(source.sizes, (3, 1), seed=1, block=4, window=8),
        resolution=RESOLUTION,
        batch_size=batch_size,
        start=start,
        augment=True,
        decoding="exact",
        reading=reading,
        rows=np.arange(batch_size).reshape(hosts, -1)[host],
    )
    try:
        return [next(iterator) for _ in range(count)]
    finally:
        iterator.close()


def test_hosts_and_threads_change_no_batch_of_a_mixture():
    whole = mixed(30, Reading(threads=0))
    for hosts in (2, 4, 8, 16):
        parts = [mixed(30, Reading(threads=hosts % 3), host=host, hosts=hosts) for host in range(hosts)]
        assert_same(joined(parts), whole)


def test_resuming_at_random_positions_changes_no_batch():
    whole = mixed(120, Reading())
    for step in np.random.default_rng(0).integers(0, 118, 25):
        assert_same(mixed(2, Reading(threads=1), start=int(step) * 16), whole[step : step + 2])


@pytest.mark.parametrize(
    "workers", [1, pytest.param(4, marks=pytest.mark.slow), pytest.param(8, marks=pytest.mark.slow)]
)
def test_workers_change_no_batch(workers):
    assert_same(mixed(20, Reading(threads=1, workers=workers), start=32), mixed(20, Reading(), start=32))


class Spied(Numbered):
    """Tells what the process that reads it has loaded, in its captions."""

    def read(self, indices):
        import sys

        bridge = sys.modules.get("jax._src.xla_bridge")
        state = f"{os.getpid()} {bool(bridge and bridge._backends)} {os.environ.get('JAX_PLATFORMS')}"
        return [Example(np.zeros((8, 8, 3), np.uint8), state, None) for _ in indices]


def spy_encode(captions):
    """Characters as tokens, up to 40."""
    return np.array([[ord(c) for c in caption.ljust(40)[:40]] for caption in captions], np.int32)


class Dying(Numbered):
    """The process that reads example 30 is killed, as by the kernel when memory runs out."""

    def read(self, indices):
        if 30 in indices:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(indices)


def stream(source, reading, encode=encode):
    """Training batches of one source, in order of their numbers as far as its seed has it."""
    return pipeline.batches(
        source,
        encode,
        order=Order((len(source),), (1,), 0),
        resolution=RESOLUTION,
        batch_size=8,
        start=0,
        augment=False,
        decoding="exact",
        reading=reading,
        rows=np.arange(8),
    )


def test_a_dead_worker_is_an_error_within_seconds_and_no_worker_touches_a_backend():
    spied = stream(Spied(64), Reading(threads=1, workers=1), spy_encode)
    process, initialised, platform = "".join(map(chr, next(spied)["text"][0])).split()
    spied.close()
    assert int(process) != os.getpid() and (initialised, platform) == ("False", "cpu")
    dying = stream(Dying(64), Reading(threads=1, workers=1))
    with pytest.raises(DataError, match="(?s)exit code -9.*data.reading.workers"):
        for _ in range(64):
            next(dying)
    with pytest.raises(DataError, match="exit code -9"):
        next(dying)
    dying.close()


def test_a_closed_reader_holds_no_batch():
    """In shared memory it would stay until the end of the process, which complains of it."""
    read = []

    class Batch:
        def __init__(self):
            read.append(weakref.ref(self))

    class Items(list):
        def __getitem__(self, index):
            return Batch()

    ahead = ReadAhead(grain.MapDataset.source(Items(range(9))), Reading(threads=0))
    del_me = next(ahead)
    while not ahead._ready.full():
        time.sleep(0.01)
    ahead.close()
    del del_me
    gc.collect()
    assert len(read) > 1 and not [one for one in read if one() is not None]


class Hanging(Numbered):
    """The first read never returns until it is released."""

    def __init__(self, size):
        super().__init__(size)
        self.released = threading.Event()

    def read(self, indices):
        self.released.wait()
        return super().read(indices)


def test_a_hang_is_an_error_that_shows_the_stacks(capfd):
    source = Hanging(64)
    iterator = stream(source, Reading(threads=1, stall_seconds=0.3))
    with pytest.raises(DataError, match="no batch came for 0.3 s"):
        next(iterator)
    source.released.set()
    iterator.close()
    assert "in read" in capfd.readouterr().err


class Failing(Listed):
    """Storage that is away for the first few reads."""

    def __init__(self, files, failures):
        super().__init__(files)
        self.failures = failures

    def read(self, indices):
        if self.failures > 0:
            self.failures -= 1
            raise TimeoutError("the storage does not answer")
        return super().read(indices)


def test_storage_that_fails_for_a_while_loses_nothing(monkeypatch, caplog):
    waited = []
    monkeypatch.setattr(reader.time, "sleep", waited.append)
    files = [png(value) for value in range(60)]
    with caplog.at_level(logging.WARNING):
        found, iterator = train(Failing(files, failures=14), 3, threads=0)
    assert_same(found, train(Listed(files), 3)[0])
    assert iterator.bad.total == 0
    assert len(waited) == 4 and waited == sorted(waited)  # all, the first, the last: 3 failures a round
    assert "the storage does not answer" in caplog.text


def test_storage_that_stays_away_counts_as_lost():
    lost = reader.Reader(Failing([png(0)] * 9, 10**9), encode, RESOLUTION, "exact", patience=0)
    batch, problems = lost.batch(np.arange(3), [None] * 3)
    assert (batch["weight"] == 0).all()
    assert [str(problem[1]) for problem in problems] == ["unreadable: the storage does not answer"] * 3


def left_open():
    """Threads, open files and mappings of shared memory of this process."""
    gc.collect()  # Grain's queues stand in reference cycles
    mapped = Path("/proc/self/maps").read_text().count("/dev/shm/psm_")
    return threading.active_count(), len(os.listdir("/proc/self/fd")), mapped


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files where Linux lists them")
def test_nothing_is_left_behind():
    mixed(2, Reading(threads=2, workers=1))  # what stays from the first time on is Grain's and Python's own
    before = left_open()
    for _ in range(3):
        mixed(3, Reading(threads=2, workers=1))
        mixed(3, Reading(threads=2))
    allowed, deadline = (before[0], before[1] + 2, before[2]), time.monotonic() + 10
    while any(now > most for now, most in zip(left_open(), allowed, strict=True)) and time.monotonic() < deadline:
        time.sleep(0.1)
    threads, files, shared = left_open()
    assert threads <= allowed[0] and files <= allowed[1] and shared <= allowed[2]
