"""DualToken in plain PyTorch: images ↔ pixel and semantic codes, and embeddings of images and texts.

This file needs torch and transformers alone; it ships inside every Hugging Face export, and the tests compare it with
the JAX model that trained the weights.

    model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True)
    codes = model.encode(pixel_values)           # pixel_values [B, 3, H, W] in [−1, 1]
    images = model.decode(codes.pixel)           # [B, 3, H, W]
    embedding = model.embed_image(pixel_values)  # [B, C], unit length, comparable with model.embed_text(input_ids)

DualToken: Song et al., ICLR 2026, arXiv 2503.14324. Parameters have the names of the authors' released code.
"""

import itertools
import re
from types import SimpleNamespace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

BRANCHES = {"pixel": "pix", "semantic": "sem"}  # name → how the released code spells it in module names
BLOCK = 1024  # codes whose distances exist at one time


class DualTokenConfig(PretrainedConfig):
    """`architecture` mirrors, field by field, the dataclass DualTokenConfig of the program that trained the weights."""

    model_type = "dualtoken"

    def __init__(self, architecture: dict | None = None, text_tower: bool = True, words: list | None = None, **rest):
        """`text_tower`: whether the weights have one; `words`: the known words of a model with a word tokenizer."""
        super().__init__(**rest)
        self.architecture, self.text_tower, self.words = architecture or {}, text_tower, words


def namespace(value):
    """Nested dicts as attributes."""
    return SimpleNamespace(**{k: namespace(v) for k, v in value.items()}) if isinstance(value, dict) else value


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, causal: bool = False) -> Tensor:
    """Multi-head attention over [B, N, heads · d] → [B, N, heads, d]."""
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, is_causal=causal).transpose(1, 2)


class SelfAttention(nn.Module):
    """[B, N, C] → [B, N, C]."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(attend(self.q_proj(x), self.k_proj(x), self.v_proj(x), self.heads).flatten(-2))


class Mlp(nn.Module):
    """Linear, tanh-GELU, linear."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Layer(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.layer_norm1, self.self_attn = nn.LayerNorm(width, 1e-6), SelfAttention(width, heads)
        self.layer_norm2, self.mlp = nn.LayerNorm(width, 1e-6), Mlp(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    """A stack of layers, of which any segment can run."""

    def __init__(self, width: int, depth: int, heads: int, hidden: int):
        super().__init__()
        self.layers = nn.ModuleList(Layer(width, heads, hidden) for _ in range(depth))

    def forward(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Hidden state after layer `start` in, after layer `stop` out (1-based; 0 is the embedding)."""
        for layer in self.layers[start:stop]:
            x = layer(x)
        return x


class AttentionPool(nn.Module):
    """A learned probe attends to all tokens, [B, N, C] → [B, C]."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.probe = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.layernorm, self.mlp = nn.LayerNorm(width, 1e-6), Mlp(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.attention(self.probe.expand(len(x), -1, -1), x, x, need_weights=False)[0]
        return (pooled + self.mlp(self.layernorm(pooled)))[:, 0]


class VisionTower(nn.Module):
    """SigLIP's images → tokens; `embed`, any segments of `encoder`, then `pool`."""

    def __init__(self, siglip):
        super().__init__()
        tower, patch, grid = siglip.vision, siglip.patch_size, siglip.image_size // siglip.patch_size
        self.embeddings = nn.ModuleDict(
            {
                "patch_embedding": nn.Conv2d(3, tower.width, patch, stride=patch),
                "position_embedding": nn.Embedding(grid**2, tower.width),
            }
        )
        self.encoder = Encoder(tower.width, tower.depth, tower.heads, tower.mlp_width)
        self.post_layernorm = nn.LayerNorm(tower.width, 1e-6)
        self.head = AttentionPool(tower.width, tower.heads, tower.mlp_width)

    def embed(self, pixel_values: Tensor) -> Tensor:
        """[B, 3, H, W] → the hidden state before the first layer, [B, N, C]; a remainder of H, W is cut off."""
        patches = self.embeddings["patch_embedding"](pixel_values).flatten(2).transpose(1, 2)
        return patches + self.embeddings["position_embedding"].weight

    def pool(self, hidden: Tensor) -> Tensor:
        """Last hidden state [B, N, C] → embedding [B, C]."""
        return self.head(self.post_layernorm(hidden))


class TextTower(nn.Module):
    """SigLIP's token ids [B, T] → embeddings [B, C], read from the last position; padding is attended to."""

    def __init__(self, siglip):
        super().__init__()
        tower = siglip.text
        self.embeddings = nn.ModuleDict(
            {
                "token_embedding": nn.Embedding(siglip.vocabulary, tower.width),
                "position_embedding": nn.Embedding(siglip.text_length, tower.width),
            }
        )
        self.encoder = Encoder(tower.width, tower.depth, tower.heads, tower.mlp_width)
        self.final_layer_norm = nn.LayerNorm(tower.width, 1e-6)
        self.head = nn.Linear(tower.width, siglip.vision.width)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embeddings["token_embedding"](input_ids) + self.embeddings["position_embedding"].weight
        return self.head(self.final_layer_norm(self.encoder(x))[:, -1])


class Siglip(nn.Module):
    """Both towers, or the vision tower alone."""

    def __init__(self, siglip, text: bool):
        super().__init__()
        self.vision_model = VisionTower(siglip)
        if text:
            self.text_model = TextTower(siglip)
            self.logit_scale, self.logit_bias = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))


