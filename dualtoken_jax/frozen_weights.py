"""The weights that no step of a run changes: written once beside its checkpoints, and not with every one."""

import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from dualtoken_jax import integrity
from dualtoken_jax.checkpoint import CheckpointError, on_one_device

FROZEN = "frozen"


def _on_one_host(act: Callable[[], None]) -> None:
    """Acts on the first process; the others wait for it."""
    if jax.process_index() == 0:
        act()
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("checkpoints")


def save_frozen(workdir: Path, frozen: dict) -> None:
    """Writes the weights that a run never changes, once."""
    path = Path(workdir).absolute() / FROZEN
    if integrity.is_sealed(path):
        return
    _on_one_host(lambda: shutil.rmtree(path, ignore_errors=True))  # of a run that was killed while it wrote them
    with ocp.StandardCheckpointer() as writer:
        writer.save(path, frozen)
    _on_one_host(lambda: integrity.seal(path))


def load_frozen(workdir: Path) -> dict:
    """The frozen weights of a run, {} where it has none. CheckpointError where they are damaged."""
    path = Path(workdir).absolute() / FROZEN
    if not integrity.is_sealed(path):
        return {}
    if problems := integrity.damage(path):
        raise CheckpointError(
            f"{path} is damaged: {'; '.join(problems)}. Restore it from a copy; before the first step it may be "
            "removed, and is made again"
        )
    with ocp.StandardCheckpointer() as reader:
        like = on_one_device(reader.metadata(path).item_metadata.tree)
        return jax.tree.map(np.asarray, reader.restore(path, like))
