"""What one step is: pure functions of (state, batch), one file per task."""

from dualtoken_jax.config import Config
from dualtoken_jax.tasks.contrastive import Contrastive
from dualtoken_jax.tasks.tokenizer import Tokenizer


def make_task(config: Config) -> Contrastive | Tokenizer:
    """The task that the config names."""
    return {"contrastive": Contrastive, "tokenizer": Tokenizer}[config.task](config)
