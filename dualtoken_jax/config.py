"""Every setting of a run: frozen dataclasses, and their passage through the command line."""

import dataclasses
import types
import typing
from typing import Any, Literal

from ml_collections import ConfigDict, config_dict

from dualtoken_jax.data.dataset import DataConfig
from dualtoken_jax.models.discriminator import DiscriminatorConfig
from dualtoken_jax.models.dualtoken import DualTokenConfig
from dualtoken_jax.optimizer import FreezeConfig, OptimizerConfig
from dualtoken_jax.sharding import MeshConfig

SHALLOW = 2  # layers of the teacher whose hidden states stand in for LPIPS


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The loop."""

    steps: int = 100_000
    batch_size: int = 256  # rows of the global batch
    # Parts of the batch that a step computes one after another, for memory. Gradients, codebooks and the contrastive
    # loss are those of the whole batch; only the adaptive generator weight is of each part (and its metric their mean).
    accumulate: int = 1
    log_every: int = 50  # steps
    checkpoint_every: int = 1_000  # steps; the last step is always saved
    keep_checkpoints: int = 2  # newest ones kept
    evaluate_every: int | None = None  # steps between evaluations; None only at the end
    ema_decay: float | None = None  # of the weight average that is evaluated and exported; None keeps none
    # Non-finite steps in a row after which the run goes back to the newest checkpoint and on behind these examples.
    max_consecutive_skips: int = 20
    max_rollbacks: int = 3  # times that it does so, over all its starts, before it stops
    # Without a step for so many seconds, and for 10 × the median step, the run hangs: it shows its stacks and exits to
    # be started again.
    hang_seconds: float = 120.0


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights of the terms (METHOD: losses); a stage is a set of these and what it freezes. 0 leaves a term out."""

    contrastive: Literal["sigmoid", "softmax"] = "sigmoid"  # of a contrastive run: SigLIP's loss, or CLIP's

    hidden_mse: float = 5.0  # replaced hidden state against the teacher's
    hidden_cosine: float = 5.0
    pooled_mse: float = 1.0  # image embedding against the teacher's
    pooled_cosine: float = 1.0
    commitment_pixel: float = 5.0
    commitment_semantic: float = 5.0
    mse: float = 5.0
    perceptual: float = 1.0
    # Gram matrices of the perceptual network's features: texture without a GAN (AToken, arXiv 2509.14476)
    gram: float = 0.0
    generator: float = 0.75
    generator_weight: Literal["adaptive", "constant"] = "adaptive"  # times w, or times 1
    discriminator: Literal["leaky_hinge", "hinge"] = "leaky_hinge"
    discriminator_start: int = 20_000  # step from which the discriminator trains and counts
    discriminator_settled: int = 40_000  # step from which its loss is scaled by 0.75
    # of `perceptual` and `gram`: VGG16 LPIPS, or shallow hidden states of the teacher
    perceptual_network: Literal["lpips", "teacher"] = "lpips"
    # A file with the VGG16 trunk and the LPIPS linear layers, or a folder with torchvision's vgg16 .pth and the lpips
    # package's (or taming-transformers') vgg.pth; see interop/lpips.py for the layouts.
    lpips_path: str = ""

    @property
    def adversarial(self) -> bool:
        """Whether there is a discriminator at all."""
        return self.generator > 0

    @property
    def perceives(self) -> bool:
        """Whether a term reads the perceptual network."""
        return self.perceptual > 0 or self.gram > 0


@dataclasses.dataclass(frozen=True)
class TeacherConfig:
    """The SigLIP that the tokenizer starts from and learns from; trained first unless `path` names one."""

    # Workdir of a finished contrastive run, a Hugging Face SigLIP folder, or a big_vision .npz; empty trains one in
    # WORKDIR/teacher.
    path: str = ""
    train: TrainConfig | None = None  # None: `path` is required
    optimizer: OptimizerConfig | None = None
    contrastive: Literal["sigmoid", "softmax"] = "sigmoid"  # SigLIP's loss, or CLIP's, which learns faster at first


