"""evaluate, reconstruct and tokenize on a tiny run: once each as a user starts them, the rest in this process."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import dualtoken_jax
from dualtoken_jax import evaluate, reconstruct, tokenize
from dualtoken_jax.data.codes import read_codes


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
    environment = {
        name: value for name, value in os.environ.items() if name != "XLA_FLAGS"
    }  # one device, as users have
    program = [sys.executable, "-m", f"dualtoken_jax.{module}", *map(str, arguments)]
    return subprocess.run(program, capture_output=True, text=True, env=environment, timeout=600)


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


def test_evaluate_repeats_the_runs_own_evaluation(tokenizer_workdir, capsys):
    file = tokenizer_workdir / "evaluation.json"
    before = json.loads(file.read_text())
    file.unlink()
    evaluate.main([f"--workdir={tokenizer_workdir}"])
    after = json.loads(file.read_text())
    assert after.keys() == before.keys() and "psnr" in capsys.readouterr().out
    # The run may have had another number of devices, whose sums round differently.
    assert after["psnr"] == pytest.approx(before["psnr"], abs=1e-3) and after["examples"] == before["examples"]


def test_evaluate_says_what_is_wrong_with_a_folder(tmp_path):
    done = command("evaluate", f"--workdir={tmp_path}")
    assert done.returncode == 1
    assert (
        done.stderr.splitlines()[-1].startswith(f"error: {tmp_path} is no workdir") and "Traceback" not in done.stderr
    )


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


@pytest.mark.parametrize("shards", [1, 3, 30])
def test_shards_hold_the_same_as_npz(tokenizer_workdir, tmp_path, shards):
    flags = [f"--workdir={tokenizer_workdir}", "--split=eval", "--limit=21", "--batch_size=16"]
    tokenize.main([*flags, f"--output={tmp_path / 'codes.npz'}"])
    tokenize.main([*flags, f"--output={tmp_path / 'shards'}", "--format=array_record", f"--shards={shards}"])
    one, many = read_codes(tmp_path / "codes.npz"), read_codes(tmp_path / "shards")
    assert one.header == many.header and len(one) == len(many) == 21
    assert len(list((tmp_path / "shards").glob("*.array_record"))) == shards
    for mine, theirs in zip(one, many, strict=True):
        assert mine.keys() == theirs.keys() and mine["caption"] == theirs["caption"] != ""
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


def test_shards_are_not_written_over(tokenizer_workdir, tmp_path):
    flags = (
        f"--workdir={tokenizer_workdir}",
        "--split=eval",
        "--limit=2",
        f"--output={tmp_path}",
        "--format=array_record",
    )
    tokenize.main(list(flags))
    assert "already holds codes" in failure(tokenize.main, *flags)


@pytest.mark.parametrize(
    "flags", [[], ["--split=eval", "--path=x"], ["a.png", "--split=eval"], ["--split=eval", "--limit=0"]]
)
def test_tokenize_wants_to_know_what_to_take(flags, capsys):
    accepted = flags == ["--split=eval", "--path=x"]  # a split of the folder
    stop = failure(tokenize.main, *flags, "--workdir=missing", "--output=out")
    assert stop.startswith("error: missing is no workdir") if accepted else stop == "2"