class ProjectionAttention(nn.Module):
    """Going down the heads' outputs are averaged, going up they are concatenated; keys have no bias."""

    def __init__(self, inputs: int, outputs: int, causal: bool):
        super().__init__()
        wide = max(inputs, outputs)
        self.heads, self.causal, self.down = wide // min(inputs, outputs), causal, inputs > outputs
        self.qkv = nn.Linear(inputs, 3 * wide, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(wide)), nn.Parameter(torch.zeros(wide))
        self.register_buffer("zero_k_bias", torch.zeros(wide))  # a name of the released code; always zero
        self.proj = nn.Linear(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        mixed = attend(query + self.q_bias, key, value + self.v_bias, self.heads, self.causal)
        return self.proj(mixed.mean(dim=-2) if self.down else mixed.flatten(-2))


class GeGlu(nn.Module):
    """Gated MLP with a LayerNorm of its own."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, 1e-6)
        self.w0, self.w1 = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)
        self.w2 = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.w2(F.gelu(self.w0(x), approximate="tanh") * self.w1(x))


class AttentionProjection(nn.Module):
    """Tower width ↔ code width, [B, N, inputs] → [B, N, outputs]; one width divides the other."""

    def __init__(self, inputs: int, outputs: int, causal: bool):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(inputs, 1e-5), ProjectionAttention(inputs, outputs, causal)
        self.norm3, self.proj = nn.LayerNorm(inputs, 1e-5), nn.Linear(inputs, outputs)
        self.norm2, self.mlp = nn.LayerNorm(outputs, 1e-5), GeGlu(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.proj(self.norm3(x)) + self.attn(self.norm1(x))
        return y + self.mlp(self.norm2(y))


def projection(kind: str, inputs: int, outputs: int, causal: bool) -> nn.Module:
    """The projection of that kind: 'attention', 'linear' or 'none'."""
    if kind == "attention":
        return AttentionProjection(inputs, outputs, causal)
    return nn.Linear(inputs, outputs) if kind == "linear" else nn.Identity()


class Quantized(NamedTuple):
    """Result for vectors z [B, N, channels]."""

    output: Tensor  # [B, N, channels] float32, what the chosen codes say of z, with the straight-through gradient
    codes: Tensor  # [B, N, D] int64
    commitment: Tensor  # scalar, mean over depths


class Codebook(nn.Module):
    """Codes and their EMA statistics; float32 whatever the rest of the model is cast to, and never trained."""

    def __init__(self, codes: int, width: int):
        super().__init__()
        weight = torch.randn(codes + 1, width, dtype=torch.float32)  # the last row is padding, which no code names
        self.register_buffer("weight", weight)
        self.register_buffer("cluster_size_ema", torch.zeros(codes, dtype=torch.float32))
        self.register_buffer("embed_ema", weight[:-1].clone())

    @property
    def embedding(self) -> Tensor:
        """The codes, [K, E]."""
        return self.weight[:-1]

    def _apply(self, move, *args, **kwargs):
        """As nn.Module's, but `model.to(torch.bfloat16)` leaves the codebook alone: half the codes would change."""

        def keeps_float32(tensor):
            moved = move(tensor)
            return tensor.to(moved.device) if moved.dtype in (torch.bfloat16, torch.float16) else moved

        return super()._apply(keeps_float32, *args, **kwargs)


def unit(vectors: Tensor) -> Tensor:
    """Vectors [..., E] at length 1."""
    return vectors * vectors.square().sum(-1, keepdim=True).clamp(min=1e-12).rsqrt()


class Quantizer(nn.Module):
    """Vectors [B, N, channels] ↔ D codes each.

    Residual: every depth takes the code nearest to what the depths before it left over. Product: the channels are D
    groups of E, and every depth takes the code nearest to its group.
    """

    def __init__(self, config):
        super().__init__()
        self.depth, self.width = config.depth, config.width
        self.product, self.normalise = config.kind == "product", config.normalise
        books = 1 if config.shared_codebook else config.depth
        self.codebooks = nn.ModuleList(Codebook(config.codes, config.width) for _ in range(books))

    def embedding(self, depth: int) -> Tensor:
        """Codes [K, E] that this depth chooses from."""
        return self.codebooks[depth % len(self.codebooks)].embedding

    def forward(self, z: Tensor) -> Quantized:
        """Vectors [B, N, channels] through the codebooks, in their own precision."""
        z = z.to(self.embedding(0).dtype)
        if self.normalise:
            z = unit(z.unflatten(-1, (-1, self.width))).flatten(-2)
        groups = z.detach().split(self.width, dim=-1)
        vectors, codes, chosen = groups[0], [], []
        for depth in range(self.depth):
            vectors = groups[depth] if self.product else vectors
            codes.append(nearest_code(vectors, self.embedding(depth)))
            chosen.append(self.embedding(depth)[codes[-1]])
            vectors = vectors - chosen[-1]
        totals = [torch.cat(chosen, dim=-1)] if self.product else list(itertools.accumulate(chosen))
        commitment = torch.stack([(z - total).square().mean() for total in totals]).mean()
        return Quantized(z + (totals[-1] - z).detach(), torch.stack(codes, dim=-1), commitment)

    def embed(self, codes: Tensor) -> Tensor:
        """Codes [..., D] → de-quantized vectors [..., channels]."""
        chosen = [self.embedding(depth)[codes[..., depth]] for depth in range(self.depth)]
        return torch.cat(chosen, dim=-1) if self.product else sum(chosen)


@torch.no_grad()
def nearest_code(vectors: Tensor, embedding: Tensor) -> Tensor:
    """Index [...] of the nearest row of `embedding` [K, E] for `vectors` [..., E]; ties take the lowest index.

    Goes through the codes in blocks, so that no buffer grows with vectors × codes.
    """
    flat = vectors.reshape(-1, vectors.shape[-1])
    squared, norms = flat.square().sum(-1, keepdim=True), embedding.square().sum(-1)
    best = torch.full_like(flat[:, 0], torch.inf)
    index = torch.zeros(len(flat), dtype=torch.int64, device=flat.device)
    for start in range(0, len(embedding), BLOCK):
        block = embedding[start : start + BLOCK]
        distance = squared + norms[start : start + BLOCK] - 2 * flat @ block.T  # [N, block]
        smallest = distance.amin(dim=-1)
        numbers = torch.arange(start, start + len(block), device=flat.device)
        # torch.min may return any of several equal codes.
        lowest = torch.where(distance <= smallest[:, None], numbers, len(embedding)).amin(dim=-1)
        index = torch.where(smallest < best, lowest, index)
        best = torch.minimum(best, smallest)
    return index.reshape(vectors.shape[:-1])


class ResidualBlock(nn.Module):
    """GroupNorm-SiLU-conv twice, [B, inputs, H, W] → [B, outputs, H, W]."""

    def __init__(self, inputs: int, outputs: int, groups: int, first_kernel: int = 3):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs, 1e-6)
        self.conv1 = nn.Conv2d(inputs, outputs, first_kernel, padding=first_kernel // 2)
        self.norm2 = nn.GroupNorm(groups, outputs, 1e-6)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(y)))


