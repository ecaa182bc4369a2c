"""The only file that knows Orbax: asynchronous, atomic checkpoints of the whole train state."""

import json
import re
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import serialization

from dualtoken_jax import config as config_lib
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
    "data.eval_examples",
)


class CheckpointError(RuntimeError):
    """A checkpoint that could not be written or is not there; the message says what is safe and what to do."""


class Checkpoints:
    """The checkpoints of one workdir."""

    def __init__(self, workdir: Path, keep: int = 2, read_only: bool = False):
        """`read_only` leaves the folder alone: a run that is writing to it would lose its half-written files."""
        self.workdir = Path(workdir).absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        if read_only:  # Orbax's own read_only does the same, and warns of it on every start
            options = ocp.CheckpointManagerOptions(create=False)
        self._manager = ocp.CheckpointManager(self.workdir / "checkpoints", options=options)

    @property
    def latest(self) -> int | None:
        """Step of the newest committed checkpoint."""
        return self._manager.latest_step()

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
        with self._explained(step):
            self._manager.save(step, args=items)

    def restore(self, like: TrainState) -> tuple[TrainState, dict]:
        """The newest state, placed as `like` (of ShapeDtypeStructs with shardings), and the data's."""
        step = self._newest()
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
        """Some fields of the newest state as nested dicts of host arrays; what else is saved is not read."""
        step = self._newest()
        path = epath.Path(self.workdir) / "checkpoints" / str(step) / "state"
        saved = ocp.PyTreeCheckpointHandler().metadata(path).tree
        wanted = _on_one_device({name: saved[name] for name in names})
        places = ocp.checkpoint_utils.construct_restore_args(wanted)
        with ocp.PyTreeCheckpointer() as reader:
            found = reader.restore(
                path, args=ocp.args.PyTreeRestore(item=wanted, restore_args=places, partial_restore=True)
            )
        return {name: jax.tree.map(np.asarray, found[name]) for name in names}

    def _newest(self) -> int:
        if self.latest is None:
            raise CheckpointError(f"{self.workdir} holds no finished checkpoint; train first")
        return self.latest

    def wait(self) -> None:
        """Blocks until every started write is committed; raises CheckpointError when one failed."""
        with self._explained(None):
            self._manager.wait_until_finished()

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


def save_frozen(workdir: Path, frozen: dict) -> None:
    """Writes the weights that a run never changes, once."""
    path = Path(workdir).absolute() / FROZEN
    if not path.exists():
        with ocp.StandardCheckpointer() as writer:
            writer.save(path, frozen)


def load_frozen(workdir: Path) -> dict:
    """The frozen weights of a run, {} where it has none."""
    path = Path(workdir).absolute() / FROZEN
    if not path.exists():
        return {}
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
        lines = [line for line in config_lib.difference(before, config) if not re.sub(r"\[\d+\]", "", line).startswith(free)]
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
