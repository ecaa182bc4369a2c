"""Prepared datasets as sources: three kinds of shards, filters and splits."""

import concurrent.futures
import multiprocessing
import os
import pickle

import numpy as np
import pytest
from dataset_files import KINDS, assert_examples, parquet_dataset, put, record_dataset, tar_dataset
from shard_files import picture

from dualtoken_jax.data.images import decode
from dualtoken_jax.data.manifest import join
from dualtoken_jax.data.numbering import split_indices, split_size
from dualtoken_jax.data.shards import Shards
from dualtoken_jax.data.sources import Example, Files, Folder


@pytest.mark.parametrize("kind", KINDS)
def test_any_example_in_any_order(kind, tmp_path):
    source = Shards(KINDS[kind](tmp_path), "all")
    assert len(source) == 30 and source.has_captions and len(source.class_names) == 3
    numbers = np.random.default_rng(0).permutation(np.concatenate([np.arange(30), [7, 7, 29]]))
    assert_examples(source.read(numbers), numbers, labels=3)
    assert source.read(np.array([], np.int64)) == []
    assert "00001." in source.read(np.array([12]))[0].origin
    blocks = Shards(tmp_path, "all", block=7)
    assert_examples(blocks.read(numbers), numbers, labels=3)


@pytest.mark.parametrize("kind", KINDS)
def test_filtered_shards_have_the_rows_that_are_left(kind, tmp_path):
    source = Shards(KINDS[kind](tmp_path, keep=[1, 4, 9]), "all")
    assert len(source) == 9
    numbers = [1, 4, 9, 11, 14, 19, 21, 24, 29]
    assert_examples(source.read(np.arange(9)), numbers, labels=3)
    assert_examples(source.read(np.array([8, 0])), [29, 1], labels=3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_goes_to_a_worker_without_its_handles(kind, tmp_path):
    source = Shards(KINDS[kind](tmp_path), "train", block=4)
    before = source.read(np.arange(20))
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(_read, source, np.arange(20)).result() == before
    again = pickle.loads(pickle.dumps(source))
    assert again.traffic.requests == 0 and again.fingerprint == source.fingerprint
    assert again.read(np.arange(20)) == before


def _read(source, indices):
    return source.read(indices)


@pytest.mark.parametrize("layout", [{"struct": True, "text": "text"}, {"struct": False, "text": "TEXT", "rows": 100}])
def test_parquet_layouts(layout, tmp_path):
    source = Shards(parquet_dataset(str(tmp_path), 1, **layout), "all")
    assert_examples(source.read(np.arange(10)), range(10), labels=3)


def test_splits_cut_every_dataset_into_two():
    for every in (2, 3, 10):
        for size in (*range(1, 25), 1000):
            parts = [split_indices(np.arange(split_size(size, s, every)), s, every) for s in ("train", "eval")]
            np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(size))
            np.testing.assert_array_equal(parts[1] % every, every - 1)
            assert (np.diff(parts[0]) > 0).all()


def test_a_split_is_a_source_of_its_own(tmp_path):
    folder = tar_dataset(str(tmp_path), 3)
    train, held_out = Shards(folder, "train", 0.2), Shards(folder, "eval", 0.2)
    assert (len(train), len(held_out)) == (24, 6)
    assert_examples(held_out.read(np.arange(6)), [4, 9, 14, 19, 24, 29])
    assert_examples(train.read(np.arange(24)), [n for n in range(30) if n % 5 != 4])
    prints = {Shards(folder, split, share).fingerprint for split in ("train", "eval") for share in (0.1, 0.2)}
    prints |= {Shards(folder, "all", share).fingerprint for share in (0.1, 0.2)}
    assert len(prints) == 5
    with pytest.raises(ValueError, match="eval_fraction must lie above 0 and be at most 1/2 for shards, got 0.7"):
        Shards(folder, "train", 0.7)
    with pytest.raises(ValueError, match="has 30 examples, and none is in the split 'eval' when every 50th is held"):
        Shards(folder, "eval", 0.02)
    with pytest.raises(ValueError, match="split must be"):
        Shards(folder, "test")
    with pytest.raises(ValueError, match="block must be at least 1"):
        Shards(folder, "all", block=0)
    with pytest.raises(FileNotFoundError, match="there is no .*manifest.json: make it with"):
        Shards(tmp_path / "nowhere", "all")


def test_array_records_elsewhere_than_on_disk_are_refused(memory, tmp_path):
    record_dataset(tmp_path, 1)
    put(join(memory, "00000.array_record"), (tmp_path / "00000.array_record").read_bytes())
    put(join(memory, "manifest.json"), (tmp_path / "manifest.json").read_bytes())
    with pytest.raises(ValueError, match="are read from local disks and gs:// only; copy or mount them"):
        Shards(memory, "all").read(np.array([1]))


def test_fingerprints_of_files_and_folders(tmp_path):
    for name in ("a/1.jpg", "a/2.jpg", "b/3.jpg"):
        (tmp_path / "one" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "one" / name).write_bytes(picture(1))
    first = Folder(tmp_path / "one", "all").fingerprint
    os.rename(tmp_path / "one", tmp_path / "moved")
    assert Folder(tmp_path / "moved", "all").fingerprint == first
    assert len({Folder(tmp_path / "moved", split, 0.5).fingerprint for split in ("train", "eval", "all")}) == 3
    (tmp_path / "moved" / "b" / "3.jpg").rename(tmp_path / "moved" / "b" / "4.jpg")
    assert Folder(tmp_path / "moved", "all").fingerprint != first
    assert Files(["a", "b"]).fingerprint != Files(["b", "a"]).fingerprint != Files(["ab"]).fingerprint


def test_pictures_are_whole(tmp_path):
    (example,) = Shards(tar_dataset(str(tmp_path), 1), "all").read(np.array([2]))
    assert isinstance(example, Example) and decode(example.image).shape == (24, 26, 3)
