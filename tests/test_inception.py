"""FID's Inception, its weight file, its resizes and the Fréchet distance against the PyTorch packages."""

import jax
import numpy as np
import pytest
import safetensors.numpy
from inception_twin import RECORD, images, pixels, random_state, torch_features
from torch_packages import imported

from dualtoken_jax.evaluation.fid import InceptionFeatures
from dualtoken_jax.evaluation.frechet import FeatureStatistics, frechet_distance
from dualtoken_jax.evaluation.image_files import clean_bicubic, tensorflow_bilinear
from dualtoken_jax.interop.files import WeightFileError
from dualtoken_jax.interop.inception import inception_shapes, load_inception
from dualtoken_jax.interop.published import INCEPTION, check_digest, sha256


@pytest.fixture(scope="module")
def record():
    with np.load(RECORD) as file:
        return file["features"]


@pytest.fixture(scope="module")
def state():
    return random_state()


@pytest.fixture(scope="module")
def weight_file(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "inception.safetensors"
    safetensors.numpy.save_file(state, path)
    return path


@pytest.fixture(scope="module")
def features(weight_file):
    return InceptionFeatures(load_inception(weight_file), 4)


def assert_close(ours, theirs):
    for row, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(row, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_features_are_the_recorded_ones(features, record):
    found = features(pixels())
    assert found.shape == record.shape == (4, 2048) and (record.std(axis=1) > 0.1).all()
    assert_close(found, record)
    assert np.abs(record[1] - record[3]).max() > 1e-2 * record[1].max()  # the resize is not all the same


def test_the_record_is_what_the_packages_compute(record):
    assert_close(record, torch_features())


def test_resizes_are_the_packages():
    fidelity = imported("torch_fidelity.interpolate_compat_tensorflow")
    clean = imported("cleanfid.resize").build_resizer("clean")
    import torch

    for image in images():
        np.testing.assert_array_equal(clean_bicubic(image), clean(image))
        theirs = fidelity.interpolate_bilinear_2d_like_tensorflow1x(
            torch.tensor(image).permute(2, 0, 1)[None].float(), size=(299, 299), align_corners=False
        )
        np.testing.assert_array_equal(tensorflow_bilinear(image), theirs[0].permute(1, 2, 0).numpy())


def test_weights_in_a_pytorch_file_are_the_same(state, weight_file, tmp_path):
    """Also with the counters that BatchNorm keeps, and without the classifier."""
    torch = pytest.importorskip("torch")
    kept = {name: torch.tensor(x) for name, x in state.items() if not name.startswith("fc.")}
    kept["Conv2d_1a_3x3.bn.num_batches_tracked"] = torch.tensor(0)
    torch.save(kept, tmp_path / "inception.pth")
    one, other = load_inception(tmp_path / "inception.pth"), load_inception(weight_file)
    assert jax.tree.map(np.shape, one) == jax.tree.map(lambda x: x.shape, inception_shapes())
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_the_network_has_the_published_number_of_parameters():
    sizes = [leaf.size for leaf in jax.tree.leaves(inception_shapes())]
    assert len(sizes) == 94 * 5  # convolutions, each with four vectors of its BatchNorm
    # torchvision's Inception v3 without classifiers, and the statistics, which do not count as parameters there
    assert sum(sizes) == 21_785_568 + 2 * 17_216


def test_a_wrong_file_is_refused_with_all_that_is_wrong(state, tmp_path):
    wrong = dict(state)
    del wrong["Conv2d_1a_3x3.conv.weight"], wrong["Mixed_7c.branch_pool.bn.bias"]
    wrong["AuxLogits.fc.weights"] = np.zeros(7, np.float32)
    wrong["Mixed_5b.branch1x1.conv.weight"] = np.zeros((64, 192, 3, 3), np.float32)
    safetensors.numpy.save_file(wrong, tmp_path / "wrong.safetensors")
    with pytest.raises(ValueError, match="4 problems") as error:
        load_inception(tmp_path / "wrong.safetensors")
    for line in (
        "missing: Conv2d_1a_3x3.conv.weight (32, 3, 3, 3)",
        "missing: Mixed_7c.branch_pool.bn.bias (192,)",
        "unexpected: AuxLogits.fc.weights (7,)",
        "wrong shape: Mixed_5b.branch1x1.conv.weight is (64, 192, 3, 3), expected (64, 192, 1, 1)",
    ):
        assert line in str(error.value)


def test_a_file_must_have_the_digest_in_its_name(tmp_path):
    (tmp_path / "any.pth").write_bytes(b"weights")
    digest = sha256(tmp_path / "any.pth")
    assert digest == "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"
    for name in ("weights-9a129038.pth", f"weights-{digest}.safetensors", "weights-v2.pth", "6726825d.pth"):
        (tmp_path / name).write_bytes(b"weights")
        check_digest(tmp_path / name)
    (tmp_path / INCEPTION.name).write_bytes(b"weights")
    with pytest.raises(WeightFileError, match=f"{digest}.*begins with 6726825d"):
        load_inception(tmp_path / INCEPTION.name)
    with pytest.raises(FileNotFoundError, match="gone-6726825d.pth"):
        load_inception(tmp_path / "gone-6726825d.pth")


def test_another_size_is_refused(features):
    with pytest.raises((ValueError, TypeError), match=r"256, 256, 3\]|256,256,3\]"):
        features(np.zeros((1, 256, 256, 3), np.float32))


@pytest.mark.parametrize("package", ["pytorch_fid.fid_score", "cleanfid.fid"])
def test_frechet_distance_is_the_packages(package):
    module = imported(package)
    theirs = getattr(module, "calculate_frechet_distance", None) or module.frechet_distance
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(24, 24))
    pair = [rng.normal(size=(400, 24)) @ mixing, rng.normal(0.1, 1.1, size=(300, 24)) @ mixing]
    ours = []
    for rows in pair:
        ours.append(FeatureStatistics.empty(24))
        ours[-1].add(rows, np.ones(len(rows)))
    moments = [moment for x in pair for moment in (x.mean(axis=0), np.cov(x, rowvar=False))]
    assert frechet_distance(*ours) == pytest.approx(theirs(*moments), rel=1e-6)
