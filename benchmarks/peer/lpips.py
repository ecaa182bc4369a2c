"""The perceptual term in PyTorch: LPIPS over VGG16, or the same form on the teacher's first layers.

A perceptual network has `taps` (images [B, 3, H, W] in [−1, 1] → features) and `distance` (two lists of them → [B]).
Parameters of LPIPS have the names that dualtoken_jax.interop.lpips reads.
"""

import torch
from torch import Tensor, nn

WIDTHS, DEPTHS = (64, 128, 256, 512, 512), (2, 2, 3, 3, 3)  # VGG16: channels and convolutions of each block
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class Lpips(nn.Module):
    """Random weights of a sensible scale; version 0.1's constants."""

    def __init__(self, widths: tuple[int, ...] = WIDTHS, depths: tuple[int, ...] = DEPTHS):
        super().__init__()
        layers, self.ends, channels = [], [], 3
        for width, depth in zip(widths, depths, strict=True):
            layers += [nn.MaxPool2d(2)] if layers else []
            for _ in range(depth):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                nn.init.kaiming_normal_(layers[-2].weight)
                channels = width
            self.ends.append(len(layers))
        self.features = nn.Sequential(*layers)
        for block, width in enumerate(widths):
            linear = nn.Conv2d(width, 1, 1, bias=False)
            nn.init.uniform_(linear.weight)  # a distance needs weights that are not negative
            setattr(self, f"lin{block}", nn.ModuleDict({"model": nn.Sequential(nn.Identity(), linear)}))
        for name, values in (("shift", SHIFT), ("scale", SCALE)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1), persistent=False)

    def taps(self, images: Tensor) -> list[Tensor]:
        return self((images - self.shift.to(images.dtype)) / self.scale.to(images.dtype))

    def forward(self, x: Tensor) -> list[Tensor]:
        """relu1_2, 2_2, 3_3, 4_3, 5_3."""
        found = []
        for position, layer in enumerate(self.features, start=1):
            x = layer(x)
            found += [x] if position in self.ends else []
        return found

    def distance(self, x: list[Tensor], y: list[Tensor]) -> Tensor:
        weights = [getattr(self, f"lin{block}")["model"][1].weight for block in range(len(self.ends))]
        apart = [(unit(a, 1) - unit(b, 1)).square() for a, b in zip(x, y, strict=True)]
        return sum((d * w.view(1, -1, 1, 1)).sum(1).mean((1, 2)) for d, w in zip(apart, weights, strict=True))


class TeacherFeatures(nn.Module):
    """h_1 … h_layers of a frozen tower, without learned weights."""

    def __init__(self, teacher: nn.Module, layers: int):
        super().__init__()
        self.teacher, self.layers = teacher, layers

    def taps(self, images: Tensor) -> list[Tensor]:
        hidden = [self.teacher.embed(images)]
        for layer in range(self.layers):
            hidden.append(self.teacher.encoder(hidden[-1], layer, layer + 1))
        return hidden[1:]

    def distance(self, x: list[Tensor], y: list[Tensor]) -> Tensor:
        return sum((unit(a, -1) - unit(b, -1)).square().sum(-1).mean(-1) for a, b in zip(x, y, strict=True))


def unit(x: Tensor, axis: int) -> Tensor:
    """x at length 1 along an axis."""
    x = x.float() if x.dtype == torch.bfloat16 else x
    return x / (torch.linalg.vector_norm(x, dim=axis, keepdim=True) + 1e-10)
