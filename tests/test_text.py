"""Token ids against those of transformers from the same small files, and what a wrong file is told."""

import json
from pathlib import Path

import numpy as np
import pytest
from torch_packages import imported as imported_package

from dualtoken_jax.data.text import open_fitting_tokenizer, open_text_tokenizer
from dualtoken_jax.data.words import WordTokenizer
from dualtoken_jax.interop.tokenizer_files import copy_text_tokenizer

LENGTH = 16
CORPUS = (
    "a photo of a small red circle and a big blue square over the striped background the quick brown fox jumps over "
    "lazy dogs while nobody reads 1234567890 captions about cats eating fish in gardens"
).split()
CAPTIONS = [
    "a photo of a red circle",
    "A Photo, of A  RED circle!!!",
    "don't (stop) — the fox's jump... 12,345?",
    "",
    "   ",
    "?!.",
    " leading and trailing  \n\t spaces ",
    "a photo of a small red circle and a big blue square over the striped background " * 3,
    "Ünïcödé Straße ΑΣ İstanbul",
    "炎热天气里一杯冷饮的照片 🐈 cat",
    "snake_case ▁ meta▁space",
    "a\u00a0photo\u3000of cats",
]


def train_spiece(prefix: Path, **special) -> Path:
    """A small SentencePiece model of CORPUS with SigLIP's special ids, PREFIX.model."""
    sentencepiece = pytest.importorskip("sentencepiece")
    rng = np.random.default_rng(0)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(" ".join(rng.choice(CORPUS, 12)) for _ in range(300)),
        model_prefix=str(prefix),
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
        **{"vocab_size": 120} | special,
    )
    return prefix.with_suffix(".model")


@pytest.fixture(scope="module")
def spiece(tmp_path_factory):
    """A SentencePiece model with SigLIP's special ids: </s> is 1."""
    return train_spiece(tmp_path_factory.mktemp("siglip") / "spiece")


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    """A tokenizer.json built like Gemma's: byte fallback, spaces as ▁, and a template that begins with <bos>."""
    tokenizers = pytest.importorskip("tokenizers")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    model = tokenizers.models.BPE(fuse_unk=True, unk_token="<unk>", byte_fallback=True)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(" ", "merged_with_previous")
    rng = np.random.default_rng(1)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=special + [f"<0x{byte:02X}>" for byte in range(256)],
        show_progress=False,
    )
    tokenizer.train_from_iterator((" ".join(rng.choice(CORPUS, 12)) for _ in range(300)), trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 2)]
    )
    tokenizer.enable_padding(direction="left", length=9)
    file = tmp_path_factory.mktemp("siglip2") / "tokenizer.json"
    tokenizer.save(str(file))
    return file


def test_siglip_ids_are_those_of_transformers(spiece):
    theirs = imported_package("transformers").SiglipTokenizer(str(spiece))
    expected = theirs(CAPTIONS, padding="max_length", truncation=True, max_length=LENGTH)["input_ids"]
    ours = open_text_tokenizer(str(spiece), LENGTH)
    found = ours.encode(CAPTIONS)
    assert found.dtype == np.int32 and found.shape == (len(CAPTIONS), LENGTH)
    for caption, row, other in zip(CAPTIONS, found, expected, strict=True):
        assert row.tolist() == other, caption
    assert 40 < ours.vocabulary == theirs.vocab_size and ours.length == LENGTH
    assert (found[CAPTIONS.index("")] == 1).all() and found[7, -1] == 1 and (found[7, :-1] != 1).all()
    assert found[0].tolist() == found[1].tolist()  # case and punctuation are gone


def test_siglip2_ids_are_those_of_transformers(gemma):
    transformers = imported_package("transformers")
    saved = json.loads(gemma.read_text())["model"]
    merges = [tuple(pair) for pair in saved["merges"]]
    theirs = transformers.Siglip2Tokenizer(vocab=saved["vocab"], merges=merges, add_bos_token=False, add_eos_token=True)
    ours = open_text_tokenizer(str(gemma), LENGTH)
    found = ours.encode(CAPTIONS)
    assert found.dtype == np.int32 and found.shape == (len(CAPTIONS), LENGTH)
    options = {"truncation": True, "max_length": LENGTH, "padding": "max_length", "padding_side": "right"}
    expected = theirs(CAPTIONS, **options)["input_ids"]
    for caption, row, other in zip(CAPTIONS, found, expected, strict=True):
        assert row.tolist() == other, caption
    assert ours.vocabulary == len(theirs)
    assert found[CAPTIONS.index("")].tolist() == [1] + [0] * (LENGTH - 1) and found[7, -1] == 1
    assert found[0].tolist() != found[1].tolist()  # punctuation stays
    upper = open_text_tokenizer(str(gemma), LENGTH).encode(["A PHOTO OF A RED CIRCLE"])
    assert upper[0].tolist() == found[0].tolist()


