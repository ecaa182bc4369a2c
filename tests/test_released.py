"""Our networks against a record of the released PyTorch code, float32, module by module; its checkpoints, both ways."""

import gzip

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from released_record import CONFIG, DATA, assert_close, channels_last, jit, load, traced, weights

from dualtoken_jax.interop import released
from dualtoken_jax.interop.name_table import mismatches
from dualtoken_jax.losses import cosine, squared_error, unit
from dualtoken_jax.models import bind, definition
from dualtoken_jax.models.decoder import DecoderConfig
from dualtoken_jax.models.dualtoken import DualToken, DualTokenConfig, decode
from dualtoken_jax.models.quantizer import QuantizerConfig, embed_codes, quantize
from dualtoken_jax.models.siglip import SiglipConfig, TextTower, VisionTower

SHORT = {"pixel": "pix", "semantic": "sem"}
MODULES = {  # ours → theirs
    "pixel.down": "prequant_pix",
    "pixel.shortcut": "prequant_shortcut",
    "pixel.up": "postquant_pix",
    "semantic.down": "prequant_sem",
    "semantic.up": "postquant_sem",
    "vision.norm": "post_layernorm",
    "decoder.adapter": "post_quant_conv",
    "decoder.conv_in": "decoder.conv_in",
    "decoder.mid_block1": "decoder.mid.block_1",
    "decoder.mid_attention": "decoder.mid.attn_1",
    "decoder.mid_block2": "decoder.mid.block_2",
    "decoder.norm_out": "decoder.norm_out",
}


@pytest.fixture(scope="module")
def theirs():
    return load("evaluation")


@pytest.fixture(scope="module")
def imported():
    return released.import_released(weights("model"), CONFIG)


@pytest.fixture(scope="module")
def ours(imported, theirs):
    """One evaluation-mode forward with everything on the way."""
    graphdef = definition(lambda rngs: DualToken(CONFIG, rngs))

    @jit
    def forward(params, codebooks, images, codes):
        model = bind(graphdef, params)
        with pytest.MonkeyPatch.context() as monkeypatch:
            calls = traced(monkeypatch, model, list(MODULES))
            latents = model.encode(images)
            quantized = {b: quantize(codebooks[b], latents.vectors[b], CONFIG.quantizer(b)) for b in SHORT}
            vectors = {b: q.output for b, q in quantized.items()}
            replaced = model.semantic_features(vectors, latents.hidden)
            image = model.decoder.output(model.decoder_features(vectors))
            pooled = model.finish(replaced)
        hidden = [model.vision.embed(images)]
        for layer in range(CONFIG.semantic_layer):
            hidden.append(model.vision.encoder(hidden[-1], layer, layer + 1))
        hidden.append(model.vision.encoder(replaced, CONFIG.semantic_layer))
        return {
            "calls": calls,
            "vectors": latents.vectors,
            "hidden": hidden,
            "quantized": quantized,
            "replaced": replaced,
            "image": image,
            "pooled": pooled,
            "decoded": decode(model, codebooks, codes),
        }

    images = jnp.asarray(channels_last(theirs["images"]))
    return forward(imported["params"], imported["codebooks"], images, theirs["code_pix"].astype(np.int32))


def test_hidden_states(ours, theirs):
    for layer, hidden in enumerate(ours["hidden"]):
        assert_close(hidden, theirs[f"hidden_states.{layer}"], f"h_{layer}")


@pytest.mark.parametrize("name", MODULES)
def test_every_module_takes_and_gives_the_same(ours, theirs, name):
    for direction, value in zip(("in", "out"), ours["calls"][name], strict=True):
        expected = theirs.get(f"trace.{MODULES[name]}.{direction}")
        if expected is not None:  # inputs that are another module's output are recorded once
            expected = channels_last(expected) if expected.ndim == 4 else expected
            if (name, direction) == ("decoder.norm_out", "out"):
                expected = jax.nn.silu(expected)  # ours applies the activation itself
            assert_close(value[:1], expected, f"{name} {direction}")


