"""Mutated tar shards, indexed one after the other: shared by the quick and the long test."""

import io
import os
import random
import tarfile
import tracemalloc
import zlib
from pathlib import Path

from shard_files import add

from dualtoken_jax.data.storage import Storage
from dualtoken_jax.data.tar_index import TarIndex, index_bytes, index_tar, read_index

# Beyond the file's own bytes, of which there are some ten thousand; an input that is taken at its word asks for more.
MEMORY = 2 * 2**20


def fuzz(folder: Path, count: int, seed: int) -> None:
    """Indexes `count` mutated shards in `folder`.

    Asserts that nothing is raised, that every row lies inside the file and finds the bytes it was made from, that
    memory stays within bounds, and that no file appears.
    """
    rng = random.Random(seed)
    bases = [_base(rng, tar_format) for tar_format in (0, 1, 2) for _ in range(8)]
    file, storage, damaged, rows = folder / "fuzz.tar", Storage(), 0, 0
    for number in range(count):
        data = _mutate(rng, bytearray(rng.choice(bases)))
        file.write_bytes(data)
        storage.close()
        found = index_tar(storage, os.fspath(file)) if number % 5 else _measured(storage, file, len(data))
        _check(data, found)
        damaged, rows = damaged + bool(found.damage), rows + len(found.rows)
    assert os.listdir(folder) == ["fuzz.tar"]
    assert damaged > count // 10 and rows > count // 10  # the mutations neither miss nor destroy everything


def _measured(storage: Storage, file: Path, size: int) -> TarIndex:
    """The index, made under a watch on memory, which costs three times the time."""
    tracemalloc.start()
    try:
        found = index_tar(storage, os.fspath(file))
        assert tracemalloc.get_traced_memory()[1] < MEMORY + 4 * size
        return found
    finally:
        tracemalloc.stop()


def _check(data: bytes, found: TarIndex) -> None:
    assert found.bytes == len(data)
    assert read_index(index_bytes(found.rows)).tolist() == found.rows.tolist()
    for start, span, image, image_bytes, caption, caption_bytes, crc32, label, _ in found.rows.tolist():
        assert start + span <= len(data) and label >= -1
        assert image + image_bytes <= span and caption + caption_bytes <= span
        assert zlib.crc32(data[start + image : start + image + image_bytes]) == crc32


def _base(rng: random.Random, tar_format: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tar_format) as tar:
        for number in range(rng.randrange(1, 5)):
            key = rng.choice(["", "a/b/", "é" * 40 + "/", "x" * 90 + "/" if tar_format else ""]) + f"{number:05d}"
            for extension in rng.sample(["jpg", "png", "webp", "txt", "cls", "json"], rng.randrange(1, 5)):
                data = b"7" if extension == "cls" else rng.randbytes(rng.choice([0, 20, 511, 512, 900]))
                add(tar, f"{key}.{extension}", data, mtime=rng.choice([1, 1.5]))
            if rng.random() < 0.2:
                add(
                    tar, f"{key}.jpg", b"", type=rng.choice([b"1", b"2", b"3", b"5", b"6"]), linkname="../../etc/passwd"
                )
    return file.getvalue()


_NUMBERS = [0, 1, 511, 512, 2**16, 2**20, 2**31, 2**32, 2**33 - 1]
_NAMES = [b"../../../../tmp/escape.jpg", b"/etc/passwd", b"a.jpg\0b", b"\xff\xfe.jpg", b".jpg", b"//.txt", b"x." * 40]


def _mutate(rng: random.Random, data: bytearray) -> bytes:
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        rng.choice([_flip, _edit, _edit, _edit, _cut, _splice, _extend])(rng, data)
    return bytes(data)


def _flip(rng: random.Random, data: bytearray) -> None:
    for _ in range(rng.choice([1, 1, 8]) if data else 0):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _cut(rng: random.Random, data: bytearray) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _splice(rng: random.Random, data: bytearray) -> None:
    """Takes out, repeats or moves whole blocks."""
    one, other = sorted(512 * rng.randrange(len(data) // 512 + 1) for _ in range(2))
    piece = data[one:other][: 512 * rng.choice([1, 3, 100])]
    if rng.random() < 0.5:
        del data[one : one + len(piece)]
    at = 512 * rng.randrange(len(data) // 512 + 1)
    data[at:at] = piece


def _edit(rng: random.Random, data: bytearray) -> None:
    """Changes one field of a header and puts its checksum right."""
    at = _header(rng, data)
    if at is None:
        return
    field = rng.choice(["size", "size", "size", "type", "type", "name", "prefix", "sparse", "body"])
    if field == "size":
        octal = b"%011o\0" % rng.choice([*_NUMBERS, rng.randrange(len(data) + 600)])
        large = b"\x80" + rng.choice([2**60, 2**87, 0, 600]).to_bytes(11, "big")
        data[at + 124 : at + 136] = rng.choice([octal, octal, large, b"\xff" * 12, b"\xff" + rng.randbytes(11)])
    elif field == "type":
        data[at + 156] = rng.choice([*b"0123456789\0SLKxgXVMNDA", rng.randrange(256)])
    elif field == "sparse":
        data[at + 156], data[at + 482] = ord("S"), rng.randrange(2)
    elif field == "body":  # where an extended header has its text
        text = rng.choice([b"99999 path=a\n", b"20 size=99999999999\n", b"8 a=b=\n\n", b"1" * 500, b"0 path=x\n"])
        data[at + 512 : at + 512 + len(text)] = text
        data[at + 156] = rng.choice(b"xgXL0")
    else:
        place, width = (0, 100) if field == "name" else (345, 155)
        data[at + place : at + place + width] = rng.choice(_NAMES).ljust(width, b"\0")[:width]
    data.extend(b"\0" * (-len(data) % 512))
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])


def _header(rng: random.Random, data: bytearray) -> int | None:
    places = [at for at in range(0, len(data) - 511, 512) if data[at + 257 : at + 262] == b"ustar"]
    return rng.choice(places) if places else None


def _extend(rng: random.Random, data: bytearray) -> None:
    """Puts an extended header of any size and text before a member."""
    at = _header(rng, data)
    if at is None:
        return
    size = rng.choice([0, 30, 512, 5000, 70_000, 2**20])
    text = rng.choice([b"path=%s\n", b"size=%s\n", b"GNU.sparse.map=%s\n", b"hdrcharset=%s\n"]) % rng.choice(
        [b"../x.jpg", b"18446744073709551616", b"-1", b"0", b"a/b.png", b"\xff\xff"]
    )
    record = b"%d %s" % (rng.choice([len(text) + 3, len(text) + 3, 5, 10**9]), text)
    body = rng.choice([record * (size // len(record) + 1), rng.randbytes(64) * (size // 64 + 1), b"9" * size])[:size]
    header = bytearray(tarfile.TarInfo("extended").tobuf(tarfile.GNU_FORMAT))
    header[156:157], header[124:136] = rng.choice([b"x", b"g", b"L", b"K", b"X"]), b"%011o\0" % size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data[at:at] = bytes(header) + body.ljust(-(-size // 512) * 512, b"\0")
