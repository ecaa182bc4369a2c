"""Shards that were replaced, damaged or taken away since they were prepared."""

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dataset_files import KINDS, assert_examples, parquet_dataset, record_dataset, tar_dataset
from shard_files import picture

from dualtoken_jax.data.images import BadImage
from dualtoken_jax.data.manifest import Manifest, Shard, checksum_of, write_manifest
from dualtoken_jax.data.prepared import ShardChanged
from dualtoken_jax.data.reader import Reader
from dualtoken_jax.data.shards import Shards


@pytest.mark.parametrize("kind", KINDS)
def test_a_replaced_shard_of_another_size_is_an_error(kind, tmp_path):
    folder = KINDS[kind](tmp_path)
    (file,) = tmp_path.glob("00001.*[!y]")
    with open(file, "ab") as opened:
        opened.write(b"more")
    source = Shards(folder, "all")
    assert_examples(source.read(np.array([3])), [3], labels=3)
    with pytest.raises(ShardChanged, match=r"00001.* has \d+ bytes, the manifest says \d+: prepare it again with"):
        source.read(np.array([3, 13]))
    assert issubclass(ShardChanged, ValueError)


def test_a_shard_replaced_by_one_of_its_size_is_counted_picture_by_picture(tmp_path):
    folder = tar_dataset(str(tmp_path), 2)
    data, other = ((tmp_path / f"0000{n}.tar").read_bytes() for n in (0, 1))
    (tmp_path / "00001.tar").write_bytes(b"x" * len(other))
    assert len(data) == len(other)
    reader = Reader(Shards(folder, "all", block=4), lambda captions: np.zeros((len(captions), 2)), 8, "exact")
    batch, problems = reader.batch(np.array([0, 11, 5, 19]), [None] * 4)
    assert batch["weight"].tolist() == [1, 0, 1, 0]
    assert [problem and (problem[0], problem[1].reason) for problem in problems] == [
        None,
        (f"{folder}/00001.tar/000000011", "changed"),
        None,
        (f"{folder}/00001.tar/000000019", "changed"),
    ]


@pytest.mark.parametrize("block", [1, 5])
def test_a_changed_picture_of_a_tar_shard_is_a_bad_image_of_its_own(block, tmp_path):
    folder = tar_dataset(str(tmp_path), 1)
    data = bytearray((tmp_path / "00000.tar").read_bytes())
    data[data.index(picture(4)) + 50] ^= 1
    (tmp_path / "00000.tar").write_bytes(data)
    source = Shards(folder, "all", block=block)
    for _ in range(2):
        with pytest.raises(BadImage, match="changed: the picture's CRC-32 is") as caught:
            source.read(np.arange(10))
        assert caught.value.origin == f"{folder}/00000.tar/000000004" and len(caught.traceback) < 6
    for number in (3, 5):
        assert_examples(source.read(np.array([number])), [number])


def test_a_damaged_record_is_a_bad_image_of_its_own(tmp_path):
    folder = record_dataset(tmp_path, 1)
    data = bytearray((tmp_path / "00000.array_record").read_bytes())
    data[data.index(picture(4)) + 50] ^= 1
    (tmp_path / "00000.array_record").write_bytes(data)
    source = Shards(folder, "all", block=5)
    with pytest.raises(BadImage, match="damaged-record: Corrupted") as caught:
        source.read(np.arange(10))
    assert caught.value.origin == f"{folder}/00000.array_record/4"
    assert_examples(source.read(np.array([3, 5])), [3, 5], labels=3)


def test_an_index_of_another_shard_is_refused(tmp_path):
    folder = tar_dataset(str(tmp_path), 2)
    for name in ("00000", "00001"):
        os.rename(tmp_path / f"index/{name}.tar.npy", tmp_path / f"{name}.npy")
    os.rename(tmp_path / "00000.npy", tmp_path / "index/00001.tar.npy")
    with pytest.raises(ShardChanged, match="index/00001.tar.npy has the checksum .*, the manifest says"):
        Shards(folder, "all").read(np.array([15]))
    with pytest.raises(FileNotFoundError, match="index/00000.tar.npy"):
        Shards(folder, "all").read(np.array([5]))


def test_a_missing_shard_is_an_oserror_that_names_it(tmp_path):
    folder = tar_dataset(str(tmp_path), 2)
    os.remove(tmp_path / "00001.tar")
    source = Shards(folder, "all")
    assert_examples(source.read(np.array([3])), [3])
    with pytest.raises(OSError, match="00001.tar"):
        source.read(np.array([13]))


def test_parquet_without_pictures_and_rows_without_bytes(tmp_path):
    folder = parquet_dataset(str(tmp_path), 1)
    table = pq.read_table(tmp_path / "00000.parquet")
    images = table["image"].to_pylist()
    images[3] = {"bytes": None, "path": "a.jpg"}
    for name, column in (("image", images), ("nothing", images)):
        pq.write_table(table.drop_columns(["image"]).append_column(name, pa.array(column)), tmp_path / "00000.parquet")
        data = (tmp_path / "00000.parquet").read_bytes()
        write_manifest(folder, Manifest("parquet", (Shard("00000.parquet", 10, len(data), checksum_of(data)),)))
        source = Shards(folder, "all")
        if name == "image":
            assert_examples(source.read(np.array([2, 4])), [2, 4], labels=3)
            with pytest.raises(BadImage, match="empty: the row has no bytes") as caught:
                source.read(np.array([3]))
            assert caught.value.origin.endswith("00000.parquet/3")
        else:
            with pytest.raises(ValueError, match="no column of picture bytes: looked for .* 'nothing'"):
                source.read(np.array([2]))
