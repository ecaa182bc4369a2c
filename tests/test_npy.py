"""Indices are read by many threads at once, and only if they are what they should be."""

import gc
import io
import sys
import threading

import numpy as np
import pytest

from dualtoken_jax.data.npy import npy_bytes, read_npy
from dualtoken_jax.data.tar_index import row_type


@pytest.mark.parametrize("kind", [np.dtype("<u4"), np.dtype("S7"), row_type(9), row_type(200)])
@pytest.mark.parametrize("count", [0, 1, 12345])
def test_what_numpy_writes_is_read(kind, count):
    array = np.frombuffer(np.random.default_rng(count).bytes(count * kind.itemsize), kind)
    data = npy_bytes(array)
    assert np.load(io.BytesIO(data), allow_pickle=False).tobytes() == array.tobytes()
    assert read_npy(data, kind).tobytes() == array.tobytes() and read_npy(data, kind).dtype == kind


def test_anything_else_is_refused():
    data = npy_bytes(np.arange(5, dtype="<u4"))
    objects = io.BytesIO()
    np.save(objects, np.array([None] * 5), allow_pickle=True)
    for other in (
        b"",
        b"no file",
        data[:-1],
        data + b"\0",
        data.replace(b"(5,)", b"(6,)"),
        data.replace(b"(5,)", b"(999999999999999999,)"),
        data.replace(b"False", b"True "),
        npy_bytes(np.arange(5, dtype="<i4")),
        npy_bytes(np.zeros((5, 1), "<u4")),
        objects.getvalue(),
    ):
        with pytest.raises(ValueError, match="are no .npy file with"):
            read_npy(other, np.dtype("<u4"))


class Circle:
    """Garbage whose finaliser lets another thread run, wherever the collector happens to be called."""

    def __init__(self):
        self.me = self

    def __del__(self):
        sum(range(200))


def test_threads_do_not_disturb_each_other():
    """numpy.load fails here within a second in Python 3.11 ("AST constructor recursion depth mismatch")."""
    data, errors = npy_bytes(np.zeros(3, row_type(9))), []

    def read():
        try:
            for _ in range(500):
                Circle()
                read_npy(data, row_type(9))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(8)]
    before, interval = gc.get_threshold(), sys.getswitchinterval()
    gc.set_threshold(20)
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        gc.set_threshold(*before)
        sys.setswitchinterval(interval)
    assert errors == []
