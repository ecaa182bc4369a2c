"""How often storage is asked for prepared datasets, and how much is kept open."""

import concurrent.futures
import os

import fsspec
import numpy as np
import pytest
from dataset_files import KINDS, PER_SHARD, assert_examples, parquet_dataset, record_dataset, tar_dataset

from dualtoken_jax.data.manifest import Manifest, Shard, join, write_manifest
from dualtoken_jax.data.shards import Shards
from dualtoken_jax.data.storage import HANDLES, Storage
from dualtoken_jax.data.tar_index import index_tar


def test_one_request_for_a_picture_and_its_caption(memory):
    source = Shards(tar_dataset(memory, 3), "all")
    source.read(np.array([0, 10, 20]))
    assert source.traffic.requests == 3 * 3  # size, index and picture of three shards
    for number in (5, 17, 23, 5):
        before = source.traffic.requests
        assert_examples(source.read(np.array([number])), [number])
        assert source.traffic.requests == before + 1


def test_neighbours_come_in_one_request_and_strangers_do_not(memory, monkeypatch):
    source = Shards(tar_dataset(memory, 2), "all")
    source.read(np.arange(20))
    assert source.traffic.requests == 2 * 3
    stride = int(np.diff(index_tar(Storage(), join(memory, "00000.tar")).rows["start"]).max())
    for gap, requests in ((stride, 4), (2 * stride, 2), (10 * stride, 1)):  # 0 1, 5, 7, 9 · 0 1, 5 7 9 · all
        monkeypatch.setattr("dualtoken_jax.data.tar_shards.GAP", gap)
        before = source.traffic.requests
        assert_examples(source.read(np.array([9, 0, 5, 1, 7])), [9, 0, 5, 1, 7])
        assert source.traffic.requests == before + requests
    monkeypatch.setattr("dualtoken_jax.data.tar_shards.MAX_REQUEST", 3 * stride)
    before = source.traffic.requests
    assert_examples(source.read(np.arange(9)), range(9))
    assert before + 3 <= source.traffic.requests <= before + 4


def test_block_reading_makes_few_requests(memory):
    folder = tar_dataset(memory, 4)
    source = Shards(folder, "train", 0.1, block=9)
    for start in range(0, 36, 18):  # windows of two blocks, in any order within
        for index in np.random.default_rng(start).permutation(18) + start:
            number = int(index) + int(index) // 9
            assert_examples(source.read(np.array([index])), [number])
    assert source.traffic.requests == 4 * 3  # size, index and one block of each shard: 36 pictures
    narrow = Shards(folder, "train", 0.1, block=9, cache_bytes=0)
    for index in range(36):
        narrow.read(np.array([index]))
    assert narrow.traffic.requests == 4 * 3  # in order even one block is enough


def test_a_window_that_does_not_fit_is_said_once(memory, caplog):
    folder = tar_dataset(memory, 3)
    for cache_bytes, warnings in ((10**6, 0), (0, 1)):
        source = Shards(folder, "all", block=5, cache_bytes=cache_bytes)
        for index in (0, 29, 1, 28, 2, 27):
            source.read(np.array([index]))
        assert [record.levelname for record in caplog.records] == ["WARNING"] * warnings
    assert "blocks of 5 examples are read again soon after they were forgotten" in caplog.text


def test_many_threads_ask_for_a_block_once(memory):
    source = Shards(tar_dataset(memory, 1), "all", block=10)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda index: source.read(np.array([index]))[0], list(range(10)) * 5))
    assert_examples(found, list(range(10)) * 5)
    assert source.traffic.requests == 3


def test_a_row_group_is_read_once(memory):
    source = Shards(parquet_dataset(memory, 2, rows=5), "all")
    source.read(np.arange(20))
    requests = source.traffic.requests
    assert requests <= 2 * (1 + 3 + 2 * 4)  # size, footer, and at most a request per column of two row groups
    source.read(np.arange(20))
    assert source.traffic.requests == requests


@pytest.mark.parametrize("kind", ["tar", "array_record"])
def test_open_files_are_few_however_many_shards(kind, tmp_path):
    base = len(os.listdir("/proc/self/fd"))
    count = HANDLES + 20
    make = {"tar": lambda: tar_dataset(str(tmp_path), count), "array_record": lambda: record_dataset(tmp_path, count)}
    source = Shards(make[kind](), "all")
    assert len(os.listdir("/proc/self/fd")) <= base
    for number in range(0, len(source), PER_SHARD):
        source.read(np.array([number]))
    assert base + 10 < len(os.listdir("/proc/self/fd")) <= base + HANDLES + 1
    source.close()
    assert len(os.listdir("/proc/self/fd")) <= base
    source.read(np.array([0]))
    del source
    assert len(os.listdir("/proc/self/fd")) <= base


@pytest.mark.parametrize("kind", KINDS)
def test_threads_that_evict_each_others_files_read_what_they_asked_for(kind, tmp_path, monkeypatch):
    for limit in ("storage.HANDLES", "array_records.READERS", "parquet_shards.FOOTERS", "parquet_shards.GROUP_BYTES"):
        monkeypatch.setattr(f"dualtoken_jax.data.{limit}", 2)
    source = Shards(KINDS[kind](tmp_path), "all")
    numbers = np.random.default_rng(0).integers(0, 30, 300)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: source.read(np.array([number]))[0], numbers))
    assert_examples(found, numbers, labels=3)


def test_forty_thousand_shards_open_without_touching_one(tmp_path, monkeypatch):
    entries = tuple(
        Shard(f"{n:05d}.tar", 10_000, 2**30, "0" * 32, f"index/{n:05d}.npy", "1" * 32) for n in range(41_455)
    )
    write_manifest(str(tmp_path), Manifest("tar", entries, root="gs://bucket/laion"))
    monkeypatch.setattr(fsspec.core, "url_to_fs", None)  # whatever asked for a file of the bucket would fail
    source = Shards(tmp_path, "train")
    assert len(source) == 41_455 * 9000 and source.traffic.requests == 0
    assert len(os.listdir(tmp_path)) == 1
