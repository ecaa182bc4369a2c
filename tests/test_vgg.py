"""LPIPS over VGG16: parity with PyTorch at float32 and properties of a distance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dualtoken_jax.interop.lpips import load_lpips
from dualtoken_jax.models import vgg
from dualtoken_jax.models.vgg import NORM_EPS, SCALE, SHIFT, Lpips, VggConfig

TINY = VggConfig(widths=(8, 12, 16, 24, 20))


@pytest.fixture(scope="module")
def images():
    """Two batches in [-1, 1] whose sides are odd, so that pooling has to round down."""
    x, y = np.random.default_rng(0).uniform(-1, 1, (2, 3, 37, 50, 3)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(y)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """(path, tensors) of a weight file under PyTorch's names."""
    path = tmp_path_factory.mktemp("lpips") / "w.npz"
    return path, weight_file(TINY, path)


@pytest.fixture(scope="module")
def params(weights):
    return jax.tree.map(jnp.asarray, load_lpips(weights[0], config=TINY))


def abstract(config, dtype=jnp.float32):
    """The graph and the parameter shapes; nothing is initialised, because compiling 18 initialisers takes 8 s."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Lpips(config, rngs=nnx.Rngs(0), compute_dtype=dtype)))
    return graphdef, nnx.to_pure_dict(state)


GRAPH = abstract(TINY)[0]
distance = jax.jit(lambda params, x, y: nnx.merge(GRAPH, params)(x, y))
gradient_to_x = jax.jit(jax.grad(lambda params, x, y: nnx.merge(GRAPH, params)(x, y).sum(), argnums=1))


def torch_trunk(torch, config):
    """The layers of torchvision's vgg16().features up to relu5_3, with its numbering."""
    layers, channels = [], 3
    for block, (width, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
        layers += [torch.nn.MaxPool2d(2, 2)] if block else []
        for _ in range(depth):
            layers += [torch.nn.Conv2d(channels, width, 3, padding=1), torch.nn.ReLU()]
            channels = width
    return torch.nn.Sequential(*layers)


def torch_taps(torch, trunk, config, x):
    """Every ReLU that ends a block."""
    taps = []
    for position, layer in enumerate(trunk):
        x = layer(x)
        if position + 1 == len(trunk) or isinstance(trunk[position + 1], torch.nn.MaxPool2d):
            taps.append(x)
    assert len(taps) == len(config.widths)
    return taps


def torch_lpips(torch, trunk, linear, config, x, y):
    def features(image):
        image = (image - torch.tensor(SHIFT).view(1, 3, 1, 1)) / torch.tensor(SCALE).view(1, 3, 1, 1)
        taps = torch_taps(torch, trunk, config, image)
        return [t / (torch.sqrt(torch.sum(t**2, dim=1, keepdim=True)) + NORM_EPS) for t in taps]

    layers = zip(features(x), features(y), linear, strict=True)
    return sum(torch.nn.functional.conv2d((a - b) ** 2, w).mean(dim=(1, 2, 3)) for a, b, w in layers)


def weight_file(config, path):
    """Writes random weights; the positions are written out from torchvision's vgg16."""
    rng, tensors, positions = np.random.default_rng(1), {}, (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    for position, (_, inputs, outputs) in zip(positions, config.convolutions(), strict=True):
        scale = (2 / (9 * inputs)) ** 0.5
        tensors[f"features.{position}.weight"] = rng.normal(0, scale, (outputs, inputs, 3, 3)).astype(np.float32)
        tensors[f"features.{position}.bias"] = rng.normal(0, 0.1, outputs).astype(np.float32)
    for block, width in enumerate(config.widths):
        tensors[f"lin{block}.model.1.weight"] = rng.uniform(0, 1, (1, width, 1, 1)).astype(np.float32)
    np.savez(path, **tensors)
    return tensors


def test_trunk_and_distance_match_pytorch(images, weights, params):
    torch = pytest.importorskip("torch")
    tensors, trunk = weights[1], torch_trunk(torch, TINY)
    trunk.load_state_dict(
        {k.removeprefix("features."): torch.tensor(v) for k, v in tensors.items() if k.startswith("features.")}
    )
    linear = [torch.tensor(tensors[f"lin{block}.model.1.weight"]) for block in range(5)]
    x, y = (torch.tensor(np.asarray(image)).permute(0, 3, 1, 2).requires_grad_() for image in images)

    taps = jax.jit(lambda params, x: nnx.merge(GRAPH, params).trunk(x))(params, images[0])
    for ours, theirs in zip(taps, torch_taps(torch, trunk, TINY, x), strict=True):
        theirs = theirs.detach().permute(0, 2, 3, 1).numpy()
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())

    expected = torch_lpips(torch, trunk, linear, TINY, x, y)
    np.testing.assert_allclose(distance(params, *images), expected.detach().numpy(), rtol=1e-5)
    expected.sum().backward()
    theirs = x.grad.permute(0, 2, 3, 1).numpy()
    # As a whole, not element by element: rounding tips the odd ReLU or pooling tie to the other side.
    assert np.linalg.norm(gradient_to_x(params, *images) - theirs) < 1e-3 * np.linalg.norm(theirs)


def test_distance_is_zero_for_equal_images_symmetric_and_positive(images, params):
    x, y = images
    np.testing.assert_allclose(distance(params, x, x), 0, atol=1e-12)  # the two passes may be fused differently
    np.testing.assert_allclose(distance(params, x, y), distance(params, y, x), rtol=1e-6)
    assert (distance(params, x, y) > 0).all()


def test_one_image_does_not_see_its_neighbours(images, params):
    x, y = images
    others = jnp.array([0, 2])
    changed = distance(params, x.at[others].multiply(-0.3), y.at[others].add(0.2))
    np.testing.assert_allclose(changed[1], distance(params, x, y)[1], rtol=1e-6)
    assert (jnp.abs(changed / distance(params, x, y) - 1)[others] > 1e-3).all()


def test_gradient_reaches_every_pixel_and_survives_dead_features(images, params):
    gradient = gradient_to_x(params, *images)
    assert np.isfinite(gradient).all() and (np.abs(gradient).sum(axis=-1) > 0).mean() > 0.99
    dead = jax.tree.map(lambda p: p, params)
    dead["trunk"]["convolutions"]["conv3_3"]["bias"] = jnp.full(TINY.widths[2], -1e3)  # no channel of tap 3 fires
    gradient = gradient_to_x(dead, *images)
    assert np.isfinite(distance(dead, *images)).all() and np.isfinite(gradient).all() and np.abs(gradient).max() > 0


def test_bfloat16_trunk_gives_float32_distances_close_to_float32(images, params):
    graphdef, _ = abstract(TINY, jnp.bfloat16)
    half = jax.jit(lambda params, x, y: nnx.merge(graphdef, params)(x, y))(params, *images)
    taps = jax.eval_shape(lambda params, x: nnx.merge(graphdef, params).trunk(x), params, images[0])
    assert taps[0].dtype == jnp.bfloat16 and half.dtype == jnp.float32
    np.testing.assert_allclose(half, distance(params, *images), rtol=0.03)


def test_the_default_is_vgg16():
    graphdef, params = abstract(VggConfig())
    assert sum(p.size for p in jax.tree.leaves(params["trunk"])) == 14_714_688  # torchvision's vgg16().features
    image = jax.ShapeDtypeStruct((2, 256, 256, 3), jnp.float32)
    taps = jax.eval_shape(lambda params, x: nnx.merge(graphdef, params).trunk(x), params, image)
    assert [t.shape[1:] for t in taps] == [(256, 256, 64), (128, 128, 128), (64, 64, 256), (32, 32, 512), (16, 16, 512)]
    assert jax.eval_shape(lambda params, x: nnx.merge(graphdef, params)(x, x), params, image).shape == (2,)


def test_impossible_images_and_configs_are_refused(images, params):
    x, y = images
    # jaxtyping's error comes first where the run checks the annotations
    with pytest.raises((ValueError, TypeError), match=r"got \(3, 37, 50, 3\) and \(2, 37, 50, 3\)|\[2,37,50,3\]"):
        distance(params, x, y[:2])
    with pytest.raises(ValueError, match="8×50 px is too small: use at least 16"):
        distance(params, x[:, :8], y[:, :8])
    with pytest.raises(ValueError, match="widths has 2 blocks, depths has 1"):
        VggConfig(widths=(4, 4), depths=(2,))


@pytest.mark.parametrize("shape", [(8, 6), (9, 7)])
def test_halving_is_max_pooling(shape):
    x = jax.random.normal(jax.random.key(0), (2, *shape, 3))
    (ours, backward), (theirs, expected) = (
        jax.vjp(pool, x) for pool in (vgg._halved, lambda x: nnx.max_pool(x, (2, 2), strides=(2, 2)))
    )
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(*(pullback(theirs)[0] for pullback in (backward, expected)))