@pytest.mark.parametrize("branch", SHORT)
def test_quantizers(ours, theirs, imported, branch):
    short, quantized = SHORT[branch], ours["quantized"][branch]
    np.testing.assert_array_equal(quantized.codes.reshape(4, 8, 8, 4), theirs[f"code_{short}"])
    given = theirs.get(f"trace.quantizer_{short}.in")
    if given is not None:
        assert_close(ours["vectors"][branch][:1].reshape(given.shape), given, f"{branch} vectors")
    given = theirs[f"trace.quantizer_{short}.out"]
    assert_close(quantized.output[:1].reshape(given.shape), given, f"{branch} quantized")
    assert_close(quantized.commitment, theirs[f"quant_loss_{short}"], f"{branch} commitment")
    sums = embed_codes(
        imported["codebooks"][branch], theirs[f"code_{short}"].astype(np.int32), CONFIG.quantizer(branch)
    )
    given = theirs[f"embed_with_depth_{short}"]  # not cumulative there
    assert_close(jnp.diff(sums[:1], axis=-2, prepend=0), given, f"{branch} embedded codes")
    assert_close(sums[:1, ..., -1, :], load("evaluation_codes")[f"embed_code_{short}"], f"{branch} sum of codes")


@pytest.mark.parametrize("branch", SHORT)
def test_how_much_farther_the_second_best_code_is(ours, imported, branch):
    vectors = np.float64(ours["vectors"][branch]).reshape(-1, CONFIG.quantizer(branch).width)
    codes = np.asarray(ours["quantized"][branch].codes).reshape(len(vectors), -1)
    embedding, margins = np.float64(imported["codebooks"][branch]["embedding"][0]), []
    for chosen in codes.T:
        distances = np.square(vectors[:, None] - embedding).sum(-1)
        best, second = np.sort(distances)[:, :2].T
        margins.append(second - best)
        vectors = vectors - embedding[chosen]
    theirs = load("evaluation_codes")[f"margin_{SHORT[branch]}"]
    assert_close(np.stack(margins, axis=-1).reshape(theirs.shape), theirs, f"{branch} margins")


def test_images_and_embeddings(ours, theirs):
    assert_close(ours["image"], channels_last(theirs["images_recon"]), "reconstruction")
    assert_close(ours["decoded"], channels_last(theirs["decode_from_codes"]), "decoded codes")
    assert_close(ours["pooled"], theirs["pooler_output"], "pooled")
    assert_close(unit(ours["pooled"]), theirs["image_features"], "image features")


def test_text_tower(imported, theirs):
    graphdef = definition(lambda rngs: TextTower(CONFIG.siglip, rngs))
    features = jit(lambda params, ids: unit(bind(graphdef, params)(ids)))(imported["text"], theirs["text_ids"])
    assert_close(features, theirs["text_features"], "text features")
    for name in ("logit_scale", "logit_bias"):
        np.testing.assert_array_equal(imported[name], theirs[name])


@pytest.fixture(scope="module")
def teacher(theirs):
    """Hidden states 3 and 4 and the pooled output of the untrained SigLIP."""
    params = released.import_siglip(weights("teacher"), CONFIG.siglip)
    graphdef = definition(lambda rngs: VisionTower(CONFIG.siglip, rngs))

    @jit
    def forward(params, images):
        tower = bind(graphdef, params)
        deep = tower.encoder(tower.embed(images), 0, 3)
        return deep, tower.encoder(deep, 3), tower(images)

    return forward(params["vision"], channels_last(theirs["images"]))


def test_teacher(teacher, theirs):
    for name, value in zip(("hidden_m2", "hidden_m1", "pooler_output"), teacher, strict=True):
        assert_close(value, theirs[f"teacher.{name}"], f"teacher {name}")


