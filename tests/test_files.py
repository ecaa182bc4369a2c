"""Weight files that are whole, cut off, incomplete or hostile."""

import json
import os
import pickle

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from dualtoken_jax.interop.files import WeightFileError, read_tensors

TENSORS = {
    "a.weight": np.arange(600, dtype=np.float32).reshape(20, 30),
    "b.count": np.array([1, 2], np.int64),
    "c.half": np.array([1.5, -2.0], ml_dtypes.bfloat16),
}


def assert_whole(found):
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(found[name], tensor.astype(np.float32) if name == "c.half" else tensor)
        assert found[name].dtype == (np.float32 if name == "c.half" else tensor.dtype)


def sharded(folder):
    for number, name in enumerate(TENSORS):
        save_file({name: TENSORS[name]}, folder / f"model-{number}.safetensors")
    names = {name: f"model-{number}.safetensors" for number, name in enumerate(TENSORS)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return os.mkdir, (self.file,)


def test_every_format_gives_the_same(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    np.savez(tmp_path / "w.npz", **TENSORS)
    for path in (tmp_path, tmp_path / "model.safetensors", tmp_path / "w.npz"):
        assert_whole(read_tensors(path))
    (tmp_path / "shards").mkdir()
    sharded(tmp_path / "shards")
    assert_whole(read_tensors(tmp_path / "shards"))


def test_pytorch_files_and_their_nested_state_dict(tmp_path):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.tensor(np.asarray(x, np.float32)) for name, x in TENSORS.items()}
    tensors["c.half"] = tensors["c.half"].bfloat16()
    tensors["b.count"] = tensors["b.count"].long()
    torch.save(tensors, tmp_path / "w.pth")
    torch.save({"epoch": 3, "state_dict": tensors, "name": "x"}, tmp_path / "epoch_3.pt")
    for name in ("w.pth", "epoch_3.pt"):
        assert_whole(read_tensors(tmp_path / name))


@pytest.mark.parametrize("kept", [0, 4, 60, 500, 2000])
def test_a_truncated_safetensors_file(kept, tmp_path):
    file = tmp_path / "model.safetensors"
    save_file(TENSORS, file)
    assert file.stat().st_size > 2000
    file.write_bytes(file.read_bytes()[:kept])
    for path in (file, tmp_path):
        with pytest.raises(WeightFileError, match="model.safetensors is damaged or no safetensors file: .*fetch it"):
            read_tensors(path)


def test_truncated_archives_of_numpy_and_pytorch(tmp_path):
    np.savez(tmp_path / "w.npz", **TENSORS)
    files = [tmp_path / "w.npz"]
    try:
        import torch
    except ImportError:
        pass
    else:
        for name, zipped in (("w.pt", True), ("legacy.pt", False)):
            torch.save({"a": torch.zeros(1000)}, tmp_path / name, _use_new_zipfile_serialization=zipped)
            files.append(tmp_path / name)
    for file in files:
        whole = file.read_bytes()
        for kept in (0, 10, 60, 200, 600, len(whole) - 40):
            file.write_bytes(whole[:kept])
            with pytest.raises(WeightFileError, match=f"{file.name} is damaged"):
                read_tensors(file)


def test_a_pickle_bomb_does_not_go_off(tmp_path):
    harmless = tmp_path / "proof"
    pickle.loads(pickle.dumps(Bomb(harmless)))
    assert harmless.exists()  # so it would
    crater = tmp_path / "crater"
    np.savez(tmp_path / "bomb.npz", a=np.array([Bomb(crater)], object))
    with pytest.raises(WeightFileError, match="bomb.npz is damaged or no weight file: Object arrays"):
        read_tensors(tmp_path / "bomb.npz")
    assert not crater.exists()
    torch = pytest.importorskip("torch")
    torch.save({"state_dict": {"a": torch.zeros(2)}, "optimizer": Bomb(crater)}, tmp_path / "bomb.pt")
    (tmp_path / "old.pth").write_bytes(pickle.dumps(Bomb(crater), protocol=2))
    for name in ("bomb.pt", "old.pth"):
        with pytest.raises(WeightFileError, match=f"{name} holds more than tensors, and loading it could run any"):
            read_tensors(tmp_path / name)
    assert not crater.exists()


def test_a_torch_that_can_be_tricked_reads_nothing(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.zeros(2)}, tmp_path / "w.pt")
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(WeightFileError, match=r"w.pt: torch 2.9 may run.*pip install 'torch>=2.10'"):
        read_tensors(tmp_path / "w.pt")


def test_missing_shards_are_named(tmp_path):
    sharded(tmp_path)
    for name in ("model-0.safetensors", "model-2.safetensors"):
        (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match="lacks the shards model-0.safetensors, model-2.safetensors that"):
        read_tensors(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a"')
    with pytest.raises(WeightFileError, match="is damaged or no weight file"):
        read_tensors(tmp_path)


def test_what_is_not_there_or_of_another_kind(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no weight file .*nowhere.npz"):
        read_tensors(tmp_path / "nowhere.npz")
    with pytest.raises(FileNotFoundError, match="holds neither model.safetensors nor model.safetensors.index.json"):
        read_tensors(tmp_path)
    (tmp_path / "w.h5").write_bytes(b"")
    with pytest.raises(WeightFileError, match=r"w.h5: cannot read .h5; give a .safetensors, .npz, .pt or .pth file"):
        read_tensors(tmp_path / "w.h5")


def test_a_state_dict_without_tensors_is_named(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"epoch": 3, "name": "x"}, tmp_path / "w.pt")
    with pytest.raises(WeightFileError, match=r"holds no tensors; its keys are \['epoch', 'name'\]"):
        read_tensors(tmp_path / "w.pt")
