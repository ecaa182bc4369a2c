"""Packages over PyTorch that the tests compare with, where they are installed (Python 3.11 only)."""

import functools

import pytest


@functools.cache
def _operators() -> list:
    """torchvision's wheel for this torch registers no CPU operators and fails at import without these two names."""
    import torch

    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return [library]  # forgotten with the object that made them


def imported(name: str):
    """The package, or the test is skipped."""
    torch = pytest.importorskip("torch")
    if not hasattr(torch.ops.torchvision, "nms"):
        _operators()
    return pytest.importorskip(name)
