"""Plots of a run as SVG text for an HTML page. Text and axes take the page's own colour, so that dark mode works."""

import io
import re
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

_INK = "#010203"  # replaced by the page's text colour
_COLOURS = ("#3b7dd8", "#e0823d", "#3aa676", "#b45fc4")
_STYLE = {
    "svg.fonttype": "none",  # text stays text
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.5,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.5,
}
# Curves that are read together share a panel; what a run has not logged is left out.
_PANELS = {
    "Total loss": ("loss",),
    "Reconstruction": ("mse", "perceptual"),
    "Semantic, squared errors": ("hidden_mse", "pooled_mse"),
    "Semantic, cosine similarity": ("hidden_cosine", "pooled_cosine"),
    "Commitment": ("commitment_pixel", "commitment_semantic"),
    "Adversarial": ("generator", "discriminator"),
    "Adaptive generator weight": ("generator_weight",),
    "Gradient norm": ("gradient_norm",),
    "Learning rate": ("learning_rate",),
}
_SIGN = {"hidden_cosine": -1, "pooled_cosine": -1}  # logged as losses


def curves(metrics: Sequence[Mapping[str, float]]) -> str:
    """Training curves from the lines of metrics.jsonl; '' where nothing was logged."""
    logged = set().union(*metrics)
    panels = {title: kept for title, names in _PANELS.items() if (kept := [n for n in names if n in logged])}
    if not panels:
        return ""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _panels(len(panels), columns=3, height=2.0)
        for ax, (title, names) in zip(axes, panels.items(), strict=True):
            for name, colour in zip(names, _COLOURS, strict=False):
                points = [(line["step"], _SIGN.get(name, 1) * line[name]) for line in metrics if name in line]
                ax.plot(*zip(*points, strict=True), color=colour, label=name, marker="." if len(points) < 4 else "")
            ax.set_title(title)
            if len(names) > 1:
                ax.legend()
        return _svg(figure)


def code_use(counts: np.ndarray) -> str:
    """How evenly each depth uses its codes, from counts [D, K]: codes sorted by use, relative to uniform use."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _panels(len(counts), columns=4, height=1.7)
        for depth, (ax, row) in enumerate(zip(axes, counts, strict=True)):
            relative = np.sort(row)[::-1] / max(row.mean(), 1e-12)
            top = max(
                float(relative[len(row) // 100 :].max(initial=0)) * 1.1, 2.0
            )  # a few frequent codes may stand out
            ax.fill_between(np.arange(len(row)), np.minimum(relative, top), step="pre", color=_COLOURS[0], linewidth=0)
            ax.axhline(1, color=_INK, linewidth=0.6, linestyle=(0, (4, 3)))
            ax.set(xlim=(0, len(row)), ylim=(0, top), xticks=(0, len(row)))
            ax.set_title(f"depth {depth + 1} · {np.mean(row > 0):.0%} used")
        return _svg(figure)


def colour_codes(codes: np.ndarray) -> np.ndarray:
    """Codes [h, w] → uint8 [h, w, 3]: equal codes get equal colours, neighbours in number do not get similar ones."""
    hue = codes * 0.61803399 % 1.0  # multiples of the golden ratio spread evenly
    value = 0.55 + 0.4 * (codes * 0.41421356 % 1.0)
    colours = matplotlib.colors.hsv_to_rgb(np.stack([hue, np.full_like(hue, 0.6), value], axis=-1))
    return np.round(colours * 255).astype(np.uint8)


def _panels(number: int, columns: int, height: float):
    """A figure ten inches wide with `number` axes; empty places stay empty."""
    rows = -(-number // columns)
    figure = Figure(figsize=(10, height * rows), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes[number:]:
        ax.set_axis_off()
    return figure, axes[:number]


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]  # inside HTML there is no place for an XML prolog
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"font: ([0-9.]+)px [^;\"]*", r"font-size: \1px", text)
    text = re.sub(
        r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1), count=1
    )
    return text.replace(_INK, "currentColor")
