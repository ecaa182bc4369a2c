"""Captions → token ids: by the words of the scenes, by SigLIP's SentencePiece, or by SigLIP 2's Gemma vocabulary.

All three have `length` T, `vocabulary` (number of ids) and `encode(captions) -> int32 [n, T]`.
"""

import re
import string
from pathlib import Path

import numpy as np

from dualtoken_jax.data.words import WordTokenizer

FILES = {".model": "spiece.model", ".json": "tokenizer.json"}  # by suffix, as Hugging Face's folders name them
_SOURCES = (
    "SigLIP's spiece.model is in google/siglip-so400m-patch14-384 at Hugging Face, "
    "SigLIP 2's tokenizer.json in google/siglip2-so400m-patch16-256"
)
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def open_text_tokenizer(path: str, length: int) -> "WordTokenizer | SiglipTokenizer | GemmaTokenizer":
    """The tokenizer of a `path` as in `text_tokenizer_file`; '' is that of the scenes. `length` is T.

    Raises FileNotFoundError, or ValueError for a damaged or unknown file, naming the path and where to get one.
    """
    if not path:
        return WordTokenizer(length)
    file = text_tokenizer_file(path)
    return SiglipTokenizer(file, length) if file.suffix == ".model" else GemmaTokenizer(file, length)


def open_fitting_tokenizer(
    path: str, length: int, vocabulary: int
) -> "WordTokenizer | SiglipTokenizer | GemmaTokenizer":
    """As `open_text_tokenizer`, for a text tower that embeds `vocabulary` ids.

    Raises ValueError for a tokenizer with more: an id beyond the table would embed as NaN.
    """
    tokenizer = open_text_tokenizer(path, length)
    if tokenizer.vocabulary > vocabulary:
        raise ValueError(
            f"model.siglip.vocabulary {vocabulary} is smaller than the {tokenizer.vocabulary} ids of text_tokenizer "
            f"{path or 'of the scenes'}; name the text tower's own"
        )
    return tokenizer


def text_tokenizer_file(path: str | Path) -> Path:
    """A SentencePiece .model file or a tokenizer.json, or the one in a folder; spiece.model goes first.

    Raises FileNotFoundError or ValueError as `open_text_tokenizer`.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in FILES.values() if (path / name).is_file()]
        if not found:
            raise FileNotFoundError(f"text_tokenizer: {path} holds neither {' nor '.join(FILES.values())}; {_SOURCES}")
        return found[0]
    if not path.exists():
        raise FileNotFoundError(f"text_tokenizer: there is no file or folder {path}; {_SOURCES}")
    if path.suffix not in FILES:
        raise ValueError(f"text_tokenizer: {path} is neither a SentencePiece .model nor a tokenizer .json; {_SOURCES}")
    return path


class SiglipTokenizer:
    """Lower case without ASCII punctuation, white space collapsed; then `</s>`, which also fills the row.

    As transformers' SiglipTokenizer. A caption that is too long keeps its beginning and the `</s>`.
    """

    def __init__(self, file: Path, length: int):
        import sentencepiece  # here, as most runs read neither kind of file

        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_file=str(file))
        except (RuntimeError, OSError) as error:
            raise ValueError(
                f"text_tokenizer: {file} is damaged or no SentencePiece model: {error}; {_SOURCES}"
            ) from error
        self._end = self._pieces.piece_to_id("</s>")
        # Gemma's SentencePiece model has a piece </s> too, the HTML tag, and another end.
        if self._pieces.id_to_piece(self._end) != "</s>" or self._pieces.eos_id() != self._end:
            raise ValueError(
                f"text_tokenizer: {file} does not end with </s>, so it is not SigLIP's; for Gemma's give tokenizer.json"
            )
        self.length, self.vocabulary = length, self._pieces.get_piece_size()

    def encode(self, captions: list[str]) -> np.ndarray:
        """Token ids, int32 [n, length]."""
        tokens = [self._pieces.encode(_canonical(caption)) for caption in captions]
        return _rows(tokens, self.length, self._end, padding=self._end)


def _canonical(caption: str) -> str:
    # ▁ stands for a space inside SentencePiece.
    caption = caption.replace("▁", " ").lower().translate(_WITHOUT_PUNCTUATION)
    return re.sub(r"\s+", " ", caption).strip()


class GemmaTokenizer:
    """Lower case, punctuation kept; then `<eos>`, and `<pad>` to the end of the row.

    As transformers' Siglip2Tokenizer (big_vision lowers ASCII letters only) and as SigLIP 2 was trained, whatever
    lower-casing, added tokens or padding the file itself asks for. A caption that is too long keeps its beginning and
    the `<eos>`.
    """

    def __init__(self, file: Path, length: int):
        import tokenizers

        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises nothing more specific
            raise ValueError(f"text_tokenizer: {file} is damaged or no tokenizer: {error}; {_SOURCES}") from error
        self._end, self._padding = map(self._tokenizer.token_to_id, ("<eos>", "<pad>"))
        if self._end is None or self._padding is None:
            raise ValueError(f"text_tokenizer: {file} has no <eos> or <pad>, so it is not Gemma's; {_SOURCES}")
        lower, own = tokenizers.normalizers.Lowercase(), self._tokenizer.normalizer
        self._tokenizer.normalizer = tokenizers.normalizers.Sequence([lower, own] if own else [lower])
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.length, self.vocabulary = length, self._tokenizer.get_vocab_size()

    def encode(self, captions: list[str]) -> np.ndarray:
        """Token ids, int32 [n, length]."""
        tokens = [self._tokenizer.encode(caption, add_special_tokens=False).ids for caption in captions]
        return _rows(tokens, self.length, self._end, self._padding)


def _rows(tokens: list[list[int]], length: int, end: int, padding: int) -> np.ndarray:
    rows = np.full((len(tokens), length), padding, np.int32)
    for row, ids in zip(rows, tokens, strict=True):
        kept = [*ids[: length - 1], end]
        row[: len(kept)] = kept
    return rows
