"""Image–text contrastive training of a SigLIP (Zhai et al. 2023): the demo's teacher on its own.

python -m dualtoken_jax.main --config=configs/siglip.py:demo
"""

from configs import tokenizer
from dualtoken_jax.config import teacher_config, to_config_dict


def get_config(variant: str = "demo"):
    """The teacher of the tokenizer recipe of that name, as a run of its own."""
    return to_config_dict(teacher_config(tokenizer.recipe(variant)))