@pytest.mark.parametrize("kind", ["spiece", "gemma"])
def test_autotokenizer_opens_that_of_an_export(kind, request, tmp_path, monkeypatch):
    """As the model card of interop/model_card.py says."""
    file, transformers = request.getfixturevalue(kind), imported_package("transformers")
    from dualtoken_jax.interop import torch_model

    copy_text_tokenizer(file.parent, tmp_path, LENGTH)
    auto_map = {"AutoConfig": "modeling_dualtoken.DualTokenConfig"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "dualtoken", "auto_map": auto_map}))
    (tmp_path / "modeling_dualtoken.py").write_text(Path(torch_model.__file__).read_text())
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "code"))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=True)
    settings = {"padding": "max_length", "truncation": True, "max_length": LENGTH}
    expected = theirs(CAPTIONS, **settings).input_ids
    for tokenizer in (file, tmp_path):  # ours reads the export's as it reads the original
        assert open_text_tokenizer(str(tokenizer), LENGTH).encode(CAPTIONS).tolist() == expected


def test_a_folder_holds_its_tokenizer_and_an_empty_path_the_words(spiece, gemma):
    for file in (spiece, gemma):
        np.testing.assert_array_equal(
            open_text_tokenizer(str(file.parent), LENGTH).encode(CAPTIONS),
            open_text_tokenizer(str(file), LENGTH).encode(CAPTIONS),
        )
    words = open_text_tokenizer("", 5)
    assert isinstance(words, WordTokenizer) and words.encode(["a red circle"]).shape == (1, 5)
    assert open_fitting_tokenizer("", 5, words.vocabulary).vocabulary == words.vocabulary
    with pytest.raises(ValueError, match=rf"vocabulary 10 is smaller than the {words.vocabulary} ids .* of the scenes"):
        open_fitting_tokenizer("", 5, 10)


def test_missing_damaged_and_foreign_files_are_named_with_where_they_come_from(spiece, gemma, tmp_path):
    source = "google/siglip-so400m-patch14-384.*google/siglip2-so400m-patch16-256"
    with pytest.raises(FileNotFoundError, match=f"no file or folder .*nowhere.*{source}"):
        open_text_tokenizer(str(tmp_path / "nowhere"), LENGTH)
    with pytest.raises(FileNotFoundError, match=f"holds neither spiece.model nor tokenizer.json; .*{source}"):
        open_text_tokenizer(str(tmp_path), LENGTH)
    (tmp_path / "vocab.txt").write_text("a")
    with pytest.raises(ValueError, match="vocab.txt is neither a SentencePiece .model nor"):
        open_text_tokenizer(str(tmp_path / "vocab.txt"), LENGTH)
    (tmp_path / "cut.model").write_bytes(spiece.read_bytes()[:100])
    with pytest.raises(ValueError, match="cut.model is damaged or no SentencePiece model"):
        open_text_tokenizer(str(tmp_path / "cut.model"), LENGTH)
    foreign = train_spiece(tmp_path / "gemma", eos_piece="<eos>", user_defined_symbols=["</s>"])  # a tag, as in Gemma's
    with pytest.raises(ValueError, match="gemma.model does not end with </s>, so it is not SigLIP's"):
        open_text_tokenizer(str(foreign), LENGTH)
    (tmp_path / "cut.json").write_bytes(gemma.read_bytes()[:100])
    with pytest.raises(ValueError, match="cut.json is damaged or no tokenizer"):
        open_text_tokenizer(str(tmp_path / "cut.json"), LENGTH)
    (tmp_path / "clip.json").write_text(gemma.read_text().replace("<eos>", "<|endoftext|>"))
    with pytest.raises(ValueError, match="clip.json has no <eos> or <pad>, so it is not Gemma's"):
        open_text_tokenizer(str(tmp_path / "clip.json"), LENGTH)
