"""Batches are a pure function of position: the same on every topology and after every restart, bad files included."""

import io
import logging
import shutil

import numpy as np
import pytest
from PIL import Image

from dualtoken_jax.data import bad_images, order, pipeline
from dualtoken_jax.data.order import Order
from dualtoken_jax.data.reading import Reading
from dualtoken_jax.data.sources import Example, Folder

RESOLUTION = 8


def encode(captions):
    """A tokenizer of fixed length 4: the caption's length and its first three characters."""
    tokens = np.zeros((len(captions), 4), np.int32)
    for row, caption in enumerate(captions):
        codes = [len(caption) + 1, *map(ord, caption[:3])]
        tokens[row, : len(codes)] = codes
    return tokens


class Numbered:
    """Example i is a picture of colour i, the caption "i" (every fifth has none) and the label i % 3."""

    class_names = ("a", "b", "c")

    def __init__(self, size, side=RESOLUTION):
        self.size, self.side = size, side

    def __len__(self):
        return self.size

    def read(self, indices):
        pixels = [np.full((self.side, self.side, 3), index, np.uint8) for index in indices]
        return [Example(p, str(i) if i % 5 else None, int(i) % 3) for p, i in zip(pixels, indices, strict=True)]


class Listed:
    """Encoded files held in memory; None stands for a file that has gone."""

    class_names = ()

    def __init__(self, files):
        self.files = files

    def __len__(self):
        return len(self.files)

    def read(self, indices):
        if any(self.files[index] is None for index in indices):
            raise FileNotFoundError("a file has gone")
        return [Example(self.files[index], str(index), None, f"file{index}.png") for index in indices]


