"""Conversion keeps every example, gives the same bytes however it runs, and goes on where it was stopped."""

import functools
import io
import json
import tarfile
from collections import Counter

import fsspec
import numpy as np
import pytest
from conftest import python
from prepared_files import contents_of, examples_of, index_folder
from shard_files import add, picture, tar_bytes
from shard_files import shard as tar_shard

from dualtoken_jax.data.manifest import read_manifest
from dualtoken_jax.data.prepare import convert as command
from dualtoken_jax.data.prepare import workers
from dualtoken_jax.data.prepare.convert import convert
from dualtoken_jax.data.prepare.filter import filter_dataset
from dualtoken_jax.data.prepare.filter_rules import Rules
from dualtoken_jax.data.prepare.inputs import find_input, imagenet_input

one_process = functools.partial(workers.run, processes=1)


def converted(folder, output, per_shard=10, seed=None, drop_bad=False, run=one_process):
    """Converts, in this process unless told otherwise."""
    return convert(find_input(str(folder)), str(output), per_shard, seed, drop_bad, run)


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    """A dataset of 45 labelled examples in two tar shards."""
    folder = tmp_path_factory.mktemp("tars")
    (folder / "00000.tar").write_bytes(tar_shard(0, 25, labels=3))
    (folder / "00001.tar").write_bytes(tar_shard(25, 20, labels=3))
    index_folder(folder, ("red", "green", "blue"))
    return folder


@pytest.fixture(scope="module")
def records(tars, tmp_path_factory):
    """Those converted, in order, by one process."""
    output = tmp_path_factory.mktemp("records") / "converted"
    converted(tars, output)
    return output


def without_origin(examples):
    return [example[:3] for example in examples]


def test_every_example_is_kept_in_order(tars, records):
    manifest = read_manifest(str(records))
    assert [shard.examples for shard in manifest.shards] == [9] * 5
    assert manifest.class_names == ("red", "green", "blue")
    new, old = examples_of(records), examples_of(tars)
    assert without_origin(new) == without_origin(old)
    assert "examples-00003-of-00005.array_record/0 (00001.tar/000000027)" in new[27].origin
    assert not (records / "unfinished").exists()


def test_the_bytes_do_not_depend_on_the_workers(tars, records, tmp_path):
    converted(tars, tmp_path / "new", run=functools.partial(workers.run, processes=2))
    assert contents_of(tmp_path / "new") == contents_of(records)


