"""The filter drops what its rules say and nothing else, counts it, and changes no file of the dataset."""

import json
import shutil

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prepared_files import contents_of, examples_of, index_folder

from benchmarks.synthetic_laion import write_shard
from dualtoken_jax.data.manifest import Manifest, Shard, read_manifest, write_manifest
from dualtoken_jax.data.prepare import filter as command
from dualtoken_jax.data.prepare import filter_rules
from dualtoken_jax.data.prepare.filter import filter_dataset
from dualtoken_jax.data.prepare.filter_rules import Rules
from dualtoken_jax.data.tar_index import read_index

ROWS = 300


@pytest.fixture(scope="module")
def laion(tmp_path_factory):
    """A dataset of two shards with their parquet files; not to be changed."""
    folder = tmp_path_factory.mktemp("laion")
    for shard in range(2):
        write_shard(folder, shard, ROWS)
    index_folder(folder)
    return folder


def kept_keys(folder):
    """The keys of a filtered dataset, shard by shard."""
    return [read_index((folder / s.index).read_bytes())["key"].tolist() for s in read_manifest(str(folder)).shards]


def test_unsafe_rows_are_dropped_unless_told_otherwise(laion, tmp_path):
    filtered = filter_dataset(str(laion), str(tmp_path / "safe"), Rules(), {})
    rows = [pq.read_table(laion / f"0000{shard}.parquet").to_pylist() for shard in range(2)]
    expected = [
        {r["key"] for r in shard if r["status"] == "success" and r["NSFW"] == "UNLIKELY" and r["punsafe"] <= 0.5}
        for shard in rows
    ]
    found = kept_keys(tmp_path / "safe")
    assert [{key.decode() for key in shard} for shard in found] == expected
    assert any(r["NSFW"] is None and r["status"] == "success" for shard in rows for r in shard)  # these count as unsafe
    dropped = filtered.filtered["dropped"]
    assert dropped["NSFW is not UNLIKELY"] > 0
    assert sum(dropped.values()) + filtered.starts[-1] == filtered.filtered["before"]
    everything = filter_dataset(str(laion), str(tmp_path / "all"), Rules(drop_unsafe=False), {})
    assert everything.starts[-1] == read_manifest(str(laion)).starts[-1]


def test_filtered_examples_are_the_original_ones(laion, tmp_path):
    before = contents_of(laion)
    filter_dataset(str(laion), str(tmp_path / "new"), Rules(min_words=4, min_side=20, max_watermark=0.5), {})
    assert contents_of(laion) == before
    kept = {key.decode() for shard in kept_keys(tmp_path / "new") for key in shard}
    old = [example for example in examples_of(laion) if example.origin.rsplit("/", 1)[1] in kept]
    assert 0 < len(old) < 500 and examples_of(tmp_path / "new") == old
    assert all(len(example.caption.split()) >= 4 for example in old)


def test_filters_follow_one_another(laion, tmp_path):
    filter_dataset(str(laion), str(tmp_path / "first"), Rules(min_words=4), {})
    twice = filter_dataset(str(tmp_path / "first"), str(tmp_path / "second"), Rules(max_watermark=0.5), {})
    filter_dataset(str(laion), str(tmp_path / "once"), Rules(min_words=4, max_watermark=0.5), {})
    assert kept_keys(tmp_path / "second") == kept_keys(tmp_path / "once")
    assert twice.filtered["earlier"]["dropped"]["words < 4"] > 0
    assert examples_of(tmp_path / "second")  # its root leads to the tar files


