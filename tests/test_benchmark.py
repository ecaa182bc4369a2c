"""The benchmark of the data path measures what it says; how fast anything is, no test asserts."""

import json
import multiprocessing
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_config
from PIL import Image
from prepared_files import index_folder
from shard_files import tar_bytes
from torch_packages import imported

from dualtoken_jax.config import teacher_config
from dualtoken_jax.data.benchmark import __main__ as command
from dualtoken_jax.data.benchmark import decoder, loader, peer, steps
from dualtoken_jax.data.reading import Reading
from dualtoken_jax.data.sources import Folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Six small JPEGs, and one file that is none."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (5, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((40 + number, 30)).save(folder / f"{number}.jpg")
    (folder / "bad.jpg").write_text("no picture")
    return folder


def test_the_decoder_counts_pictures_of_all_threads(pictures, monkeypatch):
    clock, loads = iter(np.arange(1000) * 0.25), []
    monkeypatch.setattr(decoder.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(decoder, "load", lambda *_: loads.append(1))
    rate = decoder.rate([b""] * 3, 16, "exact", threads=2, seconds=5.0)
    counted = len(loads) - 2  # without the warm-up
    assert counted > 10 and rate == pytest.approx(counted / 6, rel=0.3)  # 5 s, and the calls that were under way
    monkeypatch.undo()
    assert decoder.rate([(pictures / "1.jpg").read_bytes()], 16, "fast", threads=1, seconds=0.01) > 0


def test_the_warm_up_is_not_counted(monkeypatch):
    clock, used = iter([10.0, 14.0]), iter([1.0, 1.5])
    monkeypatch.setattr(loader.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(loader, "cpu_seconds", lambda: next(used))
    stream = iter(range(100))
    found = loader.rate(stream, batch_size=8, count=5)
    assert found == {"pictures_per_second": 8 * 5 / 4, "cpu_ms_per_picture": 500 / 40}
    assert next(stream) == loader.WARM_UP + 5


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads worker processes' times where Linux lists them")
def of_workers():
    """Seconds beyond this process's own."""
    own = time.process_time()  # first, or what this very function takes would be missing
    return loader.cpu_seconds() - own


def test_the_time_of_worker_processes_counts():
    before = loader.cpu_seconds()
    worker = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    worker.start()
    try:
        deadline = time.monotonic() + 60
        while (spent := of_workers()) < 0.01 and time.monotonic() < deadline:
            time.sleep(0.05)  # starting Python takes CPU time
        assert spent >= 0.01 and loader.cpu_seconds() > before
    finally:
        worker.kill()
        worker.join()


def test_growth_is_a_line_through_the_second_half():
    memory = [(step, 500.0 - step if step < 50 else 450 + 0.002 * step) for step in range(100)]
    found = loader.growth(memory)
    assert found["growth_mb_per_1000_steps"] == pytest.approx(2.0) and found["steps"] == 100
    assert found["resident_mb"] == memory[-1][1]
    assert loader.resident_mb() > 10


def test_the_loader_reports_rate_memory_and_bad_pictures(pictures):
    setting = loader.Setting(Folder(pictures, "all"), 16, 7, "fast", Reading(threads=1), augment=True)
    found = loader.measure(setting, 3)
    assert found["pictures_per_second"] > 0 and found["steps"] == loader.WARM_UP + 3
    assert found["bad_pictures"]["not-an-image"] >= loader.WARM_UP + 3  # one a batch
    assert "requests_per_picture" not in found  # a folder does not count


def test_requests_are_counted_where_the_source_counts(pictures):
    class Counting(Folder):
        class traffic:  # noqa: N801
            requests = 5

        def read(self, indices):
            self.traffic.requests += 2 * len(indices)
            return super().read(indices)

    (pictures / "bad.jpg").rename(pictures / "bad")
    setting = loader.Setting(Counting(pictures, "all"), 16, 6, "exact", Reading(threads=0), augment=True)
    found = loader.measure(setting, 3)
    (pictures / "bad").rename(pictures / "bad.jpg")
    assert 2 <= found["requests_per_picture"] < 3  # what was read ahead is counted too


def test_the_command_writes_what_it_prints(pictures, tmp_path, monkeypatch, capsys):
    def turn(arguments):
        name = "torch" if "peer" in arguments[0] else arguments[-1].partition("=")[2]
        rate = {"torch": 100.0, "exact": 150.0, "fast": 300.0}[name]
        return {"pictures_per_second": rate, "cpu_ms_per_picture": 1000 / rate}

    monkeypatch.setattr(command, "_run", turn)
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda _: True)
    file = tmp_path / "results" / "data.json"
    command.main([f"--folder={pictures}", "--resolution=16", "--seconds=0.01", "--repeats=2", f"--json={file}"])
    record = json.loads(file.read_text())
    assert record["pictures"] == 7 and record["machine"]["cores"] >= 1
    assert set(record["decoder"]) == {f"{how}_{n}_threads" for how in ("exact", "fast") for n in (1, 2)}
    for figure in ("pictures_per_second", "cpu_ms_per_picture"):
        loaders = record["loaders"][figure]
        assert loaders["fast_over_torch_uint8"] == pytest.approx(3) and loaders[
            "exact_over_torch_normalised"
        ] == pytest.approx(1.5)
    assert record["loaders"]["pictures_per_second"]["turns"]["exact"] == [150.0, 150.0]
    assert "fast_over_torch_uint8: 3" in capsys.readouterr().out


def test_a_prepared_dataset_has_no_peer_and_counts_requests(pictures, tmp_path, monkeypatch, capsys):
    (tmp_path / "0.tar").write_bytes(tar_bytes([(path.name, path.read_bytes()) for path in sorted(pictures.iterdir())]))
    index_folder(tmp_path)
    command.main([f"--folder={tmp_path}", "--loader_only", "--resolution=16", "--batch_size=7", "--batches=3"])
    found = json.loads(capsys.readouterr().out)
    assert 0 < found["requests_per_picture"] < 3 and found["bad_pictures"] == {"not-an-image": found["steps"]}
    monkeypatch.setattr(command, "_run", lambda arguments: {"pictures_per_second": 1.0, "cpu_ms_per_picture": 1.0})
    flags = command._parser().parse_args([f"--folder={tmp_path}", "--seconds=0.01", "--resolution=16"])
    assert set(command._with_folder(flags)["loaders"]["pictures_per_second"]["turns"]) == {"exact", "fast"}


def test_a_process_that_fails_is_told_of(tmp_path):
    with pytest.raises(SystemExit, match="there is no image folder"):
        command.main([f"--folder={tmp_path / 'nowhere'}"])
    with pytest.raises(SystemExit, match=r"no recipe .*nothing\.py"):
        command.main(["--config=nothing.py:demo"])
    with pytest.raises(OSError, match=r"(?s)json\.tool .*nowhere failed:.*No such file"):
        command._run(["json.tool", str(tmp_path / "nowhere")])


def test_the_peer_does_what_the_released_loader_does(pictures):
    imported("torchvision")
    torch = pytest.importorskip("torch")
    files = sorted(pictures.glob("[0-9].jpg"))
    raw, normal = (peer.Pictures(files, 50, peer.transform(16, uint8)) for uint8 in (True, False))
    assert len(raw) == 50 and raw[7].shape == normal[7].shape == (3, 16, 16)
    assert raw[7].dtype == torch.uint8 and normal[7].dtype == torch.float32
    torch.manual_seed(0)
    pixels = raw[4]
    torch.manual_seed(0)
    assert torch.allclose(normal[4], pixels / 127.5 - 1, atol=1e-6)


def test_steps_are_timed_in_turns(monkeypatch):
    seen = []

    def step(state, batch):
        seen.append(int(batch["image"].sum()))
        return state + 1, {"loss": np.float32(0)}

    monkeypatch.setattr(steps, "_step", lambda config: (0, step))
    found = steps.compare(teacher_config(tiny_config()), steps=2, repeats=3)
    assert len(found["turns"]["real"]) == len(found["turns"]["synthetic"]) == 3
    assert found["real_over_synthetic"] == found["real_ms"] / found["synthetic_ms"] > 0
    turns = np.reshape(seen, (7, 2))  # the first, real, is not timed
    assert (turns[2::2] == turns[2, 0]).all() and len(set(turns[[0, 1, 3, 5]].flat)) == 8


@pytest.mark.slow
def test_the_real_step_of_a_recipe_is_timed():
    assert steps.compare(tiny_config(), steps=2, repeats=1)["real_ms"] > 0


def test_files_that_are_no_pictures_are_not_measured(pictures):
    files = [path.read_bytes() for path in sorted(pictures.iterdir())]
    assert len(decoder.usable(files)) == 6
    with pytest.raises(ValueError, match="none of the first 1 files"):
        decoder.usable([b"no picture"])