class GridAttention(nn.Module):
    """Single-head attention over all positions of a grid, [B, C, H, W] → the same."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, 1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        query, key, value = (layer(y).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = attend(query, key, value, heads=1).flatten(-2)
        return x + self.proj_out(mixed.transpose(1, 2).reshape(x.shape))


class Level(nn.Module):
    """One resolution of the decoder: residual blocks, each followed by attention where there is any, then ×2."""

    def __init__(self, inputs: int, outputs: int, blocks: int, groups: int, attends: bool, last: bool):
        super().__init__()
        widths = [inputs] + [outputs] * blocks
        self.block = nn.ModuleList(ResidualBlock(widths[i], outputs, groups) for i in range(blocks))
        self.attn = nn.ModuleList(GridAttention(outputs, groups) for _ in range(blocks if attends else 0))
        if not last:
            self.upsample = nn.ModuleDict({"conv": nn.Conv2d(outputs, outputs, 3, padding=1)})
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            x = self.attn[i](x) if self.attn else x
        return x if self.last else self.upsample["conv"](F.interpolate(x, scale_factor=2.0, mode="nearest"))


class ConvolutionalDecoder(nn.Module):
    """VQGAN's decoder, [B, channels, g, g] → images [B, 3, R, R] with R = g · 2^(levels − 1); nothing is clamped."""

    def __init__(self, config):
        super().__init__()
        groups, levels = config.groups, len(config.multipliers)
        widths = [config.channels * multiplier for multiplier in config.multipliers]  # from full resolution down
        deepest = widths[-1]
        self.conv_in = nn.Conv2d(deepest, deepest, 3, padding=1)
        self.mid = nn.ModuleDict(
            {
                "block_1": ResidualBlock(deepest, deepest, groups),
                "attn_1": GridAttention(deepest, groups),
                "block_2": ResidualBlock(deepest, deepest, groups),
            }
        )
        attends = [config.latent_grid * 2 ** (levels - 1 - i) in config.attention_grids for i in range(levels)]
        self.up = nn.ModuleList(  # used from the last to the first
            Level(inputs, widths[i], config.residual_blocks + 1, groups, attends[i], last=i == 0)
            for i, inputs in enumerate([*widths[1:], deepest])
        )
        self.norm_out = nn.GroupNorm(groups, widths[0], 1e-6)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def features(self, x: Tensor) -> Tensor:
        """Input of the last layer."""
        x = self.conv_in(x)
        for module in (*self.mid.values(), *reversed(self.up)):
            x = module(x)
        return F.silu(self.norm_out(x))

    def output(self, features: Tensor) -> Tensor:
        """The last layer."""
        return self.conv_out(features)


