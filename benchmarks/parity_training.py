"""How close training is: to the released code's own record, and to the same step in plain PyTorch (float64).

    python benchmarks/parity_training.py --output=benchmarks/results/parity_training.json

Runs the tests that compare them, the slow ones too, and keeps the largest relative error of each kind of quantity.
Codes and restarted codes are compared exactly; they have no figure. Needs PyTorch and pytest.
"""

import argparse
import datetime
import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1] / "tests"
COMPARED = {  # test file → what it compares
    "test_released.py": "the released code's evaluation forward (float32)",
    "test_released_training.py": "its training forward, quantizer updates and discriminator (float32)",
    "test_released_steps.py": "its eight training steps (ours in float64)",
    "test_training_parity.py": "twenty steps, and restarts, against plain PyTorch (float64)",
}


def largest_errors(file: str) -> dict[str, float]:
    """By kind of quantity, from one test file, which must pass."""
    status = pytest.main([str(TESTS / file), "-q", "-n", "0", "-m", "slow or not slow"])
    if status != pytest.ExitCode.OK:
        raise SystemExit(f"{file} failed: there are no figures")
    from released_record import ERRORS  # the module that the tests imported

    errors = {name: float(f"{error:.2g}") for name, error in sorted(ERRORS.items())}
    ERRORS.clear()
    return errors


def main() -> None:
    """Runs the tests and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/parity_training.json"))
    arguments = parser.parse_args()
    errors = {file: largest_errors(file) for file in COMPARED}
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "flax", "torch"))
    report = {
        "command": "python benchmarks/parity_training.py",
        "date": datetime.date.today().isoformat(),
        "machine": f"{os.cpu_count()} CPU cores, {platform.machine()}; Python {platform.python_version()}, {versions}",
        "largest_relative_error": {
            COMPARED[file]: {"overall": max(found.values()), "by_quantity": found} for file, found in errors.items()
        },
    }
    arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    for what, found in report["largest_relative_error"].items():
        print(f"{found['overall']:.1e}  {what}")


if __name__ == "__main__":
    sys.exit(main())
