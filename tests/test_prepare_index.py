"""The commands that index and verify shards where they are."""

import json
import os
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shard_files
from conftest import python
from shard_files import caption, picture

from dualtoken_jax.data.manifest import Manifest, read_manifest, write_manifest
from dualtoken_jax.data.prepare import __main__ as prepare
from dualtoken_jax.data.prepare import index, verify
from dualtoken_jax.data.prepare.found_shards import find_shards
from dualtoken_jax.data.prepare.ledger import Ledger
from dualtoken_jax.data.records import Record, write_shard
from dualtoken_jax.data.shards import Shards

COUNT = 6  # examples in a shard


def write_tars(folder, numbers=range(3), labels=0):
    for number in numbers:
        (folder / f"{number:05d}.tar").parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:05d}.tar").write_bytes(shard_files.shard(number * COUNT, COUNT, labels))
    return folder


def indexed(*arguments):
    index.main([*map(str, arguments), "--workers=1"])


def pictures(folder):
    source = Shards(folder, "all")
    return [example.image for example in source.read(np.arange(len(source)))]


def verified(*arguments):
    """(status, printed lines) of the command."""
    with pytest.raises(SystemExit) as ended:
        verify.main([*map(str, arguments), "--workers=1"])
    return ended.value.code


def test_tars_are_indexed_beside_themselves(tmp_path, capsys):
    write_tars(tmp_path, labels=3)
    (tmp_path / "00000.parquet").write_bytes(b"img2dataset's metadata")
    (tmp_path / ".hidden.tar").write_bytes(b"")
    indexed(tmp_path)
    assert f"18 examples in 3 shards, 0.00 GB → {tmp_path}/manifest.json" in capsys.readouterr().out
    manifest = read_manifest(str(tmp_path))
    assert manifest.root == "" and manifest.class_names == ("0", "1", "2") and manifest.filtered == {}
    assert pictures(tmp_path) == [picture(n) for n in range(18)]
    assert not (tmp_path / "unfinished").exists()
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert pictures(moved) == [picture(n) for n in range(18)]


