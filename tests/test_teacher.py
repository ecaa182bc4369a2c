"""A published SigLIP as the teacher, with its tokenizer: what reaches the run, what the workdir keeps, the errors."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from conftest import tiny_config
from siglip_files import big_vision, random_params, write_huggingface
from test_text import gemma, spiece  # noqa: F401  fixtures

import dualtoken_jax
from dualtoken_jax import job
from dualtoken_jax.config import ConfigError
from dualtoken_jax.config_checks import check
from dualtoken_jax.data.text import open_text_tokenizer
from dualtoken_jax.frozen_weights import load_frozen
from dualtoken_jax.text_tokenizer_copy import keep_text_tokenizer, with_kept_text_tokenizer
from dualtoken_jax.workdir import claim_workdir


@pytest.fixture
def teacher(spiece, tmp_path):  # noqa: F811
    """(config, folder of the teacher, its parameters)."""
    folder = tmp_path / "published"
    folder.mkdir()
    config = tiny_config()
    params = random_params(config.model.siglip)
    write_huggingface(folder, params, config.model.siglip)
    shutil.copy(spiece, folder)
    named = dataclasses.replace(config.teacher, path=str(folder), train=None, optimizer=None)
    return check(dataclasses.replace(config, teacher=named, text_tokenizer=str(folder))), folder, params


def named(config, path):
    return dataclasses.replace(config, teacher=dataclasses.replace(config.teacher, path=str(path)))


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_published_weights_are_the_frozen_teacher(teacher, tmp_path):
    config, _, params = teacher
    job.preflight(config, tmp_path / "run")
    assert_same(job.frozen_weights(config, tmp_path / "run"), {"siglip": params})
    np.savez(tmp_path / "siglip.npz", **big_vision(params, config.model.siglip))
    assert_same(job.named_teacher(named(config, tmp_path / "siglip.npz")), params)


def test_a_teacher_that_does_not_fit_is_an_error_with_the_remedy(teacher, tokenizer_workdir, tmp_path):
    config, folder, _ = teacher
    with pytest.raises(ConfigError, match="teacher.path .*nowhere does not exist; name a contrastive run's workdir"):
        job.named_teacher(named(config, tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="is a published SigLIP: set text_tokenizer to the folder"):
        job.named_teacher(dataclasses.replace(config, text_tokenizer=""))
    with pytest.raises(ConfigError, match="is a tokenizer run; its teacher is in"):
        job.named_teacher(named(config, tokenizer_workdir))
    with pytest.raises(ConfigError, match="learned from text_tokenizer '', not '.*published'"):
        job.named_teacher(named(config, tokenizer_workdir / "teacher"))
    wider = dataclasses.replace(config.model.siglip.vision, width=64)
    siglip = dataclasses.replace(config.model.siglip, vision=wider)
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, siglip=siglip))
    with pytest.raises(ValueError, match="vision.width: the file has 32, wanted 64"):
        job.named_teacher(other)


def test_the_workdir_keeps_the_tokenizer_and_needs_the_original_no_more(teacher, tmp_path):
    config, folder, _ = teacher
    workdir, captions = tmp_path / "run", ["a red circle"]
    expected = open_text_tokenizer(config.text_tokenizer, 20).encode(captions)
    (workdir / "text_tokenizer.tmp").mkdir(parents=True)  # of a copy that was cut off
    (workdir / "text_tokenizer.tmp" / "tokenizer.json").write_text("of another tokenizer")
    job.preflight(config, workdir)
    assert [file.name for file in (workdir / "text_tokenizer").iterdir()] == ["spiece.model"]
    assert not (workdir / "text_tokenizer.tmp").exists()
    shutil.rmtree(folder)
    for kept in (keep_text_tokenizer(config, workdir), with_kept_text_tokenizer(config, workdir)):
        assert kept == dataclasses.replace(config, text_tokenizer=str(workdir / "text_tokenizer"))
        np.testing.assert_array_equal(open_text_tokenizer(kept.text_tokenizer, 20).encode(captions), expected)
    job.preflight(config, workdir)  # the same command again
    with pytest.raises(
        FileNotFoundError, match="text_tokenizer: there is no file or folder .*published; SigLIP's spiece"
    ):
        job.preflight(config, tmp_path / "another run")


def start(config, workdir):
    """What a run does before it trains anything."""
    claim_workdir(config, workdir)
    return keep_text_tokenizer(config, workdir)


def test_another_tokenizer_named_before_training_replaces_the_copy(teacher, gemma, tmp_path):  # noqa: F811
    config, _, _ = teacher
    workdir = tmp_path / "run"

    kept = workdir / "text_tokenizer"
    names = lambda: [file.name for file in kept.iterdir()]  # noqa: E731
    start(config, workdir)
    assert names() == ["spiece.model"]
    other = dataclasses.replace(config, text_tokenizer=str(gemma))
    with pytest.raises(FileNotFoundError, match="nowhere"):  # a slip, not an original that has moved
        start(dataclasses.replace(config, text_tokenizer="nowhere"), workdir)
    assert names() == ["spiece.model"]
    start(other, workdir)
    assert names() == ["tokenizer.json"]
    words = dataclasses.replace(config, text_tokenizer="")
    assert start(words, workdir) == words
    (workdir / "frozen").mkdir()  # now something has learned with it
    gemma_text = (kept / "tokenizer.json").read_text()
    changed = tmp_path / "tokenizer.json"
    changed.write_text(gemma_text + " ")
    keep_text_tokenizer(dataclasses.replace(config, text_tokenizer=str(changed)), workdir)
    assert (kept / "tokenizer.json").read_text() == gemma_text


def test_a_tokenizer_of_the_user_s_own_in_the_workdir_is_left_alone(teacher, gemma, tmp_path):  # noqa: F811
    config, folder, _ = teacher
    own = tmp_path / "run" / "text_tokenizer"
    own.mkdir(parents=True)
    for file in (folder / "spiece.model", gemma):
        shutil.copy(file, own)
    before = {file.name: file.read_bytes() for file in own.iterdir()}
    intact = lambda: before == {file.name: file.read_bytes() for file in own.iterdir()}  # noqa: E731
    with pytest.raises(ConfigError, match="in the way of a copy of .* move it, or choose another"):
        start(dataclasses.replace(config, text_tokenizer=str(gemma)), tmp_path / "run")
    assert intact() and [path.name for path in (tmp_path / "run").iterdir()] == ["text_tokenizer"]
    for named in (own, own / "tokenizer.json"):
        inside = dataclasses.replace(config, text_tokenizer=str(named))
        assert start(inside, tmp_path / "run") == inside and intact()
    with pytest.raises(ConfigError, match="in the way"):
        start(dataclasses.replace(config, text_tokenizer=str(gemma)), tmp_path / "run")
    assert intact()


def test_a_tokenizer_of_another_text_tower_is_refused_before_anything_is_trained(teacher, gemma, tmp_path):  # noqa: F811
    config, _, _ = teacher
    siglip = dataclasses.replace(config.model.siglip, vocabulary=60)
    small = dataclasses.replace(
        config, model=dataclasses.replace(config.model, siglip=siglip), text_tokenizer=str(gemma)
    )
    with pytest.raises(ValueError, match=r"model.siglip.vocabulary 60 is smaller than the \d+ ids of text_tokenizer"):
        job.preflight(check(small), tmp_path / "run")


def test_a_trained_workdir_is_resumed_where_its_inputs_have_moved_and_is_no_other_s(teacher, gemma, tmp_path):  # noqa: F811
    config, folder, _ = teacher
    lpips = dataclasses.replace(config.loss, perceptual_network="lpips", lpips_path=str(folder))
    config, workdir = dataclasses.replace(config, loss=lpips), tmp_path / "run"
    job.preflight(config, workdir)
    (workdir / "frozen").mkdir()
    moved = named(dataclasses.replace(config, text_tokenizer=str(tmp_path / "new")), tmp_path / "new")
    moved = dataclasses.replace(moved, loss=dataclasses.replace(lpips, lpips_path=str(tmp_path / "new")))
    folder.rename(tmp_path / "new")
    job.preflight(moved, workdir)
    shutil.rmtree(tmp_path / "new")
    job.preflight(config, workdir)
    with pytest.raises(ConfigError, match="another config .*\n  text_tokenizer: .*tokenizer.json'\n"):
        job.preflight(dataclasses.replace(config, text_tokenizer=str(gemma)), workdir)
    with pytest.raises(ConfigError, match="another config .*\n  teacher.path: .* → ''\n"):
        claim_workdir(named(config, ""), workdir)


@pytest.mark.slow
def test_a_run_with_a_published_teacher_from_start_to_finish(teacher, tmp_path):
    config, folder, params = teacher
    workdir = tmp_path / "run"
    results = job.run(config, workdir)
    assert "zero_shot_top1" in results and np.isfinite(results["psnr"])
    assert_same(load_frozen(workdir), {"siglip": params})
    shutil.rmtree(folder)
    tokenizer = dualtoken_jax.load(workdir)
    upper, lower = tokenizer.embed_text(["A red, circle!", "a red circle"])
    np.testing.assert_array_equal(upper, lower)
    again = job.conclude(config, workdir, job.load_state(config, workdir))
    assert again == results
