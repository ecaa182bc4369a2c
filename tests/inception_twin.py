"""Inception under random weights, the record of what PyTorch makes of it, and the PyTorch network itself.

The record in data/inception.npz lets every installation run the comparison; where torch is installed, the record is
compared with torch-fidelity and pytorch-fid. `python tests/inception_twin.py` writes it anew.
"""

from pathlib import Path

import numpy as np
import pytest
from torch_packages import imported

from dualtoken_jax.evaluation.image_files import clean_bicubic, tensorflow_bilinear
from dualtoken_jax.interop.inception import inception_shapes, inception_table
from dualtoken_jax.interop.name_table import to_state_dict

RECORD = Path(__file__).parent / "data" / "inception.npz"


def images() -> list[np.ndarray]:
    """Three sizes that shrink and grow to 299."""
    rng = np.random.RandomState(0)
    return [rng.randint(0, 256, (*size, 3)).astype(np.uint8) for size in ((64, 64), (256, 256), (301, 347))]


def pixels() -> np.ndarray:
    """float32 [4, 299, 299, 3]: what Inception sees of the images under `adm`, and of the second under `official`."""
    return np.stack([tensorflow_bilinear(image) for image in images()] + [clean_bicubic(images()[1])])


def random_state() -> dict[str, np.ndarray]:
    """A state dict of the published layout, classifier included, with random weights and statistics."""
    rng = np.random.RandomState(1)
    zeros = _map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), inception_shapes())
    state = {name: _draw(rng, name, x.shape) for name, x in to_state_dict(inception_table(), zeros).items()}
    return state | {"fc.weight": np.zeros((1008, 2048), np.float32), "fc.bias": np.zeros(1008, np.float32)}


def _draw(rng, name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name.endswith("conv.weight"):
        return rng.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape).astype(np.float32)
    low, high = {"weight": (0.7, 1.3), "running_var": (0.5, 1.5)}.get(name.rsplit(".", 1)[1], (-0.2, 0.2))
    return rng.uniform(low, high, shape).astype(np.float32)


def _map(function, tree):
    return {key: _map(function, node) for key, node in tree.items()} if isinstance(tree, dict) else function(tree)


def torch_features() -> np.ndarray:
    """[4, 2048]: torch-fidelity of the three images, from uint8 on, and pytorch-fid's network of clean-fid's pixels."""
    fidelity = imported("torch_fidelity.feature_extractor_inceptionv3")
    package = imported("pytorch_fid.inception")
    import torch

    state = {name: torch.tensor(tensor) for name, tensor in random_state().items()}
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(fidelity.torch, "load", lambda *args, **options: state)
        patch.setattr(package, "load_state_dict_from_url", lambda *args, **options: state)
        extractor = fidelity.FeatureExtractorInceptionV3("random", ["2048"], feature_extractor_weights_path="patched")
        network = package.InceptionV3([3], resize_input=False, normalize_input=False).eval()
        found = [extractor(_channels_first(image))[0][0].numpy() for image in images()]
        # clean-fid's network is a download; its features are pool_3 of (x − 128) / 128.
        clean = (_channels_first(clean_bicubic(images()[1])) - 128) / 128
        return np.stack([*found, network(clean)[0].flatten().numpy()])


def _channels_first(image: np.ndarray):
    import torch

    return torch.tensor(image).permute(2, 0, 1)[None]


if __name__ == "__main__":
    np.savez_compressed(RECORD, features=torch_features())
