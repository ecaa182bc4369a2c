"""Why convolution.py, group_norm.py and VGG's halving are as they are: each one's ways, timed in turns, with errors.

    python -m benchmarks.layers

Shapes are those of the decoder and the discriminator at size `mid`, two images, float32. A way's error is relative to
the largest value of the first way's result.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks.machine import circumstances
from dualtoken_jax.models.convolution import _convolve, image_gradient, kernel_gradient
from dualtoken_jax.models.group_norm import GroupNorm
from dualtoken_jax.models.vgg import _halved

CONVOLUTIONS = ((224, 64), (112, 64), (56, 256), (28, 256), (14, 512))  # side and channels


def by_products(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The convolution as one matrix product per kernel position, each on the whole image shifted to it."""
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    height, width = x.shape[1:3]
    return sum(padded[:, i : i + height, j : j + width] @ kernel[i, j] for i in range(3) for j in range(3))


def convolution_forward(side: int, channels: int) -> tuple[dict, tuple, float]:
    """Ways, arguments, and GFLOP."""
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (2, side, side, channels))
    kernel = jax.random.normal(keys[1], (3, 3, channels, channels))
    ways = {"XLA's convolution (ours)": lambda x, k: _convolve(x, k, 1), "nine products": by_products}
    return ways, (x, kernel), 2e-9 * x.size * channels * 9


def convolution_weights(side: int, channels: int) -> tuple[dict, tuple, float]:
    """Of the gradient with respect to the kernel."""
    ways, (x, kernel), count = convolution_forward(side, channels)
    gradient = jax.random.normal(jax.random.key(1), x.shape)

    def transposed(how):
        return lambda x, gradient: jax.linear_transpose(lambda k: how(x, k), kernel)(gradient)[0]

    found = {
        "XLA's convolution": transposed(ways["XLA's convolution (ours)"]),
        "nine products": transposed(by_products),
    }
    return found | {"products of rows (ours)": lambda x, g: kernel_gradient(x, g, 3, 1)}, (x, gradient), count


def convolution_image(side: int, channels: int) -> tuple[dict, tuple, float]:
    """Of the gradient with respect to the image, inside a cond, where the discriminator's are."""
    _, (x, kernel), count = convolution_forward(side, channels)
    ways = {
        "JAX's transposition": lambda k, g: jax.linear_transpose(lambda x: _convolve(x, k, 1), x)(g)[0],
        "turned kernel (ours)": lambda k, g: image_gradient(k, g, x.shape, 1),
    }
    inside = lambda way: lambda k, g: jax.lax.cond(g[0, 0, 0, 0] < jnp.inf, way, lambda k, g: 0 * g, k, g)  # noqa: E731
    return {name: inside(way) for name, way in ways.items()}, (kernel, x), count


def halving(side: int, channels: int) -> tuple[dict, tuple, float]:
    """The maxima of 2×2 windows of what a ReLU gives, both passes."""
    x = jax.nn.relu(jax.random.normal(jax.random.key(0), (2, side, side, channels)))
    ways = {"reduce-window": lambda x: nnx.max_pool(x, (2, 2), strides=(2, 2)), "four slices (ours)": _halved}

    def both(way):
        def run(x):
            y, pullback = jax.vjp(lambda x: way(jax.nn.relu(x)), x)
            return pullback(y)[0]

        return run

    return {name: both(way) for name, way in ways.items()}, (x,), 0.0


def group_norm(side: int, channels: int, both: bool) -> tuple[dict, tuple, float]:
    """GroupNorm and SiLU, forward or both passes."""
    x = jax.random.normal(jax.random.key(0), (2, side, side, channels))
    flax = nnx.GroupNorm(channels, 32, epsilon=1e-6, use_fast_variance=False, rngs=nnx.Rngs(0))
    ours = GroupNorm(channels, 32, None, nnx.Rngs(0))
    ways = {"flax": lambda x: jax.nn.silu(flax(x)), "ours": lambda x: ours(x, jax.nn.silu)}
    if both:
        ways = {name: lambda x, way=way: jax.vjp(way, x)[1](x)[0] for name, way in ways.items()}
    return ways, (x,), 0.0


def timed(ways: dict, arguments: tuple, count: float, rounds: int) -> list[dict]:
    """A row per way; the ways take turns."""
    compiled = {name: jax.jit(way).lower(*arguments).compile() for name, way in ways.items()}
    results = {name: run(*arguments) for name, run in compiled.items()}
    first, taken = next(iter(results.values())), {name: [] for name in compiled}
    for _ in range(rounds):
        for name, run in compiled.items():
            began = time.perf_counter()
            jax.block_until_ready(run(*arguments))
            taken[name].append(time.perf_counter() - began)
    return [
        {"way": name, "milliseconds": 1e3 * statistics.median(times), "fastest": 1e3 * min(times),
         "gflop_per_second": count / statistics.median(times),
         "temporary_megabytes": compiled[name].memory_analysis().temp_size_in_bytes / 1e6,
         "error": float(jnp.abs(results[name] - first).max() / jnp.abs(first).max())}
        for name, times in taken.items()
    ]  # fmt: skip


def table(results: dict[str, list[dict]]) -> str:
    """Markdown."""
    lines = ["| layer | way | ms | fastest ms | GFLOP/s | temporary MB | error |", "|---|---|---|---|---|---|---|"]
    for layer, rows in results.items():
        for row in rows:
            rate = f"{row['gflop_per_second']:.0f}" if row["gflop_per_second"] else ""
            lines.append(
                f"| {layer} | {row['way']} | {row['milliseconds']:.3g} | {row['fastest']:.3g} | {rate} | "
                f"{row['temporary_megabytes']:.3g} | {row['error']:.0e} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/layers.json"))
    flags = parser.parse_args()
    results = {}
    for side, channels in CONVOLUTIONS:
        for name, of in (
            ("convolution", convolution_forward),
            ("its weights' gradient", convolution_weights),
            ("its image's gradient inside a cond", convolution_image),
        ):
            results[f"{name}, {side}² × {channels}"] = timed(*of(side, channels), flags.rounds)
    for side, channels in CONVOLUTIONS[:3]:
        results[f"maxima of 2×2, both passes, {side}² × {channels}"] = timed(*halving(side, channels), flags.rounds)
    for side, channels in CONVOLUTIONS[::2]:
        for both in (False, True):
            name = f"GroupNorm and SiLU, {side}² × {channels}, {'both passes' if both else 'forward'}"
            results[name] = timed(*group_norm(side, channels, both), flags.rounds)
    entry = circumstances("benchmarks.layers") | {"results": results}
    flags.output.write_text(json.dumps(entry, indent=1) + "\n")
    foot = f"`{entry['command']}`, {entry['date']}, load {entry['load'][0]}; {entry['machine']}"
    flags.output.with_suffix(".md").write_text(f"# Layers\n\n{table(results)}\n\n{foot}\n")
    print(table(results))


if __name__ == "__main__":
    main()
