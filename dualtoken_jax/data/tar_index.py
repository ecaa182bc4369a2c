"""Where the examples of a tar shard are, found in the one pass that computes the shard's checksum.

The layout is that of img2dataset and WebDataset: members that follow each other and have the same KEY before the first
dot of their file name are one example. KEY.jpg|jpeg|png|webp is the picture, KEY.txt the caption, KEY.cls the label;
others, such as KEY.json, are passed over.
"""

import collections
import re
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dualtoken_jax.data.images import MAX_BYTES
from dualtoken_jax.data.npy import npy_bytes, read_npy
from dualtoken_jax.data.storage import Storage, Stream
from dualtoken_jax.data.tar_members import Damaged, Member, members

PICTURES = ("jpg", "jpeg", "png", "webp")
MAX_CAPTION = 64 * 1024  # bytes; longer texts are no captions
MAX_SPAN = MAX_BYTES + 2**20  # bytes of one example, first to last byte that is needed
MAX_KEY = 255  # bytes


def row_type(key_bytes: int) -> np.dtype:
    """One example, 36 bytes and its key. Packed: 10,000 examples with img2dataset's 9-digit keys are 450 kB."""
    return np.dtype(
        [
            ("start", "<u8"),  # of the example in the shard, in bytes
            ("bytes", "<u4"),  # from there to the last byte that is needed: one ranged read
            ("image", "<u4"),  # where the picture begins, from `start`
            ("image_bytes", "<u4"),
            ("caption", "<u4"),  # where the caption begins, from `start`
            ("caption_bytes", "<u4"),  # 0 without a caption
            ("crc32", "<u4"),  # of the picture
            ("label", "<i4"),  # −1 without one
            ("key", f"S{max(key_bytes, 1)}"),  # UTF-8
        ]
    )


class TarIndex(NamedTuple):
    """What one pass over a shard finds."""

    rows: np.ndarray  # [examples] of `row_type`, in the order of the shard
    bytes: int  # of the shard
    checksum: str
    left_out: collections.Counter  # reason → members or examples
    damage: str  # why the pass ended before the shard did; empty for a whole shard


def index_tar(storage: Storage, path: str, progress: Callable[[int], None] | None = None) -> TarIndex:
    """Indexes the shard at `path`, a file or URL, as far as it is whole; memory grows with the examples only.

    Of a damaged shard the example in which the damage begins is left out. Reasons for leaving something out:
      link, sparse, special: the member is no ordinary file;
      beyond-end: it is said to reach beyond the end of the shard;
      too-many-bytes: a picture, caption or span over MAX_BYTES, MAX_CAPTION or MAX_SPAN;
      dotted-name: a picture whose name has a second dot, KEY.seg.png, belongs to the example without being its picture;
      bad-label: a .cls that is no whole number below 2³¹;
      second-picture, second-caption: the example has one already;
      key: longer than MAX_KEY;
      no-picture, cut-off: an example without a picture, or in which a damaged shard breaks off.

    Args:
      progress: told the bytes of every block that has been read.

    Raises:
      OSError: storage fails. A file that is no tar at all has no rows and its `damage` says so.
    """
    stream = Stream(storage, path, progress)
    examples, damage = _Examples(stream), ""
    try:
        for member in members(stream):
            examples.add(member)
    except Damaged as error:
        damage = str(error)
    examples.end(whole=not damage)
    if not damage and (rest := _first_other_byte(stream)) is not None:
        damage = f"bytes other than zero follow the end-of-archive mark, at {rest}; what is there was not indexed"
    return TarIndex(examples.rows(), stream.size, stream.checksum(), examples.left_out, damage)


def index_bytes(rows: np.ndarray) -> bytes:
    """The index as an .npy file."""
    return npy_bytes(rows)


def read_index(data: bytes) -> np.ndarray:
    """Rows of an index, which is an .npy file of `row_type`. Raises ValueError where it is none."""
    key = re.search(rb"'key', '\|S(\d{1,4})'", data[:4096])
    try:
        return read_npy(data, row_type(int(key[1]) if key else 1))
    except ValueError as error:
        raise ValueError(f"an index of a tar shard has rows of {row_type(9)}: {error}") from error


def _first_other_byte(stream: Stream) -> int | None:
    found = []

    def look(part: memoryview) -> None:
        if not found and bytes(part).strip(b"\0"):
            found.append(stream.position - len(part))

    stream.skip(stream.size - stream.position, look)
    return found[0] if found else None


class _Examples:
    """Groups members into examples."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._rows: list[tuple] = []
        self._start_example("")
        self.left_out: collections.Counter[str] = collections.Counter()

    def _start_example(self, key: str) -> None:
        self._key, self._label = key, -1
        self._image: Member | None = None
        self._caption: Member | None = None
        self._crc32 = 0

    def add(self, member: Member) -> None:
        """Takes the next member, whose data is what the stream gives next."""
        if member.kind == "folder":
            return
        key, extension = _split(member.name)
        if key != self._key:
            self.end(whole=True)
            self._start_example(key)
        wanted = extension in PICTURES or extension in ("txt", "cls")
        problem = self._problem(member, extension) if wanted else _problem_of_name(extension)
        if problem:
            self.left_out[problem] += 1
        elif extension in PICTURES:
            self._image, self._crc32 = member, self._crc32_of(member)
        elif extension == "txt":
            self._caption = member
        elif extension == "cls":
            self._read_label(member)

    def _problem(self, member: Member, extension: str) -> str:
        if member.kind != "file":
            return member.kind
        if member.start + member.bytes > self._stream.size:
            return "beyond-end"
        if member.bytes > (MAX_BYTES if extension in PICTURES else MAX_CAPTION):
            return "too-many-bytes"
        if extension in PICTURES and self._image:
            return "second-picture"
        return "second-caption" if extension == "txt" and self._caption else ""

    def _crc32_of(self, member: Member) -> int:
        crc32 = 0

        def add(part: memoryview) -> None:
            nonlocal crc32
            crc32 = zlib.crc32(part, crc32)

        self._stream.skip(member.bytes, add)
        return crc32

    def _read_label(self, member: Member) -> None:
        text = self._stream.read(min(member.bytes, 16)).strip()
        if not text.isdigit() or member.bytes > 16 or int(text) >= 2**31:
            self.left_out["bad-label"] += 1
        else:
            self._label = int(text)

    def end(self, *, whole: bool) -> None:
        """Closes the example in hand."""
        needed = [member for member in (self._image, self._caption) if member is not None]
        key = self._key.encode("utf-8", "surrogateescape")
        if not needed:
            return
        start = min(member.start for member in needed)
        span = max(member.start + member.bytes for member in needed) - start
        if not whole:
            self.left_out["cut-off"] += 1
        elif self._image is None:
            self.left_out["no-picture"] += 1
        elif len(key) > MAX_KEY:
            self.left_out["key"] += 1
        elif span > MAX_SPAN:
            self.left_out["too-many-bytes"] += 1
        else:
            caption = (self._caption.start - start, self._caption.bytes) if self._caption else (0, 0)
            image = (self._image.start - start, self._image.bytes)
            self._rows.append((start, span, *image, *caption, self._crc32, self._label, key))

    def rows(self) -> np.ndarray:
        """All examples so far."""
        return np.array(self._rows, row_type(max((len(row[-1]) for row in self._rows), default=1)))


def _problem_of_name(extension: str) -> str:
    return "dotted-name" if extension.rpartition(".")[2] in PICTURES else ""


def _split(name: str) -> tuple[str, str]:
    """Key and lower-case extension, as WebDataset splits them: at the first dot of the file name."""
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return folder + slash + stem, extension.lower()
