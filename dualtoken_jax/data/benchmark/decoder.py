"""The decoder alone: encoded files in memory → crops, without any of the loader around it."""

import itertools
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dualtoken_jax.data.images import BadImage, Decoding, decode, load


def usable(files: Sequence[bytes]) -> list[bytes]:
    """Those that are pictures. ValueError where none is."""
    found = [data for data in files if _is_picture(data)]
    if not found:
        raise ValueError(f"none of the first {len(files)} files is a picture that can be used")
    return found


def _is_picture(data: bytes) -> bool:
    try:
        decode(data)
    except BadImage:
        return False
    return True


def rate(files: Sequence[bytes], resolution: int, decoding: Decoding, threads: int, seconds: float) -> float:
    """Pictures per second of decode and random crop to R × R, `threads` at once, over and over for `seconds`."""

    def work(first: int) -> int:
        for done, number in enumerate(itertools.count(first, threads), 1):
            load(files[number % len(files)], resolution, np.random.default_rng(number), decoding)
            if time.perf_counter() >= deadline:
                return done

    for data in files[:threads]:  # imports and thread-local tools
        load(data, resolution, np.random.default_rng(0), decoding)
    begin = time.perf_counter()
    deadline = begin + seconds
    with ThreadPoolExecutor(threads) as pool:
        done = sum(pool.map(work, range(threads)))
    return done / (time.perf_counter() - begin)
