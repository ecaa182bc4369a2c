"""The counter of images that could not be used: by source, shard and reason, its report, and when it stops the run."""

import logging
import pickle

import pytest

from dualtoken_jax.data import bad_images
from dualtoken_jax.data.bad_images import BadImageCounter, Place, TooManyBadImages, place_of
from dualtoken_jax.data.images import BadImage


@pytest.mark.parametrize(
    "origin, source, shard",
    [
        ("/data/photos/dog/04.png", "/data/photos/dog", ""),
        ("gs://bucket/laion/00012.tar/000120007", "gs://bucket/laion", "00012.tar"),
        ("/d/00012.tar/a.tar/b", "/d", "00012.tar"),
        ("/d/x.array_record/17 (n01440764_36.JPEG)", "/d", "x.array_record"),
        ("/t/imagenet2012-train.array_record-00003-of-01024/5", "/t", "imagenet2012-train.array_record-00003-of-01024"),
        ("hf/train-00000-of-00002.parquet/4", "hf", "train-00000-of-00002.parquet"),
        ("00000.tar/7", "", "00000.tar"),
        ("example 7", "", ""),
        ("", "", ""),
    ],
)
def test_the_place_is_read_from_the_origin(origin, source, shard):
    assert place_of(origin) == Place(source, shard)


def filled(rows_per_shard=1000):
    """Shard s of three has s + 1 truncated pictures and one empty one among its rows."""
    counter = BadImageCounter()
    for shard in range(3):
        bad = [(f"/laion/{shard:05}.tar/{row}", BadImage("truncated", "x")) for row in range(shard + 1)]
        bad.append((f"/laion/{shard:05}.tar/e", BadImage("empty")))
        counter.record([*bad, *[None] * (rows_per_shard - len(bad))])
    return counter


def test_counts_are_by_source_shard_and_reason():
    counter = filled()
    assert counter.total == 9 and counter.by_reason == {"truncated": 6, "empty": 3}
    assert list(counter.by_place.items()) == [
        (Place("/laion", f"{shard:05}.tar"), {"truncated": shard + 1, "empty": 1}) for shard in (2, 1, 0)
    ]
    assert counter.scalars() == {
        "bad_images/total": 9, "bad_images/share": 9 / 3000, "bad_images/truncated": 6, "bad_images/empty": 3,
    }  # fmt: skip
    assert BadImageCounter().scalars() == {"bad_images/total": 0, "bad_images/share": 0}


def test_the_report_names_reasons_the_worst_shards_and_examples(monkeypatch):
    monkeypatch.setattr(bad_images, "WORST", 2)
    lines = filled().report().splitlines()
    assert lines[0] == "9 of 3000 images were bad: truncated × 6, empty × 3. Most were in"
    assert lines[1] == "  /laion/00002.tar: truncated × 3, empty × 1"
    assert lines[3] == "  and 1 more places"
    assert "  /laion/00000.tar/0: truncated: x" in lines and len(lines) == 5 + bad_images.LOGGED


def test_the_report_is_logged_at_ten_a_hundred_and_so_on(caplog):
    counter, problem = BadImageCounter(), ("/d/a.jpg", BadImage("empty"))
    with caplog.at_level(logging.WARNING):
        for _ in range(99):
            counter.record([problem] + [None] * 99)
    reports = [message for message in caplog.messages if "images were bad" in message]
    assert len(reports) == 1 and reports[0].startswith("10 of 1000")


def test_too_many_stop_with_the_report():
    counter = BadImageCounter()
    with pytest.raises(TooManyBadImages) as caught:
        for row in range(1000):
            counter.record([(f"/d/{row % 7:05}.tar/{row}", BadImage("changed", "crc")) if row % 5 == 0 else None])
        counter.check()
    text = str(pickle.loads(pickle.dumps(caught.value)))
    assert "20 of the last 96 images" in text and "changed × 20" in text and "/d/00000.tar" in text
    assert "/d/00005.tar/5: changed: crc" in text
