"""--config=FILE[:VARIANT] and --config.FIELD=VALUE as absl's flags, whose errors are one line and exit code USAGE."""

import contextlib
import sys
from collections.abc import Iterator

from absl import flags
from ml_collections import config_flags

from dualtoken_jax import exit_codes

_MEANT_FOR_PEOPLE = ("ValueError: ", "dualtoken_jax.config.ConfigError: ")


def define_recipe(default: str) -> flags.FlagHolder:
    """The flag --config, whose value is a ConfigDict once `parse` has been called."""
    with _one_line():  # without --config on the command line, the overrides of the default are applied here
        return config_flags.DEFINE_config_file("config", default, "Recipe, with ':VARIANT' after the file.")


def parse(arguments: list[str]) -> list[str]:
    """As absl's flags parser, for app.run; returns what is no flag."""
    with _one_line():
        rest = flags.FLAGS(arguments)
        _ = flags.FLAGS.config.to_dict  # raises where the file could not be loaded
        return rest


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except (flags.Error, AttributeError, OSError, TypeError, ValueError) as error:
        print(f"error: {_said(error)}", file=sys.stderr)
        sys.exit(exit_codes.USAGE)


def _said(error: Exception) -> str:
    while error.args and isinstance(error.args[0], Exception):  # ml_collections wraps a KeyError, which quotes itself
        error = error.args[0]
    text = str(error.args[0] if error.args else error)
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [repr(error)]
    if isinstance(error, (AttributeError, KeyError)):
        return f"no setting is called {' '.join(lines)}; dualtoken_jax/config.py lists them all"
    if isinstance(error, OSError):
        return f"--config: the recipe cannot be read: {str(error).splitlines()[-1].strip()}"
    if "Traceback" in text:  # the recipe's own, which ml_collections formats
        kind = next((kind for kind in _MEANT_FOR_PEOPLE if lines[-1].startswith(kind)), None)
        return lines[-1].removeprefix(kind) if kind else text
    return " ".join(lines)
