"""SigLIP and SigLIP 2 weights, from a Hugging Face directory or a big_vision .npz, at the resolution that is wanted."""

import logging
from pathlib import Path

from dualtoken_jax.interop import positions
from dualtoken_jax.interop.big_vision import big_vision_table, read_shapes, unscanned
from dualtoken_jax.interop.files import StateDict, WeightFileError, read_tensors
from dualtoken_jax.interop.name_table import to_tree
from dualtoken_jax.interop.released import module_shapes
from dualtoken_jax.interop.released_names import siglip_table
from dualtoken_jax.interop.siglip_config import differences, is_huggingface, read_huggingface_config
from dualtoken_jax.models.siglip import Siglip, SiglipConfig

log = logging.getLogger("dualtoken_jax")
_HUGGINGFACE_POSITIONS = "vision_model.embeddings.position_embedding.weight"
_BIG_VISION_POSITIONS = "img.pos_embedding"


def holds_siglip(path: str | Path) -> bool:
    """Whether `path` is of the kind that `load_siglip` reads: a .npz, or a folder with transformers' config.json."""
    return Path(path).suffix == ".npz" or is_huggingface(path)


def read_siglip_config(path: str | Path) -> SiglipConfig:
    """The architecture of a Hugging Face SigLIP directory, or what the shapes in a big_vision .npz tell of it.

    Raises FileNotFoundError for what is not there, WeightFileError for what is damaged or another model.
    """
    if Path(path).suffix == ".npz":
        return read_shapes(unscanned(read_tensors(path)), str(path))
    return read_huggingface_config(path)


def load_siglip(path: str | Path, config: SiglipConfig) -> dict:
    """Parameters of `Siglip`, a nested dict of float32 host arrays, from what `holds_siglip`.

    Where `config` wants another grid of patches than the file has, the position embeddings are resampled as the
    program that the file belongs to does it, without antialiasing, and the log says so.

    Raises:
      FileNotFoundError: no such file or folder, or no weights in it.
      WeightFileError: damaged, hostile, or another architecture; names every difference.
      ValueError: every missing, unexpected and mis-shaped tensor at once.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there are no SigLIP weights at {path}")
    if path.suffix == ".npz":
        tensors = unscanned(read_tensors(path))
        _check_architecture(path, read_shapes(tensors, str(path)), config)
        table, name, resample = big_vision_table(config), _BIG_VISION_POSITIONS, _resampled_batch
    else:
        _check_architecture(path, read_huggingface_config(path), config)
        tensors = read_tensors(path)
        table, name, resample = siglip_table(config), _HUGGINGFACE_POSITIONS, positions.bicubic
    tensors = _at_grid(tensors, name, config.grid, resample)
    return to_tree(table, tensors, module_shapes(Siglip, config), f"{path} is not the SigLIP that its size says")


def _check_architecture(path: Path, found: SiglipConfig, wanted: SiglipConfig) -> None:
    if lines := differences(found, wanted):
        listed = "\n  ".join(lines)
        raise WeightFileError(
            f"{path} holds another SigLIP than model.siglip:\n  {listed}\nName other weights, or set model.siglip so"
        )


def _at_grid(tensors: StateDict, name: str, grid: int, resample) -> StateDict:
    old = tensors.get(name)
    if old is None or old.shape[-2] == grid * grid:
        return tensors
    side = round(old.shape[-2] ** 0.5)
    log.info(
        "position embeddings resampled from %d × %d patches to %d × %d without antialiasing, as the file's own program "
        "does",
        *(side, side, grid, grid),
    )
    return tensors | {name: resample(old, grid)}


def _resampled_batch(old, grid):
    return positions.bilinear(old[0], grid)[None]