def test_in_several_processes_as_a_command(tmp_path):
    write_tars(tmp_path / "tars" / "part", range(2))
    write_tars(tmp_path / "tars" / "rest", range(2, 4))
    done = python("-m", "dualtoken_jax.data.prepare", "index", tmp_path / "tars", f"--output={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert "24 examples in 4 shards" in done.stdout
    assert read_manifest(str(tmp_path / "out")).root == str(tmp_path / "tars")
    assert pictures(tmp_path / "out") == [picture(n) for n in range(24)]
    assert not list((tmp_path / "tars").rglob("*.npy"))
    done = python("-m", "dualtoken_jax.data.prepare", "verify", tmp_path / "out", "--pictures")
    assert done.returncode == 0, done.stderr
    assert "sizes, checksums and pictures of 4 shards, 24 examples: 0 shards differ" in done.stdout


def test_urls_lists_and_patterns(tmp_path, capsys):
    files = fsspec.filesystem("memory")
    for number in range(3):
        files.pipe(f"/urls/a/{number}.tar", shard_files.shard(number * COUNT, COUNT))
    try:
        indexed("memory://urls")
        assert pictures("memory://urls") == [picture(n) for n in range(18)]
        assert verified("memory://urls", "--pictures") == 0
        indexed("memory://urls/a/*.tar", f"--output={tmp_path / 'all'}")
        assert read_manifest(str(tmp_path / "all")).root == "memory://urls/a"
        (tmp_path / "list").write_text("memory://urls/a/1.tar\nmemory://urls/a/2.tar\n")
        indexed(f"@{tmp_path / 'list'}", f"--output={tmp_path / 'some'}")
        assert pictures(tmp_path / "some") == [picture(n) for n in range(6, 18)]
    finally:
        files.store.clear()
    write_tars(tmp_path / "tars")
    assert find_shards([str(tmp_path / "tars/0000*.tar")]).root == str(tmp_path / "tars")
    one = find_shards([str(tmp_path / "tars/00001.tar")])
    assert one.root == str(tmp_path / "tars") and list(one.sizes) == ["00001.tar"]
    write_tars(tmp_path / "other")
    both = find_shards([str(tmp_path / "tars"), str(tmp_path / "other/00002.tar")])
    assert both.root == str(tmp_path) and list(both.sizes)[0] == "other/00002.tar" and len(both.sizes) == 4


def test_a_stopped_run_goes_on(tmp_path, monkeypatch):
    write_tars(tmp_path)
    done, add = [], Ledger.add

    def killed(self, number, shard, notes):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(number)
        add(self, number, shard, notes)

    monkeypatch.setattr(Ledger, "add", killed)
    with pytest.raises(KeyboardInterrupt):
        indexed(tmp_path)
    assert not (tmp_path / "manifest.json").exists()
    monkeypatch.setattr(Ledger, "add", lambda *arguments: done.append(arguments[1]) or add(*arguments))
    indexed(tmp_path)
    assert done == [0, 1, 2]
    assert pictures(tmp_path) == [picture(n) for n in range(18)]


def test_again_takes_only_what_has_changed(tmp_path, monkeypatch):
    write_tars(tmp_path, labels=2)
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    indexed(tmp_path, f"--class_names={tmp_path / 'names.txt'}")
    before = read_manifest(str(tmp_path))
    done, add = [], Ledger.add
    monkeypatch.setattr(Ledger, "add", lambda *arguments: done.append(arguments[2].name) or add(*arguments))
    indexed(tmp_path)
    assert not done and read_manifest(str(tmp_path)) == before and before.class_names == ("cat", "dog")
    (tmp_path / "00001.tar").write_bytes(shard_files.shard(100, 3))
    write_tars(tmp_path, [7])
    os.remove(tmp_path / "index/00002.tar.npy")
    indexed(tmp_path)
    assert done == ["00001.tar", "00002.tar", "00007.tar"]
    assert pictures(tmp_path) == [picture(n) for n in (*range(6), 100, 101, 102, *range(12, 18), *range(42, 48))]
    os.remove(tmp_path / "00000.tar")
    indexed(tmp_path)
    assert [shard.name for shard in read_manifest(str(tmp_path)).shards] == ["00001.tar", "00002.tar", "00007.tar"]


def test_what_was_left_out_is_said_and_kept(tmp_path, capsys):
    write_tars(tmp_path)
    whole = (tmp_path / "00001.tar").read_bytes()
    (tmp_path / "00001.tar").write_bytes(whole[:9000])
    (tmp_path / "00002.tar").write_bytes(b"no tar file at all" * 100)
    (tmp_path / "00003.tar").write_bytes(shard_files.tar_bytes([("a.txt", b"alone"), ("b.jpg", picture(1))]))
    indexed(tmp_path)
    out = capsys.readouterr().out
    assert "left out: no-picture × 1" in out and "damaged: 00001.tar: cut off" in out
    assert "damaged: 00002.tar: no tar header at 0" in out
    manifest = read_manifest(str(tmp_path))
    assert [shard.name for shard in manifest.shards] == ["00000.tar", "00001.tar", "00003.tar"]
    assert manifest.filtered["index"]["00003.tar"] == {"left_out": {"no-picture": 1}}
    indexed(tmp_path)
    assert capsys.readouterr().out == out and read_manifest(str(tmp_path)) == manifest


def test_parquet_shards_of_the_hub(tmp_path):
    names = {"info": {"features": {"label": {"names": ["a", "b", "c"], "_type": "ClassLabel"}}}}
    for number in range(2):
        numbers = range(number * COUNT, (number + 1) * COUNT)
        columns = {
            "image": [{"bytes": picture(n), "path": f"{n}.jpg"} for n in numbers],
            "label": [n % 3 for n in numbers],
            "caption": [caption(n) for n in numbers],
        }
        table = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps(names)})
        pq.write_table(table, tmp_path / f"train-{number:05d}-of-00002.parquet", row_group_size=4)
    indexed(tmp_path)
    manifest = read_manifest(str(tmp_path))
    assert manifest.kind == "parquet" and manifest.class_names == ("a", "b", "c")
    assert pictures(tmp_path) == [picture(n) for n in range(12)]
    assert verified(tmp_path, "--pictures") == 0


def test_our_own_records_and_those_of_others(tmp_path, capsys):
    records = [Record(picture(n), caption(n), n % 2) for n in range(COUNT)]
    write_shard(tmp_path / "0.array_record", records)
    (tmp_path / "1.array_record").write_bytes(b"x" * 3000)
    indexed(tmp_path)
    assert "damaged: 1.array_record: no whole ArrayRecord file" in capsys.readouterr().out
    manifest = read_manifest(str(tmp_path))
    assert manifest.shards[0] == write_shard(tmp_path / "0.array_record", records)
    assert manifest.kind == "array_record" and manifest.class_names == ("0", "1") and len(manifest.shards) == 1
    assert pictures(tmp_path) == [picture(n) for n in range(COUNT)]


