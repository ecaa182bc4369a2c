"""A page of small pictures with the beginnings of their captions."""

from collections.abc import Sequence

import matplotlib.font_manager
from PIL import Image, ImageDraw, ImageFont

from dualtoken_jax.data.prepare.sample import THUMBNAIL, Looked

COLUMNS = ROWS = 8
_LINES, _LINE = 2, 13  # of a caption; pixels
_GAP = 8  # pixels between tiles
_INK, _GREY, _RED = (30, 30, 30), (225, 225, 225), (190, 30, 30)


def draw(looked: Sequence[Looked], class_names: Sequence[str]) -> Image.Image:
    """At most COLUMNS · ROWS of them: the picture, or why it cannot be used, and its caption or else its class."""
    shown = looked[: COLUMNS * ROWS]
    # Has Latin, Greek, Cyrillic and Arabic letters, but no Chinese.
    font = ImageFont.truetype(matplotlib.font_manager.findfont("DejaVu Sans"), 10)
    width, height = THUMBNAIL + _GAP, THUMBNAIL + _LINES * _LINE + _GAP
    rows = -(-len(shown) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * width + _GAP, rows * height + _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for place, one in enumerate(shown):
        left, top = _GAP + place % COLUMNS * width, _GAP + place // COLUMNS * height
        if one.thumbnail is None:
            pen.rectangle((left, top, left + THUMBNAIL, top + THUMBNAIL), fill=_GREY)
            pen.text((left + 4, top + THUMBNAIL // 2), one.reason, fill=_RED, font=font)
        else:
            picture = _enlarged(one)
            sheet.paste(picture, (left + (THUMBNAIL - picture.width) // 2, top + (THUMBNAIL - picture.height) // 2))
        for number, line in enumerate(_lines(_text(one, class_names), font)):
            pen.text((left, top + THUMBNAIL + number * _LINE), line, fill=_INK, font=font)
    return sheet


def _enlarged(one: Looked) -> Image.Image:
    """Small pictures as large as the others, with their pixels to be seen."""
    picture = Image.fromarray(one.thumbnail)
    scale = THUMBNAIL / max(picture.size)
    size = [max(1, round(side * scale)) for side in picture.size]
    return picture.resize(size, Image.Resampling.NEAREST) if scale > 1 else picture


def _text(one: Looked, class_names: Sequence[str]) -> str:
    if one.caption is None and one.label is not None:
        return class_names[one.label] if one.label < len(class_names) else f"label {one.label}"
    return " ".join((one.caption or "").split())


def _lines(text: str, font: ImageFont.FreeTypeFont) -> list[str]:
    """At most _LINES lines as wide as a tile, broken between words where that can be done."""
    lines = []
    while text and len(lines) < _LINES:
        fits = next(end for end in range(len(text[:60]), 0, -1) if end == 1 or font.getlength(text[:end]) <= THUMBNAIL)
        end = fits if fits == len(text) else max(text.rfind(" ", 0, fits + 1), 0) or fits
        lines.append(text[:end].strip())
        text = text[end:].strip()
    if text:
        lines[-1] = lines[-1][:-1] + "…"
    return lines
