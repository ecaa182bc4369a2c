"""What the released PyTorch code calls each tensor of the models, and where it stands in our parameter trees."""

import dataclasses

from dualtoken_jax.interop.name_table import (
    FUSED_BIAS,
    FUSED_KERNEL,
    KERNEL,
    PADDED_ROWS,
    ZEROS,
    Entry,
    linear,
    norm,
    part,
)
from dualtoken_jax.models.decoder import DecoderConfig
from dualtoken_jax.models.dualtoken import DualTokenConfig
from dualtoken_jax.models.quantizer import QuantizerConfig
from dualtoken_jax.models.siglip import SiglipConfig


def released_table(config: DualTokenConfig, text: bool = True) -> list[Entry]:
    """Every tensor of the released state dict; raises ValueError with all that the released code does not have."""
    wrong = [
        f"{field} {wanted!r}, not {value!r}"
        for field, value, wanted in (
            ("supervision", config.supervision, "dual"),
            ("projection", config.projection, "attention"),
            ("post_attention", config.post_attention, "causal"),
            ("decoder.kind", config.decoder.kind, "convolutional"),
            ("decoder.groups", config.decoder.groups, 32),
            ("pixel.kind", config.pixel.kind, "residual"),
            ("semantic.kind", config.semantic.kind, "residual"),
            ("pixel.normalise", config.pixel.normalise, False),
            ("semantic.normalise", config.semantic.normalise, False),
        )
        if value != wanted
    ]
    wrong += ["a shortcut_layer"] if config.shortcut_layer is None else []
    if wrong:
        raise ValueError(f"the released checkpoint format has only {', '.join(wrong)}; huggingface's has all")
    return model_table(config, text)


def model_table(config: DualTokenConfig, text: bool = True) -> list[Entry]:
    """Every tensor of any model that the config can describe, of torch_model.py; the released names where it has one.

    `text`: whether the text tower with the logits' scale and bias is there.
    """
    table = part("siglip_model.vision_model", "params.vision", _vision_tower(config.siglip.vision.depth))
    table += part("siglip_model", "", _text_model(config.siglip)) if text else []
    short = {"semantic": "sem", "pixel": "pix"}
    for branch in config.branches:
        table += part(f"prequant_{short[branch]}", f"params.{branch}.down", _projection(config.projection))
        table += part(f"postquant_{short[branch]}", f"params.{branch}.up", _projection(config.projection))
        table += _codebooks(f"quantizer_{short[branch]}", f"codebooks.{branch}", config.quantizer(branch))
    if config.supervision == "single":
        table += part("postquant_pix", "params.semantic.up_pixel", _projection(config.projection))
    if config.has_shortcut:
        table += part("prequant_shortcut", "params.pixel.shortcut", _projection(config.projection))
    if not config.reconstructs:
        return table
    if config.decoder.kind == "transformer":
        return table + part("decoder", "params.decoder", _transformer_decoder(config.decoder.depth))
    return table + _decoder(config.decoder, config.siglip.vision.width)


def siglip_table(config: SiglipConfig) -> list[Entry]:
    """Hugging Face's SigLIP."""
    return _text_model(config) + part("vision_model", "vision", _vision_tower(config.vision.depth))


def _text_model(config):
    table = [Entry("logit_scale", ("logit_scale",)), Entry("logit_bias", ("logit_bias",))]
    return table + part("text_model", "text", _text_tower(config.text.depth))


def discriminator_table() -> list[Entry]:
    """The released PatchGAN discriminator."""
    block = [*norm("norm1", "norm"), *linear("conv1", "conv"), *linear("nin_shortcut", "shortcut")]
    table = linear("main.0", "conv_in") + linear("main.5", "conv_out")
    return table + [entry for i in range(3) for entry in part(f"main.{i + 2}", f"block{i}", block)]


def _text_tower(depth):
    return [
        Entry("embeddings.token_embedding.weight", ("token_embedding",)),
        Entry("embeddings.position_embedding.weight", ("position_embedding",)),
        *_layers(depth),
        *norm("final_layer_norm", "norm"),
        *linear("head", "head"),
    ]


def _vision_tower(depth):
    fused = ("query", "key", "value")
    return [
        *linear("embeddings.patch_embedding", "patch_embedding"),
        Entry("embeddings.position_embedding.weight", ("position_embedding",)),
        *_layers(depth),
        *norm("post_layernorm", "norm"),
        Entry("head.probe", ("head.probe",)),
        Entry("head.attention.in_proj_weight", tuple(f"head.attention.{x}.kernel" for x in fused), FUSED_KERNEL),
        Entry("head.attention.in_proj_bias", tuple(f"head.attention.{x}.bias" for x in fused), FUSED_BIAS),
        *linear("head.attention.out_proj", "head.attention.out"),
        *norm("head.layernorm", "head.norm"),
        *linear("head.mlp.fc1", "head.mlp.fc1"),
        *linear("head.mlp.fc2", "head.mlp.fc2"),
    ]