def test_labels_need_names_that_are_enough(tmp_path):
    write_tars(tmp_path, labels=3)
    (tmp_path / "names.json").write_text(json.dumps({"classes": ["x", "y"], "templates": ["a {}"]}))
    with pytest.raises(SystemExit, match="error: there is a label 2, and only 2 names: give --class_names"):
        indexed(tmp_path, f"--class_names={tmp_path / 'names.json'}")
    (tmp_path / "names.json").write_text(json.dumps({"classes": ["x", "y", "z"], "templates": ["a {}"]}))
    indexed(tmp_path, f"--class_names={tmp_path / 'names.json'}")
    assert read_manifest(str(tmp_path)).class_names == ("x", "y", "z")


def test_index_refuses_what_it_would_spoil_and_what_is_not_there(tmp_path):
    with pytest.raises(SystemExit, match=r"error: there are no shards \(.tar, .array_record, .parquet\) in .*"):
        indexed(tmp_path)
    with pytest.raises(SystemExit, match="there is nothing at .*nowhere: give folders"):
        indexed(tmp_path / "nowhere")
    with pytest.raises(SystemExit, match=r"there are no shards \(.parquet\)"):
        indexed(tmp_path, "--kind=parquet")
    write_tars(tmp_path / "a")
    write_tars(tmp_path / "b")
    indexed(tmp_path / "a")
    with pytest.raises(SystemExit, match="holds another dataset, of .*/a: choose another --output"):
        indexed(tmp_path / "b", f"--output={tmp_path / 'a'}")
    manifest = read_manifest(str(tmp_path / "a"))
    write_manifest(str(tmp_path / "b"), Manifest("tar", manifest.shards[:1], filtered={"rules": {}}))
    with pytest.raises(SystemExit, match="b holds another dataset"):
        indexed(tmp_path / "b")
    for name in range(3):
        (tmp_path / "a" / f"{name:05d}.tar").write_bytes(b"x" * 1000)
    with pytest.raises(SystemExit, match="none of 3 shards has an example: .*no tar header at 0"):
        indexed(tmp_path / "a")


def change(file, position):
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)


def test_verify_lists_every_difference(tmp_path, capsys):
    write_tars(tmp_path, range(5))
    indexed(tmp_path)
    assert verified(tmp_path) == 0
    assert "sizes and checksums of 5 shards, 30 examples: 0 shards differ" in capsys.readouterr().out
    data = (tmp_path / "00001.tar").read_bytes()
    change(tmp_path / "00001.tar", data.index(picture(8)) + 60)
    change(tmp_path / "index/00002.tar.npy", 300)
    with open(tmp_path / "00003.tar", "ab") as file:
        file.write(b"more")
    os.remove(tmp_path / "00004.tar")
    assert verified(tmp_path, "--pictures") == 1
    out = capsys.readouterr().out
    assert "00001.tar has the checksum" in out and "00001.tar/000000008: changed: the picture's CRC-32" in out
    assert "index/00002.tar.npy has the checksum" in out and "00004.tar" in out and "00000.tar" not in out
    size = (tmp_path / "00003.tar").stat().st_size
    assert f"00003.tar has {size} bytes, the manifest says {size - 4}: prepare it again" in out
    assert "5 shards, 30 examples: 4 shards differ" in out


def test_verify_decodes_what_was_bad_from_the_start(tmp_path, capsys):
    members = [
        m for n in range(30) for m in (shard_files.example_members(n)[:1] if n % 10 else [(f"{n}.jpg", b"text")])
    ]
    (tmp_path / "0.tar").write_bytes(shard_files.tar_bytes(members))
    indexed(tmp_path)
    assert verified(tmp_path) == 0
    assert verified(tmp_path, "--pictures") == 1
    out = capsys.readouterr().out
    assert out.count("not-an-image: begins with b'text'") == 3 and "0.tar/20: not-an-image" in out
    with pytest.raises(SystemExit, match="error: there is no .*manifest.json"):
        verify.main([str(tmp_path / "nowhere")])


def test_the_command_names_its_commands(capsys):
    prepare.main(["--help"])
    out = capsys.readouterr().out
    for name in prepare.COMMANDS:
        assert f"\n  {name} " in out
        with pytest.raises(SystemExit) as ended:
            prepare.main([name, "--help"])
        assert ended.value.code == 0 and f"prepare {name}" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="there is no command 'make'"):
        prepare.main(["make"])


def test_the_data_commands_leave_jax_alone(tmp_path):
    modules = ["data.shards", "data.tfds_records", "data.prepare.index", "data.prepare.verify"]
    program = f"import sys, {', '.join('dualtoken_jax.' + m for m in modules)}; sys.exit('jax' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[1], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