def test_an_interrupted_filter_goes_on(laion, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(laion, broken)
    (broken / "00001.parquet").unlink()
    output = str(tmp_path / "new")
    with pytest.raises(FileNotFoundError, match="00001.parquet"):
        filter_dataset(str(broken), output, Rules(), {})
    with pytest.raises(FileNotFoundError, match="no .*manifest.json"):
        read_manifest(output)
    shutil.copy(laion / "00001.parquet", broken)
    with pytest.raises(ValueError, match="max_punsafe.*0.5.*0.1"):
        filter_dataset(str(broken), output, Rules(max_punsafe=0.1), {})
    (broken / "00000.parquet").unlink()  # not read again: this shard is done
    filter_dataset(str(broken), output, Rules(), {})
    filter_dataset(str(laion), str(tmp_path / "whole"), Rules(), {})
    assert kept_keys(tmp_path / "new") == kept_keys(tmp_path / "whole")
    assert not (tmp_path / "new" / "unfinished").exists()
    with pytest.raises(FileExistsError, match="choose another folder"):
        filter_dataset(str(laion), output, Rules(), {})


def test_metadata_of_another_download_are_refused(laion, tmp_path):
    shutil.copytree(laion, tmp_path / "mixed")
    shutil.copy(laion / "00000.parquet", tmp_path / "mixed" / "00001.parquet")
    with pytest.raises(ValueError, match=r"00001.parquet: .* pictures .*'00001\d{4}': .*different downloads"):
        filter_dataset(str(tmp_path / "mixed"), str(tmp_path / "new"), Rules(), {})


def test_array_records_are_refused(tmp_path):
    write_manifest(str(tmp_path), Manifest("array_record", (Shard("a", 1, 1, ""),)))
    with pytest.raises(ValueError, match="filter the tar or Parquet shards that they were converted from"):
        filter_dataset(str(tmp_path), str(tmp_path / "new"), Rules(), {})


def test_nothing_left_is_an_error(laion, tmp_path):
    with pytest.raises(ValueError, match="none of .* examples.*words < 99"):
        filter_dataset(str(laion), str(tmp_path), Rules(min_words=99), {})


def test_parquet_shards_are_filtered_by_their_own_columns(laion, tmp_path):
    pictures = {example.origin.rsplit("/", 1)[1]: example.image for example in examples_of(laion)}
    table = pq.read_table(laion / "00000.parquet").drop_columns(["caption"])
    jpg = [pictures.get(key) for key in table["key"].to_pylist()]  # img2dataset leaves failed rows in, without bytes
    table = table.append_column("jpg", pa.array(jpg, pa.binary()))
    path = tmp_path / "data" / "00000.parquet"
    path.parent.mkdir()
    pq.write_table(table, path, row_group_size=70)
    write_manifest(str(path.parent), Manifest("parquet", (Shard(path.name, ROWS, path.stat().st_size, ""),)))
    filtered = filter_dataset(str(path.parent), str(tmp_path / "new"), Rules(drop_unsafe=False, min_side=20), {})
    rows = table.to_pylist()
    expected = [r["jpg"] for r in rows if r["status"] == "success" and min(r["width"], r["height"]) >= 20]
    assert [example.image for example in examples_of(tmp_path / "new")] == expected
    assert filtered.filtered["dropped"]["status is not success"] == sum(image is None for image in jpg) > 0


@pytest.mark.parametrize(
    ("rules", "columns", "kept"),
    [
        (Rules(min_characters=3), {"caption": ["ab", "abc", "  ab  ", None, "日本語"]}, "01001"),
        (Rules(max_characters=3), {"caption": ["abcd", "abc", ""]}, "011"),
        (Rules(min_words=2), {"caption": ["", " ", "one", "one  two", "one\ttwo", None]}, "000110"),
        (Rules(min_side=10), {"width": [10, 9, 30, None], "height": [10, 30, 9, 10]}, "1000"),
        (Rules(min_original_side=10), {"original_width": [10, 9], "original_height": [10, 30]}, "10"),
        (Rules(max_aspect=2), {"width": [10, 21, 10, 0], "height": [20, 10, 10, 0]}, "1010"),
        (Rules(min_similarity=0.3), {"similarity": [0.3, 0.29, None, float("nan")]}, "1000"),
        (Rules(min_similarity=0.3, keep_unscored=True), {"similarity": [0.3, 0.29, None, float("nan")]}, "1011"),
        (Rules(max_watermark=0.8), {"watermark": [0.8, 0.81, None]}, "100"),
        (Rules(min_aesthetic=5), {"aesthetic": ["5", "4.9", None]}, "100"),
        (Rules(drop_unsafe=True), {"nsfw": ["UNLIKELY", "UNSURE", "NSFW", None]}, "1000"),
        (Rules(drop_unsafe=True), {"punsafe": [0.5, 0.51, None]}, "100"),
        (Rules(drop_unsafe=True), {"nsfw": ["UNLIKELY", "NSFW"], "punsafe": [0.9, 0.1]}, "00"),
        (Rules(drop_unsafe=True, keep_unscored=True), {"nsfw": ["UNLIKELY", "UNSURE", None]}, "101"),
        (Rules(), {"status": ["success", "failed_to_download", None]}, "100"),
    ],
)
def test_every_rule(rules, columns, kept):
    columns = {name: pa.chunked_array([values]) for name, values in columns.items()}
    passed, dropped = filter_rules.apply(rules, columns)
    assert "".join(map(str, passed.astype(int))) == kept
    assert sum(dropped.values()) == kept.count("0")


def test_a_row_counts_for_the_first_rule_that_it_fails():
    columns = {"caption": pa.chunked_array([["a", "a b", "a"]]), "similarity": pa.chunked_array([[0.1, 0.1, 0.9]])}
    _, dropped = filter_rules.apply(Rules(min_words=2, min_similarity=0.5), columns)
    assert dropped == {"words < 2": 2, "similarity < 0.5": 1}


def test_columns_are_found_by_their_synonyms_and_missing_ones_named():
    safe = Rules(min_similarity=0.3)
    assert filter_rules.columns_of(safe, ["NSFW", "similarity"], {}) == {"nsfw": "NSFW", "similarity": "similarity"}
    found = filter_rules.columns_of(safe, ["p", "clip_l14_similarity_score", "clip_b32"], {"punsafe": "p"})
    assert found == {"punsafe": "p", "similarity": "clip_l14_similarity_score"}
    assert filter_rules.columns_of(safe, ["NSFW", "b32"], {"similarity": "b32"})["similarity"] == "b32"
    with pytest.raises(ValueError, match="no column similarity or .*, but NSFW, url: .*--column=similarity=NAME"):
        filter_rules.columns_of(safe, ["NSFW", "url"], {})
    with pytest.raises(ValueError, match="no column b32"):
        filter_rules.columns_of(safe, ["NSFW", "similarity"], {"similarity": "b32"})
    with pytest.raises(ValueError, match="both caption and text could be caption"):
        filter_rules.columns_of(Rules(min_words=1), ["NSFW", "caption", "text"], {})
    with pytest.raises(ValueError, match="which rows are unsafe.*--unsafe=keep"):
        filter_rules.columns_of(Rules(), ["url"], {})
    assert filter_rules.columns_of(Rules(drop_unsafe=False), ["url"], {}) == {}
    with pytest.raises(ValueError, match="'similarity < 0.3' cannot use similarity"):
        filter_rules.apply(safe, {"similarity": pa.chunked_array([["high"]])})


def test_the_command(laion, tmp_path, capsys):
    output = tmp_path / "new"
    command.main([str(laion), f"--output={output}", "--min_words=2", "--unsafe=keep", "--workers=1"])
    printed = capsys.readouterr().out
    manifest = json.loads((output / "manifest.json").read_text())
    dropped = manifest["filtered"]["dropped"]["words < 2"]
    assert f"– words < 2{dropped:>35,}" in printed and "NSFW" not in printed
    assert manifest["filtered"]["rules"]["min_words"] == 2
    with pytest.raises(SystemExit, match="error: there is no .*manifest.json"):
        command.main([str(tmp_path), f"--output={tmp_path / 'other'}"])
    with pytest.raises(SystemExit):
        command.main([str(laion), "--output=x", "--column=similarities=clip"])
    assert "one of caption" in capsys.readouterr().err
    assert np.isfinite(dropped) and dropped > 0


def test_an_object_store(laion, tmp_path):
    files = fsspec.filesystem("memory")
    files.put(str(laion), "/laion", recursive=True)
    filter_dataset("memory://laion", "memory://safe", Rules(min_words=4), {})
    filter_dataset(str(laion), str(tmp_path / "safe"), Rules(min_words=4), {})
    remote, local = read_manifest("memory://safe"), read_manifest(str(tmp_path / "safe"))
    assert remote.shards == local.shards and remote.root == "memory://laion"
    assert [one[:3] for one in examples_of("memory://safe")] == [one[:3] for one in examples_of(tmp_path / "safe")]
