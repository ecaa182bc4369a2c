"""evaluate, reconstruct and tokenize on a tiny run: once each as a user starts them, the rest in this process."""

import json
import subprocess

import numpy as np
import pytest
from conftest import python
from PIL import Image

import dualtoken_jax
from dualtoken_jax import evaluate, reconstruct, tokenize
from dualtoken_jax.data.codes import read_codes, write_shards


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two classes, a caption, three sizes, and one file that is no picture."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name, size in (("cat/a.png", (16, 16)), ("cat/b.png", (40, 23)), ("dog/a.png", (9, 30))):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(folder / name)
    (folder / "dog" / "a.txt").write_text("a blue square\n")
    (folder / "dog" / "broken.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def npz(tokenizer_workdir, pictures, tmp_path_factory):
    """The codes of the usable pictures."""
    path = tmp_path_factory.mktemp("codes") / "codes.npz"
    files = [str(pictures / name) for name in ("cat/a.png", "cat/b.png", "dog/a.png")]
    tokenize.main([*files, f"--workdir={tokenizer_workdir}", f"--output={path}", "--batch_size=16"])
    return path


def command(module: str, *arguments) -> subprocess.CompletedProcess:
    return python("-m", f"dualtoken_jax.{module}", *arguments)


def failure(main, *arguments) -> str:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return str(stop.value)


def test_reconstruct_does_the_others_and_names_the_bad_file(tokenizer_workdir, pictures, tmp_path):
    files = [pictures / name for name in ("cat/a.png", "dog/broken.jpg", "dog/a.png", "missing.png")]
    done = command("reconstruct", *files, f"--workdir={tokenizer_workdir}", f"--output={tmp_path / 'out'}")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"error: {files[1]}: not-an-image" in done.stderr and str(files[3]) in done.stderr
    assert done.stderr.splitlines()[-1] == "error: 2 of 4 pictures could not be used"
    assert done.stdout.count(" dB") == 2
    written = sorted((tmp_path / "out").iterdir())
    assert [file.name for file in written] == ["a_reconstructed.png", "a_reconstructed_2.png"]
    pair = np.asarray(Image.open(written[0]))
    original = np.asarray(Image.open(files[0]))
    np.testing.assert_array_equal(pair[:, :16], original)
    np.testing.assert_array_equal(pair[:, 16:], dualtoken_jax.load(tokenizer_workdir).reconstruct(original)[0])


def test_reconstruct_never_writes_over_its_input(tokenizer_workdir, pictures, tmp_path):
    mine = tmp_path / "a.png"
    mine.write_bytes((pictures / "cat" / "a.png").read_bytes())
    reconstruct.main([str(mine), f"--workdir={tokenizer_workdir}", f"--output={tmp_path}"])
    assert mine.read_bytes() == (pictures / "cat" / "a.png").read_bytes()


def test_evaluate_repeats_the_runs_own_evaluation(tokenizer_workdir):
    file = tokenizer_workdir / "evaluation.json"
    before = json.loads(file.read_text())
    file.unlink()
    done = command("evaluate", f"--workdir={tokenizer_workdir}")
    assert done.returncode == 0 and "psnr" in done.stdout and str(file) in done.stdout
    after = json.loads(file.read_text())
    assert after.keys() == before.keys() and after["examples"] == before["examples"]
    for name in (
        "psnr",
        "ssim",
        "l1",
        "cosine_hidden",
        "cosine_pooled",
    ):  # ranks of an untrained model hang on a rounding
        assert after[name] == pytest.approx(before[name], rel=1e-3), name


def test_evaluate_says_what_is_wrong_with_a_folder(tmp_path):
    assert failure(evaluate.main, f"--workdir={tmp_path}").startswith(f"error: {tmp_path} is no workdir")


def test_tokenize_of_a_folder_leaves_the_bad_file_out(tokenizer_workdir, pictures, tmp_path):
    flags = (
        f"--path={pictures}",
        f"--workdir={tokenizer_workdir}",
        f"--output={tmp_path / 'codes.npz'}",
        "--batch_size=16",
    )
    done = command("tokenize", *flags)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"error: {pictures / 'dog' / 'broken.jpg'}: not-an-image" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: 1 of 4 pictures")
    records = list(read_codes(tmp_path / "codes.npz"))
    assert [record["label"] for record in records] == [0, 0, 1]
    assert [record["index"] for record in records] == [0, 1, 2]
    assert [record["caption"] for record in records] == ["a photo of a cat", "a photo of a cat", "a blue square"]
    assert records[2]["origin"].endswith("a.png")


def test_npz_holds_what_encode_says(tokenizer_workdir, pictures, npz):
    stored, tokenizer = read_codes(npz), dualtoken_jax.load(tokenizer_workdir)
    assert stored.header.model == "demo" and stored.header.step == 2 and stored.header.image_size == 16
    assert stored.header.quantizers["semantic"] == {"codes": 64, "depth": 3, "grid": 2}
    expected = tokenizer.encode(np.asarray(Image.open(pictures / "dog" / "a.png")))
    np.testing.assert_array_equal(stored[2]["pixel"], expected.pixel[0])
    np.testing.assert_array_equal(stored[-1]["semantic"], expected.semantic[0])
    assert stored[2]["pixel"].dtype == np.int32


def test_shards_hold_the_same_as_npz(tokenizer_workdir, tmp_path):
    flags = [f"--workdir={tokenizer_workdir}", "--split=eval", "--limit=21", "--batch_size=16"]
    tokenize.main([*flags, f"--output={tmp_path / 'codes.npz'}"])
    tokenize.main([*flags, f"--output={tmp_path / 'shards'}", "--format=array_record", "--shards=4"])
    one, many = read_codes(tmp_path / "codes.npz"), read_codes(tmp_path / "shards")
    assert one.header == many.header and all(record["caption"] for record in one)
    assert len(list((tmp_path / "shards").glob("*.array_record"))) == 4
    assert_same_records(one, many)


@pytest.mark.parametrize("shards", [1, 2, 30])
def test_any_number_of_shards_keeps_the_order(npz, tmp_path, shards):
    stored = read_codes(npz)
    assert write_shards(tmp_path, stored.header, stored, shards) == 3
    assert_same_records(stored, read_codes(tmp_path))
    with pytest.raises(FileExistsError, match="already holds codes"):
        write_shards(tmp_path, stored.header, stored, shards)


def test_shards_that_were_not_finished_are_no_codes(npz, tmp_path):
    def breaks_off():
        yield read_codes(npz)[0]
        raise RuntimeError("power cut")

    header = read_codes(npz).header
    with pytest.raises(RuntimeError, match="power cut"):
        write_shards(tmp_path, header, breaks_off(), 2)
    with pytest.raises(ValueError, match="did not finish"):
        read_codes(tmp_path)
    write_shards(tmp_path, header, read_codes(npz), 1)
    assert_same_records(read_codes(npz), read_codes(tmp_path))


def assert_same_records(one, many):
    assert len(one) == len(many) > 0
    for mine, theirs in zip(one, many, strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            np.testing.assert_array_equal(value, theirs[name])


def test_decoding_gives_the_reconstructions(tokenizer_workdir, pictures, npz, tmp_path):
    tokenize.main([f"--decode={npz}", f"--workdir={tokenizer_workdir}", f"--output={tmp_path}", "--batch_size=16"])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["00000000_a.png", "00000001_b.png", "00000002_a.png"]
    original = np.asarray(Image.open(pictures / "cat" / "b.png"))
    expected = dualtoken_jax.load(tokenizer_workdir).reconstruct(original)[0]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "00000001_b.png")), expected)


