"""Our own ArrayRecord shards."""

import msgpack
import pytest
from array_record.python.array_record_module import ArrayRecordReader

from dualtoken_jax.data.images import BadImage
from dualtoken_jax.data.manifest import checksum_of
from dualtoken_jax.data.records import Record, pack, unpack, write_shard

RECORDS = [Record(b"\xff\xd8\xff", "a café", 3, "0001"), Record(b"", None, None, ""), Record(b"x" * 5000, "", 0, "k")]


def test_records_survive_a_shard(tmp_path):
    shard = write_shard(tmp_path / "a.array_record", RECORDS)
    data = (tmp_path / "a.array_record").read_bytes()
    assert shard == ("a.array_record", 3, len(data), checksum_of(data), "", "")
    reader = ArrayRecordReader(str(tmp_path / "a.array_record"))
    assert [unpack(record) for record in reader.read([0, 1, 2])] == RECORDS
    assert "group_size:1," in reader.writer_options_string()
    assert write_shard(tmp_path / "b.array_record", RECORDS).checksum == shard.checksum
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.array_record", "b.array_record"]


def test_a_shard_is_whole_or_not_there(tmp_path):
    with pytest.raises(ValueError, match="label must be None or a number from 0 to 2147483647, got -1"):
        write_shard(tmp_path / "a.array_record", [RECORDS[0], Record(b"", None, -1)])
    assert not (tmp_path / "a.array_record").exists()
    with pytest.raises(OSError, match="cannot write .*nowhere"):
        write_shard(tmp_path / "nowhere" / "a.array_record", RECORDS)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (Record("text"), "image must be at most 67108864 bytes, got str of 4"),
        (Record(b"x" * (2**26 + 1)), "image must be at most 67108864 bytes, got bytes of 67108865"),
        (Record(b"", "x" * 65537), "caption must be None or a text of at most 65536 characters, got str of 65537"),
        (Record(b"", None, True), "label must be None or a number"),
        (Record(b"", None, 2**31), "label must be None or a number"),
        (Record(b"", None, None, "k" * 256), "key must be a text of at most 255 characters"),
    ],
)
def test_what_no_record_may_hold(record, message):
    with pytest.raises(ValueError, match=message):
        pack(record)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        pack(RECORDS[0])[:-2],
        pack(RECORDS[0]) + b"\0",
        msgpack.packb([b"", None, None]),
        msgpack.packb({"image": b""}),
        msgpack.packb([b"", None, -5, ""]),
        msgpack.packb([[], None, 1, ""]),
        b"\xdd\xff\xff\xff\xff",  # an array of 2³² − 1 items
    ],
)
def test_bytes_that_are_no_record(data):
    with pytest.raises(BadImage, match="damaged-record: .* bytes that are no record"):
        unpack(data)
