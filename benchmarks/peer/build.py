"""A trainer of a config's shapes with random weights."""

import torch
from torch import nn

from benchmarks.peer.discriminator import Discriminator
from benchmarks.peer.form import Form
from benchmarks.peer.lpips import Lpips, TeacherFeatures
from benchmarks.peer.step import Trainer
from dualtoken_jax.interop.torch_model import DualTokenConfig, DualTokenModel, VisionTower, namespace

SHALLOW = 2  # as dualtoken_jax.config.SHALLOW, which this process must not import: that module brings JAX


def trainer(config: dict, form: Form, device: torch.device) -> Trainer:
    """`config` is a Config as nested plain dicts."""
    torch.manual_seed(0)
    settings = namespace(config)
    model = DualTokenModel(DualTokenConfig(architecture=config["model"], text_tower=False)).to(device)
    teacher = frozen(VisionTower(settings.model.siglip)).to(device)
    model.siglip_model.vision_model.load_state_dict(teacher.state_dict())
    perceptual = None
    if settings.loss.perceptual > 0:
        own = settings.loss.perceptual_network == "lpips"
        perceptual = frozen(Lpips() if own else TeacherFeatures(teacher, SHALLOW)).to(device)
    return Trainer(settings, model, teacher, Discriminator(settings.discriminator).to(device), perceptual, form)


def frozen(network: nn.Module) -> nn.Module:
    """The network, without gradients for its parameters."""
    return network.requires_grad_(False)
