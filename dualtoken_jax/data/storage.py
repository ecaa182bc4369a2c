"""Bytes of files by range, on local disks and on whatever fsspec reads (gs://, s3://, memory://), counted; and files
written whole."""

import hashlib
import io
import os
import threading
from collections.abc import Callable
from typing import Any

import fsspec

from dualtoken_jax.data.cache import Cache

HANDLES = 32  # local files kept open
BLOCK = 8 * 2**20  # bytes asked for at once when a file is read from end to end
PARTIAL = ".partial"  # after the name of a file that is being written


class Traffic:
    """What was asked of storage since the start, or since this object was unpickled; for benchmarks and tests."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.requests = 0
        self.bytes = 0

    def add(self, count: int) -> None:
        """One more request, which answered `count` bytes."""
        with self._lock:
            self.requests += 1
            self.bytes += count

    def __reduce__(self) -> tuple:
        return Traffic, ()


class _Handle:
    """A local file, open for as long as somebody holds this."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


class Storage:
    """Thread-safe; pickles without its handles. `traffic` counts the requests for bytes or sizes."""

    def __init__(self) -> None:
        """Opens nothing."""
        self.traffic = Traffic()
        self._handles = Cache(HANDLES)

    def read_range(self, path: str, start: int, length: int) -> bytes:
        """Bytes [start, start + length), fewer where the file ends before: one pread, or one request to fsspec.

        Raises OSError where storage fails.
        """
        if length == 0:
            return b""
        if is_remote(path):
            data = _through_fsspec(path, lambda files, inside: files.cat_file(inside, start=start, end=start + length))
        else:
            data = self._read_local(path, start, length)
        self.traffic.add(len(data))
        return data

    def _read_local(self, path: str, start: int, length: int) -> bytes:
        handle = self._handles.get(path, lambda: _Handle(path))
        try:
            return self._pread(handle, length, start)
        except OSError:  # a handle from before the server's restart stays stale
            self._handles.forget(path)
            raise

    @staticmethod
    def _pread(handle: _Handle, length: int, start: int) -> bytes:
        data = os.pread(handle.number, length, start)
        while len(data) < length and (more := os.pread(handle.number, length - len(data), start + len(data))):
            data += more  # Linux answers 2 GiB at most, network file systems sometimes less than was asked for
        return data

    def read_exactly(self, path: str, start: int, length: int) -> bytes:
        """As read_range; a file that ends before `start + length` is an OSError too."""
        data = self.read_range(path, start, length)
        if len(data) < length:
            raise OSError(f"{path} ends at byte {start + len(data)}; bytes {start} to {start + length} were asked for")
        return data

    def read(self, path: str) -> bytes:
        """The whole file, in one request. Raises OSError."""
        data = _through_fsspec(path, lambda files, inside: files.cat_file(inside)) if is_remote(path) else _whole(path)
        self.traffic.add(len(data))
        return data

    def size(self, path: str) -> int:
        """Bytes of the file. Raises OSError."""
        self.traffic.add(0)
        if not is_remote(path):
            return os.stat(path).st_size
        size = _through_fsspec(path, lambda files, inside: files.size(inside))
        if size is None:
            raise OSError(f"{path}: the server does not say how long it is")
        return size

    def close(self) -> None:
        """Closes the local files; reading goes on opening them again."""
        self._handles.clear()


def write_whole(path: str, data: bytes) -> None:
    """Writes a file or URL whole or not at all, whatever happens in between; makes its folder. Raises OSError."""

    def write(files: fsspec.AbstractFileSystem, inside: str) -> None:
        files.makedirs(inside.rpartition("/")[0], exist_ok=True)
        files.pipe_file(inside + PARTIAL, data)
        files.mv(inside + PARTIAL, inside)

    _through_fsspec(path, write)


def is_remote(path: str) -> bool:
    """Whether `path` is a URL and not a file of this machine."""
    return "://" in path


def _whole(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _through_fsspec(path: str, ask: Callable[[fsspec.AbstractFileSystem, str], Any]) -> Any:
    filesystem, inside = fsspec.core.url_to_fs(path)
    try:
        return ask(filesystem, inside)
    except OSError:
        raise
    except Exception as error:  # every cloud's client has its own kinds, few of them OSErrors
        raise OSError(f"{path}: {error!r}") from error


class Stream:
    """One file from its first byte to its last, hashed on the way; at most one block of it is in memory."""

    def __init__(self, storage: Storage, path: str, progress: Callable[[int], None] | None = None) -> None:
        """`progress` is told the bytes of every block. Raises OSError."""
        self._storage, self._path, self._progress = storage, path, progress
        self.size = storage.size(path)
        self.position = 0
        self._digest = hashlib.blake2b(digest_size=16)  # as manifest.checksum_of
        self._block = memoryview(b"")

    def read(self, length: int) -> bytes:
        """The next `length` bytes, fewer at the file's end. OSError where it is shorter than it was said to be."""
        parts = []
        while length > 0 and self.position < self.size:
            part = self._next(length)
            parts.append(bytes(part))
            length -= len(part)
        return b"".join(parts)

    def skip(self, length: int, each: Callable[[memoryview], None] | None = None) -> None:
        """Passes over `length` bytes, or to the end; `each` is shown them, part by part."""
        while length > 0 and self.position < self.size:
            part = self._next(length)
            length -= len(part)
            if each:
                each(part)

    def checksum(self) -> str:
        """Of the whole file, the rest of which it reads."""
        self.skip(self.size - self.position)
        return self._digest.hexdigest()

    def _next(self, length: int) -> memoryview:
        if not self._block:
            wanted = min(BLOCK, self.size - self.position)
            data = self._storage.read_exactly(self._path, self.position, wanted)
            self._digest.update(data)
            self._block = memoryview(data)
            if self._progress:
                self._progress(len(data))
        part, self._block = self._block[:length], self._block[length:]
        self.position += len(part)
        return part


class RangeFile(io.RawIOBase):
    """A file for libraries that want one; every read is one request to the storage."""

    def __init__(self, storage: Storage, path: str, size: int) -> None:
        """Reads nothing."""
        super().__init__()
        self._storage, self._path, self._size, self._position = storage, path, size, 0
        self.failure: OSError | None = None  # of the storage: libraries raise OSError for damaged contents too

    def readable(self) -> bool:
        """As of io.RawIOBase."""
        return True

    def seekable(self) -> bool:
        """As of io.RawIOBase."""
        return True

    def tell(self) -> int:
        """As of io.RawIOBase."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As of io.RawIOBase."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(base + offset, 0)
        return self._position

    def read(self, size: int = -1) -> bytes:
        """As of io.RawIOBase."""
        left = max(self._size - self._position, 0)
        length = left if size is None or size < 0 else min(size, left)
        try:
            data = self._storage.read_exactly(self._path, self._position, length)
        except OSError as error:
            self.failure = error
            raise
        self._position += len(data)
        return data

    def readinto(self, buffer) -> int:
        """As of io.RawIOBase."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
