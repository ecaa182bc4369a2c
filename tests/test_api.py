"""The public API on a tiny trained tokenizer: round trips, independence of the batch, and what it refuses."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from conftest import python

import dualtoken_jax
from dualtoken_jax import api, job
from dualtoken_jax.checkpoint import CheckpointError
from dualtoken_jax.config import ConfigError
from dualtoken_jax.data.images import resize_crop
from dualtoken_jax.pretrained import Pretrained
from dualtoken_jax.tasks import make_task
from dualtoken_jax.workdir import load_config


@pytest.fixture(scope="module")
def tokenizer(tokenizer_workdir):
    return dualtoken_jax.load(tokenizer_workdir)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (21, 16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def codes(tokenizer, images):
    return tokenizer.encode(images)


def test_importing_the_package_does_not_import_jax():
    program = "import sys, dualtoken_jax; assert dualtoken_jax.__version__; sys.exit('jax' in sys.modules)"
    assert python("-c", program).returncode == 0


def test_codes_have_the_configured_sizes(codes):
    assert codes.pixel.shape == (21, 2, 2, 2) and codes.semantic.shape == (21, 2, 2, 3)
    assert codes.pixel.dtype == codes.semantic.dtype == np.int32
    assert all(0 <= branch.min() and branch.max() < 64 and len(np.unique(branch)) > 8 for branch in codes)


def test_reconstruct_is_decode_of_encode(tokenizer, images, codes):
    decoded = tokenizer.decode(codes.pixel)
    assert decoded.shape == images.shape and decoded.dtype == np.uint8 and decoded.std() > 0
    np.testing.assert_array_equal(decoded, tokenizer.reconstruct(images))
    np.testing.assert_array_equal(decoded, tokenizer.decode(codes))


def test_reconstruction_is_the_one_that_evaluation_measures(tokenizer, tokenizer_workdir, images):
    config = load_config(tokenizer_workdir)
    batch = {
        "image": images[:16],
        "text": np.zeros((16, tokenizer.model.siglip.text_length), np.int32),
        "weight": np.ones(16, np.float32),
    }
    found = jax.jit(make_task(config).eval_step)(job.load_state(config, tokenizer_workdir), batch)
    # Evaluation does not round to 8 bits.
    error = (tokenizer.reconstruct(images[:16]).astype(np.float32) - images[:16]) / 255
    psnr = -10 * np.log10((error**2).mean(axis=(1, 2, 3)))
    assert abs(psnr.mean() - found["sums"]["psnr"] / 16) < 0.02
    embedding = np.asarray(found["embeddings"]["image"])
    unit = embedding / np.linalg.norm(embedding, axis=-1, keepdims=True)
    np.testing.assert_allclose(tokenizer.embed_image(images[:16]), unit, atol=1e-5)


def test_codes_do_not_depend_on_the_batch(tokenizer, images, codes):
    for chunks in (1, 5, 16):
        parts = [tokenizer.encode(images[start : start + chunks]) for start in range(0, len(images), chunks)]
        for branch in ("pixel", "semantic"):
            joined = np.concatenate([getattr(part, branch) for part in parts])
            np.testing.assert_array_equal(joined, getattr(codes, branch))


def test_every_batch_size_uses_one_compilation(tokenizer, images, codes):
    tokenizer.decode(codes.pixel[:3])
    tokenizer.encode(images[0])
    assert tokenizer._encode._cache_size() == tokenizer._decode._cache_size() == 1


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_floats_give_the_codes_of_bytes(tokenizer, images, codes, dtype):
    values = (images / 127.5 - 1).astype(jax.numpy.dtype(dtype))
    expected = codes if dtype != "bfloat16" else tokenizer.encode(values.astype(np.float32))
    np.testing.assert_array_equal(tokenizer.encode(values).pixel, expected.pixel)


def test_other_sizes_are_resized_as_in_evaluation(tokenizer):
    rng = np.random.default_rng(1)
    pictures = [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((16, 16), (40, 23), (9, 30))]
    expected = [tokenizer.encode(resize_crop(picture, 16, None)).semantic[0] for picture in pictures]
    np.testing.assert_array_equal(tokenizer.encode(pictures).semantic, expected)


def test_embeddings_have_unit_length(tokenizer, images):
    image, text = tokenizer.embed_image(images), tokenizer.embed_text(["a red circle", "a blue square"])
    assert image.shape == (21, 32) and text.shape == (2, 32) and image.dtype == text.dtype == np.float32
    for vectors in (image, text):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, rtol=1e-5)
    assert np.abs(text[0] - text[1]).max() > 1e-4


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((16, 16), np.uint8), r"got \[16, 16\].*RGB"),
        (np.zeros((1, 16, 16, 4), np.uint8), r"got \[1, 16, 16, 4\].*RGB"),
        (np.zeros((16, 16, 3), np.int64), "got int64"),
        (np.full((16, 16, 3), 255.0), r"got 0 … 255; give uint8"),
        (np.full((16, 16, 3), np.nan), "got nan"),
        (np.zeros((0, 16, 16, 3), np.uint8), "no images"),
        ([], "no images"),
    ],
)
def test_impossible_images_are_refused(tokenizer, images, message):
    with pytest.raises(ValueError, match=message):
        tokenizer.encode(images)


def test_impossible_codes_are_refused(tokenizer, codes):
    for wrong, message in (
        (codes.semantic, r"\[B, 2, 2, 2\], got \[21, 2, 2, 3\]"),
        (codes.pixel[0], r"got \[2, 2, 2\]"),
        (codes.pixel + 64, r"must lie in \[0, 64\), got .* another model"),
        (codes.pixel - 64, "must lie in"),
        (codes.pixel.astype(np.float32), "integers, got float32"),
        (None, r"decode\(codes.pixel\)"),
    ):
        with pytest.raises(ValueError, match=message):
            tokenizer.decode(wrong)


@pytest.mark.parametrize("texts", ["a red circle", [], [1]])
def test_impossible_texts_are_refused(tokenizer, texts):
    with pytest.raises(ValueError, match="list of at least one string"):
        tokenizer.embed_text(texts)


def test_what_is_no_tokenizer_run_is_refused(tokenizer_workdir, tmp_path):
    with pytest.raises(ConfigError, match="no workdir"):
        dualtoken_jax.load(tmp_path)
    with pytest.raises(ConfigError, match="contrastive run"):
        dualtoken_jax.load(tokenizer_workdir / "teacher")
    shutil.copy(tokenizer_workdir / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match="frozen"):
        dualtoken_jax.load(tmp_path)
    shutil.copytree(tokenizer_workdir / "frozen", tmp_path / "frozen")
    with pytest.raises(CheckpointError, match="no finished checkpoint"):
        dualtoken_jax.load(tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_loading_leaves_a_running_training_alone_and_needs_no_more_than_it_says(tokenizer_workdir, tmp_path):
    for name in ("config.json", "frozen", "checkpoints"):
        copy = shutil.copytree if (tokenizer_workdir / name).is_dir() else shutil.copy
        copy(tokenizer_workdir / name, tmp_path / name)
    half_written = tmp_path / "checkpoints" / "9.orbax-checkpoint-tmp"
    half_written.mkdir()
    config = json.loads((tmp_path / "config.json").read_text())
    config["mesh"]["fsdp"] = 16  # more devices than there are here
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert dualtoken_jax.load(tmp_path).step == 2
    assert half_written.exists()


@pytest.mark.parametrize("supervision", ["single", "semantic_only", "pixel_only"])
def test_models_that_lack_a_vocabulary(tokenizer, images, supervision):
    model = dataclasses.replace(tokenizer.model, supervision=supervision)
    lacking = {"single": ["pixel"], "semantic_only": ["pixel", "decoder"], "pixel_only": ["semantic"]}[supervision]
    params = {name: value for name, value in tokenizer._tree["params"].items() if name not in lacking}
    if supervision == "single":  # its one codebook has two up-projections
        params["semantic"] = params["semantic"] | {"up_pixel": params["semantic"]["up"]}
    tree = tokenizer._tree | {"params": params}
    other = api.ImageTokenizer(Pretrained("other", 2, model, tree, None), 16)
    codes = other.encode(images[:2])
    assert (codes.pixel is None) == (supervision != "pixel_only")
    assert (codes.semantic is None) == (supervision == "pixel_only")
    if supervision == "semantic_only":
        with pytest.raises(ConfigError, match="without a decoder"):
            other.decode(codes)
    else:
        decoded = other.decode(codes)
        assert decoded.shape == (2, 16, 16, 3)
        np.testing.assert_array_equal(decoded, other.decode(codes.semantic if supervision == "single" else codes.pixel))