def test_losses(ours, teacher, theirs):
    images = channels_last(theirs["images"])
    pairs = {
        "semantic_loss": (ours["replaced"], teacher[0]),
        "semantic_loss_last": (ours["hidden"][-1], teacher[1]),
        "semantic_loss_pooler": (ours["pooled"], teacher[2]),
    }
    terms = {"recon_loss": squared_error(ours["image"], images).mean()}
    for name, (student, target) in pairs.items():
        terms |= {name: squared_error(student, target).mean(), f"{name}_cos": -cosine(student, target).mean()}
    for name, value in terms.items():
        assert_close(value, theirs[f"loss.{name}"], name, 1e-5 if "cos" not in name else 1e-4)
    pixel, semantic = (ours["quantized"][b].commitment for b in ("pixel", "semantic"))
    hidden = terms["semantic_loss"] + terms["semantic_loss_cos"]
    pooled = terms["semantic_loss_pooler"] + terms["semantic_loss_pooler_cos"]
    rest = 5 * (pixel + semantic) + 5 * terms["recon_loss"]
    assert_close(5 * pooled + rest, theirs["loss.total_stage0_nolpips"], "stage 0")
    assert_close(5 * hidden + pooled + rest, theirs["loss.total_stage1_nolpips_nogan"], "stage 1")
    stage2 = terms["semantic_loss_cos"] + 5 * pooled + 5 * semantic
    assert_close(stage2, theirs["loss.total_stage2"], "stage 2")


def test_round_trip_is_bitwise(imported):
    tensors = weights("model")
    exported = released.export_released(imported, CONFIG)
    assert exported.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert exported[name].dtype == tensor.dtype and exported[name].tobytes() == tensor.tobytes(), name
    again = released.import_released(exported, CONFIG)
    jax.tree.map(np.testing.assert_array_equal, again, imported)
    teacher = weights("teacher")
    exported = released.export_siglip(released.import_siglip(teacher, CONFIG.siglip), CONFIG.siglip)
    assert exported.keys() == teacher.keys() and all(np.array_equal(exported[n], teacher[n]) for n in teacher)


def test_older_spellings_and_prefix(imported):
    old = {
        f"module.{n}".replace("_sem.", "_semantic.").replace("_pix.", "_pixel."): x for n, x in weights("model").items()
    }
    assert "module.quantizer_pixel.codebooks.0.weight" in old
    jax.tree.map(np.testing.assert_array_equal, released.import_released(old, CONFIG), imported)


@pytest.mark.parametrize(
    ("file", "config"),
    [
        ("names_384.txt.gz", DualTokenConfig(siglip=SiglipConfig(vocabulary=256_000))),
        (
            "names_256.txt.gz",
            DualTokenConfig(
                siglip=SiglipConfig(256, 16, vocabulary=256_000),
                pixel=QuantizerConfig(depth=4),
                semantic=QuantizerConfig(depth=4),
                decoder=DecoderConfig(latent_grid=16, attention_grids=(16,)),
            ),
        ),
    ],
)
def test_names_and_shapes_of_the_released_configurations(file, config):
    tensors = {}
    for line in gzip.decompress((DATA / file).read_bytes()).decode().splitlines():
        name, *shape = line.split()
        tensors[name] = np.broadcast_to(np.float32(0), [int(side) for side in shape])
    assert len(tensors) > 1200
    assert mismatches(released.released_table(config), tensors, released.model_shapes(config)) == []


def test_every_problem_is_reported_at_once():
    tensors = weights("model")
    del tensors["decoder.conv_out.bias"]
    tensors["decoder.mid.block_9.conv1.weight"] = np.zeros((2, 3))
    tensors["prequant_sem.proj.weight"] = np.zeros((16, 63))
    tensors["quantizer_pix.codebooks.2.embed_ema"] = tensors["quantizer_pix.codebooks.2.embed_ema"] + 1
    with pytest.raises(ValueError, match="4 problems") as error:
        released.import_released(tensors, CONFIG)
    for line in (
        "missing: decoder.conv_out.bias (3,)",
        "unexpected: decoder.mid.block_9.conv1.weight (2, 3)",
        "wrong shape: prequant_sem.proj.weight is (16, 63), expected (16, 64)",
        "not shared: quantizer_pix.codebooks.2.embed_ema differs from quantizer_pix.codebooks.0.embed_ema",
    ):
        assert line in str(error.value)


def test_configurations_that_the_released_code_lacks_are_refused():
    for options in (
        {"supervision": "single"},
        {"projection": "linear"},
        {"decoder": DecoderConfig("transformer")},
        {"pixel": QuantizerConfig(kind="product", shared_codebook=False, width=4)},
        {"semantic": QuantizerConfig(normalise=True, depth=1)},
    ):
        with pytest.raises(ValueError, match=r"the released checkpoint format has only \S+ \S+, not"):
            released.import_released({}, DualTokenConfig(**options))
