"""FID's Inception weights, the `pt_inception-2015-12-05` layout, as parameters of `models.inception.Inception`."""

import functools
from pathlib import Path

from flax import nnx

from dualtoken_jax.interop.files import read_tensors
from dualtoken_jax.interop.name_table import KERNEL, Entry, part, to_tree
from dualtoken_jax.interop.published import INCEPTION, check_digest
from dualtoken_jax.models.inception import Inception

# The classifier, and a counter that BatchNorm keeps for training: in the file, and without use here.
_UNUSED = ("fc.weight", "fc.bias", ".bn.num_batches_tracked")


def load_inception(path: str | Path) -> dict:
    """Parameters of `Inception` from a .pth or .safetensors file, as a nested dict of float32 host arrays.

    A file whose name carries its digest, as the published one does, is checked against it. Raises FileNotFoundError,
    WeightFileError for what cannot be read or has another digest, ValueError with every missing, unexpected and
    mis-shaped name at once.
    """
    path = Path(path)
    check_digest(path)
    tensors = {name: tensor for name, tensor in read_tensors(path).items() if not name.endswith(_UNUSED)}
    return to_tree(inception_table(), tensors, inception_shapes(), f"{path} is not the Inception of {INCEPTION.name}")


def inception_table() -> list[Entry]:
    """Every tensor that the features need. Ours have the file's names, with a small first letter."""
    return [entry for path in _units(inception_shapes()) for entry in part(path[0].upper() + path[1:], path, _unit())]


@functools.cache
def inception_shapes() -> dict:
    """The parameters as shapes; allocates nothing."""
    return nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: Inception(nnx.Rngs(0))), nnx.Param))


def _unit() -> list[Entry]:
    return [
        Entry("conv.weight", ("kernel",), KERNEL),
        Entry("bn.weight", ("scale",)),
        Entry("bn.bias", ("bias",)),
        Entry("bn.running_mean", ("mean",)),
        Entry("bn.running_var", ("variance",)),
    ]


def _units(tree: dict, path: str = "") -> list[str]:
    if "kernel" in tree:
        return [path]
    return [unit for name, node in tree.items() for unit in _units(node, f"{path}.{name}" if path else name)]