class TransformerDecoder(nn.Module):
    """Tokens [B, N, C] → images: transformer layers, then one linear map from a token to its patch of pixels."""

    def __init__(self, config, width: int, grid: int, patch: int):
        super().__init__()
        self.grid, self.patch = grid, patch
        self.linear_in = nn.Linear(width, config.width)
        self.position_embedding = nn.Embedding(grid**2, config.width)
        self.encoder = Encoder(config.width, config.depth, config.heads, 4 * config.width)
        self.norm_out = nn.LayerNorm(config.width, 1e-6)
        self.linear_out = nn.Linear(config.width, patch**2 * 3)

    def features(self, tokens: Tensor) -> Tensor:
        """Input of the last layer."""
        return self.norm_out(self.encoder(self.linear_in(tokens) + self.position_embedding.weight))

    def output(self, features: Tensor) -> Tensor:
        """The last layer, and the patches put in place."""
        x = self.linear_out(features).unflatten(1, (self.grid, self.grid)).unflatten(-1, (self.patch, self.patch, 3))
        return x.permute(0, 5, 1, 3, 2, 4).reshape(len(x), 3, self.grid * self.patch, self.grid * self.patch)


class Codes(NamedTuple):
    """Codes [B, h, w, D] int64 by vocabulary; None for one that the model lacks."""

    pixel: Tensor | None
    semantic: Tensor | None


class Outputs(NamedTuple):
    """Everything that a training step reads from one forward pass."""

    quantized: dict  # Quantized by branch
    decoder_features: Tensor | None  # input of the decoder's last layer
    reconstruction: Tensor | None  # [B, 3, H, W], not clamped
    hidden: Tensor  # [B, N, C], what replaces the tower's hidden state after `semantic_layer`
    pooled: Tensor  # [B, C], the image embedding before normalisation


