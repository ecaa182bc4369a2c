"""The tokenizer of the small studies: one id per known word, UTF-8 bytes for any other."""

import re

import numpy as np

from dualtoken_jax.data.scenes import WORDS

PAD = 0  # fills the row of an empty caption
_FIRST_BYTE = 1
_FIRST_WORD = _FIRST_BYTE + 256
_PROMPT_WORDS = (
    "zero one two three four five six seven eight nine an any bright clean close cropped dark digit drawing good image "
    "of our picture photo photograph rendering showing some that there this up view"
).split()


class WordTokenizer:
    """Lower-cases, drops punctuation, repeats the caption until `length` tokens are full, and cuts there.

    SigLIP pads instead, and its text tower attends to the padding. Four words among twenty pads make all captions look
    alike to a fresh tower, and a short training spends itself on telling them apart; repeated words do not.
    """

    def __init__(self, length: int, words: list[str] | None = None):
        """`words` in the order of their ids; None takes those of the scenes."""
        self.length = length
        words = sorted({*WORDS, *_PROMPT_WORDS}) if words is None else words
        self._ids = {word: _FIRST_WORD + i for i, word in enumerate(words)}

    @property
    def words(self) -> list[str]:
        """The known words in the order of their ids, which begin after those of the bytes."""
        return list(self._ids)

    @property
    def vocabulary(self) -> int:
        """Number of ids."""
        return _FIRST_WORD + len(self._ids)

    def encode(self, captions: list[str]) -> np.ndarray:
        """Token ids, int32 [n, length]."""
        ids = np.full((len(captions), self.length), PAD, np.int32)
        for row, caption in zip(ids, captions, strict=True):
            tokens = [token for word in re.findall(r"\w+", caption.lower()) for token in self._word(word)]
            if tokens:
                row[:] = np.resize(tokens, self.length)
        return ids

    def _word(self, word: str) -> list[int]:
        if word in self._ids:
            return [self._ids[word]]
        return [_FIRST_BYTE + byte for byte in word.encode()]
