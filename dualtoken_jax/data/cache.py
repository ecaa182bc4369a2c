"""A bounded, thread-safe cache of things that are opened or read on demand: handles, indices, blocks of pictures."""

import collections
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any


def _one(value: Any) -> int:
    return 1


class Cache:
    """Keeps the most recently used values whose sizes add up to at most `limit`; the newest one in any case.

    A value that falls out is not closed: threads that still use it go on, and the last one to let go of it ends it.
    Pickles as an empty cache.
    """

    def __init__(self, limit: int, size_of: Callable[[Any], int] = _one) -> None:
        """`size_of` measures a value; by default each counts 1. It must be picklable where the cache is pickled."""
        self._limit, self._size_of = limit, size_of
        self.clear()

    def clear(self) -> None:
        """Lets go of everything."""
        self._lock = threading.Lock()
        self._kept: collections.OrderedDict[Hashable, Future] = collections.OrderedDict()
        self._sizes: dict[Hashable, int] = {}
        self._total = 0

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """The value of `key`, made if need be: once, however many threads ask for it at the same time."""
        with self._lock:
            known = self._kept.get(key)
            future = known or self._kept.setdefault(key, Future())
            self._kept.move_to_end(key)
        if not known:
            self._fill(key, future, make)
        return future.result()

    def forget(self, key: Hashable) -> None:
        """Lets go of one value, which is made anew when it is asked for again."""
        with self._lock:
            if key in self._sizes:
                del self._kept[key]
                self._total -= self._sizes.pop(key)

    def _fill(self, key: Hashable, future: Future, make: Callable[[], Any]) -> None:
        try:
            value = make()
        except BaseException as error:
            with self._lock:
                if self._kept.get(key) is future:
                    del self._kept[key]  # to be tried again by the next who asks
            future.set_exception(error)
            return
        future.set_result(value)
        with self._lock:
            if self._kept.get(key) is future:  # unless it was cleared meanwhile
                self._kept.move_to_end(key)  # others were asked for while this one was made
                self._sizes[key] = self._size_of(value)
                self._total += self._sizes[key]
            self._evict()

    def _evict(self) -> None:
        while self._total > self._limit and len(self._sizes) > 1:
            oldest = next(key for key in self._kept if key in self._sizes)  # what is still being made has no size yet
            del self._kept[oldest]
            self._total -= self._sizes.pop(oldest)

    def __getstate__(self) -> dict:
        return {"_limit": self._limit, "_size_of": self._size_of}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self.clear()