class DualTokenModel(PreTrainedModel):
    """The tokenizer. `encode`, `decode`, `embed_image` and `embed_text` are what it is for."""

    config_class = DualTokenConfig
    main_input_name = "pixel_values"
    _keep_in_fp32_modules_strict = ["codebooks"]  # nearest codes and their sums need all digits
    _no_split_modules = ["Layer", "ResidualBlock"]

    def __init__(self, config: DualTokenConfig):
        super().__init__(config)
        self.options = options = namespace(config.architecture)
        siglip, supervision = options.siglip, options.supervision
        one = {"single": ("semantic",), "pixel_only": ("pixel",), "semantic_only": ("semantic",)}
        self.branches = one.get(supervision, ("pixel", "semantic"))
        self.grid = siglip.image_size // siglip.patch_size
        self.pixel_tap = options.semantic_layer if supervision in ("single", "dual_deep") else options.pixel_layer
        self.has_shortcut = options.shortcut_layer is not None and supervision in ("dual", "pixel_only")
        self.siglip_model = Siglip(siglip, config.text_tower)
        width = siglip.vision.width
        for branch in self.branches:
            setattr(self, f"prequant_{BRANCHES[branch]}", self._down(branch))
            setattr(self, f"quantizer_{BRANCHES[branch]}", Quantizer(getattr(options, branch)))
            setattr(self, f"postquant_{BRANCHES[branch]}", self._up(branch))
        if self.has_shortcut:
            self.prequant_shortcut = self._down("pixel")
        if supervision == "single":  # the decoder reads the semantic codes, through a projection of its own
            self.postquant_pix = self._up("semantic")
        if supervision != "semantic_only":
            decoder = options.decoder
            if decoder.kind == "transformer":
                self.decoder = TransformerDecoder(decoder, width, self.grid, siglip.patch_size)
            else:
                deepest = decoder.channels * decoder.multipliers[-1]
                self.post_quant_conv = ResidualBlock(width, deepest, decoder.groups, first_kernel=1)
                self.decoder = ConvolutionalDecoder(decoder)
        self.post_init()

    def _channels(self, branch: str) -> int:
        quantizer = getattr(self.options, branch)
        return quantizer.width * (quantizer.depth if quantizer.kind == "product" else 1)

    def _down(self, branch: str) -> nn.Module:
        options = self.options
        return projection(options.projection, options.siglip.vision.width, self._channels(branch), causal=False)

    def _up(self, branch: str) -> nn.Module:
        options, causal = self.options, self.options.post_attention == "causal"
        return projection(options.projection, self._channels(branch), options.siglip.vision.width, causal)

    def _init_weights(self, module: nn.Module) -> None:
        """Modules initialise themselves; weights worth having come from a file."""

    @property
    def decoder_branch(self) -> str:
        """The vocabulary whose codes the decoder reads."""
        return "pixel" if "pixel" in self.branches else "semantic"

    def quantizer(self, branch: str) -> Quantizer:
        """The quantizer of 'pixel' or 'semantic'."""
        return getattr(self, f"quantizer_{BRANCHES[branch]}")

    def latents(self, pixel_values: Tensor) -> tuple[dict, Tensor]:
        """Vectors to quantize [B, N, channels] by branch, and the hidden state after `semantic_layer` [B, N, C]."""
        options, vision = self.options, self.siglip_model.vision_model
        hidden, layer, taps = vision.embed(pixel_values.to(self._dtype)), 0, {}
        stops = {options.semantic_layer, *([options.shortcut_layer] if self.has_shortcut else [])}
        for stop in sorted(stops | ({self.pixel_tap} if "pixel" in self.branches else set())):
            hidden, layer = vision.encoder(hidden, layer, stop), stop
            taps[layer] = hidden
        vectors = {}
        if "pixel" in self.branches:
            vectors["pixel"] = self.prequant_pix(taps[self.pixel_tap])
            if self.has_shortcut:
                shortcut = self.prequant_shortcut(taps[options.shortcut_layer])
                vectors["pixel"] = vectors["pixel"] + options.shortcut_weight * shortcut
        if "semantic" in self.branches:
            vectors["semantic"] = self.prequant_sem(taps[options.semantic_layer])
        return vectors, hidden

    def decoder_features(self, vectors: Tensor) -> Tensor:
        """De-quantized vectors [B, N, channels] of `decoder_branch` → input of the decoder's last layer."""
        tokens = self.postquant_pix(vectors.to(self._dtype))
        if isinstance(self.decoder, TransformerDecoder):
            return self.decoder.features(tokens)
        x = tokens.transpose(1, 2).unflatten(-1, (self.grid, self.grid))  # [B, C, h, w]
        latent = self.options.decoder.latent_grid
        if latent != self.grid:
            x = F.interpolate(x, (latent, latent), mode="bilinear", align_corners=False)
        return self.decoder.features(self.post_quant_conv(x))

    def finish(self, hidden: Tensor) -> Tensor:
        """Hidden state after `semantic_layer` [B, N, C] → image embedding [B, C], not normalised."""
        vision = self.siglip_model.vision_model
        return vision.pool(vision.encoder(hidden, self.options.semantic_layer))

    def forward(self, pixel_values: Tensor) -> Outputs:
        """[B, 3, H, W] in [−1, 1] through the whole tokenizer, with gradients."""
        vectors, hidden = self.latents(pixel_values)
        quantized = {branch: self.quantizer(branch)(z) for branch, z in vectors.items()}
        if "semantic" in quantized:
            hidden = self.postquant_sem(quantized["semantic"].output.to(self._dtype))
        features = image = None
        if self.options.supervision != "semantic_only":
            features = self.decoder_features(quantized[self.decoder_branch].output)
            image = self.decoder.output(features)
        return Outputs(quantized, features, image, hidden, self.finish(hidden))

    @property
    def _dtype(self) -> torch.dtype:
        return self.siglip_model.vision_model.head.probe.dtype

    @torch.no_grad()
    def encode(self, pixel_values: Tensor) -> Codes:
        """Images [B, 3, H, W] in [−1, 1] → codes."""
        found = {branch: self.quantizer(branch)(z).codes for branch, z in self.latents(pixel_values)[0].items()}
        grids = {branch: codes.unflatten(1, (self.grid, self.grid)) for branch, codes in found.items()}
        return Codes(grids.get("pixel"), grids.get("semantic"))

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes [B, h, w, D] of `decoder_branch` → images [B, 3, H, W]; clamp them to [−1, 1] to show them."""
        if self.options.supervision == "semantic_only":
            raise ValueError("this model was trained without a decoder (supervision 'semantic_only')")
        return self.decoder.output(
            self.decoder_features(self.quantizer(self.decoder_branch).embed(codes.flatten(1, 2)))
        )

    @torch.no_grad()
    def embed_image(self, pixel_values: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [−1, 1] → embeddings [B, C] of the quantized images, of unit length, float32."""
        vectors, hidden = self.latents(pixel_values)
        if "semantic" in self.branches:
            hidden = self.postquant_sem(self.quantizer_sem(vectors["semantic"]).output.to(self._dtype))
        return F.normalize(self.finish(hidden).float(), dim=-1)

    @torch.no_grad()
    def embed_text(self, input_ids: Tensor) -> Tensor:
        """Token ids [n, text length] → embeddings [n, C] of unit length, float32."""
        if not self.config.text_tower:
            raise ValueError("these weights were exported without the text tower")
        length = self.options.siglip.text_length
        if input_ids.ndim != 2 or input_ids.shape[1] != length:
            raise ValueError(f"input_ids must be [n, {length}], got {list(input_ids.shape)}; pad or repeat to {length}")
        return F.normalize(self.siglip_model.text_model(input_ids).float(), dim=-1)

    def tokenize(self, texts: list) -> Tensor:
        """Token ids [n, text length] of a model with a word tokenizer.

        Lower-cased words without punctuation, unknown ones as UTF-8 bytes, repeated until the row is full. Models with
        a tokenizer file of their own use `AutoTokenizer` instead, as the export's README says.
        """
        if self.config.words is None:
            raise ValueError("this model has no word tokenizer: use AutoTokenizer.from_pretrained, as its README says")
        known = {word: 257 + i for i, word in enumerate(self.config.words)}  # after padding (0) and the bytes (1 … 256)
        length = self.options.siglip.text_length
        rows = []
        for text in texts:
            words = re.findall(r"\w+", text.lower())
            ids = [i for word in words for i in ([known[word]] if word in known else [1 + b for b in word.encode()])]
            rows.append((ids * length)[:length] if ids else [0] * length)
        return torch.tensor(rows, device=self.device)
