"""The JAX model against the PyTorch module that exports ship with, at the full so400m_384 shape.

    python benchmarks/parity_full.py --output=benchmarks/results/parity_full.json

Random weights, one random image, float32, without the text tower. The PyTorch side is computed from the same arrays.
Takes about 10 GB of memory. --size=tiny checks the program itself in seconds.
"""

import argparse
import dataclasses
import gc
import json
import os
import platform
import resource
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from configs import tokenizer  # noqa: E402
from dualtoken_jax.models import bind, definition  # noqa: E402
from dualtoken_jax.models.dualtoken import DualToken, DualTokenConfig, decode, forward  # noqa: E402


def model_config(size: str) -> DualTokenConfig:
    """so400m_384 in float32, or the recorded miniature."""
    if size == "tiny":
        from released_record import CONFIG

        return CONFIG
    config = tokenizer.recipe("so400m_384").model
    return dataclasses.replace(config, siglip=dataclasses.replace(config.siglip, dtype="float32", remat="none"))


def with_jax(config: DualTokenConfig, tree: dict, images: np.ndarray) -> dict[str, np.ndarray]:
    """Everything compared, by name; images channels first."""
    graphdef, side = definition(lambda rngs: DualToken(config, rngs)), config.siglip.grid

    @jax.jit
    def run(params, codebooks, images):
        model = bind(graphdef, params)
        latents, outputs = model.encode(images), forward(model, codebooks, images)[0]
        codes = {branch: found.codes for branch, found in outputs.quantized.items()}
        decoded = decode(model, codebooks, codes["pixel"].reshape(len(images), side, side, -1))
        return latents.vectors, codes, outputs, decoded

    vectors, codes, outputs, decoded = jax.device_get(run(tree["params"], tree["codebooks"], images))
    found = {f"{branch} vectors": value for branch, value in vectors.items()}
    found |= {f"{branch} codes": value for branch, value in codes.items()}
    found |= {f"{branch} quantized": value.output for branch, value in outputs.quantized.items()}
    found |= {"replaced hidden state": outputs.hidden, "image embedding": outputs.pooled}
    found["reconstruction"] = outputs.reconstruction.transpose(0, 3, 1, 2)
    return found | {"image decoded by both from one set": decoded.transpose(0, 3, 1, 2)}


def with_torch(model, images: np.ndarray, codes: np.ndarray) -> dict[str, np.ndarray]:
    """The same names; `codes` [B, N, D] are the pixel codes that both sides decode."""
    import torch

    with torch.no_grad():
        inputs = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        vectors, outputs = model.latents(inputs)[0], model(inputs)
        grid = (len(images), model.grid, model.grid, codes.shape[-1])
        decoded = model.decode(torch.from_numpy(codes.astype(np.int64)).reshape(grid))
    found = {f"{branch} vectors": value for branch, value in vectors.items()}
    found |= {f"{branch} codes": value.codes for branch, value in outputs.quantized.items()}
    found |= {f"{branch} quantized": value.output for branch, value in outputs.quantized.items()}
    found |= {"replaced hidden state": outputs.hidden, "image embedding": outputs.pooled}
    found |= {"reconstruction": outputs.reconstruction, "image decoded by both from one set": decoded}
    return {name: value.numpy() for name, value in found.items()}


def compared(config: DualTokenConfig, codebooks: dict, ours: dict, theirs: dict) -> dict:
    """Shares of equal codes, and the largest difference of everything else relative to its largest value."""
    result = {"codes": {}, "errors": {}}
    for name, value in ours.items():
        if name.endswith("codes"):
            branch = name.split()[0]
            equal = value == theirs[name]
            gap = _largest_gap(config, codebooks, branch, ours, theirs[name])
            result["codes"][branch] = {"number": equal.size, "equal": int(equal.sum()), "largest_gap_of_unequal": gap}
        else:
            error = float(np.abs(value - theirs[name]).max() / np.abs(value).max())
            result["errors"][name] = error
    return result


def _largest_gap(config, codebooks, branch, ours, codes) -> float:
    """Where a token's codes first differ: how much farther the worse one is, relative to the distance; 0 for none."""
    embedding, gap = np.float64(codebooks[branch]["embedding"]), 0.0
    residual = np.float64(ours[f"{branch} vectors"])
    differs = np.zeros(codes.shape[:2], bool)
    for depth in range(config.quantizer(branch).depth):
        book = embedding[depth % len(embedding)]
        mine, other = ours[f"{branch} codes"][..., depth], codes[..., depth]
        first = (mine != other) & ~differs
        if first.any():
            near, far = (((residual[first] - book[k[first]]) ** 2).sum(-1) for k in (mine, other))
            gap = max(gap, float((np.abs(far - near) / near).max()))
        differs |= first
        residual = residual - book[mine]
    return gap


def main() -> None:
    """Computes both sides, prints and writes the comparison."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--output", type=Path, required=True)
    flags = parser.parse_args()
    import torch_twin  # here, so that --help needs no torch

    config = model_config(flags.size)
    tree = torch_twin.random_tree(config, text=False)
    side = config.siglip.image_size
    images = np.random.default_rng(1).uniform(-1, 1, (1, side, side, 3)).astype(np.float32)

    start = time.time()
    ours = with_jax(config, tree, jnp.asarray(images))
    jax_seconds, start = time.time() - start, time.time()
    codebooks = tree["codebooks"]
    jax.clear_caches()
    model = torch_twin.torch_twin(tree, config)
    del tree
    gc.collect()
    theirs = with_torch(model, images, ours["pixel codes"])
    torch_seconds = time.time() - start

    report = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": " ".join(["python", "benchmarks/parity_full.py", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores",
        "versions": {name: version(name) for name in ("jax", "flax", "torch", "transformers")},
        "model": {"size": flags.size, "image_size": side, "patch_size": config.siglip.patch_size, "dtype": "float32"},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        **compared(config, codebooks, ours, theirs),
        "seconds_with_compilation": {"jax": round(jax_seconds, 1), "torch": round(torch_seconds, 1)},
        "peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }
    text = json.dumps(report, indent=1)
    flags.output.parent.mkdir(parents=True, exist_ok=True)
    flags.output.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
