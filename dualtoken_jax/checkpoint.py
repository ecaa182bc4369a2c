"""Asynchronous, atomic checkpoints of the whole train state. With frozen_weights.py the only file that knows Orbax."""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import serialization

from dualtoken_jax import integrity
from dualtoken_jax.agreement import by_first
from dualtoken_jax.tasks.state import TrainState

_TIMES = "_CHECKPOINT_METADATA"  # Orbax adds the time of the commit after the seal; no restore depends on it

log = logging.getLogger("dualtoken_jax")


class CheckpointError(RuntimeError):
    """A checkpoint that could not be written or is not there; the message says what is safe and what to do."""


class Checkpoints:
    """The checkpoints of one workdir, each sealed (see integrity.py) before it is committed."""

    def __init__(self, workdir: Path, keep: int = 2, read_only: bool = False):
        """`read_only` leaves the folder alone: a run that is writing to it would lose its half-written files."""
        self.workdir, self._keep, self._read_only = Path(workdir).absolute(), keep, read_only
        self._folder = self.workdir / "checkpoints"
        self._busy = threading.RLock()  # a rescue saves from another thread
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        if self._read_only:  # Orbax's own read_only does the same, and warns of it on every start
            return ocp.CheckpointManager(self._folder, options=ocp.CheckpointManagerOptions(create=False))
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self._keep,
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._seal),
        )
        return ocp.CheckpointManager(self._folder, options=options)

    @property
    def latest(self) -> int | None:
        """Step of the newest committed checkpoint."""
        return self._manager.latest_step()

    def _seal(self) -> None:
        """Orbax calls it, in a thread of its own, when all files of a step are written and before it is committed."""
        if jax.process_index() == 0:
            for path in self._folder.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"):
                integrity.seal(path, without=(_TIMES,))

    def save(self, state: TrainState, data: dict) -> None:
        """Starts writing the state, frozen weights left out, and the data's; returns when it is off the device.

        Raises CheckpointError when this or the previous write failed, as on a full disk.
        """
        step = int(state.step)
        if step == self.latest:
            return
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(serialization.to_state_dict(state.replace(frozen={}))),
            data=ocp.args.JsonSave(data),
        )
        with self._busy, self._explained(step):
            self._manager.save(step, args=items)

    def restore(self, like: TrainState) -> tuple[TrainState, dict]:
        """The newest sound state, placed as `like` (of ShapeDtypeStructs with shardings), and the data's.

        A damaged step is put aside and the one before it is taken. Raises CheckpointError where none is sound.
        """
        step = self._newest_sound()
        template = serialization.to_state_dict(like.replace(frozen={}))
        items = ocp.args.Composite(state=ocp.args.StandardRestore(template), data=ocp.args.JsonRestore())
        try:
            found = self._manager.restore(step, args=items)
        except ValueError as error:
            raise CheckpointError(
                f"step {step} in {self.workdir} does not fit this version of the program: {error}; "
                "finish it with the version that began it, or use another --workdir"
            ) from error
        state = serialization.from_state_dict(like.replace(frozen={}), found.state)
        return state, found.data

    def restore_fields(self, names: tuple[str, ...]) -> dict:
        """Some fields of the newest sound state as nested dicts of host arrays; what else is saved is not read."""
        step = self._newest_sound()
        path = epath.Path(self.workdir) / "checkpoints" / str(step) / "state"
        saved = ocp.PyTreeCheckpointHandler().metadata(path).tree
        wanted = on_one_device({name: saved[name] for name in names})
        places = ocp.checkpoint_utils.construct_restore_args(wanted)
        with ocp.PyTreeCheckpointer() as reader:
            found = reader.restore(
                path, args=ocp.args.PyTreeRestore(item=wanted, restore_args=places, partial_restore=True)
            )
        return {name: jax.tree.map(np.asarray, found[name]) for name in names}

    def _newest_sound(self) -> int:
        """The newest step that is as it was written; the same on every host."""
        if self.latest is None:
            raise CheckpointError(f"{self.workdir} holds no finished checkpoint; train first")
        found = by_first(self._check_newest, CheckpointError)
        self._manager.reload()
        return found

    def _check_newest(self) -> int:
        for step in sorted(self._manager.all_steps(), reverse=True):
            path = self._folder / str(step)
            problems = integrity.damage(path)
            if not problems:
                return step
            log.error("the checkpoint of step %d is damaged, an older one is taken: %s", step, "; ".join(problems))
            if not self._read_only:
                self._put_aside(path)
        raise CheckpointError(
            f"no checkpoint in {self.workdir} is as it was written; the log above tells what is damaged. "
            "Restore the folder from a copy, or begin in another --workdir"
        )

    def _put_aside(self, path: Path) -> None:
        """Out of the way of the same step, which will be done again; kept for whoever wants to know what happened."""
        aside = self.workdir / "damaged"
        aside.mkdir(exist_ok=True)
        path.rename(aside / f"{path.name}-{time.time_ns()}")

    def wait(self) -> None:
        """Blocks until every started write is committed; raises CheckpointError when one failed."""
        with self._busy, self._explained(None):
            self._manager.wait_until_finished()

    def check(self) -> None:
        """Raises CheckpointError when a write in the background has failed; waits for none."""
        with self._explained(None):
            self._manager.check_for_errors()

    def reopen(self) -> None:
        """Forgets a failed write, whose error Orbax would raise again and again, and what it left half written."""
        with contextlib.suppress(Exception):  # the failure that we know of
            self._manager.close()
        self._manager = self._open()

    def close(self) -> None:
        """Waits and releases the threads."""
        self.wait()
        self._manager.close()

    @contextlib.contextmanager
    def _explained(self, step: int | None) -> Iterator[None]:
        """Turns a failed write into a CheckpointError that says what survives."""
        try:
            yield
        except CheckpointError:
            raise
        except (OSError, ValueError, RuntimeError) as error:
            newest = self.latest
            what = "a checkpoint" if step is None else f"the checkpoint of step {step}"
            safe = "no earlier one exists" if newest is None else f"step {newest} is safe and a restart resumes from it"
            raise CheckpointError(
                f"{what} could not be written to {self.workdir}: {error}; {safe}. "
                "Free space or fix the folder, then run the same command again"
            ) from error


def on_one_device(saved):
    """Where to restore arrays that the host wants, whatever devices saved them."""
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), saved)
