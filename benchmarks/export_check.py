"""Opens exports without JAX and compares with export_outputs.py's record; export_check.sh prepares and starts it.

python export_check.py FOLDER REPORT.json    FOLDER holds huggingface/, outputs.npz and perhaps released_*/
"""

import importlib.util
import json
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel


def main(folder: Path, report: Path) -> None:
    """Every format found; fails at the first difference."""
    for name in ("jax", "flax", "dualtoken_jax"):
        assert importlib.util.find_spec(name) is None, f"{name} is installed here, so this proves nothing"
    record = dict(np.load(folder / "outputs.npz", allow_pickle=False))
    model = AutoModel.from_pretrained(folder / "huggingface", trust_remote_code=True).eval()
    found = {"huggingface": compared(model, folder, record)}
    for path in sorted(folder.glob("released_*")):
        load_released(model, path)
        found[path.name] = compared(model, folder, record)
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": "bash benchmarks/export_check.sh WORKDIR",
        "machine": platform.machine(),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "transformers", "safetensors", "pillow")},
        "exports": found,
    }
    text = json.dumps(result, indent=1)
    report.write_text(text + "\n")
    print(text)


def load_released(model: torch.nn.Module, folder: Path) -> None:
    """Overwrites the model's weights with those of a released checkpoint, whose names are the model's own."""
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.fill_(torch.nan)  # so that nothing stays from before
    if (folder / "model.safetensors").exists():
        state = safetensors.torch.load_file(folder / "model.safetensors")
    else:
        state = torch.load(folder / "epoch_0.pt", weights_only=True)["state_dict"]
    # The released code lists a shared codebook once per depth, our module once.
    extra = state.keys() - model.state_dict().keys()
    for name in extra:
        first = ".codebooks.0.".join(name.split(f".codebooks.{name.split('.')[2]}.", 1))
        assert torch.equal(state[name], state[first]), name
    model.load_state_dict({name: tensor for name, tensor in state.items() if name not in extra}, strict=True)


def compared(model: torch.nn.Module, folder: Path, record: dict) -> dict:
    """Shares and errors; asserts that they are those of rounding."""
    processor = AutoImageProcessor.from_pretrained(folder / "huggingface", trust_remote_code=True)
    pictures = [Image.fromarray(record[f"picture{i}"]) for i in range(8)]
    pixel_values = processor(pictures, return_tensors="pt").pixel_values
    codes, result = model.encode(pixel_values)._asdict(), {}
    for branch, value in codes.items():
        if value is not None:
            result[f"{branch}_codes_equal"] = float((value.numpy() == record[f"{branch}_codes"]).mean())
            assert result[f"{branch}_codes_equal"] >= 0.9999, result
    if "images" in record:
        images = model.decode(torch.from_numpy(record[f"{model.decoder_branch}_codes"]).long()).clamp(-1, 1)
        levels = ((images + 1) * 127.5).round().numpy().transpose(0, 2, 3, 1)
        result["image_levels_of_255"] = float(np.abs(levels - record["images"]).max())
        assert result["image_levels_of_255"] <= 1, result
    ours = {"image_embeddings": model.embed_image(pixel_values)}
    if model.config.words is not None:
        ours["text_embeddings"] = model.embed_text(model.tokenize([str(text) for text in record["texts"]]))
    for name, value in ours.items():
        result[name] = float(np.abs(value.numpy() - record[name]).max())
        assert result[name] < 1e-4, result
    return result


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
