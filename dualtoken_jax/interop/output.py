"""Writing what the PyTorch world reads: whole folders or none, and safetensors without torch."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors.numpy import save_file

from dualtoken_jax.interop.files import INDEX, SINGLE
from dualtoken_jax.interop.name_table import StateDict


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which gets its name when the block ends and disappears when it fails.

    Raises FileExistsError when there is something under that name already.
    """
    path = Path(path).absolute()
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise FileExistsError(f"{path} exists and is not empty; choose another --output, or remove it")
    draft = path.with_name(f".{path.name}.unfinished-{os.getpid()}")
    draft.mkdir(parents=True)
    try:
        yield draft
        os.replace(draft, path)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def write_safetensors(file: Path, tensors: StateDict) -> None:
    """One file; PyTorch's libraries want to read in it that it is for them."""
    save_file(tensors, file, metadata={"format": "pt"})
    file.chmod(0o644)  # the library lets its owner alone read it


def write_shards(folder: Path, tensors: StateDict, max_bytes: int) -> None:
    """`model.safetensors`, or where that would exceed `max_bytes` numbered shards with their index.

    A tensor that is larger than `max_bytes` gets a shard of its own.
    """
    shards = _shards(tensors, max_bytes)
    if len(shards) == 1:
        return write_safetensors(folder / SINGLE, tensors)
    place = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / file, {name: tensors[name] for name in names})
        place |= dict.fromkeys(names, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": place})


def _shards(tensors, max_bytes):
    shards, size = [[]], 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    return shards


def write_json(file: Path, content: dict) -> None:
    """Indented, with a newline at the end."""
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
