"""Statistics are those of the pictures, bad ones are named, and the contact sheet shows what is there."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from prepared_files import index_folder
from shard_files import tar_bytes

from dualtoken_jax.data.prepare import stats
from dualtoken_jax.data.prepare.contact_sheet import draw
from dualtoken_jax.data.prepare.sample import THUMBNAIL, look
from dualtoken_jax.data.shards import Shards

RED = (250, 0, 0)


def encoded(width, height, kind="JPEG", **options):
    file = io.BytesIO()
    Image.new("RGB", (width, height), RED).save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Five pictures, two of them bad, in two shards, with labels and captions here and there."""
    folder = tmp_path_factory.mktemp("dataset")
    first = [
        ("0.jpg", encoded(40, 20)),
        ("0.txt", b"two words"),
        ("0.cls", b"1"),
        ("1.png", encoded(20, 60, "PNG")),
        ("1.cls", b"1"),
        ("2.webp", encoded(300, 300, "WEBP")),
        ("2.txt", "drei Wörter hier".encode()),
    ]
    (folder / "0.tar").write_bytes(tar_bytes(first))
    (folder / "1.tar").write_bytes(tar_bytes([("3.jpg", encoded(900, 20)), ("4.jpg", encoded(90, 90)[:-50])]))
    index_folder(folder, ("no", "yes"))
    return folder


def test_numbers(dataset, tmp_path, capsys):
    stats.main([str(dataset), f"--json={tmp_path / 'stats.json'}", f"--contact_sheet={tmp_path / 'sheet.png'}"])
    found = json.loads((tmp_path / "stats.json").read_text("utf-8"))
    expected = {
        "kind": "tar",
        "examples": 5,
        "shards": 2,
        "bytes": sum((dataset / f"{number}.tar").stat().st_size for number in (0, 1)),
        "classes": 2,
        "sample": 5,
        "formats": {"JPEG": 1, "PNG": 1, "WEBP": 1},
        "with caption": 2,
        "with label": 2,
        "labels seen": 1,
        "most frequent labels": {"yes": 2},
        "bad": {"extreme-aspect": 1, "truncated": 1},
    }
    assert {name: found[name] for name in expected} == expected
    ends = {name: (found[name]["least"], found[name]["median"], found[name]["most"]) for name in found if name in ENDS}
    assert ends == ENDS
    assert "1.tar/3: 900 × 20" in found["bad ones"][0]
    printed = capsys.readouterr().out
    assert "bad                   extreme-aspect: 1, truncated: 1" in printed
    width = next(line for line in printed.splitlines() if line.startswith("width"))
    assert width.split()[1:] == ["20", "22", "30", "40", "170", "274", "300"]
    assert Image.open(tmp_path / "sheet.png").size[0] > 8 * THUMBNAIL


ENDS = {
    "examples per shard": (2, 2.5, 3),
    "width": (20, 40, 300),
    "height": (20, 60, 300),
    "aspect ratio": (1, 2, 3),
    "caption characters": (9, 12.5, 16),
    "caption words": (2, 2.5, 3),
}


def test_the_sample_is_spread_and_always_the_same(dataset):
    source = Shards(str(dataset), "all")
    once, again = look(source, 3), look(source, 3)
    assert [(one.reason, one.width) for one in once] == [("", 40), ("", 20), ("extreme-aspect", 0)]
    assert [one[:-3] for one in once] == [one[:-3] for one in again]
    assert len(look(source, 99)) == 5


def test_a_contact_sheet_of_no_known_kind_is_refused_at_once(capsys):
    with pytest.raises(SystemExit):
        stats.main(["nowhere", "--contact_sheet=sheet.bpm"])
    assert "--contact_sheet=sheet.bpm must end in one of .png" in capsys.readouterr().err


def test_the_contact_sheet_shows_pictures_reasons_and_captions(dataset):
    looked = look(Shards(str(dataset), "all"), 5)
    sheet = np.asarray(draw(looked, ("no", "yes"))).astype(int)
    step = THUMBNAIL + 8
    middles = sheet[8 + THUMBNAIL // 2, [8 + THUMBNAIL // 2 + step * place for place in range(5)]]
    assert (abs(middles[:3] - RED) < 40).all()  # small ones are enlarged
    bad = sheet[8:, 8 + 3 * step :][:THUMBNAIL, :THUMBNAIL]
    assert (bad[0] == 225).all() and (bad[..., 0] > bad[..., 1] + 50).any()  # grey, with red letters
    texts = [sheet[8 + THUMBNAIL + 1 :, 8 + step * place :][:24, :THUMBNAIL] for place in range(5)]
    assert [(text < 128).any() for text in texts] == [True, True, True, False, False]  # 1 has its class, 3 has nothing


def test_a_folder_and_nothing_at_all(tmp_path, capsys):
    (tmp_path / "one.jpg").write_bytes(encoded(30, 30))
    stats.main([str(tmp_path)])
    printed = capsys.readouterr().out
    assert "kind                  folder" in printed and "30        30" in printed
    with pytest.raises(SystemExit, match="error: there is no image folder"):
        stats.main([str(tmp_path / "nowhere")])
