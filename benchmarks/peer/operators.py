"""What transformers needs of torchvision where torchvision's wheel does not fit torch's."""

import functools

import torch


@functools.cache
def torchvision_operators() -> list:
    """torchvision's wheel for a CPU's torch registers no operators, and fails at import without these two names.

    Elsewhere, where torchvision imports, or is not installed, this does nothing.
    """
    try:
        import torchvision  # noqa: F401
    except ModuleNotFoundError:
        return []
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return [library]  # forgotten with the object that made them
    return []
