"""AdamW and its learning rates, by their formulas (METHOD.md section 6)."""

import math

import torch
from torch import nn


def adamw(model: nn.Module, config, fused: bool) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices and kernels only; the learning rate is set at every step."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(config.b1, config.b2), eps=config.epsilon, fused=fused or None)


def cosine_decay(config, progress: float) -> float:
    """Learning rate after the warm-up, at a fraction of the rest."""
    low, high = config.final_learning_rate, config.learning_rate
    return low + (high - low) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def generator_rate(config, steps: int, step: int) -> float:
    """Warm-up that ends at the peak, then cosine."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    return cosine_decay(config, (step - config.warmup_steps) / max(steps - config.warmup_steps, 1))


def discriminator_rate(config, steps: int, step: int) -> float:
    """As the released code: warm-up from 0; `step` counts from the discriminator's own first."""
    if step < config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    return cosine_decay(config, (step - config.warmup_steps) / max(steps - config.warmup_steps, 1))


def apply(optimizer: torch.optim.Optimizer, config, rate: float) -> None:
    """One update at that learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    if config.clip_norm is not None:
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], config.clip_norm)
    optimizer.step()
