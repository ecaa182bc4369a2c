"""A run's folder belongs to one config, which config.json in it tells."""

import json
import re
from pathlib import Path

from dualtoken_jax import config as config_lib
from dualtoken_jax import rollbacks
from dualtoken_jax.agreement import by_first
from dualtoken_jax.config import Config, ConfigError
from dualtoken_jax.data.storage import write_whole
from dualtoken_jax.frozen_weights import FROZEN
from dualtoken_jax.text_tokenizer_copy import check_copy, is_kept, is_trained

# Settings that may differ between two starts of a run.
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


def claim_workdir(config: Config, workdir: Path) -> None:
    """Creates the workdir with its config.json, or checks that what was trained there had the same config.

    The first process does it for all. Raises ConfigError with the difference, or when the folder cannot be written,
    and what `check_copy` raises.
    """
    by_first(lambda: _claim(config, Path(workdir)), ConfigError)


def _claim(config: Config, workdir: Path) -> None:
    file, text = workdir / "config.json", json.dumps(config_lib.to_json(config), indent=1) + "\n"
    if file.exists() and file.read_text() == text:
        return
    trained = is_trained(workdir)
    before = load_config(workdir) if trained or file.exists() else None
    changes = _changes(before, config, workdir) if before else []
    if trained and changes:
        listing = "\n  ".join(changes)
        raise ConfigError(
            f"{workdir} was made with another config (there → here):\n  {listing}\n"
            "Use another --workdir, or the same settings to resume"
        )
    if not trained:
        check_copy(config, workdir, before)
    try:
        if changes:
            (workdir / rollbacks.FILE).unlink(missing_ok=True)  # the new settings have not gone back yet
        write_whole(str(file), text.encode())
    except OSError as error:
        raise ConfigError(f"workdir {workdir} cannot be written: {error}; choose another --workdir") from error


def _changes(before: Config, config: Config, workdir: Path) -> list[str]:
    """What makes another run of it, a line each."""
    free = _RUNTIME + _kept_inputs(before, config, workdir)
    return [line for line in config_lib.difference(before, config) if not re.sub(r"\[\d+\]", "", line).startswith(free)]


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
