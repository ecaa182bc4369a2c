"""`load` opens every kind of trained tokenizer, and each says the same."""

import numpy as np
import pytest
from released_record import CONFIG, channels_last, load, weights

import dualtoken_jax
from dualtoken_jax.interop import released
from dualtoken_jax.interop.output import write_json, write_safetensors
from dualtoken_jax.interop.released_config import released_config_json
from dualtoken_jax.interop.siglip_config import huggingface_config


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


@pytest.mark.parametrize("path", ["nowhere", "nowhere.pt"])
def test_what_is_not_there_is_named(tmp_path, path):
    with pytest.raises(FileNotFoundError, match=f"there is no .*{path}.*workdir, an export or a released checkpoint"):
        dualtoken_jax.load(tmp_path / path)
