"""The report: everything a run has is on the page, nothing is loaded from elsewhere, and every kind of run gets one."""

import base64
import dataclasses
import functools
import html.parser
import io
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config
from jax.sharding import AxisType
from PIL import Image

from dualtoken_jax import loop, sharding
from dualtoken_jax.config import teacher_config
from dualtoken_jax.evaluation import figures, zero_shot
from dualtoken_jax.evaluation.explanations import explain
from dualtoken_jax.evaluation.reconstruction import enlarge, feature_colours, grid
from dualtoken_jax.evaluation.report import perceptual_term, write_report
from dualtoken_jax.metric_writer import MetricWriter, read_metrics
from dualtoken_jax.models import init_params
from dualtoken_jax.models.siglip import Siglip
from dualtoken_jax.tasks import make_task

COLUMNS = {
    "dual": ["input", "reconstruction", "teacher", "semantic"],
    "single": ["input", "reconstruction", "teacher", "semantic"],
    "dual_deep": ["input", "reconstruction", "teacher", "semantic"],
    "pixel_only": ["input", "reconstruction", "teacher"],
    "semantic_only": ["input", "teacher", "semantic"],
}


class Page(html.parser.HTMLParser):
    """Headings, pictures and addresses of a page; fails on tags that are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.addresses, self.headings = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.addresses += [value for name, value in attributes.items() if name.endswith(("src", "href"))]
        if tag == "img":
            self.images.append(Image.open(io.BytesIO(base64.b64decode(attributes["src"].split(",", 1)[1]))))
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.addresses += [value for name, value in attributes if name.endswith(("src", "href"))]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def frozen_shapes(config):
    """Shapes of the teacher that a tokenizer's state holds."""
    make = lambda key: init_params(lambda rngs: Siglip(config.model.siglip, rngs), key)  # noqa: E731
    return {"siglip": jax.eval_shape(make, jax.random.key(0))} if config.task == "tokenizer" else {}


def drawn(shapes):
    """Small random numbers of these shapes: the real initialisation takes longer to compile than everything else."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(0.1 * rng.normal(size=leaf.shape), leaf.dtype), shapes)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A function from a config to its untrained state's (measurement, samples, folder of logs), each evaluated once."""

    @functools.cache
    def evaluate(config):
        folder = tmp_path_factory.mktemp("run")
        # One device: the compiler then has half as much to do. The report of the trained run below comes from eight.
        mesh = jax.make_mesh((1, 1, 1), sharding.AXES, devices=jax.devices()[:1], axis_types=(AxisType.Auto,) * 3)
        task = make_task(config)
        with jax.set_mesh(mesh):
            state = drawn(jax.eval_shape(task.init_state, jax.random.key(0), frozen_shapes(config)))
            writer = MetricWriter(folder)
            writer.write_scalars(0, {"loss": 2.0, "mse": 1.0, "perceptual": 0.5, "generator": 0.1})
            measurement, samples = loop.evaluate(task, state, config, mesh, writer)
            writer.close()
        return measurement, samples, folder

    return evaluate


def report(config, evaluation):
    """The text of the report of an evaluated state, and the page parsed."""
    measurement, samples, folder = evaluation
    metrics = {config.task: read_metrics(folder), "teacher": []}
    text = write_report(folder, config, measurement, samples, metrics).read_text()
    return text, Page(text)


@pytest.mark.parametrize("supervision", COLUMNS)
def test_every_kind_of_tokenizer_gets_its_page(supervision, evaluated):
    config = tiny_config("demo" if supervision == "dual" else f"demo_{supervision}")
    _, samples, _ = evaluated(config)
    text, page = report(config, evaluated(config))
    assert page.headings == [
        "Pictures", "Training", "Use of the codes", "Token maps", "Zero-shot examples", "Measurements", "Configuration",
    ]  # fmt: skip
    assert list(samples.columns) == COLUMNS[supervision]
    assert all(column.shape == (16, 16, 16, 3) and column.dtype == np.uint8 for column in samples.columns.values())
    assert set(samples.codes) == set(config.model.branches)
    for branch, codes in samples.codes.items():
        assert codes.shape == (16, 2, 2, config.model.quantizer(branch).depth)
    assert len(page.images) > 8 * len(samples.columns)
    assert grid(samples, rows=3).shape == (3 * 96 + 2 * 4, len(samples.columns) * 100 - 4, 3)
    assert ("PSNR" in text) == config.model.reconstructs
    assert "rFID" not in re.sub(r"not an rFID", "", text)


