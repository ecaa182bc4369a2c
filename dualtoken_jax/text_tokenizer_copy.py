"""A workdir's own copy of the text tokenizer's file, which a run needs long after the original has moved."""

import dataclasses
import shutil
from pathlib import Path

from dualtoken_jax.agreement import by_first
from dualtoken_jax.config import Config, ConfigError
from dualtoken_jax.data.text import FILES, text_tokenizer_file
from dualtoken_jax.frozen_weights import FROZEN

FOLDER = "text_tokenizer"


def keep_text_tokenizer(config: Config, workdir: Path) -> Config:
    """Copies the tokenizer that the config names into a claimed workdir and returns the config that names the copy.

    Raises FileNotFoundError or ValueError, as `text_tokenizer_file`, where neither the file nor a copy is there.
    """
    by_first(lambda: _copy(config, workdir), ConfigError)  # and the other hosts read the copy
    return with_kept_text_tokenizer(config, workdir)


def _copy(config: Config, workdir: Path) -> None:
    kept = Path(workdir) / FOLDER
    learned_with_it = kept.exists() and is_trained(workdir)
    if config.text_tokenizer and not learned_with_it and not is_kept(config, workdir):
        draft = kept.with_name(f"{FOLDER}.tmp")
        shutil.rmtree(draft, ignore_errors=True)  # left over where an earlier copy was cut off
        file = text_tokenizer_file(config.text_tokenizer)
        draft.mkdir()
        shutil.copyfile(file, draft / FILES[file.suffix])
        if kept.exists():
            shutil.rmtree(kept)  # a copy of another file: `check_copy` lets nothing else come so far
        draft.rename(kept)


def with_kept_text_tokenizer(config: Config, workdir: Path) -> Config:
    """The config with the workdir's own copy of the tokenizer, where it has one, in place of the original."""
    kept = Path(workdir) / FOLDER
    if not config.text_tokenizer or not kept.exists() or _names(config, kept):
        return config
    return dataclasses.replace(config, text_tokenizer=str(kept))


def is_trained(workdir: Path) -> bool:
    """Whether anything in the workdir has learned with its text tokenizer."""
    return (Path(workdir) / FROZEN).exists() or any((Path(workdir) / "checkpoints").glob("[0-9]*"))


def is_kept(config: Config, workdir: Path) -> bool:
    """Whether the workdir's copy is all that the config needs: the same file, or all that is left of it."""
    kept = Path(workdir) / FOLDER
    if not config.text_tokenizer or not kept.exists():
        return False
    if _names(config, kept) or not Path(config.text_tokenizer).exists():
        return True
    ours, theirs = text_tokenizer_file(kept), text_tokenizer_file(config.text_tokenizer)
    return ours.suffix == theirs.suffix and ours.read_bytes() == theirs.read_bytes()


def check_copy(config: Config, workdir: Path, before: Config | None) -> None:
    """Raises for a tokenizer that may not replace the workdir's copy; `before` is the workdir's config, if it has one.

    ConfigError where the 'copy' is the user's own folder; FileNotFoundError for a newly named file that is not there.
    """
    kept = Path(workdir) / FOLDER
    if not config.text_tokenizer or not kept.exists() or _names(config, kept):
        return
    if before is not None and before.text_tokenizer != config.text_tokenizer:
        text_tokenizer_file(config.text_tokenizer)
    if not is_kept(config, workdir) and (before is None or not before.text_tokenizer or _names(before, kept)):
        raise ConfigError(
            f"{kept} is in the way of a copy of {config.text_tokenizer} and no earlier copy: move it, or choose "
            "another --workdir"
        )


def _names(config: Config, kept: Path) -> bool:
    named = Path(config.text_tokenizer)
    return bool(config.text_tokenizer) and named.exists() and named.resolve().is_relative_to(kept.resolve())
