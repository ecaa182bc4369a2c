"""The index of tar shards: every layout, everything that is no picture, and hostile bytes."""

import io
import random
import tarfile

import numpy as np
import pytest
import shard_files
from fuzz_tars import fuzz
from shard_files import add, assert_row, example_members, picture, tar_bytes

from dualtoken_jax.data import tar_index
from dualtoken_jax.data.manifest import checksum_of
from dualtoken_jax.data.storage import Storage, Stream
from dualtoken_jax.data.tar_members import Damaged, members

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def indexed(tmp_path, data):
    file = tmp_path / "shard.tar"
    file.write_bytes(data)
    found = tar_index.index_tar(Storage(), str(file))
    assert found.bytes == len(data) and found.checksum == checksum_of(data)
    return found


def with_members(*plain, add_others=lambda tar: None):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        add_others(tar)
        for name, data in plain:
            add(tar, name, data)
    return file.getvalue()


def test_the_layout_of_img2dataset(tmp_path):
    data = shard_files.shard(first=3, count=20, labels=7)
    found = indexed(tmp_path, data)
    assert len(found.rows) == 20 and not found.left_out and not found.damage
    for number, row in enumerate(found.rows, start=3):
        assert row["key"] == f"{number:09d}".encode()
        assert_row(data, row, picture(number), shard_files.caption(number).encode(), number % 7)
        assert row["bytes"] < len(picture(number)) + 4 * 512 + 200  # little beside what is needed


def test_ten_thousand_rows_are_450_kb_and_survive_the_file(tmp_path):
    rows = np.zeros(10_000, tar_index.row_type(9))
    rows["key"], rows["start"], rows["label"] = b"123456789", 2**40, -1
    data = tar_index.index_bytes(rows)
    assert len(data) < 451_000
    np.testing.assert_array_equal(tar_index.read_index(data), rows)
    for other in (rows["start"], np.zeros(3, [("key", "S9"), ("start", "<u8")])):
        with pytest.raises(ValueError, match="an index of a tar shard has rows of"):
            tar_index.read_index(tar_index.index_bytes(other))


@pytest.mark.parametrize("tar_format", FORMATS.values(), ids=FORMATS)
def test_formats_nested_folders_and_long_names(tar_format, tmp_path):
    long = "a-rather-long-folder/" * (6 if tar_format == tarfile.USTAR_FORMAT else 11)
    names = ["n01440764/x_1", "./deep/er/y", "ünïcode/ключ", long + "z"]
    plain = [(f"{name}.{end}", b) for name in names for end, b in (("JPEG", picture(1)), ("txt", name.encode()))]
    plain += [("p.png", picture(2, "png")), ("w.webp", picture(3, "webp")), ("w.seg.png", picture(4, "png"))]
    data = tar_bytes(plain, tar_format)
    found = indexed(tmp_path, data)
    rows = found.rows
    assert found.left_out == {"dotted-name": 1}
    assert [key.decode() for key in rows["key"]] == [*names, "p", "w"]
    for name, row in zip(names, rows, strict=False):
        assert_row(data, row, picture(1), name.encode())
    assert_row(data, rows[-2], picture(2, "png"), b"")
    assert_row(data, rows[-1], picture(3, "webp"), b"")


