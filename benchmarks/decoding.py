"""How far crops from shrunk JPEGs, and crops by the fast resize, are from exact ones. Writes decoding.json and .md.

    python benchmarks/real_pictures.py --output=runs/pictures
    python benchmarks/decoding.py --pictures=runs/pictures

For SPARE and the text in dualtoken_jax/data/jpeg.py. PSNR is between crops of the same box, in dB, the lowest of all
pictures in brackets; beside it what it costs the exact crop to be saved as JPEG of quality 95 (4:2:0).
"""

import argparse
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from dualtoken_jax.data import crops, images, jpeg

SPARES = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0)
RESOLUTIONS = (256, 384)


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """In dB, of uint8 arrays; 100 for equal ones."""
    error = np.square(one.astype(float) - other).mean()
    return float(10 * np.log10(255**2 / error)) if error else 100.0


def spared(data: bytes, shrink: int, spare: float, rng: np.random.Generator) -> tuple[float, float] | None:
    """PSNR of a crop from a picture shrunk to `spare` times R pixels, and of the whole one's crop saved as JPEG."""
    image = Image.open(io.BytesIO(data))
    box = crops.random_crop_box(image.height, image.width, rng)
    resolution = int(min(box.height, box.width) / shrink / spare)
    if resolution < 32:
        return None
    whole = crops.fast(jpeg.decode(data, image, 1), 1, box, resolution, clip=True)
    small = crops.fast(jpeg.decode(data, image, shrink), shrink, box, resolution, clip=True)
    buffer = io.BytesIO()
    Image.fromarray(whole).save(buffer, "JPEG", quality=95)
    return psnr(whole, small), psnr(whole, np.asarray(Image.open(buffer)))


def shrunk(files: list[bytes]) -> list[dict]:
    """A row per shrink and spare."""
    rows = []
    for shrink in sorted(jpeg.SHRINKS)[:2]:
        for spare in SPARES:
            found = [spared(data, shrink, spare, np.random.default_rng(i)) for i, data in enumerate(files)]
            pairs = np.array([pair for pair in found if pair])
            rows.append(
                {"shrink": shrink, "spare": spare, "psnr": pairs[:, 0].mean(), "lowest": pairs[:, 0].min(),
                 "jpeg_95": pairs[:, 1].mean(), "pictures": len(pairs)}
            )  # fmt: skip
    return rows


def by_decoding(files: list[bytes], name: str) -> list[dict]:
    """What "fast" changes in random crops: a row per resolution."""
    rows = []
    for resolution in RESOLUTIONS:
        pairs = [
            [images.load(data, resolution, np.random.default_rng(i), how).astype(int) for how in ("exact", "fast")]
            for i, data in enumerate(files)
        ]
        apart = np.concatenate([np.abs(exact - fast).reshape(-1) for exact, fast in pairs])
        quality = [psnr(exact, fast) for exact, fast in pairs]
        rows.append(
            {"pictures": name, "resolution": resolution, "psnr": float(np.mean(quality)), "lowest": min(quality),
             "share_equal": float((apart == 0).mean()), "share_beyond_2": float((apart > 2).mean()),
             "largest": int(apart.max())}
        )  # fmt: skip
    return rows


def table(rows: list[dict]) -> str:
    """Markdown."""

    def said(value) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    lines = [" | ".join(rows[0]), " | ".join("---" for _ in rows[0])]
    return "\n".join(f"| {line} |" for line in [*lines, *(" | ".join(map(said, row.values())) for row in rows)])


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, default=Path("runs/pictures"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/decoding.json"))
    flags = parser.parse_args()
    files = {
        name: [path.read_bytes() for path in sorted((flags.pictures / name).glob("*.jpg"))]
        for name in ("imagenet_like", "laion_like")
    }
    results = {
        "shrunk": shrunk(files["laion_like"]),
        "fast_against_exact": [row for name, some in files.items() for row in by_decoding(some, name)],
    }
    flags.output.write_text(json.dumps(results, indent=1) + "\n")
    text = "\n\n".join(f"## {name}\n\n{table(rows)}" for name, rows in results.items())
    flags.output.with_suffix(".md").write_text(f"# Decoding: what it costs to be fast\n\n{text}\n\n{__doc__.strip()}\n")
    print(text)


if __name__ == "__main__":
    main()
