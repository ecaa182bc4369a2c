"""Packages over PyTorch that the tests compare with, where they are installed (Python 3.11 only)."""

import pytest


def imported(name: str):
    """The package, or the test is skipped."""
    pytest.importorskip("torch")
    from benchmarks.peer.operators import torchvision_operators

    torchvision_operators()
    return pytest.importorskip(name)
