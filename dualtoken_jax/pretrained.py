"""Trained tokenizers, wherever they lie: one form for a workdir and for every format that `interop` reads."""

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dualtoken_jax.checkpoint import CheckpointError, Checkpoints
from dualtoken_jax.config import ConfigError
from dualtoken_jax.data.text import open_fitting_tokenizer
from dualtoken_jax.data.words import WordTokenizer
from dualtoken_jax.frozen_weights import FROZEN, load_frozen
from dualtoken_jax.interop.huggingface import MODEL_TYPE, read_export
from dualtoken_jax.interop.released_config import siglip_folder
from dualtoken_jax.interop.released_files import read_released
from dualtoken_jax.models.dualtoken import DualTokenConfig
from dualtoken_jax.models.siglip import SiglipConfig
from dualtoken_jax.text_tokenizer_copy import with_kept_text_tokenizer
from dualtoken_jax.workdir import load_config

_FIELDS = ("step", "params", "ema", "codebooks")  # the moments and the discriminator are as large as the model


class Pretrained(NamedTuple):
    """A trained tokenizer."""

    name: str  # of its recipe
    step: int  # of its checkpoint
    model: DualTokenConfig
    tree: dict  # `params`, `codebooks`, and where the text tower is kept `text`, `logit_scale`, `logit_bias`
    text_tokenizer: Any  # has encode(list[str]) → int32 [n, length]; None without a text tower or a tokenizer file


def open_pretrained(
    path: str | Path,
    config: str | Path | None = None,
    text_tokenizer: str | Path | None = None,
    weights: Literal["ema", "raw"] | None = None,
) -> Pretrained:
    """The tokenizer in `path`: a workdir, a Hugging Face export of ours, or a checkpoint of the released PyTorch code.

    Args:
      path: a folder, or the .pt, .pth or .safetensors file of a released checkpoint.
      config: the config.json of a released checkpoint; None takes the one in the same folder.
      text_tokenizer: the text tokenizer's file or folder, for a checkpoint that comes without it.
      weights: of a workdir, see `open_workdir`; the other two have one set.

    Raises FileNotFoundError for what is not there, ConfigError, CheckpointError or ValueError for what cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}: name a workdir, an export or a released checkpoint")
    found = _open(path, config, weights)
    if text_tokenizer is not None and "text" in found.tree:
        siglip = found.model.siglip
        given = open_fitting_tokenizer(str(text_tokenizer), siglip.text_length, siglip.vocabulary)
        found = found._replace(text_tokenizer=given)
    return found


def _open(path: Path, config: str | Path | None, weights: Literal["ema", "raw"] | None) -> Pretrained:
    if path.is_file() or config is not None:
        return _open_released(path, config)
    contents = _contents(path / "config.json")
    if contents.get("model_type") == MODEL_TYPE:
        return _open_export(path)
    if "rqvaesiglip" in contents or "vq_pix" in contents:
        return _open_released(path, None)
    return open_workdir(path, weights)


def _contents(file: Path) -> dict:
    try:
        return json.loads(file.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}  # then it is taken for a workdir, whose reader says what is wrong


def _open_released(path: Path, config: str | Path | None) -> Pretrained:
    model, tree = read_released(path, config)
    folder = siglip_folder(Path(config or (path if path.is_dir() else path.parent) / "config.json"))
    words = _own_text_tokenizer(str(folder), model.siglip) if folder and "text" in tree else None
    return Pretrained(path.stem, 0, model, tree, words)


def _open_export(path: Path) -> Pretrained:
    found, words = read_export(path), None
    siglip = found.model.siglip
    if "text" in found.tree:
        words = (
            WordTokenizer(siglip.text_length, found.words)
            if found.words
            else _own_text_tokenizer(found.text_tokenizer, siglip)
        )
    return Pretrained(found.name, found.step, found.model, found.tree, words)


def _own_text_tokenizer(path: str, siglip: SiglipConfig):
    """None where there is no file: codes and pictures need none, and `embed_text` says what is missing."""
    try:
        return open_fitting_tokenizer(path, siglip.text_length, siglip.vocabulary)
    except FileNotFoundError:
        return None


def open_workdir(workdir: Path, weights: Literal["ema", "raw"] | None = None) -> Pretrained:
    """The newest checkpoint of a finished or running tokenizer run.

    `weights`: the moving average, or the raw ones; None takes the average where the run keeps one.
    Reads config.json, the newest checkpoint, `frozen/` and `text_tokenizer/`; changes nothing, whatever the devices of
    the training.

    Raises:
      ConfigError: no workdir, one of another task, or one without the average that was asked for.
      CheckpointError: nothing is saved there yet.
    """
    config = load_config(workdir)
    if weights == "ema" and config.train.ema_decay is None:
        raise ConfigError(f"{workdir} keeps no average of its weights (train.ema_decay None); ask for the raw ones")
    if config.task != "tokenizer":
        raise ConfigError(
            f"{workdir} holds a {config.task} run, which has no codes; give the workdir of a tokenizer run"
        )
    if not (workdir / FROZEN).exists():
        raise CheckpointError(
            f"{workdir} has no folder 'frozen', which holds the teacher's weights: its run is still "
            "training the teacher, or it was copied without it"
        )
    saved, siglip = Checkpoints(workdir, read_only=True).restore_fields(_FIELDS), load_frozen(workdir)["siglip"]
    params = saved["params"] if weights == "raw" or not saved["ema"] else saved["ema"]
    tree = {"params": params, "codebooks": saved["codebooks"]}
    tree |= {name: siglip[name] for name in ("text", "logit_scale", "logit_bias")}
    named = with_kept_text_tokenizer(config, workdir).text_tokenizer
    words = _own_text_tokenizer(named, config.model.siglip)
    return Pretrained(config.name, int(saved["step"]), config.model, tree, words)
