"""Reading ahead with threads and worker processes, and noticing those that die or hang."""

import contextlib
import dataclasses
import faulthandler
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator

import grain

_CLOSE_SECONDS = 30.0  # for the batch under way; a thread that hangs longer is left behind


@dataclasses.dataclass(frozen=True)
class Reading:
    """How a host reads its batches; nothing here changes what is read."""

    threads: int = 2  # that read batches ahead, in each worker process; 0 reads one batch at a time
    workers: int = 0  # processes; 0 reads in this one, which is faster while pictures are small or cores are few
    stall_seconds: float = 900.0  # without a batch, after which the run stops; longer than storage is waited for


class DataError(RuntimeError):
    """The data cannot be read on: a worker process died, or nothing came for too long."""


class ReadAhead(Iterator):
    """The elements of a Grain dataset in order, the next one always under way.

    A thread of its own waits for Grain, so that this one can stop waiting: next() raises DataError when a worker
    process has died (within seconds), or when nothing has come for `stall_seconds`; other errors are passed on.
    """

    def __init__(self, dataset: grain.MapDataset, reading: Reading) -> None:
        self._reading = reading
        # Grain counts buffers in elements, and ours are whole batches: its default of 500 would fill the memory.
        options = grain.ReadOptions(num_threads=reading.threads, prefetch_buffer_size=reading.threads)
        elements = dataset.to_iter_dataset(options)
        if reading.workers:
            _quiet_flags()
            options = grain.MultiprocessingOptions(num_workers=reading.workers, per_worker_buffer_size=1)
            elements = elements.mp_prefetch(options, worker_init_fn=_start_worker)
        self._iterator = iter(elements)
        self._ready: queue.Queue = queue.Queue(maxsize=1)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._fetch, name="data", daemon=True)
        self._thread.start()

    def __next__(self):
        try:
            element, error = self._ready.get(timeout=self._reading.stall_seconds)
        except queue.Empty:
            faulthandler.dump_traceback(file=sys.__stderr__, all_threads=True)
            raise DataError(
                f"no batch came for {self._reading.stall_seconds:g} s (data.reading.stall_seconds), nor an error: "
                "a reading thread or worker hangs; the stacks of this process are above. The same command resumes"
            ) from None
        if error is not None:
            self._ready.put((None, error))  # for whoever asks again
            raise error
        return element

    def close(self) -> None:
        """Stops the threads and worker processes."""
        self._closing.set()
        self._thread.join(timeout=_CLOSE_SECONDS)  # Grain's iterators belong to one thread at a time
        self._iterator.close()
        with contextlib.suppress(queue.Empty):  # a batch of a worker lies in shared memory for as long as it is held
            self._ready.get_nowait()

    def _fetch(self) -> None:
        while not self._closing.is_set():
            try:
                found = (next(self._iterator), None)
            except Exception as error:  # noqa: BLE001 (the thread that asks for batches is the one to raise it)
                found = (None, _explained(error))
            while not self._closing.is_set():
                try:
                    self._ready.put(found, timeout=0.2)
                    break
                except queue.Full:
                    continue
            if found[1] is not None:
                return


def _explained(error: Exception) -> Exception:
    if isinstance(error, RuntimeError) and "Worker process was terminated" in str(error):
        return DataError(
            f"{error} If memory ran out, lower data.reading.workers or data.reading.threads. The same command resumes"
        )
    return error


def _start_worker(index: int, count: int) -> None:
    """In a worker process: it leaves the accelerator and the decision to stop to the process that started it."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    for number in (signal.SIGINT, signal.SIGTERM):  # a machine that goes down sends it to every process
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()


def _follow(parent: int) -> None:
    """A killed parent takes its workers along, which would wait for it for ever."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _quiet_flags() -> None:
    """Grain hands absl's flags on to its workers and insists that they are parsed, which no notebook does."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
