"""One DualToken training step in plain PyTorch, as METHOD.md sections 3, 5 and 6 describe it.

The peer of tasks/tokenizer.py: the same config, another library, and the straightforward way everywhere (adaptive
weight by two extra backward passes, schedules by their formulas). `config` is a dualtoken_jax.config.Config, of which
only fields are read; this file needs torch and nothing of JAX. Perceptual and Gram terms are left out.
"""

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_codebooks import quantize_and_update

Terms = dict[str, Tensor]


@dataclasses.dataclass
class Trainer:
    """Everything a step reads and changes."""

    config: object
    model: nn.Module  # dualtoken_jax.interop.torch_model.DualTokenModel
    teacher: nn.Module  # torch_model.VisionTower, frozen
    discriminator: nn.Module
    step: int = 0  # steps done

    def __post_init__(self):
        self.optimizer = adamw(self.model, self.config.optimizer)
        self.discriminator_optimizer = adamw(self.discriminator, self.config.discriminator_optimizer)


def adamw(model: nn.Module, config) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices and kernels only; the learning rate is set at every step."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(config.b1, config.b2), eps=config.epsilon)


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


def train_step(trainer: Trainer, images: Tensor, draw) -> Terms:
    """One step on images [B, 3, H, W] in [−1, 1]; `draw` is of torch_codebooks.restart. Gradients stay in `.grad`."""
    on = trainer.step >= trainer.config.loss.discriminator_start
    terms, fake = generator_step(trainer, images, on, draw)
    if on:
        terms["discriminator"] = discriminator_step(trainer, images, fake)
    trainer.step += 1
    return terms


def generator_step(trainer: Trainer, images: Tensor, adversarial: bool, draw) -> tuple[Terms, Tensor]:
    """Updates the model and its codebooks; returns the loss terms and the images it made before."""
    model, config = trainer.model, trainer.config
    outputs = forward(model, config.model, images, draw)
    terms = semantic_terms(outputs, *teach(trainer.teacher, config.model.semantic_layer, images))
    terms |= {f"commitment_{branch}": value for branch, value in outputs["commitment"].items()}
    fake = outputs["reconstruction"]
    terms["mse"] = F.mse_loss(fake, images)
    loss = sum(getattr(config.loss, name) * term for name, term in terms.items())
    if adversarial:
        terms["generator"] = -trainer.discriminator(fake).mean()
        terms["generator_weight"] = generator_weight(model, config.loss, terms["mse"], terms["generator"])
        loss = loss + config.loss.generator * terms["generator_weight"] * terms["generator"]
    trainer.optimizer.zero_grad()
    loss.backward()
    apply(trainer.optimizer, generator_rate(config.optimizer, config.train.steps, trainer.step))
    terms = {name: term.detach() for name, term in (terms | {"loss": loss}).items()}
    return terms, fake.detach()


def forward(model: nn.Module, config, images: Tensor, draw) -> dict:
    """The model's training forward, whose quantizers move their codebooks."""
    vectors, _ = model.latents(images)
    quantized, commitment = {}, {}
    for branch, z in vectors.items():
        output, commitment[branch], _ = quantize_and_update(model.quantizer(branch), z, getattr(config, branch), draw)
        quantized[branch] = output
    hidden = model.postquant_sem(quantized["semantic"])
    reconstruction = model.decoder.output(model.decoder_features(quantized["pixel"]))
    pooled = model.finish(hidden)
    return {"hidden": hidden, "pooled": pooled, "reconstruction": reconstruction, "commitment": commitment}


@torch.no_grad()
def teach(teacher: nn.Module, layer: int, images: Tensor) -> tuple[Tensor, Tensor]:
    """The frozen teacher's hidden state after `layer` [B, N, C] and its pooled output [B, C]."""
    hidden = teacher.encoder(teacher.embed(images), 0, layer)
    return hidden, teacher.pool(teacher.encoder(hidden, layer))


def semantic_terms(outputs: dict, hidden: Tensor, pooled: Tensor) -> Terms:
    """Distances from the teacher."""
    return {
        "hidden_mse": F.mse_loss(outputs["hidden"], hidden),
        "hidden_cosine": -F.cosine_similarity(outputs["hidden"], hidden, dim=-1).mean(),
        "pooled_mse": F.mse_loss(outputs["pooled"], pooled),
        "pooled_cosine": -F.cosine_similarity(outputs["pooled"], pooled, dim=-1).mean(),
    }


def generator_weight(model: nn.Module, config, reconstruction: Tensor, generator: Tensor) -> Tensor:
    """w: gradients of both losses at the decoder's last layer."""
    if config.generator_weight == "constant":
        return torch.ones_like(generator)
    decoder = model.decoder
    last = (decoder.conv_out if hasattr(decoder, "conv_out") else decoder.linear_out).weight
    norms = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (reconstruction, generator)]
    return (norms[0] / (norms[1] + 1e-4)).clamp(0.3, 10.0).detach()


def discriminator_step(trainer: Trainer, real: Tensor, fake: Tensor) -> Tensor:
    """Updates the discriminator; returns its loss, not scaled."""
    config = trainer.config
    loss = discriminator_loss(trainer.discriminator(real), trainer.discriminator(fake), config.loss.discriminator)
    scale = 0.75 if trainer.step >= config.loss.discriminator_settled else 1.0
    trainer.discriminator_optimizer.zero_grad()
    (scale * loss).backward()
    own_step = trainer.step - config.loss.discriminator_start
    rate = discriminator_rate(config.discriminator_optimizer, config.train.steps, own_step)
    apply(trainer.discriminator_optimizer, rate)
    return loss.detach()


def discriminator_loss(real: Tensor, fake: Tensor, kind: str) -> Tensor:
    """`hinge`, or the released code's `leaky_hinge`."""
    slope = {"leaky_hinge": 0.01, "hinge": 0.0}[kind]
    return 0.5 * (F.leaky_relu(1 - real, slope).mean() + F.leaky_relu(1 + fake, slope).mean())


def apply(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """One update at that learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
