"""The only file that knows Orbax: asynchronous, atomic checkpoints of the whole train state."""

import contextlib
import json
import logging
import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import serialization
from jax.experimental import multihost_utils

from dualtoken_jax import config as config_lib
from dualtoken_jax import integrity
from dualtoken_jax.config import Config, ConfigError
from dualtoken_jax.metric_writer import write_atomically
from dualtoken_jax.tasks.state import TrainState
from dualtoken_jax.text_tokenizer_copy import check_copy, is_kept, is_trained

FROZEN = "frozen"  # weights that no step changes: written once, not with every checkpoint
_RUNTIME = (
    "data.reading.",
    # Pictures may move: the checkpoint holds their fingerprint, which is compared when training goes on.
    "data.path:",
    "data.mixture.path:",
    "data.eval_path:",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.evaluate_every",
    "train.max_rollbacks",
    "train.hang_seconds",
    "data.eval_examples",
    # How a step is spread over devices and memory; any state restores on any mesh.
    "mesh.",
    "train.accumulate",
    "model.siglip.attention",
    "model.siglip.remat",
    "model.siglip.unroll",
)


_TIMES = "_CHECKPOINT_METADATA"  # Orbax adds the time of the commit after the seal; no restore depends on it
_NONE = -1  # no step, where an integer must be

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
        wanted = _on_one_device({name: saved[name] for name in names})
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
        found = _NONE
        if jax.process_index() == 0:
            try:
                found = self._check_newest()
            except OSError:  # the others wait for an answer
                log.exception("the checkpoints in %s cannot be looked at", self._folder)
        if jax.process_count() > 1:
            found = int(multihost_utils.broadcast_one_to_all(np.int32(found)))
        if found == _NONE:
            raise CheckpointError(
                f"no checkpoint in {self.workdir} is as it was written; the log above tells what is damaged. "
                "Restore the folder from a copy, or begin in another --workdir"
            )
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
        return _NONE

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

    def _explained(self, step: int | None):
        return _Explained(self, step)


class _Explained:
    """Turns a failed write into a CheckpointError that says what survives."""

    def __init__(self, checkpoints: Checkpoints, step: int | None):
        self.checkpoints, self.step = checkpoints, step

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, (OSError, ValueError, RuntimeError)) and not isinstance(error, CheckpointError):
            newest = self.checkpoints.latest
            what = "a checkpoint" if self.step is None else f"the checkpoint of step {self.step}"
            safe = "no earlier one exists" if newest is None else f"step {newest} is safe and a restart resumes from it"
            raise CheckpointError(
                f"{what} could not be written to {self.checkpoints.workdir}: {error}; {safe}. "
                "Free space or fix the folder, then run the same command again"
            ) from error


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
        like = _on_one_device(reader.metadata(path).item_metadata.tree)
        return jax.tree.map(np.asarray, reader.restore(path, like))


def _on_one_device(saved):
    """Where to restore arrays that the host wants, whatever devices saved them."""
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), saved)


def claim_workdir(config: Config, workdir: Path) -> None:
    """Creates the workdir with its config.json, or checks that what was trained there had the same config.

    Raises ConfigError with the difference, or when the folder cannot be written, and what `check_copy` raises.
    """
    workdir = Path(workdir)
    file, text = workdir / "config.json", json.dumps(config_lib.to_json(config), indent=1) + "\n"
    if file.exists() and file.read_text() == text:
        return
    if is_trained(workdir):
        before = load_config(workdir)
        free = _RUNTIME + _kept_inputs(before, config, workdir)
        lines = [
            line for line in config_lib.difference(before, config) if not re.sub(r"\[\d+\]", "", line).startswith(free)
        ]
        if lines:
            listing = "\n  ".join(lines)
            raise ConfigError(
                f"{workdir} was made with another config (there → here):\n  {listing}\n"
                "Use another --workdir, or the same settings to resume"
            )
    else:
        check_copy(config, workdir, load_config(workdir) if file.exists() else None)
    if jax.process_index() == 0:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            write_atomically(file, text)
        except OSError as error:
            raise ConfigError(f"workdir {workdir} cannot be written: {error}; choose another --workdir") from error


def _kept_inputs(before: Config, config: Config, workdir: Path) -> tuple[str, ...]:
    """Settings that name a file of which the workdir has its own copy: the original may have moved.

    To or from an empty path is another run, and so is another text tokenizer where both can be compared.
    """
    moved = {"teacher.path": before.teacher.path and config.teacher.path}
    moved["loss.lpips_path"] = before.loss.lpips_path and config.loss.lpips_path
    names = [name for name, both in moved.items() if both and (workdir / FROZEN).exists()]
    names += ["text_tokenizer"] if before.text_tokenizer and is_kept(config, workdir) else []
    return tuple(f"{name}:" for name in names)


def load_config(workdir: Path) -> Config:
    """The config that a workdir was made with; raises ConfigError where there is none."""
    file = Path(workdir) / "config.json"
    if not file.exists():
        raise ConfigError(f"{workdir} is no workdir: it has no config.json; give the folder of a training run")
    try:
        values = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ConfigError(f"{file} is damaged: {error}; restore it, or use another --workdir") from error
    return config_lib.from_dict(values)
