"""One-dimensional .npy files of a type that is known beforehand, from any number of threads.

numpy.load evaluates the header through Python's ast module, and in Python 3.11 that raises SystemError now and then
when several threads are at it ("AST constructor recursion depth mismatch", CPython issue 106905). Nothing is evaluated
here: the header must be, byte for byte, the one that NumPy writes.
"""

import io
import re

import numpy as np

_SHAPE = re.compile(rb"'shape': \((\d{1,18}),\)")
_HEADER = 4096  # bytes in which the shape must stand; NumPy's own limit is 10,000


def npy_bytes(array: np.ndarray) -> bytes:
    """`array` [n] as an .npy file."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def read_npy(data: bytes, kind: np.dtype) -> np.ndarray:
    """The array [n], read-only, of an .npy file. Raises ValueError where it has another type, or is no such file."""
    found = _SHAPE.search(data[:_HEADER])
    if found:
        count, header = int(found[1]), io.BytesIO()
        fields = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": (count,)}
        np.lib.format.write_array_header_1_0(header, fields)
        begin = header.getvalue()
        if data.startswith(begin) and len(data) == len(begin) + count * kind.itemsize:
            return np.frombuffer(data, kind, count, len(begin))
    raise ValueError(f"{len(data)} bytes are no .npy file with [n] of {kind}: they begin with {data[:128]!r}")
