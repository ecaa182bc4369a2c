"""The same training run twice, ours and in plain PyTorch: one recipe, one set of weights, both float64."""

import dataclasses

import jax
import numpy as np
import torch_packages
from flax import nnx

torch = torch_packages.imported("torch")

from float64 import doubled  # noqa: E402
from torch_twin import random_tree, torch_twin  # noqa: E402

from benchmarks.peer.discriminator import Discriminator as TorchDiscriminator  # noqa: E402
from benchmarks.peer.form import RELEASED, Form  # noqa: E402
from benchmarks.peer.lpips import Lpips as TorchLpips  # noqa: E402
from benchmarks.peer.step import Trainer  # noqa: E402
from dualtoken_jax.config import Config, LossConfig, TeacherConfig, TrainConfig  # noqa: E402
from dualtoken_jax.data.dataset import DataConfig  # noqa: E402
from dualtoken_jax.interop.lpips import lpips_table  # noqa: E402
from dualtoken_jax.interop.name_table import to_tree  # noqa: E402
from dualtoken_jax.interop.released import module_shapes  # noqa: E402
from dualtoken_jax.interop.released_names import discriminator_table  # noqa: E402
from dualtoken_jax.models.decoder import DecoderConfig  # noqa: E402
from dualtoken_jax.models.discriminator import Discriminator, DiscriminatorConfig  # noqa: E402
from dualtoken_jax.models.dualtoken import DualTokenConfig  # noqa: E402
from dualtoken_jax.models.quantizer import QuantizerConfig  # noqa: E402
from dualtoken_jax.models.siglip import SiglipConfig, TowerConfig  # noqa: E402
from dualtoken_jax.models.vgg import Lpips, VggConfig  # noqa: E402
from dualtoken_jax.optimizer import OptimizerConfig  # noqa: E402
from dualtoken_jax.tasks import tokenizer  # noqa: E402
from dualtoken_jax.tasks.state import new_state  # noqa: E402

STEPS, ROWS, CODES = 20, 4, 24
VGG = VggConfig((4, 6), (1, 2))  # VGG16 itself takes minutes in float64
TOWER = TowerConfig(width=32, depth=3, heads=2, mlp_width=48)
TRANSFORMER = DecoderConfig(kind="transformer", width=24, depth=1, heads=2)
CONVOLUTIONAL = DecoderConfig(
    channels=8, multipliers=(1, 2), residual_blocks=1, latent_grid=8, attention_grids=(8,), groups=4
)


def vocabulary(update: str, shared: bool, depth: int, threshold: float | None) -> QuantizerConfig:
    return QuantizerConfig(
        CODES, 8, depth, shared_codebook=shared, codebook_update=update, decay=0.9, restart_threshold=threshold
    )


def recipe(pixel: QuantizerConfig, semantic: QuantizerConfig, **options) -> Config:
    siglip = SiglipConfig(16, 4, TOWER, dataclasses.replace(TOWER, depth=1), 40, 6, dtype="float64")
    model = DualTokenConfig(
        siglip=siglip,
        pixel_layer=1,
        semantic_layer=2,
        shortcut_layer=0,
        projection=options.get("projection", "linear"),
        pixel=pixel,
        semantic=semantic,
        decoder=options.get("decoder", TRANSFORMER),
    )
    kind = options.get("discriminator", "leaky_hinge")
    return Config(
        name="parity",
        task="tokenizer",
        model=model,
        data=DataConfig(),
        train=TrainConfig(steps=STEPS, batch_size=ROWS),
        optimizer=OptimizerConfig(learning_rate=2e-3, weight_decay=0.1, warmup_steps=3),
        loss=LossConfig(
            perceptual=options.get("perceptual", 0.0),
            discriminator_start=options.get("discriminator_start", 4),
            discriminator_settled=10,
            discriminator=kind,
        ),
        discriminator=DiscriminatorConfig(channels=8, groups=4),
        discriminator_optimizer=OptimizerConfig(
            learning_rate=1e-3, weight_decay=0.0, warmup_steps=4, final_learning_rate=5e-4
        ),
        teacher=TeacherConfig(path="the test's"),
    )


def weights(config: Config) -> tuple[dict, dict]:
    """A tree with a codebook in its own statistics, and a SigLIP near its vision tower."""
    tree = random_tree(config.model)
    for branch, book in tree["codebooks"].items():
        scale = 1.0 if branch == "pixel" else 0.5
        count = 1 + book["count"]
        embedding = (scale * book["embedding"]).astype(np.float32)
        tree["codebooks"][branch] = {"embedding": embedding, "count": count, "sum": embedding * count[..., None]}
    siglip = {name: tree[name] for name in ("text", "logit_scale", "logit_bias")}
    return tree, siglip | {"vision": jax.tree.map(lambda x: np.float32(1.1) * x, tree["params"]["vision"])}


def lpips_shapes() -> dict:
    """Shapes of our LPIPS's parameters."""
    return nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: Lpips(VGG, rngs=nnx.Rngs(0))), nnx.Param))


def lpips_names() -> list:
    """The names under which the peer's LPIPS keeps them."""
    return [entry for entry in lpips_table(VGG) if not entry.alias]


def both(config: Config, form: Form = RELEASED):
    """Our task and state, and the PyTorch trainer, at step 0 of the same run."""
    tree, siglip = weights(config)
    torch.manual_seed(0)
    critic = TorchDiscriminator(config.discriminator)
    tensors = {name: value.numpy() for name, value in critic.state_dict().items()}
    shapes = module_shapes(Discriminator, config.discriminator)
    params = doubled(to_tree(discriminator_table(), tensors, shapes, "the test's discriminator"))
    task = tokenizer.Tokenizer(config)
    rest = {"discriminator": params, "discriminator_optimizer": task.adversary.optimizer.init(params)}
    rest |= {"codebooks": doubled(tree["codebooks"]), "frozen": {"siglip": doubled(siglip)}}
    perceptual = None
    if config.loss.perceptual > 0:
        perceptual = TorchLpips(VGG.widths, VGG.depths)
        tensors = {name: value.numpy() for name, value in perceptual.state_dict().items()}
        rest["frozen"]["lpips"] = doubled(to_tree(lpips_names(), tensors, lpips_shapes(), "the test's LPIPS"))
        perceptual = perceptual.requires_grad_(False).double()
    state = new_state(doubled(tree["params"]), task.optimizer, config.train, jax.random.key(0), **rest)

    model = torch_twin({name: tree[name] for name in ("params", "codebooks")}, config.model).double()
    twin = torch_twin(
        {"params": tree["params"] | {"vision": siglip["vision"]}, "codebooks": tree["codebooks"]}, config.model
    )
    teacher = twin.siglip_model.vision_model.double()
    return task, state, Trainer(config, model, teacher.requires_grad_(False), critic.double(), perceptual, form)
