"""A corpus with every kind of corruption: good pictures stay where they are, bad ones are replaced and counted."""

import io
import struct

import numpy as np
import pytest
from PIL import Image
from prepared_files import index_folder
from shard_files import tar_bytes

from dualtoken_jax.data import pipeline
from dualtoken_jax.data.bad_images import Place, TooManyBadImages
from dualtoken_jax.data.images import MAX_BYTES
from dualtoken_jax.data.order import Order
from dualtoken_jax.data.reading import Reading
from dualtoken_jax.data.shards import Shards
from dualtoken_jax.data.sources import Folder

SIDE, BATCH, FILES = 24, 20, 200


def picture(number):
    """A JPEG of its own for every number."""
    pixels = np.random.default_rng(number).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((SIDE + number % 7, SIDE)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def resized_header(data, height, width):
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def scrambled_tables(data):
    """Huffman tables that no code fits: the header is good, the pixels are not."""
    at = data.index(b"\xff\xc4") + 5
    return data[:at] + b"\xff" * 16 + data[at + 16 :]


def gif(_):
    buffer = io.BytesIO()
    Image.new("P", (SIDE, SIDE)).save(buffer, "GIF")
    return buffer.getvalue()


# What becomes of a good file, and the reason it is counted by. None: the file is not there.
KINDS = {
    "no bytes": (lambda data: b"", "empty"),
    "error page": (lambda data: b"<!DOCTYPE html><html><body>403 Forbidden</body></html>", "not-an-image"),
    "zeros": (lambda data: bytes(len(data)), "not-an-image"),
    "GIF by the name of JPEG": (gif, "not-an-image"),
    "cut off": (lambda data: data[: data.index(b"\xff\xda") + 40], "truncated"),
    "scrambled": (scrambled_tables, "undecodable"),
    "header alone": (lambda data: data[:12], "undecodable"),
    "bomb": (lambda data: resized_header(data, 40_000, 40_000), "too-many-pixels"),
    "ribbon": (lambda data: resized_header(data, 10, 3_000), "extreme-aspect"),
    "too long": (lambda data: data + bytes(MAX_BYTES), "too-many-bytes"),
    "gone": (None, "unreadable"),
}


@pytest.fixture(scope="module")
def good():
    return [picture(number) for number in range(FILES)]


def corpus(folder, good, spoiled):
    """The files, with kind `spoiled[number]` instead of some."""
    for number, data in enumerate(good):
        path = folder / ("ab"[number % 2]) / f"{number:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        corrupt = KINDS[spoiled[number]][0] if number in spoiled else lambda data: data
        path.symlink_to("nowhere") if corrupt is None else path.write_bytes(corrupt(data))
    return Folder(folder, "all")


def tar_corpus(folder, good, spoiled):
    """The same in four tar shards, as img2dataset writes them: what is no picture to begin with is not indexed."""
    for start in range(0, FILES, FILES // 4):
        members = [
            (f"{n:09}.jpg", KINDS[spoiled[n]][0](good[n]) if n in spoiled else good[n])
            for n in range(start, start + FILES // 4)
        ]
        (folder / f"{start:05}.tar").write_bytes(tar_bytes(members))
    index_folder(folder)
    return Shards(folder, "all")


def batches(source, count, threads=2):
    """`count` batches, the numbers of the files behind their rows, and the iterator."""
    order = Order((len(source),), (1,), 0)
    iterator = pipeline.batches(
        source,
        lambda captions: np.zeros((len(captions), 1), np.int32),
        order=order,
        resolution=16,
        batch_size=BATCH,
        start=0,
        augment=True,
        decoding="exact",
        reading=Reading(threads),
        rows=np.arange(BATCH),
    )
    positions = order.examples(np.arange(count * BATCH))
    numbers = np.arange(FILES)
    if isinstance(source, Folder):  # a comes before b
        numbers = np.concatenate([numbers[::2], numbers[1::2]])
    try:
        return [next(iterator) for _ in range(count)], numbers[positions], iterator
    finally:
        iterator.close()


@pytest.fixture(scope="module")
def clean(good, tmp_path_factory):
    """Images of one epoch of the corpus without any corruption, [FILES, 16, 16, 3]."""
    found, _, iterator = batches(corpus(tmp_path_factory.mktemp("clean"), good, {}), FILES // BATCH)
    assert iterator.bad.total == 0
    return np.concatenate([batch["image"] for batch in found])


@pytest.mark.parametrize("kind", KINDS)
def test_one_percent_of_a_kind_costs_nothing_else(kind, good, clean, tmp_path):
    spoiled = {number: kind for number in (37, 138)}
    found, numbers, iterator = batches(corpus(tmp_path, good, spoiled), FILES // BATCH)
    rows = np.isin(numbers, list(spoiled))
    assert rows.sum() == 2
    images = np.concatenate([batch["image"] for batch in found])
    np.testing.assert_array_equal(images[~rows], clean[~rows])
    assert (images[rows] != clean[rows]).any(axis=(1, 2, 3)).all() and images[rows].any(axis=(1, 2, 3)).all()
    assert all((batch["weight"] == 1).all() for batch in found)
    assert iterator.bad.by_reason == {KINDS[kind][1]: 2}


def test_all_kinds_together_are_counted_by_place_and_reason(good, clean, tmp_path):
    """As many as a run bears, in threads or without, over two epochs."""
    kinds = [kind for kind in KINDS if kind not in ("zeros", "header alone")]
    spoiled = {17 * index + 3: kind for index, kind in enumerate(kinds)}
    source = corpus(tmp_path, good, spoiled)
    found, numbers, iterator = batches(source, 2 * FILES // BATCH)
    rows = np.isin(numbers[:FILES], list(spoiled))
    images = np.concatenate([batch["image"] for batch in found])
    np.testing.assert_array_equal(images[:FILES][~rows], clean[~rows])
    expected = {}
    for number, kind in spoiled.items():
        reasons = expected.setdefault(Place(str(tmp_path / "ab"[number % 2]), ""), {})
        reasons[KINDS[kind][1]] = reasons.get(KINDS[kind][1], 0) + 2  # once an epoch
    # A file that cannot be read is told of without its name.
    gone = next(number for number, kind in spoiled.items() if kind == "gone")
    unnamed = {"unreadable": expected[Place(str(tmp_path / "ab"[gone % 2]), "")].pop("unreadable")}
    assert iterator.bad.by_place == {place: reasons for place, reasons in expected.items() if reasons} | {
        Place("", ""): unnamed
    }
    alone, _, _ = batches(source, 2 * FILES // BATCH, threads=0)
    np.testing.assert_array_equal(images, np.concatenate([batch["image"] for batch in alone]))


def test_tar_shards_with_bad_pictures_are_counted_by_shard(good, tmp_path):
    """Beside them a picture that has changed since the shard was indexed, byte for byte as long as before."""
    (tmp_path / "clean").mkdir()
    (tmp_path / "spoiled").mkdir()
    expected, _, _ = batches(tar_corpus(tmp_path / "clean", good, {}), FILES // BATCH)
    spoiled = {7: "cut off", 60: "error page", 61: "scrambled", 170: "bomb"}
    source = tar_corpus(tmp_path / "spoiled", good, spoiled)
    shard = tmp_path / "spoiled" / "00100.tar"
    data = shard.read_bytes()
    at = data.index(good[133]) + len(good[133]) - 9
    shard.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    found, numbers, iterator = batches(source, FILES // BATCH)
    rows = np.isin(numbers, [*spoiled, 133])
    images, clean = (np.concatenate([batch["image"] for batch in some]) for some in (found, expected))
    np.testing.assert_array_equal(images[~rows], clean[~rows])
    assert all((batch["weight"] == 1).all() for batch in found)
    assert iterator.bad.total == 5 and iterator.bad.by_reason["changed"] == 1
    folder = str(tmp_path / "spoiled")
    assert iterator.bad.by_place[Place(folder, "00000.tar")] == {"truncated": 1}
    assert iterator.bad.by_place[Place(folder, "00050.tar")] == {"not-an-image": 1, "undecodable": 1}
    assert iterator.bad.by_place[Place(folder, "00150.tar")] == {"too-many-pixels": 1}


@pytest.mark.parametrize("threads", [0, 2])
def test_a_fifth_of_the_corpus_stops_the_run_with_the_report(threads, good, tmp_path):
    kinds = ["cut off", "error page", "scrambled", "no bytes"]
    spoiled = {number: kinds[number // 5 % 4] for number in range(0, FILES, 5)}
    with pytest.raises(TooManyBadImages) as caught:
        batches(corpus(tmp_path, good, spoiled), 2 * FILES // BATCH, threads)[2].bad.check()
    report = str(caught.value)
    assert all(f"{reason} × " in report for reason in ("truncated", "not-an-image", "undecodable", "empty"))
    assert f"{tmp_path / 'a'}: " in report and ".jpg: " in report and "more than 5%" in report
