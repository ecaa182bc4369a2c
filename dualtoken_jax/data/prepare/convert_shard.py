"""Makes one ArrayRecord shard: the same function in a process of this machine and in a worker of a cluster."""

import dataclasses
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np

from dualtoken_jax.data import images, order
from dualtoken_jax.data.images import BadImage
from dualtoken_jax.data.manifest import join
from dualtoken_jax.data.prepare.inputs import Input, open_input, read_each
from dualtoken_jax.data.prepare.ledger import Ledger
from dualtoken_jax.data.records import Record, write_shard
from dualtoken_jax.data.sources import Example
from dualtoken_jax.data.storage import is_remote
from dualtoken_jax.data.tar_index import MAX_CAPTION, MAX_KEY

_GROUP = 64  # examples read at once: what is in memory, and what neighbours in a tar shard are one request for


@dataclasses.dataclass(frozen=True)
class ShardWriter:
    """The job of one worker; picklable, and small, because it travels with every shard."""

    given: Input
    output: str  # folder or URL; on a cluster one that all workers see
    shards: int
    shuffle_seed: int | None  # spreads the examples over the shards; None keeps their order
    drop_bad: bool  # decode every picture, and leave out those that cannot be used

    def __call__(self, number: int) -> None:
        """Writes shard `number`, whole or not at all, and enters it in the ledger. Raises as the source's `read`."""
        left_out: Counter[str] = Counter()
        name = f"examples-{number:05d}-of-{self.shards:05d}.array_record"
        ledger, remote = Ledger(self.output), is_remote(self.output)
        # ArrayRecord's writer needs a local file, and a folder of its own, as Beam may do a shard twice at once.
        with tempfile.TemporaryDirectory(dir=None if remote else ledger.folder) as folder:
            path = Path(folder, name)
            shard = write_shard(path, self._records(number, left_out))
            if remote:
                files, inside = fsspec.core.url_to_fs(join(self.output, name))
                files.put_file(str(path), inside)
            else:
                path.replace(Path(self.output, name))
        ledger.add(number, shard, dict(left_out))

    def _records(self, number: int, left_out: Counter) -> Iterator[Record]:
        source = open_input(self.given)
        size = len(source)
        positions = np.arange(number * size // self.shards, (number + 1) * size // self.shards)
        for first in range(0, len(positions), _GROUP):
            group = positions[first : first + _GROUP]
            if self.shuffle_seed is not None:
                group = order.epoch_and_index(group, size, self.shuffle_seed)[1]
            for example in read_each(source, group):
                problem = problem_of(example, self.drop_bad)
                if problem:
                    left_out[problem] += 1
                else:
                    key = example.origin.removeprefix(self.given.root).lstrip("/")
                    key = key.encode("utf-8", "replace").decode()  # file names need not be UTF-8
                    yield Record(example.image, example.caption, example.label, key[-MAX_KEY:])


def problem_of(example: Example | BadImage, decode: bool) -> str:
    """Why the example is left out, in a word; empty where it is not."""
    if isinstance(example, BadImage):
        return example.reason
    if len(example.image) > images.MAX_BYTES:
        return "too-many-bytes"
    if len(example.caption or "") > MAX_CAPTION:
        return "too-long-caption"
    try:
        if decode:
            images.decode(example.image)
    except BadImage as error:
        return error.reason
    return ""
