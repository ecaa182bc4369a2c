"""Tar shards as img2dataset and others write them, for the tests of the index, the source and the command."""

import io
import json
import tarfile
import zlib

import numpy as np
from PIL import Image


def picture(number: int, extension: str = "jpg", size: int = 24) -> bytes:
    """An encoded picture of its own colours."""
    pixels = np.random.default_rng(number).integers(0, 256, (3, 3, 3), np.uint8)
    file = io.BytesIO()
    image = Image.fromarray(pixels).resize((size + number % 5, size), Image.Resampling.BICUBIC)
    image.save(file, {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP"}[extension.lower()])
    return file.getvalue()


def add(tar: tarfile.TarFile, name: str, data: bytes, **fields) -> None:
    """One member; `fields` are attributes of its TarInfo."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(data))


def tar_bytes(members: list[tuple[str, bytes]], tar_format: int = tarfile.USTAR_FORMAT) -> bytes:
    """A tar file of plain members."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tar_format) as tar:
        for name, data in members:
            add(tar, name, data)
    return file.getvalue()


def example_members(number: int, label: int | None = None, extension: str = "jpg") -> list[tuple[str, bytes]]:
    """KEY.jpg, KEY.json, KEY.txt, in that order, as img2dataset's webdataset writer sorts them."""
    key = f"{number:09d}"
    about = json.dumps({"key": key, "url": f"https://example.org/{number}.jpg", "status": "success"}).encode()
    members = [(f"{key}.cls", str(label).encode())] if label is not None else []
    members += [(f"{key}.{extension}", picture(number, extension)), (f"{key}.json", about)]
    return [*members, (f"{key}.txt", caption(number).encode())]


def caption(number: int) -> str:
    """The caption of example `number`."""
    return f"picture {number} of a café"


def shard(first: int, count: int, labels: int = 0) -> bytes:
    """A tar shard of examples `first` … as img2dataset writes them, with labels number % `labels`."""
    label = (lambda number: number % labels) if labels else (lambda number: None)
    return tar_bytes([m for number in range(first, first + count) for m in example_members(number, label(number))])


def assert_row(data: bytes, row: np.void, image: bytes, text: bytes, label: int = -1) -> None:
    """That the row finds this picture and caption in the shard's bytes."""
    start = int(row["start"])
    span = data[start : start + int(row["bytes"])]
    assert len(span) == row["bytes"]
    assert span[row["image"] :][: row["image_bytes"]] == image and zlib.crc32(image) == row["crc32"]
    assert span[row["caption"] :][: row["caption_bytes"]] == text
    assert row["label"] == label
