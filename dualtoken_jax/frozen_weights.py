"""The weights that no step of a run changes: written once beside its checkpoints, and not with every one."""

import shutil
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from dualtoken_jax import integrity
from dualtoken_jax.agreement import by_first
from dualtoken_jax.checkpoint import CheckpointError, on_one_device

FROZEN = "frozen"


def save_frozen(workdir: Path, frozen: dict) -> None:
    """Writes the weights that a run never changes, once; all processes together, as the first one finds the folder."""
    path = Path(workdir).absolute() / FROZEN
    if by_first(lambda: _is_there(path), CheckpointError):
        return
    with ocp.StandardCheckpointer() as writer:
        writer.save(path, frozen)
    by_first(lambda: integrity.seal(path), CheckpointError)


def load_frozen(workdir: Path) -> dict:
    """The frozen weights of a run, {} where the first process finds none. CheckpointError where they are damaged."""
    path = Path(workdir).absolute() / FROZEN
    if not by_first(lambda: _is_sound(path), CheckpointError):
        return {}
    with ocp.StandardCheckpointer() as reader:
        like = on_one_device(reader.metadata(path).item_metadata.tree)
        return jax.tree.map(np.asarray, reader.restore(path, like))


def _is_there(path: Path) -> bool:
    if integrity.is_sealed(path):
        return True
    shutil.rmtree(path, ignore_errors=True)  # of a run that was killed while it wrote them
    return False


def _is_sound(path: Path) -> bool:
    if not integrity.is_sealed(path):
        return False
    if problems := integrity.damage(path):
        raise CheckpointError(
            f"{path} is damaged: {'; '.join(problems)}. Restore it from a copy; before the first step it may be "
            "removed, and is made again"
        )
    return True
