"""Codebook updates and the discriminator against a record of the released PyTorch code, float32."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from released_record import CONFIG, assert_close, channels_last, first_draws, jit, load, weights

from dualtoken_jax.interop import released
from dualtoken_jax.losses import discriminator_loss, squared_error
from dualtoken_jax.models import bind, definition, quantizer
from dualtoken_jax.models.discriminator import Discriminator, DiscriminatorConfig
from dualtoken_jax.models.dualtoken import DualToken, forward
from dualtoken_jax.models.quantizer import QuantizerConfig, quantize_and_update


@pytest.fixture(autouse=True)
def recorded_draws(monkeypatch):
    monkeypatch.setattr(quantizer, "_draw", first_draws)


# This vector's two nearest codes at its last depth are 3.6874446 and 3.6874452 away (float64): float32 may take either.
NEAR_TIES = {("rq.many.restart1.", 0, 2, 2, 3)}
CODEBOOK = {"embedding": "weight", "count": "cluster", "sum": "embed_ema"}


@pytest.mark.parametrize("restart", [0, 1])
@pytest.mark.parametrize("amount", ["many", "few"])
@pytest.mark.parametrize(("kind", "update"), [("rq", "per_depth"), ("rq_ema", "per_step_aliased")])
def test_quantizer_update(kind, update, amount, restart):
    prefix = f"{kind}.{amount}.restart{restart}."
    theirs = {n.removeprefix(prefix): x for n, x in load("quantizer").items() if n.startswith(prefix)}
    config = QuantizerConfig(64, 16, 4, codebook_update=update, restart_threshold=1.0 if restart else None)
    codebook = {ours: jnp.asarray(theirs[f"{name}0"])[None, :64] for ours, name in CODEBOOK.items()}

    @jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def objective(z):
        quantized, updated = quantize_and_update(codebook, z, config, jax.random.key(0))
        return (quantized.output**2).sum() + 3 * quantized.commitment, (quantized, updated)  # the record's objective

    (_, (quantized, updated)), gradient = objective(theirs["x"])
    differs = np.asarray(quantized.codes) != theirs["code"]
    assert {(prefix, *map(int, where)) for where in np.argwhere(differs)} <= NEAR_TIES
    vectors = ~differs.any(axis=-1)
    codes = ~np.isin(np.arange(64), [np.asarray(quantized.codes)[differs], theirs["code"][differs]])
    assert_close(quantized.output[vectors], theirs["zq"][vectors], f"{prefix}zq")
    assert_close(quantized.commitment, theirs["loss"], f"{prefix}loss")
    assert_close(gradient[vectors], theirs["grad_x"][vectors], f"{prefix}gradient")
    for ours, name in CODEBOOK.items():
        assert_close(updated[ours][0][codes], theirs[f"{name}1"][:64][codes], f"{prefix}{name}")


def test_training_forward():
    evaluation = load("evaluation")  # of which the record of a training forward repeats the semantic side
    theirs, images = load("training_forward"), channels_last(evaluation["images"])
    tree = released.import_released(weights("model"), CONFIG)
    graphdef = definition(lambda rngs: DualToken(CONFIG, rngs))

    @jit
    def run(params, codebooks, images):
        return forward(bind(graphdef, params), codebooks, images, jax.random.key(0))

    outputs, codebooks = run(tree["params"], tree["codebooks"], images)
    np.testing.assert_array_equal(outputs.quantized["pixel"].codes.reshape(4, 8, 8, 4), theirs["code_pix"])
    assert_close(outputs.quantized["pixel"].commitment, theirs["quant_loss_pix"], "train commitment")
    assert_close(outputs.reconstruction, channels_last(theirs["images_recon"]), "train reconstruction")
    assert_close(squared_error(outputs.reconstruction, images).mean(), theirs["loss.recon_loss"], "train MSE")
    np.testing.assert_array_equal(outputs.quantized["semantic"].codes.reshape(4, 8, 8, 4), evaluation["code_sem"])
    assert_close(outputs.quantized["semantic"].commitment, evaluation["quant_loss_sem"], "train semantic commitment")
    assert_close(outputs.hidden[:1], evaluation["trace.postquant_sem.out"], "train replaced")
    assert_close(outputs.pooled, evaluation["pooler_output"], "train pooled")
    pixel = outputs.quantized["pixel"].commitment + squared_error(outputs.reconstruction, images).mean()
    for stage in ("stage0_nolpips", "stage1_nolpips_nogan"):
        rest = evaluation[f"loss.total_{stage}"] - 5 * (evaluation["quant_loss_pix"] + evaluation["loss.recon_loss"])
        assert_close(rest + 5 * pixel, theirs[f"loss.total_{stage}"], f"train {stage}")
    exported = released.export_released(tree | {"codebooks": codebooks}, CONFIG)
    after = {name.removeprefix("after."): value for name, value in theirs.items() if name.startswith("after.")}
    assert len(after) == 6
    for name, value in after.items():
        assert_close(exported[name], value, f"after {name}")


@pytest.fixture(scope="module")
def discriminator():
    graphdef = definition(lambda rngs: Discriminator(DiscriminatorConfig(), rngs))
    return graphdef, released.import_discriminator(weights("discriminator"))


@pytest.mark.parametrize("size", [32, 48, 45])
def test_discriminator(discriminator, size):
    graphdef, params = discriminator
    theirs = {n.removeprefix(f"s{size}."): x for n, x in load("discriminator").items() if n.startswith(f"s{size}.")}

    @jit
    @functools.partial(jax.value_and_grad, argnums=1, has_aux=True)
    def generator_loss(params, fake, real):
        logits = bind(graphdef, params)(jnp.concatenate([real, fake]))
        real, fake = jnp.split(logits, 2)
        return -fake.mean(), (real, fake)

    images = (channels_last(theirs[name]) for name in ("fake", "real"))
    (loss, (real, fake)), gradient = generator_loss(params, *images)
    assert_close(real, channels_last(theirs["logits_real"]), f"s{size} real")
    assert_close(fake, channels_last(theirs["logits_fake"]), f"s{size} fake")
    assert_close(loss, theirs["g_loss"], f"s{size} g_loss")
    assert_close(discriminator_loss(real, fake, "leaky_hinge"), theirs["d_loss"], f"s{size} d_loss")
    assert_close(gradient, channels_last(theirs["grad_fake_of_g_loss"]), f"s{size} gradient")


def test_discriminator_errors_name_everything():
    tensors = weights("discriminator")
    del tensors["main.0.bias"]
    tensors["main.6.weight"] = np.zeros(3)
    with pytest.raises(ValueError, match="2 problems") as error:
        released.import_discriminator(tensors)
    assert "missing: main.0.bias (64,)" in str(error.value) and "unexpected: main.6.weight (3,)" in str(error.value)
