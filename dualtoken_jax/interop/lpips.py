"""The weights of LPIPS over VGG16, in every layout in which they are handed about."""

import re
from pathlib import Path

import numpy as np
from flax import nnx

from dualtoken_jax.interop.files import StateDict, WeightFileError, read_tensors
from dualtoken_jax.interop.name_table import Entry, Layout, linear, to_tree
from dualtoken_jax.interop.published import check_digest
from dualtoken_jax.models.vgg import SCALE, SHIFT, Lpips, VggConfig

_VGG16 = VggConfig()
_SUFFIXES = (".npz", ".safetensors", ".pth", ".pt")
_CHANNELS = Layout(lambda x: (x.reshape(-1),), lambda x: x.reshape(1, -1, 1, 1))  # of a 1×1 convolution to one channel


def load_lpips(*paths: str | Path, config: VggConfig = _VGG16) -> dict:
    """Parameters of `Lpips`, a nested dict of float32 host arrays, from files or folders that hold them together.

    - one file with `features.N.*` and `lin0.model.1.weight` … `lin4.model.1.weight`;
    - torchvision's vgg16 (`features.N.*`; its `classifier.*` is not used) and the linear layers as the lpips package
      (`weights/v0.1/vgg.pth`) or taming-transformers (`vgg.pth`) keep them: two files, or a folder that holds both;
    - the state dict of the lpips package's whole module, or of taming-transformers' (`net.sliceK.N.*`).

    A file whose name carries its digest, as torchvision's does, is checked against it.

    Raises FileNotFoundError or WeightFileError as `read_tensors`, for another digest than the name's, and for constants
    other than version 0.1's; ValueError with every missing, unexpected and mis-shaped name at once.
    """
    tensors: StateDict = {}
    for file in [file for path in paths for file in _files(Path(path))]:
        check_digest(file)
        found = _renamed(read_tensors(file))
        if repeated := sorted(n for n in found.keys() & tensors.keys() if not np.array_equal(found[n], tensors[n])):
            raise WeightFileError(f"{file} holds another {repeated[0]} than a file beside it; keep one of the two")
        tensors |= found
    named = " and ".join(map(str, paths))
    _check_constants(tensors, named)
    shapes = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: Lpips(config, rngs=nnx.Rngs(0))), nnx.Param))
    table = [entry for entry in lpips_table(config) if not entry.alias or entry.name in tensors]
    what = f"{named}: this is not LPIPS over VGG16, which is torchvision's vgg16 and the lpips package's vgg.pth"
    return to_tree(table, tensors, shapes, what)


def lpips_table(config: VggConfig = _VGG16) -> list[Entry]:
    """torchvision's names for the trunk, the lpips package's for the linear layers."""
    table, position = [], 0
    for name, _, _ in config.convolutions():
        if position and name.endswith("_1"):
            position += 1  # torchvision counts the ReLU after each convolution and the pooling before each block
        table += linear(f"features.{position}", f"trunk.convolutions.{name}")
        position += 2
    for block in range(len(config.widths)):
        path = (f"linear.linear{block + 1}",)
        table.append(Entry(f"lin{block}.model.1.weight", path, _CHANNELS))
        table.append(Entry(f"lins.{block}.model.1.weight", path, _CHANNELS, alias=True))
    return table


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.iterdir() if file.suffix in _SUFFIXES)
    if not found:
        raise FileNotFoundError(f"{path} holds no weight file ({', '.join(_SUFFIXES)}); put LPIPS's there")
    return found


def _renamed(tensors: StateDict) -> StateDict:
    names = {name: re.sub(r"^net\.slice\d+\.", "features.", name) for name in tensors}
    return {new: tensors[old] for old, new in names.items() if not new.startswith("classifier.")}


def _check_constants(tensors: StateDict, named: str) -> None:
    """Takes the constants that a whole module keeps as buffers out of `tensors`; ours are part of the network."""
    for name, ours in (("shift", SHIFT), ("scale", SCALE)):
        theirs = tensors.pop(f"scaling_layer.{name}", None)
        if theirs is not None and not np.allclose(theirs.reshape(-1), ours, atol=1e-6):
            raise WeightFileError(f"{named}: scaling_layer.{name} is {theirs.reshape(-1)}, not {ours} of LPIPS 0.1")
