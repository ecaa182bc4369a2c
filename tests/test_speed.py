"""The benchmarks' own arithmetic: counted operations, tables, and a race of two processes."""

import json

import jax
import jax.numpy as jnp
import pytest

from benchmarks import race as racing
from benchmarks.operations import operations
from benchmarks.sizes import BATCHES, size
from benchmarks.speed import keep, specifications, table
from dualtoken_jax.config import from_dict
from dualtoken_jax.models.convolution import convolve

A, B = jnp.ones((3, 5)), jnp.ones((5, 7))


def test_operations_of_products():
    assert operations(lambda a, b: a @ b, A, B) == 2 * 3 * 5 * 7
    assert operations(lambda a, b: jax.jit(jnp.matmul)(a, b).sum() + 1, A, B) == 2 * 3 * 5 * 7
    assert operations(lambda a, b: a + 1, A, B) == 0


def test_operations_of_a_scan_count_every_iteration():
    square = jnp.ones((4, 4))
    repeated = lambda a: jax.lax.scan(lambda x, _: (x @ a, None), a, None, length=10)[0]  # noqa: E731
    assert operations(repeated, square) == 10 * 2 * 4**3


@pytest.mark.parametrize("stride", [1, 2])
def test_operations_of_a_convolution_and_its_gradients(stride):
    x, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 5))
    forward = 2 * (2 * (8 // stride) ** 2 * 5) * 9 * 3
    assert operations(lambda x, k: convolve(x, k, stride), x, kernel) == forward

    def gradients(x, kernel):
        y, pullback = jax.vjp(lambda x, k: convolve(x, k, stride), x, kernel)
        return pullback(y)

    assert operations(gradients, x, kernel) == 3 * forward


@pytest.mark.parametrize("name", BATCHES)
def test_specifications_survive_json(name):
    sides = specifications(["ours", "tuned_compiled"], "train", name, 2, 1)
    again = json.loads(json.dumps(sides))
    assert from_dict(again["ours"]["config"]) == size(name)
    assert again["tuned_compiled"]["form"]["compiled"] and again["tuned_compiled"]["form"]["tuned"]
    assert again["tuned_compiled"]["form"].get("autocast", False) == name.startswith("so400m")


def row(speed: float) -> dict:
    return {
        "images_per_second": speed,
        "device_peak_bytes": None,
        "host_peak_bytes": 2**31,
        "compile_seconds": None,
        "start_to_first_call_seconds": 3.0,
    }


def test_table_and_file(tmp_path):
    results = {"ours": row(6.0), "tuned": row(4.0), "tuned_compiled": {"error": "no compiler"}}
    assert "| tuned | 4 | 1.50 × | 2.00 GiB | – | 3.0 s |" in table(results)
    assert "no compiler" in table(results)
    entry = {"command": "c", "date": "d", "machine": "m", "load": [1.0], "batch": 2, "results": results}
    keep(tmp_path / "speed.json", "train tiny", entry)
    keep(tmp_path / "speed.json", "encode tiny", entry)
    assert list(json.loads((tmp_path / "speed.json").read_text())) == ["encode tiny", "train tiny"]
    assert "## train tiny, 2 images" in (tmp_path / "speed.md").read_text()


WORKER = """
import json, sys
specification = json.loads(sys.argv[1])
if specification["fails"]: sys.exit(3)
print(json.dumps({"ready": 0.0}), flush=True)
for line in sys.stdin:
    print(json.dumps({"seconds": [specification["seconds"]] * int(line)}), flush=True)
"""


def test_race_takes_turns_and_survives_a_side_that_fails(tmp_path, monkeypatch):
    package = tmp_path / "benchmarks"
    package.mkdir()
    (package / "worker.py").write_text(WORKER)
    monkeypatch.setattr(racing, "ROOT", tmp_path)
    sides = {name: {"threads": 1, "fails": name == "broken", "seconds": 0.5} for name in ("one", "broken", "other")}
    results = racing.race(sides, batch=4, rounds=3, calls=2)
    assert "status 3" in results["broken"]["error"]
    assert results["one"]["images_per_second"] == results["other"]["images_per_second"] == 8.0
    assert results["one"]["calls"] == 6
