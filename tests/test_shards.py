"""Prepared datasets as sources: three kinds of shards, splits, counted requests, and shards that were replaced."""

import concurrent.futures
import io
import multiprocessing
import os
import pickle

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shard_files
from shard_files import caption, picture

from dualtoken_jax.data.cache import Cache
from dualtoken_jax.data.images import BadImage, decode
from dualtoken_jax.data.manifest import Manifest, Shard, checksum_of, join, write_manifest
from dualtoken_jax.data.numbering import split_indices, split_size
from dualtoken_jax.data.prepared import ShardChanged
from dualtoken_jax.data.reader import Reader
from dualtoken_jax.data.records import Record, write_shard
from dualtoken_jax.data.shards import Shards
from dualtoken_jax.data.sources import Example, Files, Folder
from dualtoken_jax.data.storage import HANDLES, Storage
from dualtoken_jax.data.tar_index import index_bytes, index_tar

PER_SHARD = 10


def put(path, data):
    with fsspec.open(path, "wb") as file:
        file.write(data)


def tar_dataset(folder, count, labels=0, keep=None):
    """`count` tar shards of PER_SHARD examples in a folder or URL, with manifest; `keep` are the rows left of each."""
    fsspec.core.url_to_fs(folder)[0].makedirs(join(folder, "index"), exist_ok=True)
    entries = []
    for number in range(count):
        name = f"{number:05d}.tar"
        put(join(folder, name), shard_files.shard(number * PER_SHARD, PER_SHARD, labels))
        found = index_tar(Storage(), join(folder, name))
        rows = found.rows if keep is None else found.rows[keep]
        index = index_bytes(rows)
        put(join(folder, f"index/{name}.npy"), index)
        entries.append(
            Shard(name, len(rows), found.bytes, found.checksum, f"index/{name}.npy", checksum_of(index)),
        )
    write_manifest(folder, Manifest("tar", tuple(entries), class_names=tuple(f"class {n}" for n in range(labels))))
    return folder


def record_dataset(folder, count, labels=3, keep=None):
    entries = []
    for number in range(count):
        numbers = range(number * PER_SHARD, (number + 1) * PER_SHARD)
        records = (Record(picture(n), caption(n), n % labels, f"{n:09d}") for n in numbers)
        entries.append(filtered(folder, write_shard(folder / f"{number:05d}.array_record", records), keep))
    write_manifest(folder, Manifest("array_record", tuple(entries), class_names=tuple("abc")))
    return str(folder)


def filtered(folder, shard, keep):
    if keep is None:
        return shard
    file = io.BytesIO()
    np.save(file, np.array(keep, np.uint32))
    put(join(str(folder), f"{shard.name}.npy"), file.getvalue())
    checksum = checksum_of(file.getvalue())
    return shard._replace(examples=len(keep), index=f"{shard.name}.npy", index_checksum=checksum)


def parquet_file(path, numbers, struct=True, text="caption", rows=4):
    images = [picture(n) for n in numbers]
    column = pa.array([{"bytes": b, "path": None} for b in images]) if struct else pa.array(images)
    columns = {"image" if struct else "jpg": column, text: [caption(n) for n in numbers]}
    table = pa.table(columns | {"label": pa.array([n % 3 for n in numbers], pa.int64()), "other": list(numbers)})
    with fsspec.open(path, "wb") as file:
        pq.write_table(table, file, row_group_size=rows)


def parquet_dataset(folder, count, keep=None, **layout):
    entries = []
    for number in range(count):
        path = join(folder, f"{number:05d}.parquet")
        parquet_file(path, range(number * PER_SHARD, (number + 1) * PER_SHARD), **layout)
        data = Storage().read(path)
        shard = Shard(f"{number:05d}.parquet", PER_SHARD, len(data), checksum_of(data))
        entries.append(filtered(folder, shard, keep))
    write_manifest(folder, Manifest("parquet", tuple(entries), class_names=tuple("abc")))
    return folder


@pytest.fixture
def memory(request):
    """A URL of fsspec's files in memory, emptied afterwards."""
    files = fsspec.filesystem("memory")
    yield f"memory://{request.node.name}"
    files.store.clear()
    files.pseudo_dirs[:] = [""]


def assert_examples(found, numbers, labels=0):
    assert len(found) == len(numbers)
    for example, number in zip(found, numbers, strict=True):
        assert (example.image, example.caption) == (picture(number), caption(number))
        assert example.label == (number % labels if labels else None)


KINDS = {
    "tar": lambda folder, **keep: tar_dataset(str(folder), 3, labels=3, **keep),
    "array_record": lambda folder, **keep: record_dataset(folder, 3, **keep),
    "parquet": lambda folder, **keep: parquet_dataset(str(folder), 3, **keep),
}


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


def test_a_row_group_is_read_once(memory):
    source = Shards(parquet_dataset(memory, 2, rows=5), "all")
    source.read(np.arange(20))
    requests = source.traffic.requests
    assert requests <= 2 * (1 + 3 + 2 * 4)  # size, footer, and at most a request per column of two row groups
    source.read(np.arange(20))
    assert source.traffic.requests == requests


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


def test_array_records_elsewhere_than_on_disk_are_refused(memory, tmp_path):
    record_dataset(tmp_path, 1)
    put(join(memory, "00000.array_record"), (tmp_path / "00000.array_record").read_bytes())
    put(join(memory, "manifest.json"), (tmp_path / "manifest.json").read_bytes())
    with pytest.raises(ValueError, match="are read from local disks and gs:// only; copy or mount them"):
        Shards(memory, "all").read(np.array([1]))


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


def test_a_cache_keeps_what_fits_and_makes_everything_once():
    made = []
    cache = Cache(10, size_of=int)
    get = lambda value: cache.get(value, lambda: made.append(value) or value)  # noqa: E731
    assert [get(v) for v in (4, 5, 4, 3, 5, 4)] == [4, 5, 4, 3, 5, 4]
    assert made == [4, 5, 3, 5, 4]  # 3 drives out 5, used longest ago; 5 drives out 4, and 4 drives out 3
    assert [get(v) for v in (11, 11, 4)] == [11, 11, 4]  # too large, and kept as long as nothing else comes
    assert made[5:] == [11, 4]


def test_a_cache_tries_again_after_an_error():
    cache, answers = Cache(1), iter([OSError("gone"), 7])

    def make():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with pytest.raises(OSError, match="gone"):
        cache.get("a", make)
    assert [cache.get("a", make), cache.get("a", make)] == [7, 7]


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
