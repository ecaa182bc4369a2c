"""A tokenizer small enough to be killed often: the recipe that tests/chaos.py trains."""

import dataclasses

from conftest import tiny_config

from dualtoken_jax.config import to_config_dict
from dualtoken_jax.data.reading import Reading


def get_config():
    """The tiny tokenizer with discriminator, weight average and a worker process, saved every ten steps."""
    config = tiny_config()
    train = dataclasses.replace(config.train, steps=300, checkpoint_every=10, log_every=1, batch_size=16)
    return to_config_dict(
        dataclasses.replace(
            config,
            name="chaos",
            train=train,
            loss=dataclasses.replace(config.loss, generator=0.05, discriminator_start=2),
            data=dataclasses.replace(config.data, reading=Reading(threads=1, workers=1)),
        )
    )
