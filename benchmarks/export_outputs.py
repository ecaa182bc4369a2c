"""What a run's tokenizer makes of a few pictures and texts, for export_check.py to compare with.

python benchmarks/export_outputs.py --workdir=DIR --output=outputs.npz
"""

import argparse
from pathlib import Path

import numpy as np

import dualtoken_jax

TEXTS = ["a red circle", "Two blue squares, above a green star.", "zwölf Boxkämpfer"]


def main() -> None:
    """Encodes, decodes and embeds eight pictures that are smooth and of odd sizes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    flags = parser.parse_args()
    tokenizer = dualtoken_jax.load(flags.workdir)
    rng = np.random.default_rng(0)
    pictures = {f"picture{i}": smooth(rng, 40 + 7 * i, 90 - 5 * i) for i in range(8)}
    codes = tokenizer.encode(list(pictures.values()))
    found = {f"{name}_codes": value for name, value in codes._asdict().items() if value is not None}
    if tokenizer.model.reconstructs:
        found["images"] = tokenizer.decode(codes)
    found["image_embeddings"] = tokenizer.embed_image(list(pictures.values()))
    found["text_embeddings"] = tokenizer.embed_text(TEXTS)
    np.savez(flags.output, texts=np.array(TEXTS), **pictures, **found)


def smooth(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A few coloured waves, uint8 [H, W, 3]."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(rng.uniform(0, 0.3) * x + rng.uniform(0, 0.3) * y + rng.uniform(0, 6)) for _ in range(3)]
    return np.uint8(127.5 + 127.5 * np.stack(waves, axis=-1))


if __name__ == "__main__":
    main()
