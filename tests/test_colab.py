"""launch/colab.ipynb, cell by cell as Colab runs it: on the CPU, with the tiny recipe."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "launch" / "colab.ipynb"
RECIPE = """
from conftest import tiny_config
from dualtoken_jax.config import to_config_dict


def get_config():
    return to_config_dict(tiny_config())
"""


@pytest.mark.slow  # about a minute and a half of CPU, most of it compilation
def test_notebook_trains_shows_and_exports(tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    recipe = tmp_path / "recipe.py"
    recipe.write_text(RECIPE)
    (tmp_path / "dualtoken_jax").symlink_to(ROOT)  # as if cloned already
    settings = {"CONFIG": str(recipe), "STEPS": "2", "TEACHER_STEPS": "2"}
    for name, value in settings.items():
        monkeypatch.setenv(f"DUALTOKEN_{name}", value)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 1
    assert (tmp_path / "run" / "report.html").exists() and (tmp_path / "exported" / "config.json").exists()
    assert not (tmp_path / "constraints.txt").exists()  # nothing was missing, so nothing was installed


def test_notebook_is_stored_without_outputs():
    nbformat = pytest.importorskip("nbformat")
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert cells and all(not cell.outputs and cell.execution_count is None for cell in cells)
