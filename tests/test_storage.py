"""Files that are written whole or not at all."""

import fsspec
import pytest

from dualtoken_jax.data.storage import PARTIAL, Storage, write_whole


@pytest.mark.parametrize("where", ["disk", "memory"])
def test_whatever_happens_in_between_the_old_file_stays(where, tmp_path, monkeypatch):
    path = f"{tmp_path}/a/b/file" if where == "disk" else "memory://whole/a/file"
    files, inside = fsspec.core.url_to_fs(path)

    def fails(*_, **__):
        raise RuntimeError("the machine goes down")

    for step in ("pipe_file", "mv"):
        with monkeypatch.context() as patch:
            patch.setattr(type(files), step, fails)
            with pytest.raises(OSError, match=f"{path}.*goes down"):
                write_whole(path, b"lost")
        assert not files.exists(inside)
    write_whole(path, b"old")
    with monkeypatch.context() as patch:
        patch.setattr(type(files), "mv", fails)
        with pytest.raises(OSError):
            write_whole(path, b"lost")
    assert Storage().read(path) == b"old"
    write_whole(path, b"new")
    assert Storage().read(path) == b"new" and not files.exists(inside + PARTIAL)