def png(value):
    buffer = io.BytesIO()
    Image.new("RGB", (RESOLUTION, RESOLUTION), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def train(source, count, *, batch_size=8, seed=0, start=0, augment=False, threads=2, workers=0, host=0, hosts=1):
    """The first `count` batches of one host, and the iterator."""
    iterator = pipeline.batches(
        source,
        encode,
        order=Order((len(source),), (1,), seed),
        resolution=RESOLUTION,
        batch_size=batch_size,
        start=start,
        augment=augment,
        decoding="exact",
        reading=Reading(threads, workers, stall_seconds=60),
        rows=np.arange(batch_size).reshape(hosts, -1)[host],
    )
    try:
        return [next(iterator) for _ in range(count)], iterator
    finally:
        iterator.close()


def evaluate(source, *, batch_size=8, limit=None, host=0, hosts=1):
    iterator = pipeline.eval_batches(
        source,
        encode,
        resolution=RESOLUTION,
        batch_size=batch_size,
        limit=limit,
        rows=np.arange(batch_size).reshape(hosts, -1)[host],
        decoding="exact",
        reading=Reading(),
    )
    return list(iterator), iterator


def assert_same(some, others):
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        assert one.keys() == other.keys() == {"image", "text", "label", "weight"}
        for key in one:
            assert one[key].dtype == other[key].dtype
            np.testing.assert_array_equal(one[key], other[key], err_msg=key)


def joined(hosts_batches):
    """The global batches, from every host's list of its own."""
    return [
        {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        for parts in zip(*hosts_batches, strict=True)
    ]


@pytest.mark.parametrize("hosts", [2, 4])
@pytest.mark.parametrize("augment", [False, True])
def test_global_batches_do_not_depend_on_the_number_of_hosts(hosts, augment):
    source = Numbered(21, side=11)
    whole, _ = train(source, 6, augment=augment)
    parts = [train(source, 6, augment=augment, host=host, hosts=hosts)[0] for host in range(hosts)]
    assert parts[0][0]["image"].shape == (8 // hosts, RESOLUTION, RESOLUTION, 3)
    assert_same(joined(parts), whole)


def test_rows_are_the_examples_of_the_order():
    (first, second), _ = train(Numbered(21), 2, seed=5, start=40)
    expected = order.epoch_and_index(np.arange(40, 56), 21, 5)[1]
    np.testing.assert_array_equal(np.concatenate([first["image"], second["image"]])[:, 0, 0, 0], expected)
    np.testing.assert_array_equal(np.concatenate([first["label"], second["label"]]), expected % 3)
    text = np.concatenate([first["text"], second["text"]])
    np.testing.assert_array_equal(text, [encode([str(i)])[0] if i % 5 else np.zeros(4) for i in expected])
    assert first["text"].dtype == first["label"].dtype == np.int32
    assert first["weight"].dtype == np.float32 and (first["weight"] == 1).all()


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_resumed_equals_uninterrupted(threads):
    source = Numbered(13, side=20)
    uninterrupted, _ = train(source, 9, augment=True)
    for steps in (1, 4, 8):
        resumed, _ = train(source, 9 - steps, start=steps * 8, augment=True, threads=threads)
        assert_same(resumed, uninterrupted[steps:])


def test_a_changed_batch_size_goes_on_with_the_next_example():
    source = Numbered(13)
    small, _ = train(source, 6, batch_size=4)
    large, _ = train(source, 2, batch_size=8, start=8)
    np.testing.assert_array_equal(
        np.concatenate([batch["image"] for batch in small[2:]]), np.concatenate([batch["image"] for batch in large])
    )


def test_seeds_and_augmentation_change_what_they_should():
    picture = np.random.default_rng(0).integers(0, 256, (300, 390, 3), dtype=np.uint8)
    source = Numbered(16)
    source.read = lambda indices: [Example(picture, None, None) for _ in indices]
    (batch, later), _ = train(source, 2, augment=True)
    crops = np.concatenate([batch["image"], later["image"]])
    # Each position has a crop of its own; at a scale of 0.9 to 1, one in four falls back to the whole of this picture.
    assert len(np.unique(crops.reshape(16, -1), axis=0)) >= 8
    (other,), _ = train(source, 1, augment=True, seed=1)
    assert (other["image"] != batch["image"]).any()
    assert (batch["label"] == -1).all() and (batch["text"] == 0).all()


def test_bad_files_are_replaced_one_for_one_and_counted(caplog):
    good = [png(value) for value in range(60)]
    bad = list(good)
    bad[3], bad[17], bad[41] = b"<html>not found</html>", good[17][:50], None
    expected, _ = train(Listed(good), 15)
    with caplog.at_level(logging.WARNING):
        found, iterator = train(Listed(bad), 15, threads=0)
    values, wanted = (np.concatenate([b["image"] for b in some])[:, 0, 0, 0] for some in (found, expected))
    spoiled = np.isin(wanted, [3, 17, 41])
    np.testing.assert_array_equal(values[~spoiled], wanted[~spoiled])  # every other row stays where it was
    assert not np.isin(values[spoiled], [3, 17, 41]).any()
    assert all((batch["weight"] == 1).all() for batch in found)
    captions = np.concatenate([batch["text"] for batch in found])
    np.testing.assert_array_equal(captions, encode([str(value) for value in values]))  # of the substitute
    assert iterator.bad.by_reason == {"not-an-image": 2, "truncated": 2, "unreadable": 2}  # 15 · 8 rows are two epochs
    assert iterator.bad.total == 6
    assert "file3.png: not-an-image" in caplog.text and "a file has gone" in caplog.text
    parts = [train(Listed(bad), 15, host=host, hosts=2)[0] for host in range(2)]
    assert_same(joined(parts), found)


def test_where_nothing_is_usable_the_row_weighs_nothing():
    (batch,), iterator = train(Listed([b"rubbish"] * 9), 1, threads=0)
    assert (batch["weight"] == 0).all() and (batch["image"] == 0).all()
    assert (batch["text"] == 0).all() and (batch["label"] == -1).all()
    assert iterator.bad.total == 8


@pytest.mark.parametrize("threads", [0, 2])
def test_too_many_bad_files_stop_the_run_with_reasons_and_names(threads):
    files = [b"rubbish" if value % 10 == 0 else png(value) for value in range(100)]
    with pytest.raises(bad_images.TooManyBadImages, match=r"(?s)not-an-image × 2\d.*file\d+0?\.png"):
        train(Listed(files), 60, threads=threads)[1].bad.check()


def test_a_tolerable_share_of_bad_files_never_stops_the_run():
    counter = bad_images.BadImageCounter()
    problem = ("x.jpg", bad_images.BadImage("empty"))
    for _ in range(100):
        counter.record([problem if row % 25 == 0 else None for row in range(200)])  # 4 %
    assert counter.total == 800
    counter.check()
    for _ in range(10):
        counter.record([problem] * 20)
    with pytest.raises(bad_images.TooManyBadImages):  # judged by the last 10 000, not by the whole run
        counter.check()


@pytest.mark.parametrize("size, limit", [(19, None), (16, None), (3, None), (19, 11), (5, 100), (1, None)])
@pytest.mark.parametrize("hosts", [1, 4])
def test_evaluation_sees_each_example_once_in_order(size, limit, hosts):
    parts = [evaluate(Numbered(size), limit=limit, host=host, hosts=hosts)[0] for host in range(hosts)]
    whole = joined(parts)
    count = min(size, limit or size)
    assert len(whole) == -(-count // 8)
    assert all(batch["image"].shape == (8, RESOLUTION, RESOLUTION, 3) for batch in whole)
    weight = np.concatenate([batch["weight"] for batch in whole])
    np.testing.assert_array_equal(weight, np.arange(len(weight)) < count)
    values = np.concatenate([batch["image"] for batch in whole])[:, 0, 0, 0]
    np.testing.assert_array_equal(values[:count], np.arange(count))
    assert (values[count:] == 0).all()
    assert all(batch["text"].shape == (8, 4) for batch in whole)


def test_evaluation_gives_bad_files_no_weight_and_no_substitute():
    files = [png(value) for value in range(20)]
    files[7] = b"rubbish"
    found, iterator = evaluate(Listed(files))
    weight = np.concatenate([batch["weight"] for batch in found])
    np.testing.assert_array_equal(np.flatnonzero(weight), np.delete(np.arange(20), 7))
    assert iterator.bad.by_reason == {"not-an-image": 1}


def test_impossible_requests_are_named():
    with pytest.raises(ValueError, match="at least 1 example"):
        train(Numbered(0), 1)
    with pytest.raises(ValueError, match="no examples"):
        evaluate(Numbered(0))
    with pytest.raises(ValueError, match="-8"):
        train(Numbered(5), 1, start=-8)
    for rows in ([], [7, 8], [3, 2]):
        with pytest.raises(ValueError, match="rows must ascend within the global batch of 8 rows"):
            pipeline._check_rows(np.array(rows, int), 8)
    with pytest.raises(ValueError, match="limit must be at least 1"):
        evaluate(Numbered(5), limit=0)


@pytest.fixture
def animals(tmp_path):
    """40 pictures in two classes, one caption file, some clutter."""
    for name in ("black_cat", "dog"):
        (tmp_path / name / "more").mkdir(parents=True)
        for number in range(20):
            folder = tmp_path / name / ("more" if number % 2 else "")
            (folder / f"{number:02}.{('png', 'JPG')[number % 2]}").write_bytes(png(number))
    (tmp_path / "dog" / "04.txt").write_bytes("\ufeffein Hund\n".encode())
    (tmp_path / "dog" / "._04.png").write_bytes(b"macOS")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.png").write_bytes(png(0))
    (tmp_path / "notes.md").write_text("clutter")
    return tmp_path


def everything(source):
    return source.read(np.arange(len(source)))


def test_folder_splits_labels_and_captions(animals):
    both = {split: Folder(animals, split, eval_fraction=0.3) for split in ("train", "eval")}
    origins = {split: [example.origin for example in everything(source)] for split, source in both.items()}
    assert origins["train"] == sorted(origins["train"]) and 4 <= len(origins["eval"]) <= 20
    assert not set(origins["train"]) & set(origins["eval"])
    assert len(origins["train"]) + len(origins["eval"]) == 40
    for source in both.values():
        assert source.class_names == ("black_cat", "dog") and source.has_captions
        for example in everything(source):
            assert source.class_names[example.label] in example.origin
            text = {0: "a photo of a black cat", 1: "a photo of a dog"}[example.label]
            assert example.caption == ("ein Hund" if example.origin.endswith("dog/04.png") else text)


def test_adding_files_moves_none_across_the_split(animals):
    before = {example.origin for example in everything(Folder(animals, "eval"))}
    for number in range(50):
        (animals / "dog" / f"new{number}.png").write_bytes(png(0))
    after = {example.origin for example in everything(Folder(animals, "eval"))}
    assert {origin for origin in after if "new" not in origin} == before


@pytest.mark.parametrize("count", [1, 2, 3])
def test_both_splits_of_a_tiny_flat_folder_hold_something(tmp_path, count):
    for number in range(count):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    sources = [Folder(tmp_path, split, eval_fraction=0.001) for split in ("train", "eval")]
    assert [len(source) for source in sources] == [max(1, count - 1), 1]
    assert sources[0].class_names == () and not sources[0].has_captions
    example = everything(sources[0])[0]
    assert example.caption is None and example.label is None


def test_folder_follows_links_once(animals, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.move(animals / "dog", elsewhere / "dog")
    (animals / "dog").symlink_to(elsewhere / "dog")
    (animals / "dog" / "loop").symlink_to(animals)
    assert len(Folder(animals, "train")) + len(Folder(animals, "eval")) == 40


def test_folder_names_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Folder(tmp_path / "nowhere", "train")
    with pytest.raises(ValueError, match=r"no pictures.*\.webp"):
        Folder(tmp_path, "train")
    (tmp_path / "a.png").write_bytes(png(0))
    with pytest.raises(NotADirectoryError, match="a.png is a file"):
        Folder(tmp_path / "a.png", "train")
    with pytest.raises(ValueError, match="'test'"):
        Folder(tmp_path, "test")
    with pytest.raises(ValueError, match="1.5"):
        Folder(tmp_path, "train", eval_fraction=1.5)


def test_a_folder_with_bad_files_trains(animals):
    (animals / "dog" / "02.png").write_text("a text file by the name of a picture")
    found, iterator = train(Folder(animals, "train"), 10, augment=True)
    assert all((batch["weight"] == 1).all() for batch in found)
    assert set(iterator.bad.by_reason) <= {"not-an-image"}
