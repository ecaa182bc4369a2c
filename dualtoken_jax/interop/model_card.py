"""README.md of a Hugging Face export: what it is, how it is used, what was measured, how it was trained."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from dualtoken_jax.config import Config
from dualtoken_jax.evaluation.report import command, format_value, supervision
from dualtoken_jax.models.dualtoken import DualTokenConfig

_PARTS = ("model", "train", "optimizer", "loss", "freeze", "discriminator", "discriminator_optimizer")


def model_card(config: Config, step: int, weights: str, results: Mapping[str, Any] | None, words: bool, text: bool):
    """The card as Markdown. `results` are those of these weights, None where they were not evaluated."""
    sections = [_front(config, step, weights), _usage(config.model, words, text), _results(results), _recipe(config)]
    return "\n\n".join(sections) + "\n"


def _front(config, step, weights):
    which = {"ema": "moving average of the weights", "raw": "weights of the last step"}[weights]
    return (
        "---\nlibrary_name: transformers\ntags: [dualtoken, image-tokenizer]\n---\n\n"
        f"# {config.name}\n\nA DualToken visual tokenizer (Song et al., ICLR 2026, arXiv 2503.14324): images of "
        f"{config.model.siglip.image_size} px ↔ discrete codes. {supervision(config)}\n\n"
        f"Recipe `{config.name}` after {step:,} steps, {which}; trained with dualtoken_jax, whose "
        "`dualtoken_jax.load(FOLDER)` opens this folder, too."
    )


def _usage(model: DualTokenConfig, words: bool, text: bool):
    lines = [
        "from PIL import Image",
        "from transformers import AutoImageProcessor, AutoModel" + (", AutoTokenizer" if text and not words else ""),
        "",
        "model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True).eval()",
        "processor = AutoImageProcessor.from_pretrained(FOLDER, trust_remote_code=True)",
        'pixel_values = processor(Image.open(FILE), return_tensors="pt").pixel_values',
        "codes = model.encode(pixel_values)  # .pixel and .semantic [B, h, w, D]",
    ]
    if model.reconstructs:
        branch = "pixel" if "pixel" in model.branches else "semantic"
        lines.append(f"images = model.decode(codes.{branch}).clamp(-1, 1)  # [B, 3, H, W]")
    lines.append("image_embedding = model.embed_image(pixel_values)  # [B, C], unit length")
    if text and words:
        lines.append("text_embedding = model.embed_text(model.tokenize([TEXT]))")
    elif text:
        lines += [
            "tokenizer = AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=True)",
            f'settings = {{"padding": "max_length", "truncation": True, "max_length": {model.siglip.text_length}}}',
            'input_ids = tokenizer([TEXT], return_tensors="pt", **settings).input_ids',
            "text_embedding = model.embed_text(input_ids)",
        ]
    return "## Use\n\n```python\n" + "\n".join(lines) + "\n```"


def _results(results):
    if not results:
        return "## Measured\n\nThese weights were not evaluated before they were exported."
    rows = [(name, value) for name, value in results.items() if isinstance(value, (int, float))]
    table = "\n".join(f"| {name} | {format_value(value)} |" for name, value in rows)
    head = f"On {results['examples']:,} held-out pictures of the training data's kind:" if "examples" in results else ""
    return f"## Measured\n\n{head}\n\n| metric | value |\n|---|---|\n{table}"


def _recipe(config):
    parts = {name: _without_paths(dataclasses.asdict(getattr(config, name))) for name in _PARTS}
    settings = json.dumps({"seed": config.seed, "data": config.data.source} | parts, indent=1)
    return f"## Recipe\n\n`{command(config)}`\n\n```json\n{settings}\n```"


def _without_paths(values):
    """Folders of the training machine tell a reader nothing."""
    if not isinstance(values, dict):
        return values
    return {name: _without_paths(value) for name, value in values.items() if not name.endswith("path")}