def test_members_are_those_that_tarfile_finds(tmp_path):
    rng = random.Random(0)
    for number in range(60):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=number % 3) as tar:
            for _ in range(rng.randrange(12)):
                name = "/".join("né" * rng.randrange(1, 60 if number % 3 else 20) for _ in range(rng.randrange(1, 4)))
                kind = rng.choice([tarfile.REGTYPE] * 4 + [tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
                data = rng.randbytes(rng.choice([0, 1, 511, 512, 513, 3000])) if kind == tarfile.REGTYPE else b""
                mtime = rng.choice([0, 1.5])
                add(tar, name, data, type=kind, linkname="x" * rng.randrange(150 if number % 3 else 90), mtime=mtime)
        (tmp_path / "t.tar").write_bytes(file.getvalue())
        ours = [(m.name.rstrip("/"), m.start, m.bytes) for m in members(Stream(Storage(), str(tmp_path / "t.tar")))]
        with tarfile.open(fileobj=io.BytesIO(file.getvalue()), encoding="utf-8") as tar:
            assert ours == [(m.name, m.offset_data, m.size) for m in tar.getmembers()]


def test_what_is_no_file_is_left_out_and_counted(tmp_path):
    def others(tar):
        add(tar, "folder", b"", type=tarfile.DIRTYPE)
        add(tar, "a.jpg", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        add(tar, "b.jpg", b"", type=tarfile.LNKTYPE, linkname="00.jpg")
        add(tar, "c.png", b"", type=tarfile.CHRTYPE)
        add(tar, "d.jpg", b"x" * 700, type=b"Z")  # an unknown kind has data like a file
        add(tar, "e.jpg", picture(8), type=tarfile.GNUTYPE_SPARSE)
        add(tar, "f.jpg", picture(8), pax_headers={})

    data = with_members(*example_members(1), ("g.txt", b"alone"), ("h.json", b"{}"), add_others=others)
    found = indexed(tmp_path, data)
    assert [key for key in found.rows["key"]] == [b"f", b"000000001"] and not found.damage
    assert found.left_out == {"link": 2, "special": 2, "sparse": 1, "no-picture": 1}


def test_sparse_files_of_every_kind_are_passed_over(tmp_path):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        add(tar, "a.jpg", b"x" * 600, pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0"})
        add(tar, "b.jpg", picture(1))
    found = indexed(tmp_path, file.getvalue())
    assert list(found.rows["key"]) == [b"b"] and found.left_out == {"sparse": 1}
    # The old form with a map of holes that goes on in further blocks.
    data = bytearray(tar_bytes([("a.jpg", b"x" * 600), ("b.jpg", picture(1))], tarfile.GNU_FORMAT))
    data[156:157], data[482] = b"S", 1
    data[512:512] = b"\0" * 504 + b"\1" + b"\0" * 7 + b"\0" * 512
    fix_checksum(data, 0)
    found = indexed(tmp_path, bytes(data))
    assert list(found.rows["key"]) == [b"b"] and found.left_out == {"sparse": 1}


def fix_checksum(data, at):
    data[at + 148 : at + 156] = b" " * 8
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])


def test_doubles_bad_labels_and_what_is_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_index, "MAX_BYTES", 3000)
    monkeypatch.setattr(tar_index, "MAX_SPAN", 5000)
    plain = [("a.jpg", picture(1)), ("a.png", picture(2, "png")), ("a.txt", b"one"), ("a.txt", b"two")]
    plain += [("b.cls", b"cat"), ("b.jpg", picture(3)), ("c.cls", b"9" * 12), ("c.jpg", picture(3))]
    plain += [("d.jpg", b"x" * 3001), ("e.jpg", picture(4)), ("e.txt", b"x" * (tar_index.MAX_CAPTION + 1))]
    plain += [("f.jpg", picture(5)), ("f.json", b"{" * 6000), ("f.txt", b"far")]
    plain += [("k" * 256 + ".jpg", picture(6)), ("g.cls", b" 12\n"), ("g.jpg", picture(7)), ("g.txt", b"last")]
    data = tar_bytes(plain, tarfile.GNU_FORMAT)
    found = indexed(tmp_path, data)
    assert list(found.rows["key"]) == [b"a", b"b", b"c", b"e", b"g"]
    assert found.left_out == {"second-picture": 1, "second-caption": 1, "bad-label": 2, "too-many-bytes": 3, "key": 1}
    for row, expected in zip(found.rows, [(1, b"one"), (3, b""), (3, b""), (4, b""), (7, b"last")], strict=True):
        assert_row(data, row, picture(expected[0]), expected[1], 12 if expected[1] == b"last" else -1)


def test_a_truncated_shard_is_indexed_as_far_as_it_is_whole(tmp_path):
    whole = shard_files.shard(first=0, count=6)
    rows = indexed(tmp_path, whole).rows
    for kept in [0, 1, 511, 512, 513, *range(700, len(whole), 777), len(whole) - 20 * 512]:
        found = indexed(tmp_path, whole[:kept])
        np.testing.assert_array_equal(found.rows, rows[: len(found.rows)])
        ended = rows["start"] + rows["bytes"]
        if kept < ended[-1]:
            assert found.damage and len(found.rows) >= (ended + 3 * 512 < kept).sum() - 1
    assert not indexed(tmp_path, whole).damage


def test_damage_says_where(tmp_path):
    whole = shard_files.shard(first=0, count=2)
    assert "no tar header at 0: bad checksum" in indexed(tmp_path, picture(0) + b"x" * 600).damage
    assert "cut off at 0: the end-of-archive mark is missing" == indexed(tmp_path, b"").damage
    assert "cut off at 5, in a header" == indexed(tmp_path, b"short").damage
    joined = indexed(tmp_path, whole + whole)  # `cat` of two shards; the second would go missing unseen
    assert len(joined.rows) == 2 and "follow the end-of-archive mark" in joined.damage
    endless = bytearray(tar_bytes([("a.jpg", picture(0)), ("b.jpg", picture(1))], tarfile.GNU_FORMAT))
    endless[124:136] = b"\x80" + (2**87).to_bytes(11, "big")  # skipping it block by block would take for ever
    fix_checksum(endless, 0)
    found = indexed(tmp_path, bytes(endless))
    assert "cut off: 'a.jpg' should reach to byte" in found.damage and found.left_out == {"beyond-end": 1}
    assert len(found.rows) == 0


def test_extended_headers_are_bounded(tmp_path):
    def chain(count, size):
        blocks = b""
        for _ in range(count):
            header = bytearray(tarfile.TarInfo("././@LongLink").tobuf(tarfile.GNU_FORMAT))
            header[156:157], header[124:136] = b"L", b"%011o\0" % size
            fix_checksum(header, 0)
            blocks += bytes(header) + b"n" * size
        return blocks + tar_bytes([("a.jpg", picture(0))], tarfile.GNU_FORMAT)

    assert indexed(tmp_path, chain(3, 512)).left_out == {}  # names without a picture's extension
    for count, size in ((1, 2**20), (2000, 0)):
        assert "headers of more than 65536 bytes for one member" in indexed(tmp_path, chain(count, size)).damage


def test_a_stream_reads_large_blocks_and_hashes(tmp_path, monkeypatch):
    monkeypatch.setattr("dualtoken_jax.data.storage.BLOCK", 1000)
    data, seen, told = random.Random(1).randbytes(4321), [], []
    (tmp_path / "f").write_bytes(data)
    storage = Storage()
    stream = Stream(storage, str(tmp_path / "f"), told.append)
    assert stream.read(10) == data[:10] and stream.read(2500) == data[10:2510]
    stream.skip(700, lambda part: seen.append(bytes(part)))
    assert b"".join(seen) == data[2510:3210] and stream.position == 3210
    assert stream.checksum() == checksum_of(data) and stream.read(5) == b""
    assert told == [1000] * 4 + [321] and storage.traffic.bytes == 4321 and storage.traffic.requests == 6


def test_members_raises_its_own_error_only(tmp_path):
    (tmp_path / "x").write_bytes(b"\x01" * 2000)
    with pytest.raises(Damaged, match="no tar header at 0"):
        list(members(Stream(Storage(), str(tmp_path / "x"))))


def test_fifteen_hundred_mutated_tars(tmp_path):
    fuzz(tmp_path, count=1500, seed=1)


@pytest.mark.slow
def test_a_hundred_thousand_mutated_tars(tmp_path):
    fuzz(tmp_path, count=110_000, seed=2)
