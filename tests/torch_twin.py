"""The PyTorch module with any tree's weights. Import it instead of dualtoken_jax.interop.torch_model."""

import dataclasses

import jax
import numpy as np
import torch_packages

torch, _ = torch_packages.imported("torch"), torch_packages.imported("transformers")

from dualtoken_jax.interop.name_table import to_state_dict  # noqa: E402
from dualtoken_jax.interop.released import model_shapes  # noqa: E402
from dualtoken_jax.interop.released_names import model_table  # noqa: E402
from dualtoken_jax.interop.torch_model import DualTokenConfig as TorchConfig  # noqa: E402
from dualtoken_jax.interop.torch_model import DualTokenModel, namespace, nearest_code  # noqa: E402, F401
from dualtoken_jax.interop.torch_model import Quantizer as TorchQuantizer  # noqa: E402, F401
from dualtoken_jax.models.dualtoken import DualTokenConfig  # noqa: E402


def random_tree(config: DualTokenConfig, text: bool = True) -> dict:
    """Weights of a sensible scale, none of them zero or one."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name, noise = path[-1].key, rng.standard_normal(leaf.shape, np.float32)
        if name == "scale":
            return 1 + 0.1 * noise
        if name == "count":
            return np.abs(noise)
        fan_in = np.prod(leaf.shape[:-1]) / (leaf.shape[0] if "layers" in str(path) else 1)
        return noise / np.sqrt(fan_in).astype(np.float32) if name == "kernel" else 0.3 * noise

    return jax.tree_util.tree_map_with_path(draw, model_shapes(config, text))


def torch_twin(tree: dict, config: DualTokenConfig) -> DualTokenModel:
    """The PyTorch module with these weights."""
    text = "text" in tree
    model = DualTokenModel(TorchConfig(architecture=dataclasses.asdict(config), text_tower=text)).eval()
    table = [entry for entry in model_table(config, text) if not entry.alias]
    model.load_state_dict({name: torch.from_numpy(x.copy()) for name, x in to_state_dict(table, tree).items()})
    return model