def test_shuffling_spreads_the_examples(tars, records, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        converted(tars, tmp_path / name, seed=seed)
    assert contents_of(tmp_path / "a") == contents_of(tmp_path / "b")
    orders = [without_origin(examples_of(tmp_path / name)) for name in "ac"]
    straight = without_origin(examples_of(records))
    assert Counter(orders[0]) == Counter(orders[1]) == Counter(straight)
    assert orders[0] != orders[1] and orders[0] != straight


def test_a_converted_dataset_can_be_filtered_before_and_converted_again(tmp_path):
    from benchmarks.synthetic_laion import write_shard

    write_shard(tmp_path, 0, 60)
    index_folder(tmp_path)
    filter_dataset(str(tmp_path), str(tmp_path / "filtered"), Rules(), {})
    manifest = converted(tmp_path / "filtered", tmp_path / "records")
    assert without_origin(examples_of(tmp_path / "records")) == without_origin(examples_of(tmp_path / "filtered"))
    assert manifest.filtered["dropped"]["NSFW is not UNLIKELY"] > 0
    converted(tmp_path / "records", tmp_path / "again", per_shard=7)
    assert without_origin(examples_of(tmp_path / "again")) == without_origin(examples_of(tmp_path / "filtered"))


_KILLED = """
import os, signal, sys
from dualtoken_jax.data.prepare import convert, convert_shard
usable, seen = convert_shard.problem_of, []
def killed(example, decode):
    seen.append(example)
    if len(seen) == 25:  # in the third shard
        os.kill(os.getpid(), signal.SIGKILL)
    return usable(example, decode)
convert_shard.problem_of = killed
convert.main(sys.argv[1:])
"""


def test_a_killed_conversion_goes_on(tars, records, tmp_path):
    output = tmp_path / "new"
    flags = [str(tars), f"--output={output}", "--examples_per_shard=10", "--workers=1"]
    assert python("-c", _KILLED, *flags).returncode == -9
    partial = contents_of(output)
    assert {"unfinished/0.json", "unfinished/1.json"} < set(partial)
    assert [name for name in partial if "00002" in name and name.startswith("unfinished/")]  # half-written
    assert "examples-00002-of-00005.array_record" not in partial
    times = {name: (output / name).stat().st_mtime_ns for name in partial if name.endswith("array_record")}
    (output / "examples-00001-of-00005.array_record").write_bytes(b"cut off")  # a record alone is not believed
    with pytest.raises(ValueError, match="shards was 5 and is 9"):
        converted(tars, output, per_shard=5)
    command.main(flags)
    assert contents_of(output) == contents_of(records)
    assert (output / "examples-00000-of-00005.array_record").stat().st_mtime_ns in times.values()  # not made again
    with pytest.raises(SystemExit, match="error: there is a prepared dataset already"):
        command.main(flags)


def test_a_killed_worker_is_an_error_that_says_what_to_do():
    with pytest.raises(RuntimeError, match="a worker process was killed.*start again"):
        workers.run(_die, [1, 2, 3], 2)


def _die(number):
    import os

    os._exit(9)


def test_an_object_store_gets_the_same_shards(tars, records):
    converted(tars, "memory://converted")
    files = fsspec.filesystem("memory")
    found = {name.removeprefix("/converted/"): files.cat_file(name) for name in files.find("/converted")}
    assert found == contents_of(records)


def test_beam_gives_the_same_bytes(tars, records, tmp_path):
    pytest.importorskip("apache_beam")
    output = tmp_path / "new"
    command.main([str(tars), f"--output={output}", "--examples_per_shard=10", "--runner=DirectRunner"])
    assert contents_of(output) == contents_of(records)


def test_changed_and_bad_pictures_are_left_out_and_counted(tmp_path):
    members = [(f"{number}.jpg", picture(number)) for number in range(6)]
    members[2] = ("2.jpg", picture(2)[:-40])
    members[3] = ("3.jpg", b"<html>")
    data = bytearray(tar_bytes(members))
    (tmp_path / "0.tar").write_bytes(data)
    index_folder(tmp_path)
    data[data.index(picture(5)) + 100] ^= 1
    (tmp_path / "0.tar").write_bytes(data)
    kept = converted(tmp_path, tmp_path / "kept")
    assert kept.filtered == {"left out": {"changed": 1}} and kept.starts[-1] == 5
    good = converted(tmp_path, tmp_path / "good", drop_bad=True)
    assert good.filtered == {"left out": {"changed": 1, "truncated": 1, "not-an-image": 1}}
    assert [example.image for example in examples_of(tmp_path / "good")] == [picture(number) for number in (0, 1, 4)]


def test_a_folder_of_pictures(tmp_path):
    for number, name in enumerate(("cat/a.jpg", "cat/b.png", "dog/deep/c.webp")):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number, path.suffix[1:]))
    (tmp_path / "pictures/cat/b.txt").write_text("a grey cat\n")
    converted(tmp_path / "pictures", tmp_path / "new", per_shard=2)
    found = examples_of(tmp_path / "new")
    assert [example[1:3] for example in found] == [("a photo of a cat", 0), ("a grey cat", 0), ("a photo of a dog", 1)]
    assert found[2].image == picture(2, "webp") and found[2].origin.endswith("(dog/deep/c.webp)")
    assert read_manifest(str(tmp_path / "new")).class_names == ("cat", "dog")