def test_codes_of_another_model_are_refused(tokenizer_workdir, npz, tmp_path):
    with np.load(npz) as file:
        columns = dict(file)
    header = json.loads(str(columns["header"]))
    columns["header"] = np.array(json.dumps(header | {"codebooks": "ffff"}))
    np.savez(tmp_path / "other.npz", **columns)
    message = failure(
        tokenize.main, f"--decode={tmp_path / 'other.npz'}", f"--workdir={tokenizer_workdir}", f"--output={tmp_path}"
    )
    assert message.startswith("error: ") and "codebooks ffff" in message


def test_what_holds_no_codes_is_refused(tmp_path):
    (tmp_path / "text.npz").write_text("no codes")
    np.savez(tmp_path / "arrays.npz", x=np.zeros(3))
    for path, error in (
        ("text.npz", ValueError),
        ("arrays.npz", ValueError),
        ("gone.npz", FileNotFoundError),
        (".", ValueError),
    ):
        with pytest.raises(error, match="codes"):
            read_codes(tmp_path / path)


@pytest.mark.parametrize("flags", ["", "a.png --split=eval", "--decode=x --path=x", "--split=eval --limit=0"])
def test_tokenize_wants_to_know_what_to_take(flags):
    assert failure(tokenize.main, *flags.split(), "--workdir=missing", "--output=out") == "2"  # argparse's own
