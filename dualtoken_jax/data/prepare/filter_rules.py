"""Which rows of a table of metadata are kept: thresholds, and the columns that they look at.

Column names differ between datasets. After img2dataset, which renames the columns of captions, they are:

    what        LAION-400M, -5B, Re-LAION        DataComp                    COYO                      CC12M
    caption     caption (TEXT)                   caption (text)              caption (text)            caption
    nsfw        NSFW: UNLIKELY, UNSURE, NSFW     –                           –                         –
    punsafe     punsafe, 0 … 1                   –                           nsfw_score_gantman        –
    similarity  similarity                       clip_l14_similarity_score   clip_similarity_vitl14    –
    watermark   pwatermark, 0 … 1                –                           watermark_score           –
    aesthetic   aesthetic, AESTHETIC_SCORE       –                           aesthetic_score_laion_v2  –
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dualtoken_jax.data.parquet_shards import CAPTIONS

SYNONYMS = {
    "caption": CAPTIONS,
    "width": ("width", "WIDTH"),
    "height": ("height", "HEIGHT"),
    "original_width": ("original_width",),
    "original_height": ("original_height",),
    "nsfw": ("NSFW", "nsfw"),
    "punsafe": ("punsafe", "nsfw_score_gantman"),
    "similarity": ("similarity", "clip_l14_similarity_score", "clip_similarity_vitl14"),
    "watermark": ("pwatermark", "watermark_score"),
    "aesthetic": ("aesthetic", "AESTHETIC_SCORE", "aesthetic_score_laion_v2"),
    "status": ("status",),
}


@dataclasses.dataclass(frozen=True)
class Rules:
    """What a row must have to be kept; None leaves a rule out.

    DataComp's "basic filtering" (Gadre et al., 2023, appendix) is min_words=3, min_characters=6,
    min_original_side=200, max_aspect=3 (there in English only).
    """

    min_characters: int | None = None  # of the caption
    max_characters: int | None = None
    min_words: int | None = None  # separated by white space: not for languages that are written without
    min_side: int | None = None  # pixels of the shorter side, as stored
    min_original_side: int | None = None  # pixels, before img2dataset shrank the picture
    max_aspect: float | None = None  # longer side / shorter side, as stored
    min_similarity: float | None = None  # cosine of CLIP's embeddings of picture and caption
    drop_unsafe: bool = True  # rows tagged anything but UNLIKELY, or with punsafe above:
    max_punsafe: float = 0.5  # LAION's own recommendation
    max_watermark: float | None = None  # probability; LAION recommends 0.8
    min_aesthetic: float | None = None  # 1 … 10
    keep_unscored: bool = False  # a row without a tag, score or size passes the rule about it, instead of failing it


class Rule(NamedTuple):
    """One reason to drop rows: a measure outside [low, high]."""

    name: str  # as in Manifest.filtered
    columns: tuple[str, ...]  # names of SYNONYMS
    measure: Callable[..., np.ndarray]  # those columns → float64 [rows], NaN where the value is missing
    low: float = -np.inf
    high: float = np.inf


def rules_in_force(rules: Rules, present: Mapping[str, str]) -> list[Rule]:
    """The rules, in the order in which they are applied, on a table that has the columns `present`."""
    return [rule for rule in _all(rules) if set(rule.columns) <= set(present)]


def columns_of(rules: Rules, names: Sequence[str], chosen: Mapping[str, str]) -> dict[str, str]:
    """Which of the table's columns `names` the rules need, by name of SYNONYMS; `chosen` overrules the synonyms.

    Raises ValueError for a column that a rule needs and the table lacks, or has twice.
    """
    present = {}
    for what in dict.fromkeys(column for rule in _all(rules) for column in rule.columns):
        wanted = (chosen[what],) if what in chosen else SYNONYMS[what]
        found = [name for name in wanted if name in names]
        if len(found) > 1:
            raise ValueError(f"both {' and '.join(found)} could be {what}: choose with --column={what}=NAME")
        if found:
            present[what] = found[0]
        elif what not in ("status", "nsfw", "punsafe") or what in chosen:
            raise ValueError(
                f"there is no column {' or '.join(wanted)}, but {', '.join(names)}: name the one with {what} by "
                f"--column={what}=NAME, or leave out the rules about it"
            )
    if rules.drop_unsafe and not {"nsfw", "punsafe"} & set(present):
        raise ValueError(
            f"nothing tells which rows are unsafe: there is no column NSFW or punsafe, but {', '.join(names)}. Name "
            "one by --column=nsfw=NAME or --column=punsafe=NAME; or say --unsafe=keep where the dataset's makers have "
            "dropped unsafe pictures already, as those of DataComp have"
        )
    return present


def apply(rules: Rules, columns: Mapping[str, pa.ChunkedArray]) -> tuple[np.ndarray, dict[str, int]]:
    """bool [rows], whether a row is kept; and per rule how many rows it is the first to drop.

    `columns` are by name of SYNONYMS. Raises ValueError, with the column, for values of the wrong type.
    """
    rows = len(next(iter(columns.values()))) if columns else 0
    kept, dropped = np.ones(rows, bool), {}
    for rule in rules_in_force(rules, columns):
        try:
            values = rule.measure(*(columns[name] for name in rule.columns))
        except pa.ArrowException as error:
            raise ValueError(f"the rule {rule.name!r} cannot use {' and '.join(rule.columns)}: {error}") from error
        passed = (values >= rule.low) & (values <= rule.high) | (np.isnan(values) & rules.keep_unscored)
        dropped[rule.name] = int((kept & ~passed).sum())
        kept &= passed
    return kept, dropped


def _all(rules: Rules) -> Iterator[Rule]:
    yield Rule("status is not success", ("status",), _is("success"), low=1)
    if rules.drop_unsafe:
        yield Rule("NSFW is not UNLIKELY", ("nsfw",), _is("UNLIKELY"), low=1)
        yield Rule(f"punsafe > {rules.max_punsafe:g}", ("punsafe",), _number, high=rules.max_punsafe)
    sides, original = ("width", "height"), ("original_width", "original_height")
    for name, columns, measure, low, high in (
        ("characters", ("caption",), _characters, rules.min_characters, rules.max_characters),
        ("words", ("caption",), _words, rules.min_words, None),
        ("shorter side", sides, _shorter, rules.min_side, None),
        ("original shorter side", original, _shorter, rules.min_original_side, None),
        ("aspect ratio", sides, _aspect, None, rules.max_aspect),
        ("similarity", ("similarity",), _number, rules.min_similarity, None),
        ("watermark", ("watermark",), _number, None, rules.max_watermark),
        ("aesthetic", ("aesthetic",), _number, rules.min_aesthetic, None),
    ):
        if low is not None:
            yield Rule(f"{name} < {low:g}", columns, measure, low=low)
        if high is not None:
            yield Rule(f"{name} > {high:g}", columns, measure, high=high)


def _is(expected: str) -> Callable[[pa.ChunkedArray], np.ndarray]:
    return lambda column: _number(pc.equal(column.cast(pa.string()), expected))


def _number(column: pa.ChunkedArray) -> np.ndarray:
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    return column.cast(pa.float64()).to_numpy()


def _characters(caption: pa.ChunkedArray) -> np.ndarray:
    return _number(pc.utf8_length(_stripped(caption)))


def _words(caption: pa.ChunkedArray) -> np.ndarray:
    words = _number(pc.list_value_length(pc.utf8_split_whitespace(_stripped(caption))))
    return np.where(_characters(caption) == 0, 0, words)  # an empty text splits into one empty word


def _stripped(caption: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.utf8_trim_whitespace(pc.fill_null(caption.cast(pa.string()), ""))


def _shorter(width: pa.ChunkedArray, height: pa.ChunkedArray) -> np.ndarray:
    return np.minimum(_number(width), _number(height))


def _aspect(width: pa.ChunkedArray, height: pa.ChunkedArray) -> np.ndarray:
    sides = np.stack([_number(width), _number(height)])
    with np.errstate(divide="ignore", invalid="ignore"):
        return sides.max(axis=0) / sides.min(axis=0)
