"""An ablation takes over what an earlier one has measured, and nothing that was made otherwise."""

import importlib.util
import json
from argparse import Namespace
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location("ablation", Path(__file__).parents[1] / "benchmarks" / "ablation.py")
ablation = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(ablation)


def test_runs_are_reused_only_with_the_same_settings(tmp_path, monkeypatch):
    run = tmp_path / "demo-1"
    run.mkdir()
    teacher, loss = {"path": str(tmp_path / "teacher")}, {"discriminator_start": 80}
    config = {"seed": 1, "train": {"steps": 100}, "teacher": teacher, "data": {"eval_examples": 1024}, "loss": loss}
    (run / "config.json").write_text(json.dumps(config))
    (run / "evaluation.json").write_text('{"psnr": 20.0}')
    monkeypatch.chdir(tmp_path)
    arguments = {"workdir": tmp_path, "teacher": Path("teacher"), "steps": 100}
    assert ablation.run("demo", 1, Namespace(**arguments)) == {"psnr": 20.0}
    for other, message in (
        ({"steps": 200}, "demo-1 was made with train.steps 100, not 200"),
        ({"teacher": Path("another")}, "with teacher.path '.*teacher', not 'another'"),
    ):
        with pytest.raises(SystemExit, match=message):
            ablation.run("demo", 1, Namespace(**arguments | other))
