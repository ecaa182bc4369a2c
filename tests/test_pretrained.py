"""`load` opens every kind of trained tokenizer, and each says the same."""

import dataclasses

import jax
import numpy as np
import pytest
from conftest import tiny_config
from released_record import CONFIG, channels_last, load, weights
from test_text import gemma, train_spiece  # noqa: F401  a fixture

import dualtoken_jax
from dualtoken_jax import job
from dualtoken_jax.config import ConfigError
from dualtoken_jax.interop import released
from dualtoken_jax.interop.huggingface import Export, write_export
from dualtoken_jax.interop.output import write_json, write_safetensors
from dualtoken_jax.interop.released_config import released_config_json
from dualtoken_jax.interop.siglip_config import huggingface_config
from dualtoken_jax.pretrained import open_pretrained
from dualtoken_jax.workdir import load_config


def test_an_export_is_the_run_it_came_from(tokenizer_workdir, exported):
    ours, theirs = dualtoken_jax.load(tokenizer_workdir), dualtoken_jax.load(exported)
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    assert (ours.name, ours.step, ours.model) == (theirs.name, theirs.step, theirs.model)
    np.testing.assert_array_equal(ours.encode(images).semantic, theirs.encode(images).semantic)
    np.testing.assert_array_equal(ours.reconstruct(images), theirs.reconstruct(images))
    captions = ["a red circle", "an unheard-of thing"]
    np.testing.assert_array_equal(ours.embed_text(captions), theirs.embed_text(captions))


@pytest.fixture(scope="module")
def released_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("released")
    tree = released.import_released(weights("model"), CONFIG)
    write_safetensors(folder / "model.safetensors", released.export_released(tree, CONFIG))
    write_json(folder / "config.json", released_config_json(CONFIG, "siglip"))
    (folder / "siglip").mkdir()
    write_json(folder / "siglip" / "config.json", huggingface_config(CONFIG.siglip))
    return folder


def test_a_released_checkpoint_gives_the_recorded_codes(released_folder, tmp_path):
    moved = tmp_path / "elsewhere.safetensors"
    moved.write_bytes((released_folder / "model.safetensors").read_bytes())
    record = load("evaluation")
    for tokenizer in (
        dualtoken_jax.load(released_folder),
        dualtoken_jax.load(moved, config=released_folder / "config.json"),
    ):
        codes = tokenizer.encode(channels_last(record["images"]))
        np.testing.assert_array_equal(codes.pixel, record["code_pix"])
        np.testing.assert_array_equal(codes.semantic, record["code_sem"])
        assert tokenizer.model.siglip == CONFIG.siglip
        with pytest.raises(ValueError, match="came without its text tokenizer"):
            tokenizer.embed_text(["a red circle"])


def test_a_text_tokenizer_that_is_given_must_fit_the_text_tower(released_folder, gemma):  # noqa: F811
    with pytest.raises(ValueError, match=r"vocabulary 100 is smaller than the \d+ ids of text_tokenizer .*; name the"):
        dualtoken_jax.load(released_folder, text_tokenizer=gemma)


def test_a_text_tokenizer_that_is_lost_can_be_given(tmp_path):
    file = train_spiece(tmp_path / "small", vocab_size=60)
    export = Export(CONFIG, released.import_released(weights("model"), CONFIG), "tiny", 0, str(file), None)
    write_export(tmp_path, export, "raw", "", 10**9)
    assert open_pretrained(tmp_path).text_tokenizer is not None
    (tmp_path / "spiece.model").rename(tmp_path / "elsewhere.model")
    assert open_pretrained(tmp_path).text_tokenizer is None
    given = open_pretrained(tmp_path, text_tokenizer=tmp_path / "elsewhere.model").text_tokenizer
    assert given.encode(["a red circle"]).max() < 100


def test_training_goes_on_from_a_released_checkpoint(released_folder):
    config = dataclasses.replace(tiny_config(), model=CONFIG, init_path=str(released_folder))
    begin, tree = job.earlier_stage(config), released.import_released(weights("model"), CONFIG)
    for name in ("params", "codebooks", "ema"):
        jax.tree.map(np.testing.assert_array_equal, begin[name], tree["params" if name == "ema" else name])
    other = dataclasses.replace(config, model=dataclasses.replace(CONFIG, shortcut_layer=None))
    with pytest.raises(ConfigError, match=r"(?s)holds another model.*params.pixel.shortcut.*expected none"):
        job.earlier_stage(other)


def test_training_goes_on_from_a_workdir(tokenizer_workdir):
    config = load_config(tokenizer_workdir)
    begin = job.earlier_stage(dataclasses.replace(config, init_path=str(tokenizer_workdir)))
    state = job.load_state(config, tokenizer_workdir)
    for name in ("params", "codebooks", "ema"):
        jax.tree.map(np.testing.assert_array_equal, begin[name], getattr(state, name))


@pytest.mark.parametrize("path", ["nowhere", "nowhere.pt"])
def test_what_is_not_there_is_named(tmp_path, path):
    with pytest.raises(FileNotFoundError, match=f"there is no .*{path}.*workdir, an export or a released checkpoint"):
        dualtoken_jax.load(tmp_path / path)
