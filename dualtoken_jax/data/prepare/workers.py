"""One job per shard, in several processes of this machine."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Collection
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from tqdm import tqdm


def run(job: Callable[[Any], Any], numbers: Collection, processes: int) -> list:
    """Calls `job(number)` for each number, in `processes` processes, or in this one for 1; shows a progress bar.

    Args:
      job: picklable, and harmless to call again after it was stopped half-way.

    Returns:
      what the jobs returned, in the order in which they ended.

    Raises:
      whatever a job raises, after the jobs that are running have ended; RuntimeError where a process was killed.
    """
    with tqdm(total=len(numbers), unit="shard", disable=None) as bar:
        if processes == 1:
            answers = []
            for number in numbers:
                answers.append(job(number))
                bar.update(1)
            return answers
        try:
            return _run_in_processes(job, numbers, processes, bar)
        except BrokenProcessPool:
            raise RuntimeError(
                "a worker process was killed, perhaps for lack of memory: start again, it goes on from here; fewer "
                "--workers need less"
            ) from None


def _run_in_processes(job: Callable[[Any], Any], numbers: Collection, processes: int, bar: tqdm) -> list:
    # spawn: forked children of a process with threads may wait for ever on a lock that a thread held.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_end_with_parent) as pool:
        waiting, running, answers = iter(numbers), set(), []
        try:
            while True:
                while len(running) < 2 * processes and (number := next(waiting, None)) is not None:
                    running.add(pool.submit(job, number))
                if not running:
                    return answers
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    answers.append(future.result())
                    bar.update(1)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _end_with_parent() -> None:
    """A worker whose parent was killed would otherwise wait for its next job for ever."""

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
