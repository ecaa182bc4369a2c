"""Weight files of the PyTorch world → named host arrays. The only place that opens them, so nothing else unpickles."""

import json
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from dualtoken_jax.interop.name_table import StateDict

INDEX = "model.safetensors.index.json"  # of weights in several shards, as Hugging Face writes them
SINGLE = "model.safetensors"
_SAFE_TORCH = (2, 10)  # earlier ones can be tricked in spite of weights_only=True
_NESTED = "state_dict"  # training checkpoints keep the weights under this key


class WeightFileError(ValueError):
    """A weight file that cannot be read; the message names the file, what is wrong and the remedy."""


def read_tensors(path: str | Path) -> StateDict:
    """All tensors of a .safetensors, .npz, .pt or .pth file, or of a folder with (sharded) `model.safetensors`.

    A training checkpoint's `state_dict` is unwrapped. PyTorch files are read with `weights_only=True` and need torch.
    bfloat16 becomes float32, which holds it exactly; other types stay.

    Raises FileNotFoundError for what is not there, WeightFileError for what is damaged, hostile or of another kind.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no weight file {path}")
    try:
        if path.is_dir():
            return _read_folder(path)
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return {name: _plain(tensor) for name, tensor in archive.items()}
        if path.suffix in (".pt", ".pth"):
            return _read_torch(path)
    except (WeightFileError, FileNotFoundError):
        raise
    except (ValueError, LookupError, EOFError, OSError, RuntimeError, zipfile.BadZipFile) as error:
        raise WeightFileError(f"{path} is damaged or no weight file: {error}; fetch it again") from error
    kind = path.suffix or "a file without a suffix"
    raise WeightFileError(f"{path}: cannot read {kind}; give a .safetensors, .npz, .pt or .pth file")


def _read_folder(folder: Path) -> StateDict:
    if (folder / SINGLE).exists():
        return _read_safetensors(folder / SINGLE)
    if not (folder / INDEX).exists():
        raise FileNotFoundError(f"{folder} holds neither {SINGLE} nor {INDEX}")
    shards = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
    if missing := [name for name in shards if not (folder / name).exists()]:
        raise FileNotFoundError(f"{folder} lacks the shards {', '.join(missing)} that {INDEX} names")
    return {name: tensor for shard in shards for name, tensor in _read_safetensors(folder / shard).items()}


def _read_safetensors(path: Path) -> StateDict:
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: _plain(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise WeightFileError(f"{path} is damaged or no safetensors file: {error}; fetch it again") from error


def _plain(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.dtype("V2"):  # how .npz files keep bfloat16, a type that plain numpy cannot name
        array = array.view(ml_dtypes.bfloat16)
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def _read_torch(path: Path) -> StateDict:
    import pickle

    try:
        import torch
    except ImportError as error:
        raise WeightFileError(
            f"{path} is a PyTorch file, and torch is not installed: pip install torch, or convert it to safetensors"
        ) from error
    if (version := tuple(map(int, torch.__version__.split(".")[:2]))) < _SAFE_TORCH:
        raise WeightFileError(
            f"{path}: torch {'.'.join(map(str, version))} may run what is hidden in a weight file; "
            "pip install 'torch>=2.10', or convert the file to safetensors"
        )
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch refuses a class that it does not know by its name, and bytes that it does not know by their number.
        what = "holds more than tensors" if "GLOBAL" in str(error) else "is damaged or holds more than tensors"
        raise WeightFileError(
            f"{path} {what}, and loading it could run any program: {error}; "
            "convert it to safetensors where it comes from a source you trust"
        ) from error
    found = found.get(_NESTED, found) if isinstance(found, dict) else found
    if not isinstance(found, dict) or not found:
        raise WeightFileError(f"{path} holds no state dict but {type(found).__name__}")
    tensors = {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise WeightFileError(f"{path} holds no tensors; its keys are {sorted(map(str, found))[:10]}")
    to_numpy = lambda t: (t.float() if t.dtype == torch.bfloat16 else t).numpy()  # noqa: E731
    return {name: to_numpy(value) for name, value in tensors.items()}
