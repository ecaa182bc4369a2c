"""One DualToken training step in PyTorch, as METHOD.md sections 3, 5 and 6 describe it, in either `Form`.

`config` is a dualtoken_jax.config.Config or anything with its fields; this package needs torch and nothing of JAX. The
Gram term, the weight average and slow modules are left out.
"""

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peer import adversary
from benchmarks.peer.codebooks import quantize_and_update
from benchmarks.peer.form import RELEASED, Form
from benchmarks.peer.schedules import adamw, apply, generator_rate

Terms = dict[str, Tensor]


@dataclasses.dataclass
class Trainer:
    """Everything a step reads and changes."""

    config: object
    model: nn.Module  # dualtoken_jax.interop.torch_model.DualTokenModel
    teacher: nn.Module  # torch_model.VisionTower, frozen
    discriminator: nn.Module
    perceptual: nn.Module | None = None  # see lpips.py; frozen
    form: Form = RELEASED
    step: int = 0  # steps done

    def __post_init__(self):
        networks = {name: getattr(self, name) for name in ("model", "teacher", "discriminator", "perceptual")}
        self.form.prepare({name: network for name, network in networks.items() if network is not None})
        self.optimizer = adamw(self.model, self.config.optimizer, self.form.tuned)
        self.discriminator_optimizer = adamw(self.discriminator, self.config.discriminator_optimizer, self.form.tuned)


def train_step(trainer: Trainer, images: Tensor, draw) -> Terms:
    """One step on images [B, 3, H, W] in [−1, 1]; `draw` is of codebooks.restart. Gradients stay in `.grad`."""
    on = trainer.step >= trainer.config.loss.discriminator_start
    if trainer.form.tuned:
        images = images.contiguous(memory_format=torch.channels_last)
    with trainer.form.precision(images.device):
        outputs = forward(trainer, images, draw)
        terms = semantic_terms(outputs, *teach(trainer.teacher, trainer.config.model.semantic_layer, images))
        terms |= {f"commitment_{branch}": value for branch, value in outputs["commitment"].items()}
    finish = adversary.tuned if trainer.form.tuned else adversary.released
    terms |= finish(trainer, images, outputs, weighted(trainer.config.loss, terms), on)
    terms["loss"] = weighted(trainer.config.loss, terms)
    if on:
        terms["loss"] = terms["loss"] + trainer.config.loss.generator * terms["generator_weight"] * terms["generator"]
    trainer.step += 1
    return {name: term.detach() for name, term in terms.items()}


def weighted(loss, terms: Terms) -> Tensor:
    """Sum of the terms that have a weight of their own; w and the adversarial ones have not."""
    apart = ("generator", "generator_weight", "discriminator")
    return sum(getattr(loss, name) * term for name, term in terms.items() if name not in apart)


def update_generator(trainer: Trainer) -> None:
    """From the gradients that stand in `.grad`."""
    config = trainer.config
    apply(trainer.optimizer, config.optimizer, generator_rate(config.optimizer, config.train.steps, trainer.step))


def forward(trainer: Trainer, images: Tensor, draw) -> dict:
    """The model's training forward, whose quantizers move their codebooks."""
    model, config = trainer.model, trainer.config.model
    vectors, _ = model.latents(images)
    quantized, commitment = {}, {}
    with trainer.form.quantizer_precision(images.device):
        for branch, z in vectors.items():
            z = z.float() if z.dtype == torch.bfloat16 else z
            options = getattr(config, branch)
            found = quantize_and_update(model.quantizer(branch), z, options, draw, dense=not trainer.form.tuned)
            quantized[branch], commitment[branch], _ = found
    hidden = model.postquant_sem(quantized["semantic"])
    features = model.decoder_features(quantized["pixel"])
    reconstruction = model.decoder.output(features)
    reconstruction = reconstruction.float() if reconstruction.dtype == torch.bfloat16 else reconstruction
    return {
        "hidden": hidden,
        "pooled": model.finish(hidden),
        "features": features,
        "reconstruction": reconstruction,
        "commitment": commitment,
    }


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
