"""The PyTorch module that exports ship with against the JAX model: every option, the same weights, float32."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from released_record import assert_close, channels_last, jit  # noqa: E402
from torch_twin import nearest_code, random_tree, torch_twin  # noqa: E402

from dualtoken_jax.models import bind, definition  # noqa: E402
from dualtoken_jax.models.decoder import DecoderConfig  # noqa: E402
from dualtoken_jax.models.dualtoken import DualToken, DualTokenConfig, decode, forward  # noqa: E402
from dualtoken_jax.models.quantizer import QuantizerConfig  # noqa: E402
from dualtoken_jax.models.siglip import SiglipConfig, TextTower, TowerConfig  # noqa: E402

TOWER = TowerConfig(width=32, depth=3, heads=2, mlp_width=48)
SMALL = DualTokenConfig(
    siglip=SiglipConfig(26, 4, TOWER, dataclasses.replace(TOWER, width=24, depth=1), vocabulary=40, text_length=6),
    pixel_layer=1,
    semantic_layer=2,
    shortcut_layer=0,
    pixel=QuantizerConfig(codes=1500, width=16, depth=3),  # two blocks of distances
    semantic=QuantizerConfig(codes=40, width=8, depth=2, shared_codebook=False),
    decoder=DecoderConfig(
        channels=8, multipliers=(1, 2), residual_blocks=1, latent_grid=5, attention_grids=(5,), groups=4
    ),
)
TRANSFORMER = DecoderConfig(kind="transformer", width=24, depth=1, heads=2)
OPTIONS = {
    "dual": {},
    "single": {"supervision": "single", "post_attention": "full", "decoder": TRANSFORMER},
    "dual_deep": {"supervision": "dual_deep", "projection": "linear", "shortcut_layer": None, "decoder": TRANSFORMER},
    "pixel_only": {"supervision": "pixel_only", "projection": "linear", "decoder": TRANSFORMER},
    "semantic_only": {"supervision": "semantic_only"},
    "product": {
        "projection": "linear",
        "pixel": QuantizerConfig(codes=40, width=4, depth=3, kind="product", normalise=True, shared_codebook=False),
        "semantic": QuantizerConfig(codes=40, width=4, depth=2, normalise=True),
        "decoder": TRANSFORMER,
    },
    "no_projection": {
        "projection": "none",
        "pixel": QuantizerConfig(codes=40, width=32, depth=2),
        "semantic": QuantizerConfig(codes=40, width=32, depth=2),
        "decoder": TRANSFORMER,
    },
}


def pictures(config: DualTokenConfig, count: int = 2) -> np.ndarray:
    side = config.siglip.image_size
    return np.random.default_rng(1).uniform(-1, 1, (count, side, side, 3)).astype(np.float32)


def ours(tree: dict, config: DualTokenConfig, images: np.ndarray):
    """Everything JAX computes of them."""
    graphdef = definition(lambda rngs: DualToken(config, rngs))

    @jit
    def run(params, codebooks, images):
        model = bind(graphdef, params)
        outputs = forward(model, codebooks, images)[0]
        decoded = None
        if config.reconstructs:
            codes = outputs.quantized["semantic" if config.supervision == "single" else "pixel"].codes
            side = config.siglip.grid
            decoded = decode(model, codebooks, codes.reshape(len(images), side, side, -1))
        return outputs, decoded

    return run(tree["params"], tree["codebooks"], images)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_computes_what_jax_computes(name):
    config = dataclasses.replace(SMALL, **OPTIONS[name])
    if config.decoder.kind == "transformer":
        config = dataclasses.replace(config, siglip=dataclasses.replace(config.siglip, image_size=24))
    tree, images = random_tree(config), pictures(config)
    model, inputs = torch_twin(tree, config), torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    outputs, decoded = ours(tree, config, images)
    with torch.no_grad():
        theirs = model(inputs)
    codes = model.encode(inputs)
    for branch in ("pixel", "semantic"):
        if branch not in config.branches:
            assert getattr(codes, branch) is None
            continue
        found = outputs.quantized[branch]
        expected = np.asarray(found.codes).reshape(getattr(codes, branch).shape)
        np.testing.assert_array_equal(getattr(codes, branch), expected)
        assert len(np.unique(expected)) > 5
        assert_close(theirs.quantized[branch].output, found.output, f"{branch} quantized")
        assert_close(theirs.quantized[branch].commitment, found.commitment, f"{branch} commitment")
    assert_close(theirs.hidden, outputs.hidden, "hidden")
    assert_close(theirs.pooled, outputs.pooled, "pooled")
    unit = outputs.pooled / np.linalg.norm(outputs.pooled, axis=-1, keepdims=True)
    assert_close(model.embed_image(inputs), unit, "embedding")
    if not config.reconstructs:
        with pytest.raises(ValueError, match="without a decoder"):
            model.decode(codes.semantic)
        return
    assert_close(channels_last(theirs.reconstruction.numpy()), outputs.reconstruction, "reconstruction", 1e-4)
    image = model.decode(getattr(codes, model.decoder_branch))
    assert_close(channels_last(image.numpy()), decoded, "decoded codes", 1e-4)


@pytest.fixture(scope="module")
def small():
    return random_tree(SMALL)


def test_text_tower(small):
    ids = np.random.default_rng(2).integers(0, 40, (3, 6))
    graphdef = definition(lambda rngs: TextTower(SMALL.siglip, rngs))
    expected = jit(lambda params, ids: bind(graphdef, params)(ids))(small["text"], jnp.asarray(ids))
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    model = torch_twin(small, SMALL)
    assert_close(model.embed_text(torch.from_numpy(ids)), expected, "text")
    with pytest.raises(ValueError, match=r"input_ids must be \[n, 6\], got \[3, 5\]"):
        model.embed_text(torch.from_numpy(ids[:, :5]))
    without = torch_twin({name: small[name] for name in ("params", "codebooks")}, SMALL)
    with pytest.raises(ValueError, match="without the text tower"):
        without.embed_text(torch.from_numpy(ids))


def test_bfloat16_leaves_the_codebooks_alone(small):
    model = torch_twin(small, SMALL)
    images = torch.from_numpy(pictures(SMALL).transpose(0, 3, 1, 2).copy())
    exact, book = model(images), model.quantizer_pix.codebooks[0].weight.clone()
    model.to(torch.bfloat16)
    assert model.quantizer_pix.codebooks[0].weight.dtype == torch.float32
    assert torch.equal(model.quantizer_pix.codebooks[0].weight, book)
    rough = model(images)
    assert rough.reconstruction.dtype == torch.bfloat16 and rough.quantized["pixel"].output.dtype == torch.float32
    error = (model.embed_image(images) - torch.nn.functional.normalize(exact.pooled, dim=-1)).norm(dim=-1).max()
    assert 0 < error < 0.5  # a few codes differ
    assert torch.isfinite(model.decode(model.encode(images).pixel)).all()


def test_gradients_pass_the_quantizer_and_reach_what_they_should(small):
    model = torch_twin(small, SMALL)
    outputs = model(torch.from_numpy(pictures(SMALL).transpose(0, 3, 1, 2).copy()))
    outputs.reconstruction.square().mean().backward()
    assert model.prequant_pix.proj.weight.grad.abs().max() > 0 and model.prequant_shortcut.proj.weight.grad is not None
    assert model.prequant_sem.proj.weight.grad is None
    assert not any("codebooks" in name for name, _ in model.named_parameters())


def test_ties_take_the_lowest_code():
    book = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]]).repeat(600, 1)  # equal across blocks, too
    vectors = torch.tensor([[0.0, 2.0], [2.0, 0.0], [0.5, 0.5]])
    assert nearest_code(vectors, book).tolist() == [1, 0, 0]
