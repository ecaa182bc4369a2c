"""Metrics against independent formulas, and exact over uneven batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg, ndimage

from dualtoken_jax.evaluation import metrics, zero_shot
from dualtoken_jax.evaluation.frechet import FeatureStatistics, frechet_distance


def image_pairs(kind):
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.uniform(0, 1, (3, 40, 33, 3)), (0, 3, 3, 0))
    x = {"noise": rng.uniform(0, 1, smooth.shape), "smooth": smooth, "bright": 0.99 + 0.01 * smooth}[kind]
    y = np.clip(x + rng.normal(0, 0.002 if kind == "bright" else 0.1, x.shape), 0, 1)
    return jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)


def scipy_ssim(x, y):
    """SSIM of one image by scipy, in float64."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    smooth = lambda image: ndimage.gaussian_filter(image, (1.5, 1.5, 0), truncate=3.5)[5:-5, 5:-5]  # noqa: E731
    mx, my = smooth(x), smooth(y)
    vx, vy, cov = smooth(x * x) - mx * mx, smooth(y * y) - my * my, smooth(x * y) - mx * my
    return np.mean((2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))


@pytest.mark.parametrize("kind", ["noise", "smooth", "bright"])
def test_psnr_ssim_l1_match_independent_formulas(kind):
    x, y = image_pairs(kind)
    error = np.asarray(x, np.float64) - np.asarray(y, np.float64)
    np.testing.assert_allclose(metrics.psnr(x, y), 10 * np.log10(1 / np.mean(error**2, axis=(1, 2, 3))), rtol=1e-6)
    np.testing.assert_allclose(metrics.l1(x, y), np.mean(np.abs(error), axis=(1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(metrics.ssim(x, y), [scipy_ssim(*pair) for pair in zip(x, y, strict=True)], rtol=2e-5)


@pytest.mark.parametrize("kind", ["noise", "smooth", "bright"])
def test_psnr_and_ssim_match_scikit_image(kind):
    skimage = pytest.importorskip("skimage.metrics")
    x, y = image_pairs(kind)
    options = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1, channel_axis=-1)
    pairs = list(zip(np.asarray(x, np.float64), np.asarray(y, np.float64), strict=True))
    np.testing.assert_allclose(
        metrics.ssim(x, y), [skimage.structural_similarity(*p, **options) for p in pairs], rtol=2e-5
    )
    np.testing.assert_allclose(
        metrics.psnr(x, y), [skimage.peak_signal_noise_ratio(*p, data_range=1) for p in pairs], rtol=1e-6
    )


def test_identical_images_are_perfect_and_small_ones_refused():
    x, _ = image_pairs("smooth")
    np.testing.assert_allclose(metrics.ssim(x, x), 1.0, atol=1e-6)
    assert np.isposinf(metrics.psnr(x, x)).all() and not metrics.l1(x, x).any()
    with pytest.raises(ValueError, match="at least 11 px a side, got 10×33"):
        metrics.ssim(x[:, :10], x[:, :10])


def test_half_precision_images_are_measured_in_float32():
    x, y = (jnp.asarray(image, jnp.bfloat16) for image in image_pairs("noise"))
    for metric in (metrics.psnr, metrics.ssim, metrics.l1):
        metric = jax.jit(metric)
        exact = metric(x.astype(jnp.float32), y.astype(jnp.float32))
        assert metric(x, y).dtype == jnp.float32
        np.testing.assert_array_equal(metric(x, y), exact)


def test_uneven_last_batch_is_exact():
    values = np.random.default_rng(0).normal(size=10).astype(np.float32)
    padded = np.concatenate([values, [np.inf, np.nan]]).astype(np.float32)  # what two padding rows may hold
    weight = np.array([1.0] * 10 + [0.0] * 2, np.float32)
    sums = jax.jit(metrics.weighted_sums)
    batches = [sums({"psnr": padded[i : i + 4]}, weight[i : i + 4]) for i in (0, 4, 8)]
    assert metrics.means(batches)["psnr"] == pytest.approx(np.mean(values, dtype=np.float64), rel=1e-6)
    with pytest.raises(ValueError, match="the mean of 0 examples"):
        metrics.means([sums({"psnr": padded[:2]}, np.zeros(2, np.float32))])


def test_topk_hits():
    logits = jnp.array([[0.1, 0.5, 0.3, 0.2], [0.9, 0.1, 0.2, 0.3], [0.0, 0.0, 0.0, 0.0], [jnp.nan] * 4])
    label = jnp.array([2, 3, 3, 3])
    np.testing.assert_array_equal(metrics.topk_hits(logits, label, 1), [0, 0, 0, 0])
    np.testing.assert_array_equal(metrics.topk_hits(logits, label, 2), [1, 1, 0, 0])
    np.testing.assert_array_equal(metrics.topk_hits(logits, label, 4), [1, 1, 1, 1])


def test_code_counts_match_bincount():
    rng = np.random.default_rng(0)
    codes, weight = rng.integers(0, 11, (5, 3, 4, 2)), np.array([1, 1, 0, 1, 0], np.float32)
    counts = jax.jit(metrics.code_counts, static_argnums=1)(codes, 11, weight)
    for depth in range(2):
        expected = np.bincount(codes[weight > 0][..., depth].ravel(), minlength=11)
        np.testing.assert_array_equal(counts[depth], expected)


def test_codes_outside_the_codebook_are_not_counted_elsewhere():
    codes = jnp.array([-1, 3, 4, 2]).reshape(1, 2, 1, 2)  # depth 0: -1, 4; depth 1: 3, 2
    np.testing.assert_array_equal(metrics.code_counts(codes, 4, jnp.ones(1)), [[0, 0, 0, 0], [0, 0, 1, 1]])


def test_codebook_statistics_of_uniform_and_single_code():
    counts = np.array([[3, 3, 3, 3], [0, 12, 0, 0], [6, 0, 6, 0]])
    statistics = metrics.codebook_statistics(counts)
    np.testing.assert_allclose(statistics["per_depth"]["use"], [1, 0.25, 0.5])
    np.testing.assert_allclose(statistics["per_depth"]["perplexity"], [4, 1, 2])
    np.testing.assert_allclose(statistics["per_depth"]["kl"], np.log([1, 4, 2]), atol=1e-12)
    share = counts.sum(axis=0) / counts.sum()
    assert statistics["overall"]["use"] == 1
    assert statistics["overall"]["kl"] == pytest.approx(np.sum(share * np.log(share * 4)))
    own = metrics.codebook_statistics(np.array([[3, 3, 0, 0], [6, 0, 0, 0]]), shared=False)["overall"]
    assert own["use"] == 3 / 8  # of all depths' codes
    with pytest.raises(ValueError, match=r"depths \[1\] of 2 counted no code"):
        metrics.codebook_statistics(np.array([[1, 1], [0, 0]]))


def test_bits_per_pixel():
    assert metrics.bits_per_pixel(tokens=256, depth=4, codes=16384, resolution=256) == pytest.approx(256 * 56 / 65536)


def test_retrieval_counts_identical_captions_as_the_same_text():
    image = np.eye(4)
    text = image[[1, 0, 2, 0]]  # texts 0 and 1 are swapped; text 3 looks like image 0
    wrong = metrics.retrieval_at_1(image, text, ["a", "b", "c", "d"])
    assert wrong == {"image_to_text": 0.25, "text_to_image": 0.25}
    # Now texts 0 and 1 read the same, so that the swap is no mistake; image 3 still finds a wrong text.
    right = metrics.retrieval_at_1(image, text, ["a", "a", "c", "d"])
    assert right == {"image_to_text": 0.75, "text_to_image": 0.75}


def test_retrieval_with_several_captions_an_image_and_any_chunk():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(20, 8))
    owner = np.repeat(np.arange(20), 5)
    text = image[owner] + rng.normal(0, 0.8, (100, 8))
    captions = [f"caption {i}" for i in range(100)]
    similarity = text / np.linalg.norm(text, axis=1, keepdims=True) @ (image / np.linalg.norm(image, axis=1)[:, None]).T
    expected = {
        "image_to_text": np.mean(owner[similarity.argmax(axis=0)] == np.arange(20)),
        "text_to_image": np.mean(similarity.argmax(axis=1) == owner),
    }
    assert 0.3 < expected["text_to_image"] < 1
    assert metrics.retrieval_at_1(image, text, captions, owner, chunk=7) == pytest.approx(expected)
    with pytest.raises(ValueError, match="100 text embeddings, 100 captions and 20 images of texts"):
        metrics.retrieval_at_1(image, text, captions)


@pytest.mark.parametrize("broken", ["pictures", "classes", "true class"])
def test_embeddings_that_are_not_finite_score_nothing(broken):
    embeddings, classes, labels = np.eye(8)[:4], np.eye(8), np.arange(4)
    assert zero_shot.accuracy(embeddings, classes, labels) == {"top1": 1, "top5": 1}
    if broken == "pictures":
        embeddings[:] = np.nan
    else:
        classes[slice(None) if broken == "classes" else slice(0, 4)] = np.nan
    assert zero_shot.accuracy(embeddings, classes, labels) == {"top1": 0, "top5": 0}


def statistics_of(features, weight=None):
    statistics = FeatureStatistics.empty(features.shape[1])
    statistics.add(features, np.ones(len(features)) if weight is None else weight)
    return statistics


def gaussian_statistics(mean, covariance):
    """Statistics whose mean and covariance are exactly those given: 1e6 imagined examples."""
    n = 1e6
    return FeatureStatistics(n, n * mean, (n - 1) * covariance + n * np.outer(mean, mean))


def test_statistics_match_numpy_merge_and_ignore_padding():
    features = np.random.default_rng(0).normal(3, 1, (50, 6))
    whole = statistics_of(features)
    np.testing.assert_allclose(whole.mean(), features.mean(axis=0))
    np.testing.assert_allclose(whole.covariance(), np.cov(features.T), atol=1e-12)
    padded = np.concatenate([features[32:], np.full((14, 6), np.nan)])
    parts = statistics_of(features[:32]).merge(statistics_of(padded, np.arange(32) < 18))
    assert parts.count == whole.count == 50
    np.testing.assert_allclose(parts.outer, whole.outer)
    assert frechet_distance(parts, whole) == pytest.approx(0, abs=1e-10)


def test_frechet_distance_of_known_gaussians():
    rng = np.random.default_rng(0)
    mean_a, mean_b = rng.normal(size=(2, 5))
    a, b = rng.uniform(0.1, 4, (2, 5))
    rotation = linalg.qr(rng.normal(size=(5, 5)))[0]  # covariances that commute have the distance of their deviations
    statistics = [gaussian_statistics(m, rotation * v @ rotation.T) for m, v in ((mean_a, a), (mean_b, b))]
    expected = np.sum((mean_a - mean_b) ** 2) + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2)
    assert frechet_distance(*statistics) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_matches_the_matrix_square_root_and_is_symmetric():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(60, 8)) @ rng.normal(size=(8, 8)), rng.normal(1, 2, size=(70, 8))
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    shift = a.mean(axis=0) - b.mean(axis=0)
    expected = shift @ shift + np.trace(cov_a + cov_b - 2 * linalg.sqrtm(cov_a @ cov_b).real)
    assert frechet_distance(statistics_of(a), statistics_of(b)) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(statistics_of(b), statistics_of(a)) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_with_fewer_examples_than_channels():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(10, 64)), rng.normal(0.5, 1, size=(12, 64))
    half_a, half_b = (
        f - f.mean(axis=0) for f in (a, b)
    )  # Σ = halfᵀ half / (n - 1), so the trace needs no square root of Σ
    cross = linalg.svdvals(half_a @ half_b.T).sum() / np.sqrt(9 * 11)
    shift = a.mean(axis=0) - b.mean(axis=0)
    expected = shift @ shift + np.trace(np.cov(a.T)) + np.trace(np.cov(b.T)) - 2 * cross
    assert frechet_distance(statistics_of(a), statistics_of(b)) == pytest.approx(expected, abs=1e-5)
    assert frechet_distance(statistics_of(a), statistics_of(a)) == pytest.approx(0, abs=1e-8)


def test_statistics_refuse_what_would_spoil_them():
    with pytest.raises(ValueError, match="1 of 3 feature vectors are not finite"):
        statistics_of(np.array([[0.0], [np.inf], [1.0]]))
    with pytest.raises(ValueError, match=r"features \(3, 2\) with 2 weights"):
        statistics_of(np.zeros((3, 2)), np.ones(2))
    with pytest.raises(ValueError, match="the covariance of 1 examples"):
        statistics_of(np.zeros((1, 2))).covariance()
    with pytest.raises(ValueError, match="1 and 2 channels"):
        frechet_distance(statistics_of(np.zeros((3, 1))), statistics_of(np.zeros((3, 2))))
