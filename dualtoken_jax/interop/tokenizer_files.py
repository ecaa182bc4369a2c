"""A run's tokenizer for AutoTokenizer, which then gives the ids that data/text.py gives."""

import json
import shutil
from pathlib import Path

from dualtoken_jax.data.text import FILES, text_tokenizer_file
from dualtoken_jax.interop.output import write_json

_SIGLIP = {
    "tokenizer_class": "SiglipTokenizer",
    "do_lower_case": True,
    "eos_token": "</s>",
    "pad_token": "</s>",
    "unk_token": "<unk>",
}
_GEMMA = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": "<eos>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "padding_side": "right",
}


def copy_text_tokenizer(source: Path, folder: Path, length: int) -> None:
    """What `text_tokenizer_file` finds in `source`, and a tokenizer_config.json.

    tokenizer.json itself is told to lower the case and to end with <eos>: published ones leave that to a class or to
    the caller.
    """
    file = text_tokenizer_file(source)
    if file.suffix == ".model":
        shutil.copy(file, folder / FILES[file.suffix])
        settings = _SIGLIP
    else:
        write_json(folder / FILES[file.suffix], _as_trained(json.loads(file.read_text())))
        settings = _GEMMA
    write_json(
        folder / "tokenizer_config.json",
        settings | {"model_max_length": length, "model_input_names": ["input_ids"]},
    )


def _as_trained(tokenizer: dict) -> dict:
    own = [tokenizer["normalizer"]] if tokenizer.get("normalizer") else []
    vocabulary = tokenizer["model"]["vocab"] | {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    text, end = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<eos>", "type_id": 0}}
    return tokenizer | {
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *own]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [text, end],
            "pair": [text, end, {"Sequence": {"id": "B", "type_id": 1}}, end],
            "special_tokens": {"<eos>": {"id": "<eos>", "ids": [vocabulary["<eos>"]], "tokens": ["<eos>"]}},
        },
        "padding": None,
        "truncation": None,
    }