def test_nothing_is_loaded_from_elsewhere(evaluated):
    text, page = report(tiny_config(), evaluated(tiny_config()))
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in page.addresses)
    assert "<script" not in text and "@import" not in text
    assert set(re.findall(r"url\((.)", text)) <= {"#"}
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)


def test_text_is_escaped(evaluated):
    name = '<b>"&evil'
    text, _ = report(dataclasses.replace(tiny_config(), name=name), evaluated(tiny_config()))
    assert name not in text and "&lt;b&gt;&quot;&amp;evil" in text


def test_a_contrastive_run_has_a_report_without_reconstructions(evaluated):
    config = teacher_config(tiny_config())
    _, page = report(config, evaluated(config))
    assert evaluated(config)[1] is None
    assert page.headings == ["Training", "Zero-shot examples", "Measurements", "Configuration"]


def test_evaluations_reach_tensorboard_and_metrics(evaluated):
    folder = evaluated(tiny_config())[2]
    assert any("eval/psnr" in line for line in read_metrics(folder))
    log = b"".join(file.read_bytes() for file in (folder / "tensorboard").iterdir())
    assert b"pictures/input_reconstruction_teacher_semantic" in log
    assert all(f"code_use/{name}".encode() in log for name in ("pixel/depth2", "semantic/depth3"))


def test_every_figure_is_explained(evaluated):
    measurement = evaluated(tiny_config())[0]
    assert [name for name in measurement.results if not explain(name)] == []
    assert "teacher, nothing quantized" in explain("teacher_zero_shot_top1")
    assert explain("of_another_program") == ""


def test_predictions_rank_the_classes():
    classes = np.eye(4, dtype=np.float32)
    embeddings = np.array([[3, 2, 1, 0], [0, 1, 2, 3], [9, 9, 9, 9]], np.float32)
    first, second = zero_shot.predictions(embeddings, classes, np.array([0, 0, -1]), ("a", "b", "c", "d"))
    assert [name for name, _ in first.best] == ["a", "b", "c"] and first.right
    assert [name for name, _ in second.best] == ["d", "c", "b"] and not second.right
    assert (first.example, second.example) == (0, 1)
    assert first.best[0][1] == pytest.approx(3 / 14**0.5)


def test_a_finished_run_leaves_a_report(tokenizer_workdir):
    page = Page((tokenizer_workdir / "report.html").read_text())
    assert "Pictures" in page.headings and page.images


def test_feature_colours_share_one_basis():
    features = np.random.default_rng(0).normal(size=(2, 50, 8)).astype(np.float32)
    first, same = feature_colours([features, features])
    assert first.shape == (2, 50, 3) and np.array_equal(first, same)
    assert first.reshape(-1, 3).std(axis=0).min() > 40  # the whole range of colours is used


def test_enlarge_repeats_pixels():
    small = np.arange(4).reshape(1, 2, 2)
    assert enlarge(small, 4).tolist() == [[[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]]


def test_equal_codes_have_equal_colours():
    colours = figures.colour_codes(np.array([[3, 3], [7, 16383]]))
    assert np.array_equal(colours[0, 0], colours[0, 1])
    assert len(np.unique(colours.reshape(-1, 3), axis=0)) == 3


def test_the_page_names_the_perceptual_and_the_texture_loss():
    def said(**weights):
        config = tiny_config()
        return perceptual_term(dataclasses.replace(config, loss=dataclasses.replace(config.loss, **weights)))

    assert said(perceptual=0.0, gram=0.0) == "There is no perceptual loss."
    assert said(perceptual=1.0, gram=0.0, perceptual_network="lpips") == "The perceptual loss is LPIPS (VGG16)."
    for network, features in (("lpips", "VGG16's features"), ("teacher", "the frozen teacher's first hidden states")):
        alone = said(perceptual=0.0, gram=1.0, perceptual_network=network)
        assert alone.startswith("There is no perceptual loss. The texture loss") and features in alone
        assert "Gram" in said(perceptual=1.0, gram=1.0, perceptual_network=network)
