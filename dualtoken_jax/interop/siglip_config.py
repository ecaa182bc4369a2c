"""The architecture in the config.json of a Hugging Face SigLIP directory, and what differs from a wanted one."""

import json
from pathlib import Path

from dualtoken_jax.interop.files import WeightFileError
from dualtoken_jax.models.siglip import SiglipConfig, TowerConfig

CONFIG = "config.json"
# transformers writes only what differs from its classes' defaults, which are the base size's.
_TOWER = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_FIXED = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}  # what our towers compute
_VISION = {**_TOWER, **_FIXED, "image_size": 224, "patch_size": 16, "num_channels": 3, "vision_use_head": True}
_TEXT = {**_TOWER, **_FIXED, "vocab_size": 32_000, "max_position_embeddings": 64, "projection_size": None}


def is_huggingface(path: str | Path) -> bool:
    """Whether a folder's config.json is one of transformers', rather than that of a run of ours."""
    file = Path(path) / CONFIG
    return file.is_file() and "model_type" in _read(file)


def read_huggingface_config(folder: str | Path) -> SiglipConfig:
    """The towers of a Hugging Face SigLIP or SigLIP 2 directory of fixed resolution.

    Raises FileNotFoundError without a config.json, WeightFileError for a damaged one and for models that our towers
    do not compute, NaFlex among them.
    """
    file = Path(folder) / CONFIG
    if not file.is_file():
        raise FileNotFoundError(f"{folder} has no {CONFIG}, which a Hugging Face SigLIP directory holds")
    values = _read(file)
    kind = values.get("model_type")
    if kind == "siglip2":
        raise WeightFileError(
            f"{file} describes a NaFlex model (model_type 'siglip2'), whose towers take any aspect ratio; use one of "
            "fixed resolution (model_type 'siglip'), such as google/siglip2-so400m-patch16-256"
        )
    if kind != "siglip":
        raise WeightFileError(f"{file} describes a model of type {kind!r}; give a SigLIP with both towers ('siglip')")
    vision = _VISION | (values.get("vision_config") or {})
    text = _TEXT | (values.get("text_config") or {})
    _refuse_others(file, vision, text)
    return SiglipConfig(
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        vision=_tower(vision),
        text=_tower(text),
        vocabulary=text["vocab_size"],
        text_length=text["max_position_embeddings"],
    )


def huggingface_config(config: SiglipConfig) -> dict:
    """What `read_huggingface_config` reads, as transformers' SiglipModel wants it."""
    vision, text = (
        {
            "model_type": f"siglip_{name}_model",
            "hidden_size": tower.width,
            "num_hidden_layers": tower.depth,
            "num_attention_heads": tower.heads,
            "intermediate_size": tower.mlp_width,
        }
        for name, tower in (("vision", config.vision), ("text", config.text))
    )
    vision |= {"image_size": config.image_size, "patch_size": config.patch_size}
    text |= {"vocab_size": config.vocabulary, "max_position_embeddings": config.text_length}
    text["projection_size"] = config.vision.width
    names = {"architectures": ["SiglipModel"], "model_type": "siglip", "torch_dtype": "float32"}
    return names | {"vision_config": vision, "text_config": text}


def differences(found: SiglipConfig, wanted: SiglipConfig) -> list[str]:
    """One line for each way in which a file's architecture is not the wanted one; the resolution may differ."""
    lines = []
    for name in ("patch_size", "vision", "text", "vocabulary", "text_length"):
        theirs, ours = getattr(found, name), getattr(wanted, name)
        if isinstance(theirs, TowerConfig):
            pairs = {f"{name}.{field}": (value, getattr(ours, field)) for field, value in vars(theirs).items()}
        else:
            pairs = {name: (theirs, ours)}
        lines += [f"{field}: the file has {a}, wanted {b}" for field, (a, b) in pairs.items() if a != b]
    return lines


def _read(file: Path) -> dict:
    try:
        values = json.loads(file.read_text())
    except ValueError as error:
        raise WeightFileError(f"{file} is damaged: {error}; fetch it again") from error
    if not isinstance(values, dict):
        raise WeightFileError(f"{file} holds {type(values).__name__}, not a configuration; fetch it again")
    return values


def _refuse_others(file, vision, text):
    problems = [
        f"{tower}.{name} = {values[name]!r}, not {wanted!r}"
        for tower, values, expected in (
            ("vision_config", vision, _FIXED | {"num_channels": 3, "vision_use_head": True}),
            ("text_config", text, _FIXED | {"projection_size": text["projection_size"] and vision["hidden_size"]}),
        )
        for name, wanted in expected.items()
        if values[name] != wanted
    ]
    if text["projection_size"] is None and text["hidden_size"] != vision["hidden_size"]:
        problems.append(
            f"the text width {text['hidden_size']} is not projected to the vision's {vision['hidden_size']}"
        )
    problems += [
        f"vision_config.{name} = {vision[name]!r}, not one number"
        for name in ("image_size", "patch_size")
        if not isinstance(vision[name], int)
    ]
    if problems:
        raise WeightFileError(f"{file} describes a SigLIP that is not supported: {'; '.join(problems)}")


def _tower(values: dict) -> TowerConfig:
    return TowerConfig(
        width=values["hidden_size"],
        depth=values["num_hidden_layers"],
        heads=values["num_attention_heads"],
        mlp_width=values["intermediate_size"],
    )