SYNSETS = {"n02000001": "tench, Tinca tinca", "n01000002": "goldfish", "n01000001": "great white shark, man-eater"}


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """ImageNet's tar files with three classes, and the text files that come with them."""
    folder = tmp_path_factory.mktemp("imagenet")
    outer = io.BytesIO()
    with tarfile.open(fileobj=outer, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for number, synset in enumerate(SYNSETS):
            pictures = [(f"{synset}_{i}.JPEG", picture(10 * number + i)) for i in (3, 1, 2)]
            add(tar, f"{synset}.tar", tar_bytes(pictures))
    (folder / "train.tar").write_bytes(outer.getvalue())
    names = [f"ILSVRC2012_val_0000000{i}.JPEG" for i in (2, 1, 4, 3)]
    (folder / "val.tar").write_bytes(tar_bytes([(name, picture(int(name[-6]))) for name in names]))
    (folder / "names.txt").write_text("".join(f"{synset} {name}\n" for synset, name in SYNSETS.items()))
    (folder / "synsets.txt").write_text("n02000001\nn01000001\nn01000002\nn02000001\n")
    return folder


def test_imagenet_training_tar(imagenet, tmp_path):
    flags = [str(imagenet / "train.tar"), f"--output={tmp_path / 'new'}", f"--class_names={imagenet / 'names.txt'}"]
    command.main([*flags, "--examples_per_shard=4", "--workers=1"])
    found = examples_of(tmp_path / "new")
    assert read_manifest(str(tmp_path / "new")).class_names == ("great white shark", "goldfish", "tench")
    assert [example.label for example in found] == [0] * 3 + [1] * 3 + [2] * 3
    assert [example.image for example in found] == [picture(n) for n in (23, 21, 22, 13, 11, 12, 3, 1, 2)]
    assert found[0].caption == "a photo of a great white shark"
    assert found[0].origin.endswith("(n01000001/n01000001_3.JPEG)")
    command.main([str(imagenet / "train.tar"), f"--output={tmp_path / 'unnamed'}", "--workers=1"])
    assert read_manifest(str(tmp_path / "unnamed")).class_names == ("n01000001", "n01000002", "n02000001")
    assert examples_of(tmp_path / "unnamed")[0].caption is None


def test_imagenet_validation_tar(imagenet, tmp_path):
    from scipy.io import savemat

    flags = [str(imagenet / "val.tar"), f"--class_names={imagenet / 'names.txt'}", "--workers=1"]
    command.main([*flags, f"--output={tmp_path / 'a'}", f"--labels={imagenet / 'synsets.txt'}"])
    found = examples_of(tmp_path / "a")
    assert [example.label for example in found] == [2, 0, 1, 2]
    assert [example.image for example in found] == [picture(n) for n in (1, 2, 3, 4)]
    numbers = tmp_path / "ILSVRC2012_validation_ground_truth.txt"
    numbers.write_text("9\n3\n5\n9\n")
    with pytest.raises(SystemExit, match="error: there is no .*meta.mat"):
        command.main([*flags, f"--output={tmp_path / 'b'}", f"--labels={numbers}"])
    kinds = [("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("words", "O"), ("num_children", "f8")]
    rows = [(9, "n02000001", "", 0), (3, "n01000001", "", 0), (5, "n01000002", "", 0), (11, "n00000001", "", 2)]
    savemat(tmp_path / "meta.mat", {"synsets": np.array(rows, kinds)})
    command.main([*flags, f"--output={tmp_path / 'b'}", f"--labels={numbers}"])
    assert contents_of(tmp_path / "b") == contents_of(tmp_path / "a")


def test_imagenet_files_that_do_not_fit(imagenet, tmp_path):
    index = str(tmp_path / "index.npy")
    refused = functools.partial(imagenet_input, index=index)
    train, val, names = (str(imagenet / name) for name in ("train.tar", "val.tar", "names.txt"))
    with pytest.raises(ValueError, match="holds ILSVRC2012_val_.*it is not ILSVRC2012_img_train.tar"):
        refused(val, None, None)
    few = tmp_path / "few.txt"
    few.write_text("n02000001\n")
    two = tmp_path / "two.txt"
    two.write_text("n02000001\nn01000001\n" * 2)
    with pytest.raises(ValueError, match="has 1 lines, .* has 4 pictures"):
        refused(val, str(few), None)
    with pytest.raises(ValueError, match="no name for 2 classes, such as n01000001"):
        few.write_text("n02000001 tench\n")
        refused(train, None, str(few))
    prompts = tmp_path / "names.json"
    prompts.write_text(json.dumps({"classes": ["shark", "goldfish", "tench"], "templates": ["a {}"]}))
    assert refused(train, None, str(prompts)).class_names == ("shark", "goldfish", "tench")
    with pytest.raises(ValueError, match="names 3 classes, and the tar file has 2"):
        refused(val, str(two), str(prompts))
    with pytest.raises(ValueError, match="must have a synset.*'tench'"):
        refused(val, str(few), None)
    with pytest.raises(ValueError, match="no tar file, or is damaged"):
        refused(names, None, None)


def test_what_cannot_be_converted_says_so(tmp_path, tars):
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "0.tar").write_bytes(tar_shard(0, 1))
    with pytest.raises(ValueError, match="tar files and no manifest.json: index them"):
        find_input(str(tmp_path / "plain"))
    with pytest.raises(FileNotFoundError, match="no image folder"):
        converted(tmp_path / "nowhere", tmp_path / "new")
    with pytest.raises(FileNotFoundError, match="no memory://nowhere/manifest.json"):
        find_input("memory://nowhere")
    with pytest.raises(SystemExit):
        command.main([str(tars), "--output=x", "--project=p"])  # a flag of Beam's without --runner
    with pytest.raises(SystemExit):
        command.main([str(tars), "--output=x", "--labels=y"])
