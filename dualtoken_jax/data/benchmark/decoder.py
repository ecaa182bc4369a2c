"""The decoder alone: encoded files in memory → crops, without any of the loader around it."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dualtoken_jax.data.images import Decoding, load


def rate(files: Sequence[bytes], resolution: int, decoding: Decoding, threads: int, seconds: float) -> float:
    """Pictures per second of decode and random crop to R × R, `threads` at once, over and over for `seconds`."""

    def work(first: int) -> int:
        done, number = 0, first
        while time.perf_counter() < deadline:
            load(files[number % len(files)], resolution, np.random.default_rng(number), decoding)
            done, number = done + 1, number + threads
        return done

    for data in files[:threads]:  # imports and thread-local tools
        load(data, resolution, np.random.default_rng(0), decoding)
    begin = time.perf_counter()
    deadline = begin + seconds
    with ThreadPoolExecutor(threads) as pool:
        done = sum(pool.map(work, range(threads)))
    return done / (time.perf_counter() - begin)
