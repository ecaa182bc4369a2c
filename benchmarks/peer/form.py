"""How the peer's step is computed; what it computes is the same in every form."""

import contextlib
import dataclasses
import functools

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


@dataclasses.dataclass(frozen=True)
class Form:
    """`released` is how the authors' code goes about it; `tuned` is what one would fairly do in PyTorch today.

    Tuned: codebook sums by index_add in place of a one-hot matrix, distances through blocks of vectors, one pass of the
    discriminator over real and fake together, the adaptive weight from the last layer's input in place of two more
    backward passes, fused AdamW, channels_last, TF32 where there is any. Attention is scaled_dot_product_attention in
    both.
    """

    tuned: bool
    autocast: bool = False  # to bfloat16; the quantizers stay in float32 where the form is tuned
    checkpoint: bool = False  # recompute transformer layers and decoder levels in the backward pass
    compiled: bool = False  # torch.compile of the networks

    def precision(self, device: torch.device):
        """The context of a forward pass."""
        return torch.autocast(device.type, torch.bfloat16) if self.autocast else contextlib.nullcontext()

    def quantizer_precision(self, device: torch.device):
        """The context of a quantizer inside it."""
        tuned = self.autocast and self.tuned
        return torch.autocast(device.type, enabled=False) if tuned else contextlib.nullcontext()

    def prepare(self, networks: dict[str, nn.Module]) -> None:
        """Changes the networks of a trainer, by name, in place."""
        if self.tuned:
            torch.set_float32_matmul_precision("high")  # of a GPU; a CPU goes on in float32
            for network in networks.values():
                network.to(memory_format=torch.channels_last)
        if self.checkpoint:
            for layer in _parts(networks["model"], ("Layer", "Level")):
                layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
        if self.compiled:
            for network in networks.values():
                for part in _parts(network, ("Layer", "Level", "AttentionProjection", "Discriminator", "Lpips")):
                    part.compile()


def _parts(network: nn.Module, kinds: tuple[str, ...]) -> list[nn.Module]:
    """By the names of their classes: layers and levels are alike, and one compilation serves all of a kind."""
    return [part for part in network.modules() if type(part).__name__ in kinds]


RELEASED, TUNED = Form(tuned=False), Form(tuned=True)
