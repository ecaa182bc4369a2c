"""A seal for a folder that will be read again: the digest of every file in it.

A folder is sealed when its writing has ended; one without a seal was not finished, one that differs from its seal is
damaged. Neither is ever restored.
"""

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dualtoken_jax.data.storage import PARTIAL, write_whole

SEAL = "digests.json"
_THREADS = 8  # hashing releases the GIL, and network file systems answer several readers faster than one
_CHUNK = 2**22  # bytes


def seal(folder: Path, without: tuple[str, ...] = ()) -> None:
    """Writes the digests of all files but those named `without`, whole or not at all."""
    files = _digests(folder, [name for name in _files(folder) if name not in without], _digest)
    write_whole(str(folder / SEAL), json.dumps({"files": files, "digest": _of(files)}).encode())


def is_sealed(folder: Path) -> bool:
    """Whether the folder was finished; not whether it is sound."""
    return (folder / SEAL).exists()


def damage(folder: Path) -> list[str]:
    """What differs from the seal, one line for each file; [] for a sound folder."""
    try:
        contents = json.loads((folder / SEAL).read_text())
        files = contents["files"]
        if contents["digest"] != _of(files):
            raise ValueError("its own digest differs")
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{SEAL}: {error!r}"]
    missing = [f"{name}: missing" for name in files if not (folder / name).is_file()]
    present = [name for name in files if (folder / name).is_file()]
    found = _digests(folder, present, _readable_digest)
    return missing + [
        f"{name}: {_difference(files[name], found[name])}" for name in present if files[name] != found[name]
    ]


def _files(folder: Path) -> list[str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [path.relative_to(folder).as_posix() for path in paths if path.name not in (SEAL, SEAL + PARTIAL)]


def _digests(folder: Path, names: list[str], digest: Callable[[Path], list]) -> dict[str, list]:
    """By name [bytes, digest]."""
    with ThreadPoolExecutor(_THREADS) as threads:
        return dict(zip(names, threads.map(lambda name: digest(folder / name), names), strict=True))


def _digest(file: Path) -> list:
    digest, size = hashlib.blake2b(digest_size=16), 0
    with file.open("rb") as opened:
        while chunk := opened.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return [size, digest.hexdigest()]


def _readable_digest(file: Path) -> list:
    """As `_digest`; what cannot be read differs from everything."""
    try:
        return _digest(file)
    except OSError as error:
        return [0, repr(error)]


def _of(files: dict[str, list]) -> str:
    return hashlib.blake2b(json.dumps(files, sort_keys=True).encode(), digest_size=16).hexdigest()


def _difference(wanted: list, found: list) -> str:
    return f"{found[0]} bytes instead of {wanted[0]}" if found[0] != wanted[0] else "other contents"
