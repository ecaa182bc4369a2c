"""The tokenizer's step: where gradients flow, what stages freeze, what a bad batch may not touch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config
from optax.tree_utils import tree_get

from configs import demo
from configs import tokenizer as recipes
from dualtoken_jax import losses
from dualtoken_jax.config import teacher_config
from dualtoken_jax.models import bind, init_params
from dualtoken_jax.models.dualtoken import decode, forward
from dualtoken_jax.models.siglip import Siglip
from dualtoken_jax.models.vgg import Lpips
from dualtoken_jax.paths import names
from dualtoken_jax.tasks import make_task
from dualtoken_jax.tasks.state import new_state, normalise

ROWS = 16
# Those that no other test trains; each takes as long to compile as all of the rest.
ABLATIONS = [name for name in demo.ABLATIONS if recipes.recipe(name).model.supervision == "dual"]


def _with(config, **loss):
    return dataclasses.replace(config, loss=dataclasses.replace(config.loss, **loss))


def _batch(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (ROWS, 16, 16, 3), dtype=np.uint8),
        "text": rng.integers(0, 300, (ROWS, 24), dtype=np.int32),
        "label": np.zeros(ROWS, np.int32),
        "weight": np.ones(ROWS, np.float32),
    }


def _start(config):
    teacher = make_task(teacher_config(config))
    frozen = {"siglip": jax.jit(lambda key: teacher.init_state(key, {}).params)(jax.random.key(7))}
    task = make_task(config)
    return task, jax.jit(task.init_state)(jax.random.key(0), frozen)


def _changed(old, new) -> dict[str, np.ndarray]:
    """Largest change of every parameter, per layer where layers are stacked."""

    def change(path, a, b):
        delta = np.abs(np.asarray(a) - np.asarray(b))
        stacked = "vision/encoder/layers" in "/".join(names(path))
        return delta.reshape(delta.shape[0], -1).max(1) if stacked else delta.max()

    flat = jax.tree_util.tree_flatten_with_path(jax.tree_util.tree_map_with_path(change, old, new))[0]
    return {"/".join(names(path)): value for path, value in flat}


def _step(config, batch=None):
    task, state = _start(config)
    new, metrics = jax.jit(task.train_step)(state, batch or _batch())
    return state, new, metrics


def test_pixel_losses_reach_the_shallow_layers_and_semantic_losses_the_deep_ones():
    base = _with(tiny_config(), perceptual=0.0)
    base = dataclasses.replace(base, optimizer=dataclasses.replace(base.optimizer, weight_decay=0.0))
    no_semantic = _with(base, hidden_mse=0.0, hidden_cosine=0.0, pooled_mse=0.0, pooled_cosine=0.0)
    no_semantic = _with(no_semantic, commitment_semantic=0.0)
    old, new, _ = _step(no_semantic)
    change = _changed(old.params, new.params)
    layers = change["vision/encoder/layers/mlp/fc1/kernel"]
    assert layers[0] > 0 and not layers[1:].any()  # the pixel tap is h_1
    assert change["vision/patch_embedding/kernel"] > 0 and change["decoder/linear_out/kernel"] > 0
    assert not any(value.any() for name, value in change.items() if name.startswith(("semantic/", "vision/head/")))

    no_pixel = _with(base, mse=0.0, commitment_pixel=0.0)
    old, new, _ = _step(no_pixel)
    change = _changed(old.params, new.params)
    assert (change["vision/encoder/layers/mlp/fc1/kernel"] > 0).all() and change["vision/head/probe"] > 0
    assert not any(value.any() for name, value in change.items() if name.startswith(("pixel/", "decoder/")))


@pytest.mark.parametrize("stage", [0, 2])
def test_a_stage_changes_nothing_that_it_freezes(stage):
    config = recipes.with_stage(_with(tiny_config(), generator=0.75, discriminator_start=0), stage)
    old, new, metrics = _step(config)
    change = _changed(old.params, new.params)
    layers = change["vision/encoder/layers/mlp/fc1/kernel"]
    if stage == 0:
        assert not layers[:2].any() and layers[2] > 0  # up to the semantic layer
        assert change["vision/patch_embedding/kernel"] == 0 and change["decoder/linear_out/kernel"] > 0
        assert "generator" not in metrics
    else:
        assert not layers[:1].any() and (layers[1:] > 0).all()
        assert not any(value.any() for name, value in change.items() if name.startswith(("pixel/", "decoder/")))
        for name, array in old.codebooks["pixel"].items():
            np.testing.assert_array_equal(array, new.codebooks["pixel"][name])
        assert (old.codebooks["semantic"]["count"] != new.codebooks["semantic"]["count"]).any()


@pytest.mark.parametrize("supervision", ["single", "dual_deep", "pixel_only", "semantic_only"])
def test_every_supervision_trains(supervision):
    old, new, metrics = _step(_with(tiny_config(f"demo_{supervision}"), generator=0.75, discriminator_start=0))
    assert np.isfinite(metrics["loss"]) and int(new.total_skips) == 0
    layers = _changed(old.params, new.params)["vision/encoder/layers/mlp/fc1/kernel"]
    assert (layers > 0).tolist() == [True, supervision != "pixel_only", supervision != "pixel_only"]


@pytest.mark.parametrize(
    "name",
    ["demo_improved"] + [pytest.param(name, marks=pytest.mark.slow) for name in ABLATIONS if name != "demo_improved"],
)
def test_every_ablation_trains(name):
    config = recipes.recipe(name)
    config = dataclasses.replace(tiny_config(name), train=dataclasses.replace(config.train, steps=2, batch_size=ROWS))
    task, state = _start(_with(config, generator=config.loss.generator))
    new, metrics = jax.jit(task.train_step)(state, _batch())
    assert int(new.total_skips) == 0 and ("gram" in metrics) == (config.loss.gram > 0)
    change = _changed(state.params, new.params)
    assert all(value.any() for path, value in change.items() if path.endswith("kernel"))
    assert bool(new.ema) == (name in ("demo_ema", "demo_improved"))
    for branch in config.model.branches:
        assert (state.codebooks[branch]["count"] != new.codebooks[branch]["count"]).any()

    @jax.jit
    def both_ways(state, images):
        model = bind(task.graphdef, state.averaged)
        out, _ = forward(model, state.codebooks, normalise(images))
        codes = out.quantized["pixel"].codes.reshape(ROWS, 2, 2, -1)
        return out.reconstruction, decode(model, state.codebooks, codes)

    np.testing.assert_allclose(*both_ways(new, jnp.asarray(_batch()["image"])), atol=1e-4)


@pytest.mark.parametrize("ema_decay", [None, 0.5])
@pytest.mark.parametrize("slow", [(), ("vision",)])
def test_slow_modules_and_weight_average_do_not_meet(slow, ema_decay):
    config = tiny_config()
    optimizer = dataclasses.replace(config.optimizer, slow_modules=slow, slow_factor=0.1)
    train = dataclasses.replace(config.train, ema_decay=ema_decay)
    task = make_task(dataclasses.replace(config, optimizer=optimizer, train=train))
    params = {"vision": {"kernel": jnp.ones((4, 4))}, "decoder": {"kernel": jnp.ones((4, 4))}}
    old = new_state(params, task.optimizer, train, jax.random.key(0))
    new, _ = task._apply(old, jax.tree.map(jnp.ones_like, params), {}, None)
    moved = jax.tree.map(lambda a, b: float((a - b).mean()), params, new.params)
    ratio = moved["vision"]["kernel"] / moved["decoder"]["kernel"]
    assert ratio == pytest.approx(0.1 if slow else 1.0, rel=1e-2)
    if ema_decay is None:
        assert new.averaged is new.params
    else:
        jax.tree.map(lambda a, p, e: np.testing.assert_allclose(e, (a + p) / 2), params, new.params, new.averaged)


def test_evaluation_reads_the_weight_average():
    task, state = _start(tiny_config())
    evaluate, batch = jax.jit(task.eval_step), _batch()
    batch["text"] = batch["text"][:, : task.config.model.siglip.text_length]
    expected = evaluate(state, batch)
    found = evaluate(state.replace(params=jax.tree.map(jnp.zeros_like, state.params)), batch)
    jax.tree.map(np.testing.assert_array_equal, expected, found)
    found = evaluate(state.replace(ema=jax.tree.map(jnp.zeros_like, state.ema)), batch)
    assert not np.array_equal(expected["embeddings"]["image"], found["embeddings"]["image"])
    energy = expected["sums"]["residual_energy_pixel"] / expected["sums"]["count"]
    assert 0 < energy < 10


def test_gram_distance_sees_what_occurs_together_and_not_where():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3, 4, 5, 6)).astype(np.float32)
    gram = lambda f: np.einsum("bnc,bnd->bcd", f, f) / (20 * 6)  # noqa: E731
    flat = [x.reshape(3, 20, 6) for x in (a, b)]
    expected = ((gram(flat[0]) - gram(flat[1])) ** 2).sum((1, 2))
    np.testing.assert_allclose(losses.gram_distance([a, a], [b, b]), 2 * expected, rtol=1e-4)
    shuffled = flat[0][:, rng.permutation(20)]
    np.testing.assert_allclose(losses.gram_distance([flat[0]], [shuffled]), 0, atol=1e-10)


@pytest.mark.parametrize("network", ["lpips", "teacher"])
def test_the_gram_term_costs_no_second_forward_pass(network):
    convolutions, config = {}, tiny_config()
    makers = {"siglip": lambda rngs: Siglip(config.model.siglip, rngs), "lpips": lambda rngs: Lpips(rngs=rngs)}
    frozen = {n: jax.eval_shape(lambda key, n=n: init_params(makers[n], key), jax.random.key(0)) for n in makers}
    for gram in (0.0, 1.0):
        task = make_task(_with(config, perceptual_network=network, gram=gram))

        def terms(frozen, images, fake, task=task):
            teacher = task.frozen.teach(frozen, images)
            values, pullback = task.frozen.perceptual(frozen, fake, images, teacher, jnp.ones(ROWS))
            return values, pullback({name: 1.0 for name in values})

        images = jax.ShapeDtypeStruct((ROWS, 16, 16, 3), "float32")
        values, gradient = jax.eval_shape(terms, frozen, images, images)
        assert set(values) == ({"perceptual", "gram"} if gram else {"perceptual"}) and gradient.shape == images.shape
        convolutions[gram] = str(jax.make_jaxpr(terms)(frozen, images, images)).count("conv_general_dilated[")
    assert convolutions[0.0] == convolutions[1.0] > 0


def test_the_step_s_gradient_is_that_of_the_loss_as_METHOD_writes_it():
    config = _with(tiny_config(), generator=0.75, discriminator_start=0, perceptual=1.0, gram=0.01)
    task, state = _start(config)
    batch = _batch()
    images, loss = normalise(jnp.asarray(batch["image"])), config.loss
    teacher = task.frozen.teach(state.frozen, images)
    _, _, metrics = _step(config, batch)
    critic = bind(task.adversary.graphdef, state.discriminator)

    def written_out(params, w):
        out, _ = forward(bind(task.graphdef, params), state.codebooks, images, jax.random.key(0))
        mean, x = jnp.mean, out.reconstruction
        shallow = task.frozen.shallow(state.frozen, x)
        perceptual = mean(losses.feature_distance(shallow, teacher.shallow))
        total = 5 * (mean((out.hidden - teacher.hidden) ** 2) - mean(losses.cosine(out.hidden, teacher.hidden)))
        total += mean((out.pooled - teacher.pooled) ** 2) - mean(losses.cosine(out.pooled, teacher.pooled))
        total += 5 * sum(q.commitment for q in out.quantized.values())
        total += 5 * mean((x - images) ** 2) + perceptual + 0.75 * w * -mean(critic(x))
        total += 0.01 * mean(losses.gram_distance(shallow, teacher.shallow))
        return total, (mean((x - images) ** 2) + perceptual, -mean(critic(x)))

    kernel = lambda tree: tree["decoder"]["linear_out"]["kernel"]  # noqa: E731
    parts = jax.jit(jax.jacrev(lambda p: written_out(p, 0.0)[1]))(state.params)
    w = losses.adaptive_weight(kernel(parts[0]), kernel(parts[1]))
    (total, _), gradients = jax.jit(jax.value_and_grad(written_out, has_aux=True))(state.params, w)
    np.testing.assert_allclose(metrics["generator_weight"], w, rtol=1e-4)
    np.testing.assert_allclose(metrics["loss"], total, rtol=1e-5)
    norm = np.sqrt(sum((np.asarray(g) ** 2).sum() for g in jax.tree.leaves(gradients)))
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-4)
    assert loss.generator == 0.75


def test_the_discriminator_waits_for_its_start():
    old, new, metrics = _step(_with(tiny_config(), generator=0.75, discriminator_start=5))
    same = jax.tree.map(lambda a, b: bool((a == b).all()), old.discriminator, new.discriminator)
    assert all(jax.tree.leaves(same)) and float(metrics["generator_weight"]) == 0


def test_a_non_finite_step_changes_no_weight_moment_or_codebook():
    config = _with(tiny_config(), generator=0.75, discriminator_start=0)
    task, state = _start(config)
    batch = _batch() | {"weight": np.full(ROWS, np.nan, np.float32)}
    new, metrics = jax.jit(task.train_step)(state, batch)
    assert not np.isfinite(metrics["loss"])
    assert (int(new.step), int(new.consecutive_skips), int(new.total_skips)) == (1, 1, 1)
    untouched = dict(step=0, consecutive_skips=0, total_skips=0)
    for a, b in zip(
        jax.tree.leaves(state.replace(**untouched)), jax.tree.leaves(new.replace(**untouched)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    recovered, _ = jax.jit(task.train_step)(new, _batch())
    assert (int(recovered.consecutive_skips), int(recovered.total_skips)) == (0, 1)


@pytest.fixture(scope="module")
def plain():
    return _step(tiny_config())


def _other_tower(**settings):
    config = tiny_config()
    siglip = dataclasses.replace(config.model.siglip, **settings)
    return _step(dataclasses.replace(config, model=dataclasses.replace(config.model, siglip=siglip)))


@pytest.mark.parametrize("remat", [pytest.param("dots", marks=pytest.mark.slow), "full"])
def test_remat_changes_no_result(remat, plain):
    _, expected, expected_metrics = plain
    _, found, metrics = _other_tower(remat=remat)
    for name, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    first, other = (tree_get(state.optimizer, "mu") for state in (expected, found))  # the gradients, scaled
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(first))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * largest), first, other)


def test_bfloat16_computes_near_float32_and_keeps_parameters_and_quantizers_in_it(plain):
    _, _, expected = plain
    old, new, metrics = _other_tower(dtype="bfloat16")
    floats = [leaf for leaf in jax.tree.leaves(new) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert {leaf.dtype for leaf in floats} == {jnp.dtype("float32")}
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=0.02)
    assert metrics["loss"] != expected["loss"]

    config = tiny_config()
    siglip = dataclasses.replace(config.model.siglip, dtype="bfloat16")
    model = dataclasses.replace(config.model, siglip=siglip)
    task = make_task(dataclasses.replace(config, model=model))
    look = lambda state, images: forward(bind(task.graphdef, state.params), state.codebooks, images)[0]  # noqa: E731
    outputs = jax.eval_shape(look, old, jnp.zeros((ROWS, 16, 16, 3)))
    assert outputs.hidden.dtype == jnp.bfloat16 and outputs.reconstruction.dtype == jnp.float32
    for quantized in outputs.quantized.values():
        assert {quantized.output.dtype, quantized.assigned.dtype, quantized.commitment.dtype} == {jnp.dtype("float32")}


def test_ema_follows_the_weights():
    old, new, _ = _step(tiny_config())  # decay 0.5
    for a, p, e in zip(*map(jax.tree.leaves, (old.params, new.params, new.ema)), strict=True):
        np.testing.assert_allclose(e, (a + p) / 2, atol=1e-6)


def test_the_convolutional_decoder_trains_under_the_full_loss():
    config = _with(tiny_config(), generator=0.75, discriminator_start=0)
    decoder = dataclasses.replace(
        config.model.decoder, kind="convolutional", channels=8, multipliers=(1, 2), residual_blocks=1, latent_grid=8,
        attention_grids=(8,), groups=4,
    )  # fmt: skip
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, decoder=decoder))
    old, new, metrics = _step(config)
    change = _changed(old.params, new.params)
    assert int(new.total_skips) == 0 and np.isfinite(metrics["generator_weight"])
    assert all(value.any() for name, value in change.items() if name.startswith("decoder/") and name.endswith("kernel"))
