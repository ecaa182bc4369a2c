"""Checkpoints of the released PyTorch code as files: the weights, their config.json and the SigLIP it points to."""

from pathlib import Path
from typing import Literal

import numpy as np

from dualtoken_jax.interop.files import INDEX, SINGLE, WeightFileError, read_tensors
from dualtoken_jax.interop.name_table import StateDict
from dualtoken_jax.interop.output import write_json, write_safetensors
from dualtoken_jax.interop.released import (
    current_names,
    export_released,
    export_siglip,
    export_siglip_vision,
    import_released,
)
from dualtoken_jax.interop.released_config import read_released_config, released_config_json
from dualtoken_jax.interop.siglip_config import huggingface_config
from dualtoken_jax.interop.tokenizer_files import copy_text_tokenizer
from dualtoken_jax.models.dualtoken import DualTokenConfig

CONFIG = "config.json"
_SIGLIP = "siglip"  # folder of the teacher and initial tower beside the weights


def read_released(path: str | Path, config_path: str | Path | None = None) -> tuple[DualTokenConfig, dict]:
    """A released checkpoint, EMA statistics of the codebooks included, as a config and a tree (see `import_released`).

    `path` is a .pt, .pth or .safetensors file, or a folder with one; `config_path` is its config.json, by default the
    one in the same folder.

    Raises FileNotFoundError for what is not there, WeightFileError for what is damaged or hostile, ValueError for
    another model; all name the file.
    """
    path = Path(path)
    file = _weight_file(path) if path.is_dir() else path
    folder = path if path.is_dir() else path.parent
    tensors = current_names(read_tensors(file))
    config = read_released_config(Path(config_path or folder / CONFIG), tensors)
    try:
        return config, import_released(tensors, config)
    except ValueError as error:
        raise WeightFileError(f"{file}: {error}") from error


def _weight_file(folder: Path) -> Path:
    if (folder / SINGLE).exists() or (folder / INDEX).exists():
        return folder
    found = sorted(file for kind in ("*.pt", "*.pth") for file in folder.glob(kind))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise FileNotFoundError(f"{folder} must hold {SINGLE} or one .pt file, found {names}; name the file itself")
    return found[0]


def write_released(
    folder: Path,
    config: DualTokenConfig,
    tree: dict,
    siglip: dict,
    name: str,
    tokenizer: str,
    file: Literal["pt", "safetensors"],
) -> None:
    """Fills `folder` with the weights, a config.json and the folder `siglip` that the released code builds on.

    `siglip`: parameters of `Siglip`, the teacher; `tokenizer`: its tokenizer's file, or folder with it, or ''. Without
    a text tower in `tree` the state dict lacks its tensors, and the released code loads it with `strict=False` only.

    The format has no place for the scenes' word tokenizer, the raw weights beside averaged ones, the optimizer's
    moments, the discriminator and the LPIPS network; nor for the settings that `released_config_json` lists.

    Raises ValueError for a model that the released code does not have, WeightFileError for .pt without torch.
    """
    tensors = export_released(tree, config)
    write_json(folder / CONFIG, released_config_json(config, _SIGLIP))
    if file == "pt":
        _write_torch(folder / "epoch_0.pt", tensors, name)
    else:
        write_safetensors(folder / SINGLE, tensors)
    (folder / _SIGLIP).mkdir()
    write_json(folder / _SIGLIP / CONFIG, huggingface_config(config.siglip))
    teacher = (export_siglip if "text" in tree else export_siglip_vision)(siglip, config.siglip)
    write_safetensors(folder / _SIGLIP / SINGLE, teacher)
    if tokenizer:
        copy_text_tokenizer(Path(tokenizer), folder / _SIGLIP, config.siglip.text_length)


def _write_torch(file: Path, tensors: StateDict, name: str) -> None:
    try:
        import torch
    except ImportError as error:
        raise WeightFileError("a .pt file needs torch: pip install torch, or use --file=safetensors") from error
    state = {key: torch.from_numpy(np.require(x, requirements="W")) for key, x in tensors.items()}
    # Epochs are the released code's way to count; a run of ours counts steps, and starts there as a new one.
    torch.save({"epoch": 0, "name": name, "state_dict": state}, file)
