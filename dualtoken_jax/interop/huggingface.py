"""A trained tokenizer as a folder that transformers opens with `trust_remote_code=True`, and back."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import NamedTuple

from dualtoken_jax.config import from_dict
from dualtoken_jax.interop.files import WeightFileError, read_tensors
from dualtoken_jax.interop.name_table import Entry, to_state_dict, to_tree
from dualtoken_jax.interop.output import write_json, write_shards
from dualtoken_jax.interop.released import has_text, model_shapes
from dualtoken_jax.interop.released_names import model_table
from dualtoken_jax.interop.tokenizer_files import copy_text_tokenizer
from dualtoken_jax.models.dualtoken import DualTokenConfig

CONFIG = "config.json"
MODEL_TYPE = "dualtoken"
_CODE = {"modeling_dualtoken.py": "torch_model.py", "image_processing_dualtoken.py": "torch_images.py"}  # there → here


class Export(NamedTuple):
    """What `read_export` finds."""

    model: DualTokenConfig
    tree: dict  # as `import_released` returns it
    name: str  # of the recipe
    step: int  # of the checkpoint
    text_tokenizer: str  # folder of the tokenizer's file; '' is that of the scenes' words, and of models without texts
    words: list[str] | None  # of the scenes' word tokenizer, where that is the one


def write_export(folder: Path, export: Export, weights: str, card: str, max_shard_bytes: int) -> None:
    """Fills `folder` with weights, code, configurations, tokenizer and the model card `card`.

    `weights` says in config.json whether they are the averaged ('ema') or the 'raw' ones. Not in an export: the
    optimizer's moments, the discriminator, the teacher's vision tower, the LPIPS network, and the other of the two
    sets of weights.
    """
    text = "text" in export.tree
    write_shards(folder, to_state_dict(_table(export.model, text), export.tree), max_shard_bytes)
    source = {"recipe": export.name, "step": export.step, "weights": weights}
    write_json(
        folder / CONFIG,
        {
            "architectures": ["DualTokenModel"],
            "model_type": MODEL_TYPE,
            "auto_map": {
                "AutoConfig": "modeling_dualtoken.DualTokenConfig",
                "AutoModel": "modeling_dualtoken.DualTokenModel",
            },
            "torch_dtype": "float32",
            "text_tower": text,
            "words": export.words,
            "source": source,
            "architecture": dataclasses.asdict(export.model),
        },
    )
    write_json(folder / "preprocessor_config.json", _preprocessor(export.model.siglip.image_size))
    for there, here in _CODE.items():
        shutil.copy(Path(__file__).parent / here, folder / there)
    if export.text_tokenizer:
        copy_text_tokenizer(Path(export.text_tokenizer), folder, export.model.siglip.text_length)
    (folder / "README.md").write_text(card)


def read_export(path: str | Path) -> Export:
    """The inverse of `write_export`, bit for bit.

    Raises FileNotFoundError for what is not there, WeightFileError for another kind of folder or damaged files,
    ValueError for tensors that do not fit.
    """
    path = Path(path)
    if not (path / CONFIG).exists():
        raise FileNotFoundError(f"there is no {path / CONFIG}; give the folder of a Hugging Face export")
    try:
        found = json.loads((path / CONFIG).read_text())
        if found["model_type"] != MODEL_TYPE:
            raise WeightFileError(f"{path} holds a model of type {found['model_type']!r}, not {MODEL_TYPE!r}")
        model = from_dict(found["architecture"], DualTokenConfig, "architecture")
        source, text, words = found["source"], found["text_tower"], found["words"]
        name, step = source["recipe"], source["step"]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise WeightFileError(f"{path / CONFIG} is damaged or of another program: {error!r}; export again") from error
    tensors = read_tensors(path)
    if has_text(tensors) != text:
        raise WeightFileError(f"{path}: config.json says text_tower {text}, its weights do not; export again")
    tree = to_tree(_table(model, text), tensors, model_shapes(model, text), f"{path} does not fit its config.json")
    return Export(model, tree, name, step, str(path) if text and words is None else "", words)


def _table(model: DualTokenConfig, text: bool) -> list[Entry]:
    return [entry for entry in model_table(model, text) if not entry.alias]


def _preprocessor(resolution: int) -> dict:
    half = [0.5, 0.5, 0.5]
    return {
        "image_processor_type": "CLIPImageProcessor",  # for programs that may not run the code beside it
        "auto_map": {"AutoImageProcessor": "image_processing_dualtoken.DualTokenImageProcessor"},
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": resolution},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": resolution, "width": resolution},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": half,
        "image_std": half,
    }
