"""report.html: one page about one run, to be read, kept and passed on."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from dualtoken_jax.config import Config, flatten
from dualtoken_jax.evaluation import figures, page
from dualtoken_jax.evaluation.explanations import explain
from dualtoken_jax.evaluation.measure import Measurement
from dualtoken_jax.evaluation.reconstruction import Samples

_SHOWN = 8  # pictures in a line
_MAPS = 4  # pictures with token maps
_COLUMNS = {
    "input": "input",
    "reconstruction": "reconstruction",
    "teacher": "teacher's features",
    "semantic": "semantic codes",
}


def write_report(
    workdir: Path,
    config: Config,
    measurement: Measurement,
    samples: Samples | None,
    metrics: Mapping[str, Sequence[Mapping[str, float]]],
) -> Path:
    """Writes WORKDIR/report.html and returns its path.

    `samples` is None for a run without a tokenizer; `metrics` are the lines of metrics.jsonl by the name of what was
    trained, in the order in which they are shown. What a run does not have is left out of the page.
    """
    results = measurement.results
    sections = [
        _head(config, results),
        _pictures(samples) if samples else "",
        _training(metrics),
        _code_use(measurement.code_counts),
        _token_maps(samples) if samples else "",
        _zero_shot(measurement),
        _all_metrics(results),
        _configuration(config),
    ]
    path = Path(workdir) / "report.html"
    path.write_text(page.page(f"{config.name} · report", sections), encoding="utf-8")
    return path


def _head(config: Config, results: Mapping[str, Any]) -> str:
    what = {"tokenizer": "DualToken tokenizer", "contrastive": "Image–text contrastive training (SigLIP)"}[config.task]
    lines = [
        f"<h1>{escape(config.name)}</h1>",
        f"<p class=note>{what} · {config.train.steps:,} steps of {config.train.batch_size} pictures at "
        f"{config.model.siglip.image_size} px · {results['examples']:,} held-out pictures measured</p>",
        f"<pre>{escape(command(config))}</pre>",
    ]
    if config.task == "tokenizer":
        lines.append(f"<p>{escape(supervision(config))} {escape(perceptual_term(config))}</p>")
    return "<header>\n" + "\n".join(lines) + page.tiles(_headlines(config, results)) + "\n</header>"


def command(config: Config) -> str:
    """The command line that starts this recipe; changed settings stand in the configuration."""
    name, _, stage = config.name.partition("_stage")
    file = "tokenizer.py" if config.task == "tokenizer" else "siglip.py"
    variant = name.removesuffix("_teacher") + (f",stage={stage}" if stage else "")
    return f"python -m dualtoken_jax.main --config=configs/{file}:{variant} --workdir=DIR"


def supervision(config: Config) -> str:
    """What the branches of this tokenizer are."""
    model = config.model
    return {
        "dual": f"Two codebooks: pixels at layer {model.pixel_tap}, semantics at layer {model.semantic_layer}.",
        "single": f"One codebook at layer {model.semantic_layer} serves both reconstruction and semantics.",
        "dual_deep": f"Two codebooks, both at layer {model.semantic_layer}.",
        "pixel_only": f"Pixel codes alone, from layer {model.pixel_tap}; the deep features are not quantized.",
        "semantic_only": f"Semantic codes alone, from layer {model.semantic_layer}; nothing is reconstructed.",
    }[model.supervision]


def perceptual_term(config: Config) -> str:
    """Which network, if any, the perceptual and the Gram loss look through."""
    if not config.model.reconstructs:
        return ""
    loss, lpips = config.loss, config.loss.perceptual_network == "lpips"
    if loss.perceptual == 0:
        term = "There is no perceptual loss."
    elif lpips:
        term = "The perceptual loss is LPIPS (VGG16)."
    else:
        term = (
            "The perceptual loss is the distance of the frozen teacher's first hidden states, a stand-in where the "
            "weights of LPIPS are not at hand."
        )
    if loss.gram > 0:
        features = "VGG16's features" if lpips else "the frozen teacher's first hidden states"
        term += f" The texture loss is the distance of the Gram matrices of {features}."
    return term


def _headlines(config: Config, results: Mapping[str, Any]):
    """(value, name, remark) for the tiles, of those figures that the run has."""
    chance = f"guessing gives {results['zero_shot_chance']:.1%}" if "zero_shot_chance" in results else ""
    own = "zero-shot, this tokenizer" if config.task == "tokenizer" else "zero-shot"
    wanted = [
        ("psnr", "{:.2f} dB", "PSNR", "mean over pictures"),
        ("ssim", "{:.3f}", "SSIM", "1 is identical"),
        ("zero_shot_top1", "{:.1%}", own, chance),
        (
            "teacher_quantized_zero_shot_top1",
            "{:.1%}",
            "zero-shot, teacher quantized",
            "its features through our codes",
        ),
        ("teacher_zero_shot_top1", "{:.1%}", "zero-shot, teacher", "nothing quantized"),
        ("retrieval_image_to_text_r1", "{:.1%}", "picture → caption, R@1", f"among {results['examples']:,}"),
        ("codebook_use_pixel", "{:.0%}", "pixel codes in use", _perplexity(config, results, "pixel")),
        ("codebook_use_semantic", "{:.0%}", "semantic codes in use", _perplexity(config, results, "semantic")),
        ("bits_per_pixel", "{:.2f}", "bits per pixel", _all_bits(results)),
    ]
    return [(form.format(results[key]), name, remark) for key, form, name, remark in wanted if key in results]


def _perplexity(config: Config, results: Mapping[str, Any], branch: str) -> str:
    value = results.get(f"codebook_perplexity_{branch}", 0)
    quantizer = config.model.quantizer(branch)
    codes = quantizer.codes * (1 if quantizer.shared_codebook else quantizer.depth)
    return f"{value:,.0f} of {codes:,} effectively"


def _all_bits(results: Mapping[str, Any]) -> str:
    return f"{results['bits_per_pixel_all']:.2f} with all branches" if "bits_per_pixel_all" in results else ""


def _pictures(samples: Samples) -> str:
    lines = {
        _COLUMNS[name]: [page.picture(image, _COLUMNS[name]) for image in column[:_SHOWN]]
        for name, column in samples.columns.items()
    }
    note = "Held-out pictures, the first ones in order."
    if "reconstruction" in lines:
        note += " Each reconstruction is decoded from its codes alone."
    note += " Features are shown by three principal components of the teacher's deep hidden state as red, green, blue"
    note += "; the semantic codes' features use the same colours." if "semantic" in samples.columns else "."
    return page.section("Pictures", note, page.gallery(lines))


def _training(metrics: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    plots = [page.plot(figures.curves(lines), name) for name, lines in metrics.items() if lines]
    return page.section(
        "Training",
        "Over steps, at those that were logged, not smoothed. Terms of the loss are shown without their weights.",
        *plots,
    )


def _code_use(counts: Mapping[str, np.ndarray]) -> str:
    plots = [
        page.plot(
            figures.code_use(count),
            f"{branch} · {count.shape[1]:,} codes, {count.sum() / len(count):,.0f} tokens a depth",
        )
        for branch, count in counts.items()
    ]
    note = "Codes sorted by how often they were met; 1, the dashed line, is what even use would give. "
    note += "A codebook in good use falls slowly and ends far to the right."
    return page.section("Use of the codes", note, *plots)


def _token_maps(samples: Samples) -> str:
    lines = {"input": [page.picture(image, "input") for image in samples.columns["input"][:_MAPS]]}
    for branch, codes in samples.codes.items():
        maps = [figures.colour_codes(code) for code in codes[:_MAPS, :, :, 0]]
        lines[f"{branch} codes"] = [page.picture(image, f"{branch} codes") for image in maps]
    note = "The first depth's code of every token: equal codes have equal colours, and the colours mean nothing else."
    return page.section("Token maps", note, page.gallery(lines))


def _zero_shot(measurement: Measurement) -> str:
    cards = []
    for guess in measurement.predictions[: 2 * _SHOWN]:
        items = "".join(f"<li>{escape(name)} <small>{score:.2f}</small></li>" for name, score in guess.best)
        mark, verdict = ("right", "✓") if guess.right else ("wrong", "✗")
        image = page.picture(measurement.images[guess.example], guess.truth)
        heading = f"<b class={mark}>{verdict} {escape(guess.truth)}</b>"
        cards.append(f"<div class=card>{image}<div>{heading}<ol>{items}</ol></div></div>")
    note = "The class in bold is the truth; below it the three nearest class names with their cosine similarity."
    return page.section(
        "Zero-shot examples", note, f"<div class=cards>\n{chr(10).join(cards)}\n</div>" if cards else ""
    )


def _all_metrics(results: Mapping[str, Any]) -> str:
    rows = [(name, format_value(value), explain(name)) for name, value in results.items()]
    return page.section("Measurements", "Everything in evaluation.json.", page.table(rows))


def format_value(value: Any) -> str:
    """A figure for people: counts in full, others with four digits, lists item by item."""
    if isinstance(value, list):
        return "  ".join(format_value(item) for item in value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def _configuration(config: Config) -> str:
    rows = [(name, repr(value)) for name, value in flatten(config).items()]
    inside = f"<details><summary>{len(rows)} settings</summary>\n{page.table(rows)}\n</details>"
    return page.section("Configuration", "Every setting of this run, as config.json holds them.", inside)
