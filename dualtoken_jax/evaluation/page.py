"""The pieces of a self-contained HTML page: nothing is loaded from anywhere, every text is escaped."""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np
from PIL import Image

_LARGEST = 384  # pixels; pictures beyond are scaled down, or the page would weigh tens of megabytes


def page(title: str, sections: Iterable[str]) -> str:
    """The whole document from finished sections; empty ones are left out."""
    body = "\n".join(section for section in sections if section)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def section(title: str, note: str, *content: str) -> str:
    """A titled part of the page with a sentence about it; '' without content."""
    inside = "\n".join(part for part in content if part)
    return (
        f"<section>\n<h2>{escape(title)}</h2>\n<p class=note>{escape(note)}</p>\n{inside}\n</section>" if inside else ""
    )


def picture(image: np.ndarray, alt: str) -> str:
    """A picture uint8 [H, W, 3], inside the page."""
    found = Image.fromarray(image)
    found.thumbnail((_LARGEST, _LARGEST))
    buffer = io.BytesIO()
    found.save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}">'


def gallery(lines: dict[str, Sequence[str]]) -> str:
    """Pictures in named lines, to be compared from top to bottom."""
    rows = (f"<tr><th>{escape(name)}</th>{''.join(f'<td>{p}</td>' for p in line)}</tr>" for name, line in lines.items())
    return f"<div class=scroll><table class=gallery>\n{chr(10).join(rows)}\n</table></div>"


def tiles(items: Iterable[tuple[str, str, str]]) -> str:
    """Headline figures: (value, name, remark) each."""
    inside = "\n".join(
        f"<div class=tile><b>{escape(value)}</b><span>{escape(name)}</span><small>{escape(remark)}</small></div>"
        for value, name, remark in items
    )
    return f"<div class=tiles>\n{inside}\n</div>" if inside else ""


def table(rows: Iterable[Sequence[str]]) -> str:
    """A name, a value and whatever explains them, per row."""
    cells = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows)
    return (
        "<div class=scroll><table class=plain>\n" + "\n".join(f"<tr>{row}</tr>" for row in cells) + "\n</table></div>"
    )


def plot(svg: str, heading: str = "") -> str:
    """A figure with a heading of its own; '' for an empty one."""
    title = f"<h3>{escape(heading)}</h3>\n" if heading else ""
    return f"{title}<div class=scroll><div class=plot>{svg}</div></div>" if svg else ""


_STYLE = """
:root { color-scheme: light dark; --ink: #24292f; --soft: #667079; --line: #e3e6ea; --paper: #fbfbfa; --card: #fff;
  --accent: #2f6fc4; --bad: #b3382c; --good: #2b7a52; }
@media (prefers-color-scheme: dark) { :root { --ink: #d8dde3; --soft: #939ca6; --line: #333940; --paper: #16191d;
  --card: #1e2227; --accent: #79aef0; --bad: #f08a7e; --good: #6fc79a; } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, sans-serif }
main { max-width: 1040px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem }
h1 { font-size: 1.9rem; margin: 0 0 .3rem; letter-spacing: -.01em }
h2 { font-size: 1.2rem; margin: 0 0 .15rem }
h3 { font-size: .95rem; margin: 1.2rem 0 .3rem }
section { margin-top: 2.75rem; padding-top: 1.5rem; border-top: 1px solid var(--line) }
p { margin: .3rem 0; max-width: 46rem }
.note, small { color: var(--soft) }
.note { font-size: .9rem; margin-bottom: 1rem }
code, pre { font: .85em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .7rem .9rem;
  overflow-x: auto }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(175px, 1fr)); gap: .75rem; margin-top: 1.5rem }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .8rem .95rem }
.tile b { display: block; font-size: 1.5rem; font-weight: 600; font-variant-numeric: tabular-nums; line-height: 1.25 }
.tile span, .tile small { display: block; font-size: .82rem; line-height: 1.35 }
.scroll { overflow-x: auto }
table { border-collapse: collapse }
.gallery td { padding: 2px }
.gallery th { text-align: right; font-weight: 500; font-size: .82rem; color: var(--soft); padding: 0 .8rem 0 0;
  white-space: nowrap }
.gallery img { display: block; width: 102px; border-radius: 4px }
img { image-rendering: pixelated }
.plain { width: 100%; font-size: .86rem }
.plain td { padding: .35rem .9rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
.plain td:first-child { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .8rem }
.plain td:nth-child(2) { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; min-width: 14rem }
.plain td:nth-child(3) { color: var(--soft) }
.plot { min-width: 720px }
.plot svg { display: block; width: 100%; height: auto; font-family: inherit }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(225px, 1fr)); gap: .75rem }
.card { display: flex; gap: .8rem; background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: .7rem; font-size: .82rem; line-height: 1.45 }
.card img { width: 84px; height: 84px; border-radius: 4px; flex: none }
.card b { display: block; font-weight: 600 }
.card ol { margin: .1rem 0 0; padding: 0; list-style: none }
.right { color: var(--good) } .wrong { color: var(--bad) }
details summary { cursor: pointer; color: var(--accent) }
"""
