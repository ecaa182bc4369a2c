"""ImageNet as TensorFlow Datasets builds it, read without TensorFlow."""

import concurrent.futures
import json
import multiprocessing
import os
import shutil
import socket
import sys

import imagenet_build
import numpy as np
import pytest
from imagenet_build import PER_SYNSET, SYNSETS, VALIDATION, train_name
from shard_files import picture

from dualtoken_jax.data.images import BadImage, decode
from dualtoken_jax.data.tfds_records import TfdsRecords


def _no_network(*arguments, **options):
    raise AssertionError("a test must not reach the network")


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(socket.socket, "connect", _no_network)
        monkeypatch.setattr(socket, "getaddrinfo", _no_network)
        return imagenet_build.build(tmp_path_factory.mktemp("imagenet"), monkeypatch)


def everything(source):
    return source.read(np.arange(len(source)))


def test_all_pictures_with_their_labels(imagenet):
    assert "tensorflow" not in sys.modules
    train = TfdsRecords(imagenet, "train")
    assert len(list(imagenet.glob("*train*"))) == 2 and len(train) == 3 * PER_SYNSET
    assert len(train.class_names) == 1000 and train.class_names[999] == SYNSETS[2]
    found = {(example.image, example.label) for example in everything(train)}
    labels = (0, 1, 999)
    assert found == {(picture(n), labels[n // PER_SYNSET]) for n in range(3 * PER_SYNSET)}
    assert decode(train.read(np.array([4]))[0].image).shape[2] == 3
    assert all(example.caption is None for example in everything(train)) and not train.has_captions
    assert train_name(7) == "n01443537_7.JPEG"


def test_splits(imagenet):
    held_out = TfdsRecords(imagenet, "eval")
    assert {example.image for example in everything(held_out)} == {picture(100 + n) for n in range(VALIDATION)}
    assert all(0 <= example.label < 1000 for example in everything(held_out))
    assert len(TfdsRecords(imagenet, "all")) == 3 * PER_SYNSET
    prints = {TfdsRecords(imagenet, split).fingerprint for split in ("train", "eval")}
    assert len(prints) == 2
    with pytest.raises(ValueError, match="split must be"):
        TfdsRecords(imagenet, "test")


def edited(imagenet, folder, edit):
    shutil.copytree(imagenet, folder)
    info = json.loads((folder / "dataset_info.json").read_text())
    edit(info)
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def test_without_a_held_out_split_every_kth_is_held_out(imagenet, tmp_path):
    folder = edited(imagenet, tmp_path / "train_only", lambda info: info["splits"].pop())
    train, held_out = (TfdsRecords(folder, split, 1 / 6) for split in ("train", "eval"))
    assert (len(train), len(held_out)) == (15, 3)
    both = [example.image for source in (train, held_out) for example in everything(source)]
    assert sorted(both) == sorted(picture(n) for n in range(18))
    assert len({train.fingerprint, held_out.fingerprint, TfdsRecords(folder, "all").fingerprint}) == 3
    folder = edited(imagenet, tmp_path / "validation_only", lambda info: info["splits"].pop(0))
    assert len(TfdsRecords(folder, "eval")) == VALIDATION
    with pytest.raises(ValueError, match=r"the split 'train' needs 'train'; this TensorFlow dataset has \['valid"):
        TfdsRecords(folder, "train")


def test_names_of_the_users_make_captions(imagenet, tmp_path):
    file = tmp_path / "classes.json"
    file.write_text(json.dumps({"classes": [f"thing {n}" for n in range(1000)], "templates": ["a {}"]}))
    source = TfdsRecords(imagenet, "train", classes=str(file))
    assert source.has_captions and source.class_names[3] == "thing 3"
    assert all(example.caption == f"a photo of a thing {example.label}" for example in everything(source))
    file.write_text(json.dumps({"classes": ["tench"], "templates": ["a {}"]}))
    with pytest.raises(ValueError, match="classes.json names 1 classes, and the dataset has 1000 labels"):
        TfdsRecords(imagenet, "train", classes=str(file))


def test_nothing_is_opened_at_the_start_and_little_later(imagenet, tmp_path):
    base = len(os.listdir("/proc/self/fd"))
    source = TfdsRecords(imagenet, "train")
    assert len(os.listdir("/proc/self/fd")) == base and source.traffic.requests == 0
    source.read(np.array([0, 17]))
    assert len(os.listdir("/proc/self/fd")) == base + 2 and source.traffic.requests == 2
    source.close()
    assert len(os.listdir("/proc/self/fd")) == base
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("dataset_info.json", "features.json", "label.labels.txt"):
        shutil.copy(imagenet / name, bare)
    with pytest.raises(OSError, match="train.array_record-00000-of-00002 cannot be opened: it is not there"):
        TfdsRecords(bare, "train").read(np.array([0]))


def test_a_worker_reads_the_same(imagenet):
    source = TfdsRecords(imagenet, "train")
    before = everything(source)
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(everything, source).result() == before


def test_damage(imagenet, tmp_path):
    folder = edited(imagenet, tmp_path / "damaged", lambda info: None)
    file = folder / "imagenet2012-train.array_record-00000-of-00002"
    data = bytearray(file.read_bytes())
    data[300] ^= 1  # in the first record
    file.write_bytes(data)
    source, bad = TfdsRecords(folder, "train"), 0
    for index in range(18):
        try:
            source.read(np.array([index]))
        except BadImage as error:
            assert error.reason == "damaged-record" and "00000-of-00002/" in error.origin
            bad += 1
    assert bad == 1
    with pytest.raises(BadImage, match="damaged-record"):
        everything(source)
    shutil.copy(folder / "imagenet2012-validation.array_record-00000-of-00002", file)
    with pytest.raises(ValueError, match=r"has \d records instead of \d"):
        TfdsRecords(folder, "train").read(np.array([0]))


def test_what_is_no_such_build(imagenet, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no TensorFlow dataset in .*nowhere: build it with `tfds"):
        TfdsRecords(tmp_path / "nowhere", "train")
    other = edited(imagenet, tmp_path / "tfrecord", lambda info: info.update(fileFormat="tfrecord"))
    with pytest.raises(ValueError, match="was written as tfrecord, which has no random access: build it with"):
        TfdsRecords(other, "train")
