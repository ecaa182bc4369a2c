"""Small SigLIPs with random weights as Hugging Face and big_vision write them, without either's code."""

import dataclasses
import json

import jax
import numpy as np
from safetensors.numpy import save_file

from dualtoken_jax.interop.released import export_siglip, module_shapes
from dualtoken_jax.models.siglip import Siglip

TOWER_FIELDS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
ATTENTION = "MultiHeadDotProductAttention_0"


def random_params(config):
    """Parameters of `Siglip`, norms and biases random too."""
    rng = np.random.default_rng(2)

    def draw(path, leaf):
        mean = 1.0 if path[-1].key == "scale" else 0.0
        return rng.normal(mean, 0.15, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, module_shapes(Siglip, config))


def write_huggingface(folder, params, config):
    """model.safetensors and config.json."""
    save_file(export_siglip(params, config), folder / "model.safetensors")
    tower = lambda t: dict(zip(TOWER_FIELDS, dataclasses.astuple(t), strict=True))  # noqa: E731
    vision = {**tower(config.vision), "image_size": config.image_size, "patch_size": config.patch_size}
    text = {**tower(config.text), "vocab_size": config.vocabulary, "max_position_embeddings": config.text_length}
    write_config(folder, vision_config=vision, text_config=text | {"projection_size": config.vision.width})


def write_config(folder, **values):
    """config.json alone."""
    (folder / "config.json").write_text(json.dumps({"model_type": "siglip", **values}))


def big_vision(params, config, scan=False):
    """The tensors of a big_vision checkpoint, written from its source (models/vit.py, text_transformer.py)."""
    tensors = {"params/t": params["logit_scale"], "params/b": params["logit_bias"]}

    def put(prefix, **leaves):
        tensors.update({f"params/{prefix}/{name}": value for name, value in leaves.items()})

    def attention(prefix, p, heads):
        for name in ("query", "key", "value"):
            kernel, bias = p[name]["kernel"], p[name]["bias"]
            put(f"{prefix}/{name}", kernel=kernel.reshape(len(kernel), heads, -1), bias=bias.reshape(heads, -1))
        width = p["out"]["kernel"].shape[1]
        put(f"{prefix}/out", kernel=p["out"]["kernel"].reshape(heads, -1, width), bias=p["out"]["bias"])

    def mlp(prefix, p):
        put(f"{prefix}/MlpBlock_0/Dense_0", **p["fc1"])
        put(f"{prefix}/MlpBlock_0/Dense_1", **p["fc2"])

    def encoder(prefix, p, tower):
        blocks = []
        for i in range(tower.depth):
            layer, name = jax.tree.map(lambda x, i=i: x[i], p["encoder"]["layers"]), f"{prefix}/encoderblock_{i}"
            put(f"{name}/LayerNorm_0", **layer["norm1"])
            put(f"{name}/LayerNorm_1", **layer["norm2"])
            attention(f"{name}/{ATTENTION}", layer["attention"], tower.heads)
            mlp(name, layer["mlp"])
            blocks.append(f"params/{name}/")
        if scan:
            for name in [n for n in tensors if n.startswith(blocks[0])]:
                parts = [tensors.pop(block + name.removeprefix(blocks[0])) for block in blocks]
                tensors[name.replace("encoderblock_0", "encoderblock")] = np.stack(parts)
        put(f"{prefix}/encoder_norm", **p["norm"])

    vision, text = params["vision"], params["text"]
    put("img/embedding", **vision["patch_embedding"])
    put("img", pos_embedding=vision["position_embedding"][None])
    encoder("img/Transformer", vision, config.vision)
    put("img/MAPHead_0", probe=vision["head"]["probe"])
    put("img/MAPHead_0/LayerNorm_0", **vision["head"]["norm"])
    attention(f"img/MAPHead_0/{ATTENTION}", vision["head"]["attention"], config.vision.heads)
    mlp("img/MAPHead_0", vision["head"]["mlp"])
    put("txt/Embed_0", embedding=text["token_embedding"])
    put("txt", pos_embedding=text["position_embedding"][None])
    encoder("txt/Encoder_0", text, config.text)
    put("txt/head", **text["head"])
    return tensors
