"""Trained tokenizers, wherever they lie: one form for a workdir and for every format that `interop` reads."""

import dataclasses
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dualtoken_jax import job, sharding
from dualtoken_jax.checkpoint import CheckpointError, load_config, with_kept_tokenizer
from dualtoken_jax.config import ConfigError
from dualtoken_jax.data.text import open_tokenizer
from dualtoken_jax.models.dualtoken import DualTokenConfig


class Pretrained(NamedTuple):
    """A trained tokenizer."""

    name: str  # of its recipe
    step: int  # of its checkpoint
    model: DualTokenConfig
    tree: dict  # `params`, `codebooks`, and where the text tower is kept `text`, `logit_scale`, `logit_bias`
    text_tokenizer: Any  # has encode(list[str]) → int32 [n, length]; None where there is no text tower


def open_workdir(workdir: Path, weights: Literal["ema", "raw"] | None = None) -> Pretrained:
    """The newest checkpoint of a finished or running tokenizer run.

    `weights`: the moving average, or the raw ones; None takes the average where the run keeps one.
    Reads config.json, the newest checkpoint, `frozen/` and `tokenizer/`; changes nothing, whatever the devices of the
    training.

    Raises:
      ConfigError: no workdir, one of another task, or one without the average that was asked for.
      CheckpointError: nothing is saved there yet.
    """
    config = dataclasses.replace(load_config(workdir), mesh=sharding.MeshConfig())
    if weights == "ema" and config.train.ema_decay is None:
        raise ConfigError(f"{workdir} keeps no average of its weights (train.ema_decay None); ask for the raw ones")
    if config.task != "tokenizer":
        raise ConfigError(
            f"{workdir} holds a {config.task} run, which has no codes; give the workdir of a tokenizer run"
        )
    if not (workdir / "frozen").exists():
        raise CheckpointError(
            f"{workdir} has no folder 'frozen', which holds the teacher's weights: its run is still "
            "training the teacher, or it was copied without it"
        )
    # The moments and the discriminator are as large as the model, and nothing here reads them.
    state = job.load_state(config, workdir)
    siglip = state.frozen["siglip"]
    tree = {"params": state.params if weights == "raw" else state.averaged, "codebooks": state.codebooks}
    tree |= {name: siglip[name] for name in ("text", "logit_scale", "logit_bias")}
    tokenizer = open_tokenizer(with_kept_tokenizer(config, workdir).tokenizer, config.model.siglip.text_length)
    return Pretrained(config.name, int(state.step), config.model, tree, tokenizer)
