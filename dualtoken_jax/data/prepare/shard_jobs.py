"""One job per shard, in several processes, and a record of those that are done, so that a stopped run goes on.

The record is a file per finished shard under `unfinished/` in the output folder: workers on other machines can write
it too, and a run that is killed at any moment loses at most the shards that were being made.
"""

import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed

import fsspec
from tqdm import tqdm

from dualtoken_jax.data.manifest import FILE, join

_FOLDER = "unfinished"
_PLAN = "plan.json"

Job = Callable[[int], dict]  # number of a shard → what is to be recorded of it; picklable


class Ledger:
    """What is done already, in the folder or URL `folder`."""

    def __init__(self, folder: str, plan: dict) -> None:
        """Begins or goes on with `plan`, which is all that determines the result and fits into JSON.

        Raises FileExistsError where `folder` holds a finished dataset, ValueError where another plan was begun in it.
        """
        self._folder = join(folder, _FOLDER)
        self._files, self._path = fsspec.core.url_to_fs(self._folder)
        plan = json.loads(json.dumps(plan))  # tuples as they come back
        if self._files.exists(join(self._files._strip_protocol(folder), FILE)):
            raise FileExistsError(f"{folder} already holds a prepared dataset; remove it or choose another folder")
        self._files.makedirs(self._path, exist_ok=True)
        if self._files.exists(join(self._path, _PLAN)):
            begun = json.loads(self._files.cat_file(join(self._path, _PLAN)))
            if changed := [f"{key}: {begun.get(key)!r}, now {plan.get(key)!r}" for key in begun | plan if begun.get(key) != plan.get(key)]:
                raise ValueError(f"{folder} holds the beginning of something else ({'; '.join(changed)}): remove {self._folder} to start anew")
        else:
            self._write(_PLAN, plan)