def _layers(depth):
    layer = [
        *norm("layer_norm1", "norm1"),
        *linear("self_attn.q_proj", "attention.query"),
        *linear("self_attn.k_proj", "attention.key"),
        *linear("self_attn.v_proj", "attention.value"),
        *linear("self_attn.out_proj", "attention.out"),
        *norm("layer_norm2", "norm2"),
        *linear("mlp.fc1", "mlp.fc1"),
        *linear("mlp.fc2", "mlp.fc2"),
    ]
    return [entry for i in range(depth) for entry in part(f"encoder.layers.{i}", "encoder.layers", layer, index=i)]


def _projection(kind: str) -> list[Entry]:
    if kind == "none":
        return []
    if kind == "linear":
        return [Entry("weight", ("kernel",), KERNEL), Entry("bias", ("bias",))]
    return [
        *norm("norm1", "norm1"),
        Entry("attn.qkv.weight", ("qkv.kernel",), KERNEL),
        Entry("attn.q_bias", ("query_bias",)),
        Entry("attn.v_bias", ("value_bias",)),
        Entry("attn.zero_k_bias", ("query_bias",), ZEROS),
        *linear("attn.proj", "attention_out"),
        *linear("proj", "linear"),
        *norm("norm3", "norm3"),
        *norm("norm2", "norm2"),
        *norm("mlp.norm", "mlp.norm"),
        *linear("mlp.w0", "mlp.gate"),
        *linear("mlp.w1", "mlp.up"),
        *linear("mlp.w2", "mlp.down"),
    ]


def _codebooks(name: str, path: str, config: QuantizerConfig) -> list[Entry]:
    book = [
        Entry("weight", ("embedding",), PADDED_ROWS),
        Entry("cluster_size_ema", ("count",)),
        Entry("embed_ema", ("sum",)),
    ]
    table = []
    for depth in range(config.depth):
        alias = config.shared_codebook and depth > 0
        entries = part(f"{name}.codebooks.{depth}", path, book, index=0 if alias else depth)
        table += [dataclasses.replace(entry, alias=alias) for entry in entries]
    return table


def _transformer_decoder(depth):
    return [
        *linear("linear_in", "linear_in"),
        Entry("position_embedding.weight", ("position_embedding",)),
        *_layers(depth),
        *norm("norm_out", "norm_out"),
        *linear("linear_out", "linear_out"),
    ]


def _decoder(config: DecoderConfig, width: int) -> list[Entry]:
    deepest, levels = config.channels * config.multipliers[-1], len(config.multipliers)
    table = part("post_quant_conv", "params.decoder.adapter", _residual_block(shortcut=width != deepest))
    table += linear("decoder.conv_in", "params.decoder.conv_in")
    table += part("decoder.mid.block_1", "params.decoder.mid_block1", _residual_block(shortcut=False))
    table += part("decoder.mid.attn_1", "params.decoder.mid_attention", _grid_attention())
    table += part("decoder.mid.block_2", "params.decoder.mid_block2", _residual_block(shortcut=False))
    inputs = deepest
    for i in range(levels):  # theirs are numbered from full resolution down, ours in the order of use
        outputs = config.channels * config.multipliers[levels - 1 - i]
        attends = config.latent_grid * 2**i in config.attention_grids
        level = _level(config.residual_blocks + 1, inputs != outputs, attends, last=i == levels - 1)
        table += part(f"decoder.up.{levels - 1 - i}", f"params.decoder.level{i}", level)
        inputs = outputs
    return [
        *table,
        *norm("decoder.norm_out", "params.decoder.norm_out"),
        *linear("decoder.conv_out", "params.decoder.conv_out"),
    ]


def _level(blocks: int, widens: bool, attends: bool, last: bool) -> list[Entry]:
    table = []
    for i in range(blocks):
        table += part(f"block.{i}", f"block{i}", _residual_block(shortcut=widens and i == 0))
        table += part(f"attn.{i}", f"attention{i}", _grid_attention()) if attends else []
    return table if last else table + linear("upsample.conv", "upsample")


def _residual_block(shortcut: bool):
    table = [
        *norm("norm1", "norm1"),
        *linear("conv1", "conv1"),
        *norm("norm2", "norm2"),
        *linear("conv2", "conv2"),
    ]
    return table + linear("nin_shortcut", "shortcut") if shortcut else table


def _grid_attention():
    names = ("q", "query"), ("k", "key"), ("v", "value"), ("proj_out", "out")
    return [*norm("norm", "norm"), *(entry for theirs, ours in names for entry in linear(theirs, ours))]
