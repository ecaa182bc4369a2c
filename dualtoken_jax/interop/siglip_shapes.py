"""The architecture of a SigLIP by the shapes of its tensors, where no config.json tells it."""

import re

from dualtoken_jax.interop.files import WeightFileError
from dualtoken_jax.interop.name_table import StateDict
from dualtoken_jax.models.siglip import SiglipConfig, TowerConfig

_HEADS = {768: 12, 1024: 16, 1152: 16, 1536: 16}  # of the published widths B, L, So400m and g


def siglip_config_of(tensors: StateDict, image_size: int) -> SiglipConfig:
    """The architecture that `vision_model.…` and `text_model.…` tell; the heads are those of the published sizes.

    Without a text tower the text part is SiglipConfig's own and means nothing. Raises WeightFileError when the shapes
    contradict `image_size`, or belong to no published size.
    """
    shape = {name: tensor.shape for name, tensor in tensors.items()}
    try:
        patch = shape["vision_model.embeddings.patch_embedding.weight"][-1]
        tokens = shape["vision_model.embeddings.position_embedding.weight"][0]
        vision, text = _tower_of(shape, "vision_model"), {}
        if "text_model.head.weight" in shape:
            vocabulary = shape["text_model.embeddings.token_embedding.weight"][0]
            length = shape["text_model.embeddings.position_embedding.weight"][0]
            text = {"text": _tower_of(shape, "text_model"), "vocabulary": vocabulary, "text_length": length}
    except KeyError as error:
        raise WeightFileError(f"the weights lack {error.args[0]}, which every SigLIP has") from None
    if (image_size // patch) ** 2 != tokens:
        raise WeightFileError(
            f"images of {image_size} px in patches of {patch} make {(image_size // patch) ** 2} tokens, "
            f"but the weights have positions for {tokens}"
        )
    return SiglipConfig(image_size, patch, vision, **text)


def _tower_of(shape, name):
    hidden, width = shape[f"{name}.encoder.layers.0.mlp.fc1.weight"]
    layers = {found[1] for key in shape if (found := re.match(rf"{name}\.encoder\.layers\.(\d+)\.", key))}
    if width not in _HEADS:
        raise WeightFileError(
            f"{name} has width {width}, and shapes do not tell its heads (known are those of widths "
            f"{', '.join(map(str, _HEADS))}); put its folder with its config.json where pretrained_model points"
        )
    return TowerConfig(width, len(layers), _HEADS[width], hidden)
