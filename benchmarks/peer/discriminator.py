"""The released PatchGAN discriminator in PyTorch, under its parameter names; needs torch alone."""

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Pre-activation block; the shortcut is resized first where the stride is 2."""

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs, 1e-6)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
        self.nin_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.leaky_relu(self.norm1(x), 0.2))
        if x.shape[2:] != y.shape[2:]:
            x = F.interpolate(x, y.shape[2:], mode="bilinear", align_corners=False)
        return y + self.nin_shortcut(x)


class Discriminator(nn.Module):
    """Images [B, 3, H, W] in [−1, 1] → patch logits [B, 1, H/8, W/8]; `config` is a DiscriminatorConfig."""

    def __init__(self, config):
        super().__init__()
        width, groups = config.channels, config.groups
        self.main = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, padding=1),
            nn.LeakyReLU(0.2),
            Block(width, 2 * width, 2, groups),
            Block(2 * width, 4 * width, 2, groups),
            Block(4 * width, 8 * width, 1, groups),
            nn.Conv2d(8 * width, 1, 3, padding=1),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.main(images)