@dataclasses.dataclass(frozen=True)
class Config:
    """One run."""

    name: str  # of the recipe; names the default workdir
    task: Literal["contrastive", "tokenizer"]
    model: DualTokenConfig  # a contrastive run uses its `siglip` alone
    data: DataConfig
    train: TrainConfig
    optimizer: OptimizerConfig
    # Folder or file with spiece.model (SigLIP) or tokenizer.json (SigLIP 2); empty knows the scenes' words only.
    text_tokenizer: str = ""
    seed: int = 0
    mesh: MeshConfig = MeshConfig()
    # of the tokenizer:
    loss: LossConfig = LossConfig()
    freeze: FreezeConfig = FreezeConfig()
    # Workdir of an earlier stage, an export or a released checkpoint, whose weights and codebooks this run starts from.
    init_path: str = ""
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    discriminator_optimizer: OptimizerConfig = OptimizerConfig(weight_decay=0.0, final_learning_rate=4e-5)
    teacher: TeacherConfig = TeacherConfig()


class ConfigError(ValueError):
    """A setting that cannot be; the message names the field, the value and the remedy."""


def to_config_dict(config) -> ConfigDict:
    """A locked ConfigDict for `config_flags`, so that any field can be overridden on the command line."""
    result = ConfigDict()
    for name, hint in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            value = to_config_dict(value)
        elif value is None:
            value = _placeholder(hint)
        elif types.NoneType in typing.get_args(hint):  # a field of type object reads literals, None among them
            value = config_dict.FieldReference(value, field_type=object)
        elif isinstance(value, tuple):
            value = tuple(to_config_dict(item) if dataclasses.is_dataclass(item) else item for item in value)
        result[name] = value
    return result.lock()


def _placeholder(hint):
    kind = next(option for option in typing.get_args(hint) if option is not types.NoneType)
    return config_dict.placeholder(object if dataclasses.is_dataclass(kind) else kind)


def from_dict(values, kind: type = Config, path: str = "config"):
    """The dataclass `kind` from nested mappings (a ConfigDict, or JSON); raises ConfigError for what does not fit."""
    hints = typing.get_type_hints(kind)
    if unknown := set(values) - set(hints):
        raise ConfigError(f"{path}: unknown field {sorted(unknown)}; there are {sorted(hints)}")
    fields = {name: _convert(values[name], hints[name], f"{path}.{name}") for name in values}
    try:
        return kind(**fields)
    except TypeError as error:
        raise ConfigError(f"{path}: {error}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None


def _convert(value: Any, hint: Any, path: str):
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _convert(value, next(option for option in options if option is not types.NoneType), path)
    if dataclasses.is_dataclass(hint):
        return from_dict(value, hint, path)
    if origin is Literal:
        if value not in options:
            raise ConfigError(f"{path} = {value!r} is unknown; choose one of {', '.join(map(repr, options))}")
        return value
    if origin is tuple:
        return tuple(_convert(item, options[0], f"{path}[{i}]") for i, item in enumerate(value))
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{path} = {value!r} must be of type {hint.__name__}, not {type(value).__name__}")
    return value


def flatten(config, prefix: str = "") -> dict[str, Any]:
    """Dotted names of all leaves, for comparing and printing."""
    flat = {}
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), prefix + field.name
        nested = {name: value}
        if isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value)):
            nested = {f"{name}[{number}]": item for number, item in enumerate(value)}
        for inner, item in nested.items():
            flat |= flatten(item, inner + ".") if dataclasses.is_dataclass(item) else {inner: item}
    return flat


def difference(old: Config, new: Config) -> list[str]:
    """One line for every field in which two configs differ."""
    before, after = flatten(old), flatten(new)
    return [
        f"{name}: {before.get(name)!r} → {after.get(name)!r}"
        for name in sorted(before | after)
        if before.get(name) != after.get(name)
    ]


def to_json(config) -> dict:
    """Nested plain dicts and lists."""
    return dataclasses.asdict(config)


def teacher_config(config: Config, data: DataConfig | None = None) -> Config:
    """The contrastive run that makes a tokenizer's teacher, on the same data unless `data` is given."""
    teacher = config.teacher
    return Config(
        name=f"{config.name.split('_')[0]}_teacher",
        task="contrastive",
        model=config.model,
        data=data or config.data,
        train=teacher.train,
        optimizer=teacher.optimizer,
        text_tokenizer=config.text_tokenizer,
        seed=config.seed,
        mesh=config.mesh,
        loss=LossConfig(contrastive=teacher.contrastive),
    )
