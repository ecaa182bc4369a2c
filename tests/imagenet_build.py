"""A miniature imagenet2012, written by TFDS's own builder from tiny ILSVRC archives."""

import importlib.resources.abc
import os
import sys
import types
from pathlib import Path

from shard_files import picture, tar_bytes

SYNSETS = ("n01440764", "n01443537", "n15075141")  # labels 0, 1 and 999
PER_SYNSET, VALIDATION = 6, 5


def train_name(number: int) -> str:
    """Of the number-th picture in the training archive."""
    return f"{SYNSETS[number // PER_SYNSET]}_{number}.JPEG"


def write_archives(folder: Path) -> None:
    """ILSVRC2012_img_train.tar, a tar of a tar per synset, and ILSVRC2012_img_val.tar, as image-net.org has them."""
    folder.mkdir()
    numbers = [range(first * PER_SYNSET, (first + 1) * PER_SYNSET) for first in range(len(SYNSETS))]
    of_synset = [tar_bytes([(train_name(n), picture(n)) for n in group]) for group in numbers]
    train = [(f"{synset}.tar", data) for synset, data in zip(SYNSETS, of_synset, strict=True)]
    (folder / "ILSVRC2012_img_train.tar").write_bytes(tar_bytes(train))
    held_out = [(f"ILSVRC2012_val_{n + 1:08d}.JPEG", picture(100 + n)) for n in range(VALIDATION)]
    (folder / "ILSVRC2012_img_val.tar").write_bytes(tar_bytes(held_out))


def build(folder: Path, monkeypatch) -> Path:
    """Folder of the finished build.

    The builder needs of TensorFlow nothing but `tf.io.gfile`, for which `open` stands in here, and a backport that
    TFDS imports without requiring it on our Pythons.
    """
    monkeypatch.setitem(sys.modules, "importlib_resources", importlib.resources)
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download import extractor
    from tensorflow_datasets.datasets.imagenet2012 import imagenet2012_dataset_builder, imagenet_common

    gfile = types.SimpleNamespace(exists=os.path.exists, GFile=open)
    for module in (extractor, imagenet_common, imagenet2012_dataset_builder):
        monkeypatch.setattr(module, "tf", types.SimpleNamespace(io=types.SimpleNamespace(gfile=gfile)))
    write_archives(folder / "manual")
    options = tfds.download.DownloadConfig(
        manual_dir=folder / "manual", try_download_gcs=False, register_checksums=False, num_shards=2
    )
    builder = imagenet2012_dataset_builder.Builder(data_dir=folder / "tfds", file_format="array_record")
    builder.download_and_prepare(download_config=options)
    return folder / "tfds" / "imagenet2012" / "5.1.0"
