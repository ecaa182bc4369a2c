"""The image terms and the discriminator's half of a step, as the released code goes about them, and tuned.

Both take the semantic terms' weighted sum, update the model and the discriminator, and return the image terms.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peer import step
from benchmarks.peer.schedules import apply, discriminator_rate


def released(trainer, images: Tensor, outputs: dict, semantic: Tensor, on: bool) -> dict[str, Tensor]:
    """One loss, one backward pass, and two more for w; the discriminator sees real and fake one after the other."""
    config, fake = trainer.config.loss, outputs["reconstruction"]
    with trainer.form.precision(images.device):
        terms = image_terms(trainer, images, fake)
        loss = semantic + step.weighted(config, terms)
        if on:
            terms["generator"] = -trainer.discriminator(fake).mean()
            reconstruction = terms["mse"] + terms.get("perceptual", 0.0)
            terms["generator_weight"] = two_passes(trainer, reconstruction, terms["generator"])
            loss = loss + config.generator * terms["generator_weight"] * terms["generator"]
    trainer.optimizer.zero_grad()
    loss.backward()
    step.update_generator(trainer)
    if on:
        with trainer.form.precision(images.device):
            real, made = trainer.discriminator(images), trainer.discriminator(fake.detach())
            terms["discriminator"] = discriminator_loss(real, made, config.discriminator)
        trainer.discriminator_optimizer.zero_grad()
        (settled_scale(trainer) * terms["discriminator"]).backward()
        update_discriminator(trainer)
    return terms


def two_passes(trainer, reconstruction: Tensor, generator: Tensor) -> Tensor:
    """w from a backward pass of each loss down to the decoder's last layer."""
    if trainer.config.loss.generator_weight == "constant":
        return torch.ones_like(generator)
    last = last_layer(trainer.model).weight
    norms = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (reconstruction, generator)]
    return (norms[0] / (norms[1] + 1e-4)).clamp(0.3, 10.0).detach()


def tuned(trainer, images: Tensor, outputs: dict, semantic: Tensor, on: bool) -> dict[str, Tensor]:
    """Every loss's gradient at x̂ once; w from them and the last layer's input; then one backward pass of the model."""
    config, fake = trainer.config.loss, outputs["reconstruction"]
    leaf = fake.detach().requires_grad_()
    with trainer.form.precision(images.device):
        terms = image_terms(trainer, images, leaf)
    gradients = {name: torch.autograd.grad(term, leaf)[0] for name, term in terms.items()}
    total = sum(getattr(config, name) * gradient for name, gradient in gradients.items())
    if on:
        judged, adversarial = judge(trainer, images, leaf)
        judged["generator_weight"] = at_last_layer(trainer, fake, sum(gradients.values()), adversarial)
        total = total + config.generator * judged["generator_weight"] * adversarial
        terms |= judged
    trainer.optimizer.zero_grad()
    torch.autograd.backward([semantic, fake], [None, total])
    step.update_generator(trainer)
    if on:
        update_discriminator(trainer)
    return terms


def judge(trainer, images: Tensor, leaf: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """One forward pass over real and fake: L_G and L_D, L_G's gradient at `leaf`; L_D's stays in `.grad`."""
    trainer.discriminator_optimizer.zero_grad()
    with trainer.form.precision(images.device):
        real, made = trainer.discriminator(torch.cat([images, leaf])).chunk(2)
        generator, loss = -made.mean(), discriminator_loss(real, made, trainer.config.loss.discriminator)
    (adversarial,) = torch.autograd.grad(generator, leaf, retain_graph=True)
    (settled_scale(trainer) * loss).backward(inputs=list(trainer.discriminator.parameters()))
    return {"generator": generator, "discriminator": loss}, adversarial


def at_last_layer(trainer, fake: Tensor, reconstruction: Tensor, generator: Tensor) -> Tensor:
    """w from both gradients at x̂: one weight gradient of the last layer each."""
    if trainer.config.loss.generator_weight == "constant":
        return fake.new_ones(())
    last = last_layer(trainer.model).weight
    norms = [torch.autograd.grad(fake, last, g, retain_graph=True)[0].norm() for g in (reconstruction, generator)]
    return (norms[0] / (norms[1] + 1e-4)).clamp(0.3, 10.0)


def image_terms(trainer, images: Tensor, fake: Tensor) -> dict[str, Tensor]:
    """MSE, and the perceptual term where there is one."""
    terms = {"mse": F.mse_loss(fake, images)}
    if trainer.perceptual is not None:
        with torch.no_grad():
            target = trainer.perceptual.taps(images)
        terms["perceptual"] = trainer.perceptual.distance(trainer.perceptual.taps(fake), target).mean()
    return terms


def discriminator_loss(real: Tensor, fake: Tensor, kind: str) -> Tensor:
    """`hinge`, or the released code's `leaky_hinge`; not scaled."""
    slope = {"leaky_hinge": 0.01, "hinge": 0.0}[kind]
    return 0.5 * (F.leaky_relu(1 - real, slope).mean() + F.leaky_relu(1 + fake, slope).mean())


def settled_scale(trainer) -> float:
    """L_D's factor."""
    return 0.75 if trainer.step >= trainer.config.loss.discriminator_settled else 1.0


def update_discriminator(trainer) -> None:
    """From the gradients that stand in `.grad`."""
    config = trainer.config
    own_step = trainer.step - config.loss.discriminator_start
    rate = discriminator_rate(config.discriminator_optimizer, config.train.steps, own_step)
    apply(trainer.discriminator_optimizer, config.discriminator_optimizer, rate)


def last_layer(model: nn.Module) -> nn.Module:
    """The decoder's last convolution or linear map."""
    decoder = model.decoder
    return decoder.conv_out if hasattr(decoder, "conv_out") else decoder.linear_out
