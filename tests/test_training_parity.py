"""Twenty training steps against the same step in plain PyTorch, both in float64, from the same weights and batches."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch")

from float64 import float64  # noqa: E402
from released_record import ERRORS, first_draws, jit  # noqa: E402
from torch_twin import TorchQuantizer, namespace  # noqa: E402
from training_twins import CODES, CONVOLUTIONAL, ROWS, STEPS, TRANSFORMER, VGG, both, recipe, vocabulary  # noqa: E402

from benchmarks.peer.codebooks import quantize_and_update as torch_quantize  # noqa: E402
from benchmarks.peer.form import RELEASED, TUNED, Form  # noqa: E402
from benchmarks.peer.step import train_step  # noqa: E402
from dualtoken_jax.config import Config  # noqa: E402
from dualtoken_jax.interop.name_table import to_state_dict  # noqa: E402
from dualtoken_jax.interop.released_names import discriminator_table, model_table  # noqa: E402
from dualtoken_jax.models import quantizer, vgg  # noqa: E402
from dualtoken_jax.models.quantizer import quantize_and_update  # noqa: E402
from dualtoken_jax.tasks import frozen  # noqa: E402

TOLERANCE = 1e-8  # float64; measured: 1.2e-9, of a parameter
UPDATES = ("per_depth", "per_step", "per_step_aliased")


@pytest.fixture(autouse=True)
def in_float64(monkeypatch):
    monkeypatch.setattr(quantizer, "_draw", first_draws)
    with float64():
        yield


@pytest.fixture(autouse=True)
def one_thread():
    """These operations are too small to share."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def torch_draws(available: int, codes: int, width: int):
    """`first_draws`."""
    return torch.arange(available)[:codes], torch.full((codes, width), 0.5)


def agree(ours, theirs, name: str, scale=None) -> None:
    """‖a − b‖ relative to ‖b‖, or to `scale`."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype == np.float64, name
    error = float(np.linalg.norm(ours - theirs) / (np.linalg.norm(theirs) if scale is None else scale))
    ERRORS[name] = max(ERRORS.get(name, 0.0), error)
    assert error < TOLERANCE, f"{name}: relative error {error:.1e}"


def compare_gradients(ours: dict[str, np.ndarray], module, name: str) -> set[str]:
    """Tensor by tensor; returns the names of those that have a gradient (key biases have none but rounding errors)."""
    theirs = {n: p.grad.numpy() for n, p in module.named_parameters()}
    assert theirs.keys() == ours.keys()
    alive = {n for n, gradient in theirs.items() if np.linalg.norm(gradient) > 1e-12}
    for n in alive:
        agree(ours[n], theirs[n], f"twin {name} gradients")
    return alive


def train(config: Config, restarts: bool = False, form: Form = RELEASED, steps: int = STEPS):
    """Both for that many steps, compared at each and at the end."""
    task, state, trainer = both(config, form)
    step = jit(task.train_step)
    table = [entry for entry in model_table(config.model, text=False) if not entry.alias]
    parameters = {name for name, _ in trainer.model.named_parameters()}
    trained = [entry for entry in table if entry.name in parameters]
    start = {name: p.detach().numpy().copy() for name, p in trainer.model.named_parameters()}
    rng, dead = np.random.default_rng(3), 0
    for _ in range(steps):
        images = rng.integers(0, 256, (ROWS, 16, 16, 3), dtype=np.uint8)
        before, (state, metrics) = state, step(state, {"image": images, "weight": np.ones(ROWS)})
        terms = train_step(trainer, torch.from_numpy(images.transpose(0, 3, 1, 2) / 127.5 - 1), torch_draws)
        for name, term in terms.items():
            agree(metrics[name], term, "twin losses")
        alive = compare_gradients(
            to_state_dict(trained, {"params": gradient(before.optimizer, state.optimizer, 0.5)}), trainer.model, "model"
        )
        if "discriminator" in terms:
            found = gradient(before.discriminator_optimizer, state.discriminator_optimizer, 0.5)
            compare_gradients(to_state_dict(discriminator_table(), found), trainer.discriminator, "discriminator")
        dead += compare_codebooks(state.codebooks, trainer.model)
    assert int(state.total_skips) == 0
    assert (dead > 0) == restarts
    ours = to_state_dict(trained, {"params": state.params})
    for name, parameter in trainer.model.named_parameters():
        if name in alive:
            moved = np.linalg.norm(parameter.detach().numpy() - start[name])
            agree(ours[name], parameter.detach(), "twin parameters", moved)
    ours = to_state_dict(discriminator_table(), state.discriminator)
    for name, parameter in trainer.discriminator.named_parameters():
        agree(ours[name], parameter.detach(), "twin discriminator parameters")


def gradient(before, after, decay: float):
    """What the step put into Adam's first moments."""
    moments = [optax.tree_utils.tree_get(optimizer, "mu") for optimizer in (before, after)]
    return jax.tree.map(lambda a, b: np.asarray((b - decay * a) / (1 - decay)), *moments)


