"""The shards below a folder or URL, with their sizes, from listings alone."""

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple, get_args

import fsspec

from dualtoken_jax.data.manifest import Kind
from dualtoken_jax.data.storage import is_remote

_ENDINGS = {"tar": ".tar", "array_record": ".array_record", "parquet": ".parquet"}


class FoundShards(NamedTuple):
    """Shards of one kind."""

    kind: Kind
    root: str  # absolute path or URL of the folder that holds them all, at any depth
    sizes: dict[str, int]  # bytes by name relative to `root`, sorted by name


def find_shards(paths: Sequence[str], kind: Kind | None = None) -> FoundShards:
    """Shards in folders (at any depth), among files, or matching patterns with *; each a path or URL.

    Parquet files beside tar shards are img2dataset's metadata, so without a `kind` tar shards are taken where there are
    any. Below a folder, names with a part that begins with a dot are passed over.

    Raises FileNotFoundError where there are none, OSError where a folder cannot be listed.
    """
    places = [path.rstrip("/") if is_remote(path) else os.path.abspath(os.path.expanduser(path)) for path in paths]
    found = {path: size for place in places for path, size in _files(place)}
    kinds = [kind] if kind else get_args(Kind)
    for one in kinds:
        if sizes := {path: found[path] for path in sorted(found) if path.endswith(_ENDINGS[one])}:
            root = _root(places, sizes)
            return FoundShards(one, root, {path[len(root) + 1 :]: size for path, size in sizes.items()})
    endings = ", ".join(_ENDINGS[one] for one in kinds)
    missing = [path for path, place in zip(paths, places, strict=True) if "*" not in place and not _exists(place)]
    if missing:
        raise FileNotFoundError(f"there is nothing at {', '.join(missing)}: give folders, files or patterns of shards")
    raise FileNotFoundError(f"there are no shards ({endings}) in {', '.join(paths)}")


def _exists(place: str) -> bool:
    files, inside = fsspec.core.url_to_fs(place)
    return files.exists(inside)


def _files(place: str) -> Iterator[tuple[str, int]]:
    """(full path, bytes) of the files below a folder or matching a pattern, or of the one file."""
    files, inside = fsspec.core.url_to_fs(place)
    protocol = place.split("://")[0] + "://" if is_remote(place) else ""
    found = files.glob(inside, detail=True) if "*" in inside else files.find(inside, detail=True)
    for name, entry in found.items():
        # Without the protocol, and in memory:// with a slash that the URL lacks; http:// names are whole URLs.
        path = name if is_remote(name) or not protocol else protocol + name.lstrip("/")
        hidden = any(part.startswith(".") for part in path.removeprefix(place).split("/"))
        if entry["type"] == "file" and entry["size"] is not None and not hidden:
            yield path, entry["size"]


def _root(places: Sequence[str], sizes: dict[str, int]) -> str:
    """The folder that was asked for, so that shards may be added to it; else the deepest that holds all shards."""
    if len(places) == 1 and "*" not in places[0] and places[0] not in sizes:
        return places[0]
    shared = []
    for parts in zip(*(path.split("/")[:-1] for path in sizes), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return "/".join(shared)
