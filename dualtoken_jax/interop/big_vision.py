"""big_vision's names for SigLIP's two towers (its `two_towers` checkpoints), and the architecture their shapes tell.

Its linear layers and convolutions are laid out as ours; attention keeps heads and their width on axes of their own.
"""

import re

from dualtoken_jax.interop.files import WeightFileError
from dualtoken_jax.interop.name_table import Entry, Layout, StateDict, part
from dualtoken_jax.models.siglip import SiglipConfig, TowerConfig

_FIRST = Layout(lambda x: (x[0],), lambda x: x[None])  # positions [1, N, C] ↔ [N, C]
_ATTENTION = "MultiHeadDotProductAttention_0"


def big_vision_table(config: SiglipConfig) -> list[Entry]:
    """Every tensor of a checkpoint, under the names that `unscanned` gives."""
    vision, text = config.vision, config.text
    return [
        Entry("t", ("logit_scale",)),
        Entry("b", ("logit_bias",)),
        *part("img.embedding", "vision.patch_embedding", _affine("kernel")),
        Entry("img.pos_embedding", ("vision.position_embedding",), _FIRST),
        *part("img.Transformer", "vision", _encoder(vision)),
        Entry("img.MAPHead_0.probe", ("vision.head.probe",)),
        *part(f"img.MAPHead_0.{_ATTENTION}", "vision.head.attention", _attention(vision.heads)),
        *part("img.MAPHead_0.LayerNorm_0", "vision.head.norm", _affine("scale")),
        *part("img.MAPHead_0.MlpBlock_0", "vision.head.mlp", _mlp()),
        Entry("txt.Embed_0.embedding", ("text.token_embedding",)),
        Entry("txt.pos_embedding", ("text.position_embedding",), _FIRST),
        *part("txt.Encoder_0", "text", _encoder(text)),
        *part("txt.head", "text.head", _affine("kernel")),
    ]


def unscanned(tensors: StateDict) -> StateDict:
    """One name per layer and dots for slashes: `params/img/Transformer/encoderblock/…` [L, …] becomes L tensors."""
    found = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("params/").replace("/", ".")
        if ".encoderblock." in name:
            found |= {name.replace(".encoderblock.", f".encoderblock_{i}."): x for i, x in enumerate(tensor)}
        else:
            found[name] = tensor
    return found


def read_shapes(tensors: StateDict, what: str) -> SiglipConfig:
    """The architecture that the shapes of unscanned `tensors` tell.

    The image size is the part of the image that patches cover: a file of patch 14 at 384 px tells 378.
    Raises WeightFileError, beginning with `what`, where the tensors that tell it are missing.
    """
    try:
        patch = tensors["img.embedding.kernel"].shape[0]
        positions = tensors["img.pos_embedding"].shape[1]
        return SiglipConfig(
            image_size=round(positions**0.5) * patch,
            patch_size=patch,
            vision=_tower_of(tensors, "img.Transformer"),
            text=_tower_of(tensors, "txt.Encoder_0"),
            vocabulary=tensors["txt.Embed_0.embedding"].shape[0],
            text_length=tensors["txt.pos_embedding"].shape[1],
        )
    except (KeyError, IndexError) as error:
        raise WeightFileError(
            f"{what} is no SigLIP checkpoint of big_vision, which has img/…, txt/…, t and b: {error} is missing; its "
            f"names begin with {', '.join(sorted(tensors)[:3])}"
        ) from error


def _tower_of(tensors: StateDict, encoder: str) -> TowerConfig:
    blocks = {found[1] for name in tensors if (found := re.match(rf"{re.escape(encoder)}\.encoderblock_(\d+)\.", name))}
    width, heads, _ = tensors[f"{encoder}.encoderblock_0.{_ATTENTION}.query.kernel"].shape
    mlp_width = tensors[f"{encoder}.encoderblock_0.MlpBlock_0.Dense_0.kernel"].shape[1]
    return TowerConfig(width, len(blocks), heads, mlp_width)


def _encoder(tower: TowerConfig) -> list[Entry]:
    block = [
        *part("LayerNorm_0", "norm1", _affine("scale")),
        *part(_ATTENTION, "attention", _attention(tower.heads)),
        *part("LayerNorm_1", "norm2", _affine("scale")),
        *part("MlpBlock_0", "mlp", _mlp()),
    ]
    layers = [e for i in range(tower.depth) for e in part(f"encoderblock_{i}", "encoder.layers", block, index=i)]
    return [*layers, *part("encoder_norm", "norm", _affine("scale"))]


def _affine(first: str) -> list[Entry]:
    return [Entry(name, (name,)) for name in (first, "bias")]


def _mlp() -> list[Entry]:
    return [*part("Dense_0", "fc1", _affine("kernel")), *part("Dense_1", "fc2", _affine("kernel"))]


def _attention(heads: int) -> list[Entry]:
    inwards = Layout(lambda x: (x.reshape(len(x), -1),), lambda x: x.reshape(len(x), heads, -1))  # [C, heads, width]
    bias = Layout(lambda x: (x.reshape(-1),), lambda x: x.reshape(heads, -1))
    outwards = Layout(lambda x: (x.reshape(-1, x.shape[-1]),), lambda x: x.reshape(heads, -1, x.shape[-1]))
    table = []
    for name in ("query", "key", "value"):
        table += part(name, name, [Entry("kernel", ("kernel",), inwards), Entry("bias", ("bias",), bias)])
    return [*table, Entry("out.kernel", ("out.kernel",), outwards), Entry("out.bias", ("out.bias",))]
