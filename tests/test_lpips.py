"""LPIPS weights in every layout: the lpips package's own distances, and what a wrong file is told."""

import jax
import numpy as np
import pytest
from flax import nnx
from torch_packages import imported as imported_package

from dualtoken_jax.interop.files import WeightFileError
from dualtoken_jax.interop.lpips import load_lpips
from dualtoken_jax.models.vgg import Lpips, VggConfig

IMAGES = np.random.default_rng(0).uniform(-1, 1, (2, 2, 32, 40, 3)).astype(np.float32)
SMALL = VggConfig(widths=(4, 5, 6, 7, 8))


@pytest.fixture(scope="module")
def package():
    """The lpips package's module: a random trunk under the published linear layers."""
    lpips = imported_package("lpips")
    import torch

    torch.manual_seed(0)
    return lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)


@pytest.fixture(scope="module")
def layouts(package, tmp_path_factory):
    """Paths by name of layout, all of the same weights."""
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("lpips")
    whole = {name: tensor.contiguous() for name, tensor in package.state_dict().items()}
    trunk = {f"features.{n.split('.', 2)[2]}": x for n, x in whole.items() if n.startswith("net.")}
    heads = {name: x for name, x in whole.items() if name.startswith("lin") and not name.startswith("lins.")}
    assert len(trunk) == 26 and len(heads) == 5 and len(whole) == 26 + 5 + 5 + 2
    unused = {"classifier.0.weight": torch.ones(4, 3), "classifier.0.bias": torch.ones(4)}
    taming = {name: x.clone() for name, x in whole.items() if not name.startswith("lins.")}

    save_file({**trunk, **heads}, folder / "merged.safetensors")
    torch.save({**trunk, **unused}, folder / "vgg16.pth")
    torch.save(heads, folder / "heads.pth")
    torch.save(whole, folder / "package.pth")
    torch.save(taming, folder / "taming.pth")
    both = tmp_path_factory.mktemp("both")
    torch.save(trunk, both / "vgg16.pth")
    torch.save(heads, both / "vgg.pth")
    two_files = (folder / "vgg16.pth", folder / "heads.pth")
    single = {name: (folder / f"{name}.pth",) for name in ("package", "taming")}
    return {"merged": (folder / "merged.safetensors",), "two files": two_files, "folder": (both,), **single}


@pytest.fixture(scope="module")
def merged(layouts):
    return load_lpips(*layouts["merged"])


def test_distances_are_the_lpips_package_s(package, merged):
    import torch

    graph = nnx.split(nnx.eval_shape(lambda: Lpips(rngs=nnx.Rngs(0))))[0]
    ours = jax.jit(lambda params, x, y: nnx.merge(graph, params)(x, y))(merged, *IMAGES)
    with torch.no_grad():
        theirs = package(*torch.tensor(IMAGES.transpose(0, 1, 4, 2, 3))).reshape(-1).numpy()
    assert (theirs > 0.01).all()
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize("layout", ["two files", "folder", "package", "taming"])
def test_every_layout_gives_the_same_parameters(layout, layouts, merged):
    jax.tree.map(np.testing.assert_array_equal, load_lpips(*layouts[layout]), merged)


def small_tensors(prefix="features."):
    rng, tensors, positions = np.random.default_rng(1), {}, (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    for position, (_, inputs, outputs) in zip(positions, SMALL.convolutions(), strict=True):
        tensors[f"{prefix}{position}.weight"] = rng.normal(size=(outputs, inputs, 3, 3)).astype(np.float32)
        tensors[f"{prefix}{position}.bias"] = rng.normal(size=outputs).astype(np.float32)
    for block, width in enumerate(SMALL.widths):
        tensors[f"lin{block}.model.1.weight"] = rng.uniform(0, 1, (1, width, 1, 1)).astype(np.float32)
    return tensors


def saved(file, tensors):
    np.savez(file, **tensors)
    return file


def test_loader_fills_exactly_the_parameters_of_the_module(tmp_path):
    params = load_lpips(saved(tmp_path / "w.npz", small_tensors()), config=SMALL)
    shapes = nnx.to_pure_dict(nnx.split(nnx.eval_shape(lambda: Lpips(SMALL, rngs=nnx.Rngs(0))))[1])
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes)


def test_loader_reports_every_problem_at_once(tmp_path):
    tensors = small_tensors()
    del tensors["features.0.bias"], tensors["lin4.model.1.weight"]
    tensors["features.2.weight"] = tensors["features.2.weight"][:, :-1]
    tensors["lin5.model.1.weight"] = np.zeros((1, 9, 1, 1), np.float32)
    with pytest.raises(ValueError, match="torchvision's vgg16 and the lpips package's vgg.pth: 4 problems") as error:
        load_lpips(saved(tmp_path / "broken.npz", tensors), config=SMALL)
    for line in (
        "missing: features.0.bias (4,)",
        "missing: lin4.model.1.weight (1, 8, 1, 1)",
        "unexpected: lin5.model.1.weight (1, 9, 1, 1)",
        "wrong shape: features.2.weight is (4, 3, 3, 3), expected (4, 4, 3, 3)",
    ):
        assert line in str(error.value)


def test_a_module_with_other_constants_or_unequal_copies_is_refused(tmp_path):
    tensors = small_tensors("net.slice1.")
    old = tensors | {"scaling_layer.shift": np.zeros((1, 3, 1, 1), np.float32)}
    with pytest.raises(WeightFileError, match="scaling_layer.shift is .* of LPIPS 0.1"):
        load_lpips(saved(tmp_path / "old.npz", old), config=SMALL)
    unequal = tensors | {"lins.3.model.1.weight": np.zeros((1, 7, 1, 1), np.float32)}
    with pytest.raises(ValueError, match="not shared: lins.3.model.1.weight differs from lin3.model.1.weight"):
        load_lpips(saved(tmp_path / "unequal.npz", unequal), config=SMALL)


def test_folders_without_weights_or_with_contradictory_ones_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no weight file"):
        load_lpips(tmp_path, config=SMALL)
    saved(tmp_path / "a.npz", small_tensors())
    saved(tmp_path / "b.npz", {"lin0.model.1.weight": np.zeros((1, 4, 1, 1))})
    with pytest.raises(WeightFileError, match="b.npz holds another lin0.model.1.weight"):
        load_lpips(tmp_path, config=SMALL)
    with pytest.raises(FileNotFoundError, match="there is no weight file .*nowhere"):
        load_lpips(tmp_path / "nowhere")
    damaged = saved(tmp_path / "vgg16-397923af.npz", small_tensors())
    with pytest.raises(WeightFileError, match="its name says that it begins with 397923af"):
        load_lpips(damaged, config=SMALL)
