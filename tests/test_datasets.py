"""Training on what `prepare` and TFDS make: tar shards, ArrayRecord, ImageNet, mixtures; resumed, and evaluated."""

import dataclasses
import json

import imagenet_build
import jax
import numpy as np
import pytest
from conftest import tiny_config
from PIL import Image
from shard_files import example_members, picture, tar_bytes

from dualtoken_jax import job, loop
from dualtoken_jax.data import dataset
from dualtoken_jax.data.dataset import DataConfig, MixtureConfig
from dualtoken_jax.data.manifest import read_manifest
from dualtoken_jax.data.order import Order
from dualtoken_jax.data.pipeline import batches
from dualtoken_jax.data.prepare.__main__ import main as prepare
from dualtoken_jax.data.reading import Reading


@pytest.fixture(scope="module")
def laion(tmp_path_factory):
    """120 captioned examples in three tar shards, indexed."""
    folder = tmp_path_factory.mktemp("laion")
    for shard in range(3):
        members = [member for n in range(40) for member in example_members(40 * shard + n)]
        (folder / f"{shard:05d}.tar").write_bytes(tar_bytes(members))
    prepare(["index", str(folder)])
    return folder


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        return imagenet_build.build(tmp_path_factory.mktemp("imagenet"), monkeypatch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sixty PNGs in two classes."""
    path = tmp_path_factory.mktemp("folder")
    for number in range(60):
        (path / f"class{number % 2}").mkdir(exist_ok=True)
        (path / f"class{number % 2}" / f"{number}.png").write_bytes(picture(number, "png"))
    return path


def configured(data: DataConfig, **train):
    """The tiny tokenizer on this data."""
    config = tiny_config()
    settings = {"steps": 4, "checkpoint_every": 2, "batch_size": 8, "ema_decay": None} | train
    data = dataclasses.replace(data, augment=True, eval_examples=16)
    return dataclasses.replace(config, data=data, train=dataclasses.replace(config.train, **settings))


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    return {"siglip": job.teacher_weights(tiny_config(), tmp_path_factory.mktemp("teacher"))}


def test_the_tokenizer_trains_from_imagenet_and_its_labels_are_classified(imagenet, frozen, tmp_path):
    names = {"classes": [f"thing {n}" for n in range(1000)], "templates": ["a {}"]}
    (tmp_path / "names.json").write_text(json.dumps(names))
    data = DataConfig(source="tfds", path=str(imagenet), classes=str(tmp_path / "names.json"))
    config = configured(data)
    state = loop.run(config, tmp_path / "run", frozen)
    results = job.conclude(config, tmp_path / "run", state)
    assert results["examples"] == imagenet_build.VALIDATION  # of the build's own validation split
    assert 0 <= results["zero_shot_top1"] <= 1 and results["psnr"] > 0


def test_a_mixture_of_shards_and_a_folder_trains_and_resumes_to_the_bit(laion, folder, frozen, tmp_path):
    mixture = (MixtureConfig("folder", str(folder), weight=2),)
    data = DataConfig(source="shards", path=str(laion), mixture=mixture, shuffle_block=4, shuffle_window=5)
    whole = jax.device_get(loop.run(configured(data), tmp_path / "whole", frozen))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dualtoken_jax.stopping.StopRequest.due", _stops_at(2))
        with pytest.raises(loop.Interrupted):
            loop.run(configured(data), tmp_path / "parts", frozen)
    parts = jax.device_get(loop.run(configured(data), tmp_path / "parts", frozen))
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    other = dataclasses.replace(data, mixture=(MixtureConfig("folder", str(folder), weight=3),))
    with pytest.raises(ValueError, match=r"data.mixture\[0\].weight: 2 → 3"):
        loop.run(configured(other), tmp_path / "parts", frozen)


def _stops_at(moment):
    asked = []

    def due(self):
        asked.append(0)
        return len(asked) == moment

    return due


def test_converted_examples_are_the_indexed_ones(laion, tmp_path):
    prepare(["convert", str(laion), f"--output={tmp_path / 'records'}"])
    assert read_manifest(str(tmp_path / "records")).kind == "array_record"
    sources = [
        dataset.open_source(DataConfig(source="shards", path=str(path)), 0, "all")
        for path in (laion, tmp_path / "records")
    ]
    assert len(sources[0]) == len(sources[1]) == 120
    one, other = (source.read(np.arange(120)) for source in sources)
    assert [(e.image, e.caption) for e in one] == [(e.image, e.caption) for e in other]


def test_held_out_examples_are_not_trained_on(laion):
    data = DataConfig(source="shards", path=str(laion), eval_fraction=0.25)
    parts = [dataset.open_source(data, 0, split) for split in ("train", "eval")]
    captions = [{example.caption for example in part.read(np.arange(len(part)))} for part in parts]
    assert [len(found) for found in captions] == [90, 30] and not captions[0] & captions[1]
    elsewhere = dataclasses.replace(data, eval_path=str(laion))
    assert len(dataset.open_source(elsewhere, 0, "train")) == len(dataset.open_source(elsewhere, 0, "eval")) == 120


def global_batches(config: DataConfig, steps, reading, start=0, hosts=1):
    """Hashes of the rows of the global batch, joined from all hosts: [steps, batch]."""
    training = dataset.open_training(config, 3)
    parts = [
        batches(
            training.source,
            lambda captions: np.array([[len(caption), sum(map(ord, caption))] for caption in captions], np.int32),
            order=training.order,
            resolution=16,
            batch_size=16,
            start=start,
            augment=True,
            decoding="exact",
            reading=reading,
            rows=np.arange(16).reshape(hosts, -1)[host],
        )
        for host in range(hosts)
    ]
    try:
        return [[row for part in parts for row in _hashes(next(part))] for _ in range(steps)]
    finally:
        for part in parts:
            part.close()


def _hashes(batch):
    return [hash((image.tobytes(), text.tobytes())) for image, text in zip(batch["image"], batch["text"], strict=True)]


def assert_the_same_everywhere(laion, folder, steps, hosts, workers, resumes):
    data = DataConfig(
        source="shards", path=str(laion), weight=3, mixture=(MixtureConfig("folder", str(folder)),),
        shuffle_block=8, shuffle_window=4,
    )  # fmt: skip
    whole = global_batches(data, steps, Reading(threads=0))
    assert len({row for step in whole for row in step}) > 200  # of 162 examples: crops differ from epoch to epoch
    for count in hosts:
        assert global_batches(data, steps, Reading(threads=1), hosts=count) == whole
    for count in workers:
        assert global_batches(data, steps, Reading(threads=1, workers=count)) == whole
    for step in np.random.default_rng(0).integers(0, steps - 1, resumes):
        assert global_batches(data, 1, Reading(threads=1), start=int(step) * 16) == whole[step : step + 1]


def test_global_batches_are_the_same_everywhere(laion, folder):
    assert_the_same_everywhere(laion, folder, steps=20, hosts=(4,), workers=(), resumes=5)


@pytest.mark.slow
def test_a_thousand_global_batches_are_the_same_everywhere(laion, folder):
    assert_the_same_everywhere(laion, folder, 1000, hosts=(2, 4, 8, 16), workers=(1, 4, 8), resumes=100)


def test_bad_settings_are_named(laion, tmp_path):
    with pytest.raises(FileNotFoundError, match="prepare index"):
        dataset.open_source(DataConfig(source="shards", path=str(tmp_path)), 0, "train")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    order = dataset.open_training(DataConfig(source="shards", path=str(laion), weight=5), 0).order
    assert order == Order((108,), (5,), 0, 1, 64)
