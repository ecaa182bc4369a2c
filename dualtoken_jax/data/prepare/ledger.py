"""Which shards of a preparation are done, so that a run that was stopped goes on where it was.

The record is one small file per finished shard, in `unfinished/` of the output folder: workers on several machines can
write it without knowing of each other, and a run that is killed loses at most the shards that it was at.
"""

import json

import fsspec

from dualtoken_jax.data.manifest import FILE, Shard, join
from dualtoken_jax.data.storage import write_whole

_FOLDER = "unfinished"
_PLAN = "plan.json"


class Ledger:
    """Of one preparation; picklable. What else lies in its `folder` goes with it at the end."""

    def __init__(self, output: str) -> None:
        """`output` is the folder or URL of the dataset. Reads nothing."""
        self.folder = join(output, _FOLDER)
        self._manifest = join(output, FILE)

    def begin(self, plan: dict, *, again: bool = False) -> None:
        """Begins `plan`, or goes on with it: everything that determines the result, in JSON's types.

        Raises FileExistsError where the folder holds a finished dataset, unless that is to be made `again`; ValueError
        where another plan was begun.
        """
        files, path = fsspec.core.url_to_fs(self.folder)
        if not again and files.exists(fsspec.core.url_to_fs(self._manifest)[1]):
            raise FileExistsError(f"there is a prepared dataset already, {self._manifest}: choose another folder")
        files.makedirs(path, exist_ok=True)
        if not files.exists(join(path, _PLAN)):
            self._write(_PLAN, plan)
        begun, plan = json.loads(files.cat_file(join(path, _PLAN))), json.loads(json.dumps(plan))
        changes = [f"{name} was {begun.get(name)!r} and is {plan.get(name)!r}" for name in begun | plan]
        changes = [
            change for change, name in zip(changes, begun | plan, strict=True) if begun.get(name) != plan.get(name)
        ]
        if changes:
            raise ValueError(
                f"{self.folder} is of another preparation ({'; '.join(changes)}): go on with that, or remove it"
            )

    def add(self, number: int, shard: Shard, notes: dict) -> None:
        """Shard `number` is in its place; `notes` are whatever else is to be known of it at the end."""
        self._write(f"{number}.json", {"shard": list(shard), "notes": notes})

    def done(self) -> dict[int, tuple[Shard, dict]]:
        """Every finished shard by its number, and its notes."""
        files, path = fsspec.core.url_to_fs(self.folder)
        files.invalidate_cache(path)  # gcsfs remembers listings, and other processes have written since
        names = [
            name for name in files.ls(path, detail=False) if name.rsplit("/", 1)[1].removesuffix(".json").isdigit()
        ]
        contents = files.cat(names) if names else {}  # all at once: object stores answer many requests side by side
        entries = {
            int(name.rsplit("/", 1)[1].removesuffix(".json")): json.loads(data) for name, data in contents.items()
        }
        return {number: (Shard(*entry["shard"]), entry["notes"]) for number, entry in entries.items()}

    def close(self) -> None:
        """Forgets everything: the manifest is written."""
        files, path = fsspec.core.url_to_fs(self.folder)
        files.rm(path, recursive=True)

    def _write(self, name: str, contents: dict) -> None:
        write_whole(join(self.folder, name), json.dumps(contents).encode())
