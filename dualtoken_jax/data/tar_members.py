"""The members of an untrusted tar file, in one pass and in bounded memory; nothing is extracted.

Headers are parsed by the standard library's TarInfo.frombuf. What surrounds them is done here, because its tar reader
keeps every member, holds extended headers and sparse maps of any size, and seeks through a member that claims 2⁶⁰
bytes block by block: a few hostile bytes would take all memory or forever.
"""

import tarfile
from collections.abc import Iterator
from typing import NamedTuple

from dualtoken_jax.data.storage import Stream

BLOCK = tarfile.BLOCKSIZE
MAX_EXTENDED = 64 * 1024  # bytes of the headers (pax, GNU long name) that extend one member's


class Damaged(ValueError):
    """The tar file cannot be followed any further; says why and where."""


class Member(NamedTuple):
    """What stands in the tar file at the stream's position, which is its first byte of data."""

    name: str
    kind: str  # "file", "folder", or what is left out: "link", "sparse", "special"
    start: int  # of the data, in bytes from the file's beginning
    bytes: int  # of the data; it may claim to reach beyond the file's end


def members(stream: Stream) -> Iterator[Member]:
    """Every member; the caller may read its data, not more. Ends at the end-of-archive mark.

    Raises:
      Damaged: a header is broken or cut off, or the file ends without the mark.
      OSError: storage fails.
    """
    while (member := _next_member(stream)) is not None:
        yield member
        end = member.start + -(-member.bytes // BLOCK) * BLOCK
        if end > stream.size:
            raise Damaged(f"cut off: {member.name!r} should reach to byte {end}, the file has {stream.size}")
        stream.skip(end - stream.position)


def _next_member(stream: Stream) -> Member | None:
    extension, budget = _Extension(), MAX_EXTENDED
    while (found := _header(stream)) is not None:
        header, block = found
        if header.type in (*_PAX, *_LONG):
            budget -= header.size + BLOCK
            if budget < 0:
                raise Damaged(f"headers of more than {MAX_EXTENDED} bytes for one member, at {stream.position}")
            data = _padded(stream, header.size)
            extension = _pax(extension, data) if header.type in _PAX else _long(extension, header, data)
        elif header.type == tarfile.XGLTYPE:  # comments, and defaults that no writer of data sets uses
            stream.skip(-(-header.size // BLOCK) * BLOCK)
        else:
            if header.type == tarfile.GNUTYPE_SPARSE:
                _skip_map(stream, block)
            return _member(stream, header, extension)
    return None


_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_LONG = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_LINKS = (tarfile.LNKTYPE, tarfile.SYMTYPE)
_WITHOUT_DATA = (*_LINKS, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)


class _Extension(NamedTuple):
    """What extended headers say about the next member."""

    name: str | None = None
    size: int | None = None
    sparse: bool = False


def _header(stream: Stream) -> tuple[tarfile.TarInfo, bytes] | None:
    at, block = stream.position, stream.read(BLOCK)
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.EOFHeaderError:
        return None
    except tarfile.EmptyHeaderError:
        raise Damaged(f"cut off at {at}: the end-of-archive mark is missing") from None
    except tarfile.TruncatedHeaderError:
        raise Damaged(f"cut off at {at + len(block)}, in a header") from None
    except (tarfile.HeaderError, ValueError) as error:
        raise Damaged(f"no tar header at {at}: {error}") from None
    if header.size < 0:
        raise Damaged(f"a member of {header.size} bytes at {at}")
    return header, block


def _padded(stream: Stream, size: int) -> bytes:
    data = stream.read(-(-size // BLOCK) * BLOCK)[:size]
    if len(data) < size:
        raise Damaged(f"cut off in an extended header, at {stream.position}")
    return data


def _text(data: bytes) -> str:
    return data.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _long(extension: _Extension, header: tarfile.TarInfo, data: bytes) -> _Extension:
    return extension._replace(name=_text(data)) if header.type == tarfile.GNUTYPE_LONGNAME else extension


def _pax(extension: _Extension, data: bytes) -> _Extension:
    """Records "LENGTH KEYWORD=VALUE\\n", where LENGTH counts the whole record (POSIX.1-2008, pax)."""
    at = 0
    while at < len(data) and data[at]:
        digits, space, _ = data[at : at + 20].partition(b" ")
        length = int(digits) if digits.isdigit() and space else 0
        record = data[at : at + length]
        keyword, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if not equals or len(record) < length or not record.endswith(b"\n"):
            raise Damaged(f"no pax record: {data[at : at + 40]!r}")
        if keyword == b"path":
            extension = extension._replace(name=_text(value))
        elif keyword == b"size":
            if not value.isdigit() or len(value) > 20:
                raise Damaged(f"a pax record says that a member has {value[:40]!r} bytes")
            extension = extension._replace(size=int(value))
        elif keyword.startswith(b"GNU.sparse."):
            extension = extension._replace(sparse=True)
        at += length
    return extension


def _skip_map(stream: Stream, block: bytes) -> None:
    """Passes over the blocks that continue an old GNU sparse file's map of holes."""
    more = block[482]
    while more:
        block = stream.read(BLOCK)
        if len(block) < BLOCK:
            raise Damaged(f"cut off in a sparse file's map, at {stream.position}")
        more = block[504]


def _member(stream: Stream, header: tarfile.TarInfo, extension: _Extension) -> Member:
    size = header.size if extension.size is None else extension.size
    name = header.name if extension.name is None else extension.name
    if header.type == tarfile.GNUTYPE_SPARSE or extension.sparse:
        kind = "sparse"
    elif header.type in _LINKS:
        kind = "link"
    elif header.type == tarfile.DIRTYPE:
        kind = "folder"
    else:
        kind = "file" if header.type in _FILES else "special"
    return Member(name, kind, stream.position, 0 if header.type in _WITHOUT_DATA else size)