def compare_codebooks(codebooks: dict, model) -> int:
    """All statistics, and which codes were restarted (their count is exactly 1); returns how many."""
    restarted = 0
    for branch, ours in codebooks.items():
        for index, book in enumerate(model.quantizer(branch).codebooks):
            agree(ours["embedding"][index], book.embedding, "twin codebooks")
            agree(ours["sum"][index], book.embed_ema, "twin codebooks")
            agree(ours["count"][index], book.cluster_size_ema, "twin codebooks")
            dead = np.flatnonzero(np.asarray(ours["count"][index]) == 1)
            np.testing.assert_array_equal(dead, np.flatnonzero(book.cluster_size_ema.numpy() == 1))
            restarted += len(dead)
    return restarted


def test_twenty_steps():
    pixel, semantic = vocabulary("per_depth", False, 2, None), vocabulary("per_step", True, 2, None)
    train(recipe(pixel, semantic))


@pytest.mark.parametrize(
    ("form", "decoder"),
    [
        pytest.param(RELEASED, TRANSFORMER, id="released"),
        pytest.param(TUNED, TRANSFORMER, id="tuned"),
        pytest.param(TUNED, CONVOLUTIONAL, id="tuned_convolutional", marks=pytest.mark.slow),
    ],
)
def test_the_benchmarks_step(form, decoder, monkeypatch):
    """LPIPS and the discriminator from the first step, in both forms of the peer."""
    monkeypatch.setattr(frozen, "Lpips", partial(vgg.Lpips, VGG))
    pixel, semantic = vocabulary("per_depth", True, 2, None), vocabulary("per_step", True, 2, None)
    options = {"decoder": decoder, "perceptual": 1.0, "discriminator_start": 0}
    train(recipe(pixel, semantic, **options), form=form, steps=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pixel", "semantic", "discriminator", "threshold"),
    [
        (("per_depth", True), ("per_step_aliased", True), "leaky_hinge", None),
        (("per_step", True), ("per_depth", False), "hinge", None),
        (("per_step_aliased", False), ("per_step", False), "leaky_hinge", None),
        (("per_depth", True), ("per_step", True), "leaky_hinge", 1.5),
    ],
)
def test_every_order_of_updates(pixel, semantic, discriminator, threshold):
    pixel, semantic = vocabulary(*pixel, 2, threshold), vocabulary(*semantic, 3, threshold)
    options = {"projection": "attention", "decoder": CONVOLUTIONAL, "discriminator": discriminator}
    train(recipe(pixel, semantic, **options), restarts=threshold is not None)


@pytest.mark.parametrize("rows", [8, 40])  # fewer vectors than codes, and more
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("update", UPDATES)
def test_restarts_of_the_same_codes(update, shared, rows):
    config = vocabulary(update, shared, 2, 1.0)
    theirs = TorchQuantizer(namespace(dataclasses.asdict(config))).double()
    rng = np.random.default_rng(5)
    for book in theirs.codebooks:
        book.weight[:-1] = torch.from_numpy(rng.normal(size=(CODES, 8)))
        book.cluster_size_ema[:] = torch.from_numpy(rng.uniform(0.5, 2, CODES))
        book.embed_ema[:] = book.embedding * book.cluster_size_ema[:, None]
    stacked = lambda name: jnp.stack([jnp.asarray(getattr(book, name).numpy().copy()) for book in theirs.codebooks])  # noqa: E731
    ours = {"embedding": stacked("embedding"), "count": stacked("cluster_size_ema"), "sum": stacked("embed_ema")}
    update_ours = jit(lambda codebook, z: quantize_and_update(codebook, z, config, jax.random.key(0)))
    restarted = []
    for _ in range(3):
        z = rng.normal(size=(2, rows // 2, 8))
        quantized, ours = update_ours(ours, z)
        output, commitment, codes = torch_quantize(theirs, torch.from_numpy(z), config, torch_draws, dense=rows == 8)
        np.testing.assert_array_equal(quantized.codes, codes)
        agree(quantized.output, output, "twin quantizer")
        agree(quantized.commitment, commitment, "twin quantizer")
        for index, book in enumerate(theirs.codebooks):
            for name, value in (
                ("embedding", book.embedding),
                ("sum", book.embed_ema),
                ("count", book.cluster_size_ema),
            ):
                agree(ours[name][index], value, "twin quantizer")
            restarted.append(np.asarray(ours["count"][index]) == 1)
            np.testing.assert_array_equal(restarted[-1], book.cluster_size_ema.numpy() == 1)
    assert 0 < np.mean(restarted) < 1
