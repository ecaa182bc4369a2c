"""The protocols on a stand-in for a tokenizer and for Inception, and the command on a tiny run."""

import dataclasses
import io
import json
import re

import jax
import numpy as np
import pytest
from conftest import tiny_config
from inception_twin import random_state
from PIL import Image

import dualtoken_jax
from dualtoken_jax import evaluate, export, protocol_run
from dualtoken_jax.api import Codes
from dualtoken_jax.config import ConfigError
from dualtoken_jax.data.prompts import read_prompts
from dualtoken_jax.data.sources import Example, Folder, spread
from dualtoken_jax.evaluation import imagenet, metrics, protocol_report, protocols, retrieval, similarity
from dualtoken_jax.evaluation.frechet import FeatureStatistics, frechet_distance
from dualtoken_jax.evaluation.image_files import clean_bicubic, tensorflow_bilinear, through_jpeg
from dualtoken_jax.evaluation.measure import codebook_use
from dualtoken_jax.models import bind, definition, init_params
from dualtoken_jax.models.vgg import Lpips, VggConfig


class Colours:
    """An Inception of eight features: means over quarters of red and green. Remembers what it has seen."""

    channels = 8

    def __init__(self):
        self.seen = []

    def __call__(self, pixels):
        assert pixels.dtype == np.float32 and pixels.shape[1:] == (299, 299, 3)
        self.seen.append(pixels)
        halves = [pixels[:, rows] for rows in (slice(0, 150), slice(150, None))]
        quarters = [half[:, :, columns] for half in halves for columns in (slice(0, 150), slice(150, None))]
        return np.concatenate([quarter[..., :2].mean(axis=(1, 2)) for quarter in quarters], axis=1)


class Blur:
    """A tokenizer whose codes are the picture's mean colour by quarters, and that fades what it decodes."""

    name, step, batch_size = "blur", 7, 4

    def __init__(self, side, supervision="dual"):
        config = tiny_config().model
        siglip = dataclasses.replace(config.siglip, image_size=side, patch_size=side // 2)
        self.image_size, self.model = side, dataclasses.replace(config, siglip=siglip, supervision=supervision)
        self.decoded = []

    def encode(self, images):
        self.images = images
        cells = images.reshape(len(images), 2, self.image_size // 2, 2, -1, 3).mean(axis=(2, 4)).astype(int) // 4
        return Codes(cells[..., :2], cells[..., [0, 1, 2]])

    def decode_float(self, codes):
        faded = (self.images.astype(np.float32) * 0.9 + 3.3) / 127.5 - 1
        self.decoded.append(faded)
        return faded

    def embed_image(self, images):
        return np.stack([images[..., channel].mean(axis=(1, 2)) for channel in range(3)], axis=1)

    def embed_text(self, texts):
        return np.array([[name in text for name in ("red", "green", "blue")] for text in texts], np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three colours of three pictures and one file that is none."""
    root, rng = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    for channel, name in enumerate(("a_red", "b_green", "c_blue")):
        (root / name).mkdir()
        for number, size in enumerate(((70, 64), (64, 90), (33, 40))):
            pixels = rng.integers(0, 120, (*size, 3))
            pixels[..., channel] += 100
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{number}.png")
    (root / "b_green" / "broken.jpg").write_bytes(b"no picture")
    return root


PROMPTS = imagenet.Prompts(("red", "green", "blue"), ("a {} picture", "the {} thing."))


def measure(folder, side, protocol, **weights):
    tokenizer, problems = Blur(side), []
    source, weights = Folder(folder, "all"), protocols.Weights(**weights)
    results = protocols.measure_protocol(tokenizer, source, protocol, weights, problems.append)
    return results, tokenizer, problems


def test_official_truncates_writes_jpeg_and_resizes_as_clean_fid(folder):
    features = Colours()
    results, tokenizer, problems = measure(folder, 64, protocols.OFFICIAL, inception=features)
    assert results["images"] == 9 and results["unusable_images"] == 1
    assert len(problems) == 1 and "broken.jpg: not-an-image" in problems[0]
    faded = (np.concatenate(tokenizer.decoded) + 1) * np.float32(127.5)
    originals = np.round((faded - 3.3) / 0.9)
    inputs, outputs = (np.concatenate(features.seen[side::2]) for side in (0, 1))
    for seen, values in ((inputs, originals), (outputs, faded)):
        for pixels, image in zip(seen, values, strict=True):
            buffer = io.BytesIO()
            Image.fromarray(np.floor(image).astype(np.uint8)).save(buffer, "JPEG", quality=95, subsampling=2)
            np.testing.assert_array_equal(pixels, clean_bicubic(np.asarray(Image.open(buffer))))
    statistics = [FeatureStatistics.empty(8), FeatureStatistics.empty(8)]
    for part, seen in zip(statistics, (inputs, outputs), strict=True):
        part.add(Colours()(seen), np.ones(9))
    assert results["frechet_inception"] == pytest.approx(frechet_distance(*statistics), rel=1e-6)


def test_jpeg_is_quality_95_with_halved_colours():
    values = np.random.default_rng(0).uniform(0, 255, (32, 32, 3)).astype(np.float32)
    buffer = io.BytesIO()
    Image.fromarray(values.astype(np.uint8)).save(buffer, "JPEG", quality=95, subsampling=2)  # 2 is 4:2:0
    np.testing.assert_array_equal(through_jpeg(values), np.asarray(Image.open(buffer)))
    whole = through_jpeg(np.full((16, 16, 3), 99.9, np.float32))
    assert (whole == 99).all()  # truncated, not rounded


def test_adm_rounds_and_does_not_encode(folder):
    features = Colours()
    results, tokenizer, _ = measure(folder, 256, protocols.ADM, inception=features)
    faded = np.concatenate(tokenizer.decoded)
    expected = np.stack([tensorflow_bilinear(np.round((x + 1) * 127.5).astype(np.uint8)) for x in faded])
    np.testing.assert_array_equal(np.concatenate(features.seen[1::2]), expected)
    with pytest.raises(ConfigError, match="'adm' is defined at 256 px, and blur works at 64 px.*--protocol=official"):
        measure(folder, 64, protocols.ADM)


def test_plain_figures_are_those_of_the_unrounded_pictures(folder):
    results, tokenizer, _ = measure(folder, 64, protocols.OFFICIAL, prompts=PROMPTS)
    faded = (np.concatenate(tokenizer.decoded) + 1) / 2
    originals = (faded * 255 - 3.3) / 0.9 / 255
    for name in ("psnr", "ssim", "l1"):
        expected = np.mean(getattr(metrics, name)(originals.astype(np.float32), faded))
        assert results[name] == pytest.approx(float(expected), rel=1e-4), name
    assert results["bits_per_pixel"] == 4 * 2 * 6 / 64**2 and results["bits_per_pixel_all"] == 4 * 5 * 6 / 64**2
    assert results["zero_shot_top1"] == results["zero_shot_top5"] == 1 and results["zero_shot_classes"] == 3
    assert "frechet_inception" not in results and "lpips" not in results


def test_codebook_use_counts_every_depth():
    use, codes = protocols.CodeUse(Blur(64).model), np.random.default_rng(0).integers(0, 64, (9, 2, 2, 5))
    for batch in np.split(codes, [4, 8]):
        use.add(Codes(batch[..., :2], batch[..., 2:]))
    results = use.results()
    for branch, found in (("pixel", codes[..., :2]), ("semantic", codes[..., 2:])):
        counts = [np.bincount(found[..., depth].ravel(), minlength=64) for depth in range(found.shape[-1])]
        assert codebook_use(branch, np.array(counts), shared=True).items() <= results.items()


def test_lpips_joins_the_figures(folder, monkeypatch):
    config = VggConfig(widths=(4, 4), depths=(1, 1))
    monkeypatch.setattr(similarity, "Lpips", lambda rngs: Lpips(config, rngs=rngs))
    params = init_params(similarity.Lpips, jax.random.key(0))
    results, tokenizer, _ = measure(folder, 16, protocols.OFFICIAL, lpips=params)
    decoded = np.concatenate(tokenizer.decoded)
    originals = ((decoded + 1) * 127.5 - 3.3) / 0.9 / 127.5 - 1
    distance = jax.jit(lambda params, x, y: bind(definition(similarity.Lpips), params)(x, y))
    expected = distance(params, originals.astype(np.float32), decoded)
    assert results["lpips"] == pytest.approx(float(expected.mean()), rel=1e-3) and results["lpips"] > 0


def test_a_model_without_decoder_is_measured_by_its_codes(folder):
    blur = Blur(64, "semantic_only")
    weights = protocols.Weights(Colours(), None, PROMPTS)
    results = protocols.measure_protocol(blur, Folder(folder, "all"), protocols.OFFICIAL, weights, lambda problem: None)
    assert results["zero_shot_top1"] == 1 and "codebook_use_semantic" in results
    assert not {"psnr", "frechet_inception", "bits_per_pixel"} & results.keys()
    assert any("no decoder" in note for note in protocol_report.caveats(results, protocols.OFFICIAL, PROMPTS))


def test_no_usable_picture_is_an_error(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="none of the 1 pictures"):
        measure(tmp_path, 64, protocols.OFFICIAL)


def test_only_fifty_thousand_pictures_make_an_rfid():
    results = {"images": 50_000, "unusable_images": 0, "rfid": 1.0, "psnr": 20.0}
    assert protocols.distance_name(50_000) == "rfid"
    assert not list(protocol_report.caveats(results, protocols.OFFICIAL, None))
    assert protocol_report.named(results, protocols.ADM)["rfid_adm"] == 1.0
    for images, expected in ((49_999, 1), (2049, 1), (2048, 2)):
        assert protocols.distance_name(images) == "frechet_inception"
        fewer = {"images": images, "unusable_images": 0, "frechet_inception": 1.0, "psnr": 20.0}
        notes = list(protocol_report.caveats(fewer, protocols.OFFICIAL, None))
        assert len(notes) == expected and "not the published rFID" in notes[0] and f"{images:,}" in notes[0]


def test_a_limit_takes_pictures_of_every_class(folder):
    source = spread(Folder(folder, "all"), 5)
    labels = [example.label for example in source.read(np.arange(5))]
    assert len(source) == 5 and set(labels) == {0, 1, 2} and source.class_names == ("a_red", "b_green", "c_blue")
    assert len(spread(source, 100)) == 5 and isinstance(source.read(np.array([4]))[0], Example)


@pytest.mark.parametrize(
    "text, message",
    [
        ("no json", "is no JSON file"),
        ("[1, 2]", "must hold"),
        ('{"classes": ["a"]}', "must hold"),
        ('{"classes": ["a", 2], "templates": ["{}"]}', "must hold"),
        ('{"classes": ["a"], "templates": []}', "must hold"),
        ('{"classes": ["a"], "templates": ["a photo"]}', "unlike 'a photo'"),
    ],
)
def test_class_files_of_another_kind_are_refused(text, message, tmp_path):
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / "classes.json")


def test_class_names_must_fit_the_labels():
    imagenet.check_labels(PROMPTS, ("n01", "n02", "n03"), "DIR")
    with pytest.raises(ValueError, match=r"DIR has 2 labels \(n01 … n02\), and --classes names 3 \(red … blue\)"):
        imagenet.check_labels(PROMPTS, ("n01", "n02"), "DIR")
    with pytest.raises(ValueError, match="DIR has no labels"):
        imagenet.check_labels(PROMPTS, (), "DIR")


def captions(tmp_path, lines="r.png#0\ta red one\nr.png#1\tvery red\ng.png#0\tgreen\nx.png#0\tblue\n"):
    (tmp_path / "tokens.txt").write_text(lines)
    return tmp_path / "tokens.txt"


def test_retrieval_both_ways_with_several_captions(tmp_path):
    for name, colour in (("r", (200, 10, 20)), ("g", (10, 200, 20))):
        Image.new("RGB", (40, 40), colour).save(tmp_path / f"{name}.png")
    found, problems = retrieval.read_captions(captions(tmp_path)), []
    assert found == {"r.png": ["a red one", "very red"], "g.png": ["green"], "x.png": ["blue"]}
    results = retrieval.retrieval(Blur(64), found, tmp_path, problems.append)
    assert results == {
        "flickr8k_image_to_text_r1": 1, "flickr8k_text_to_image_r1": 1, "flickr8k_images": 2, "flickr8k_captions": 3,
    }  # fmt: skip
    assert len(problems) == 1 and "x.png" in problems[0]
    with pytest.raises(ValueError, match="none of the 1 pictures"):
        retrieval.retrieval(Blur(64), {"x.png": ["blue"]}, tmp_path, problems.append)


def test_a_split_chooses_the_pictures(tmp_path):
    (tmp_path / "split.txt").write_text("x.png\nr.png\n")
    assert list(retrieval.read_captions(captions(tmp_path), tmp_path / "split.txt")) == ["x.png", "r.png"]
    (tmp_path / "split.txt").write_text("x.png\ny.png\n")
    with pytest.raises(ValueError, match="1 of 2 names have no captions.*y.png"):
        retrieval.read_captions(captions(tmp_path), tmp_path / "split.txt")
    with pytest.raises(ValueError, match="line 2: expected NAME.jpg#0<TAB>caption, found 'b.png red'"):
        retrieval.read_captions(captions(tmp_path, "a.png#0\tred\nb.png red\n"))
    with pytest.raises(ValueError, match="holds no captions"):
        retrieval.read_captions(captions(tmp_path, "\n"))


def test_decode_rounds_what_decode_float_gives(tokenizer_workdir):
    tokenizer = dualtoken_jax.load(tokenizer_workdir)
    codes = tokenizer.encode(np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8))
    exact = (tokenizer.decode_float(codes) + 1) * 127.5
    assert exact.dtype == np.float32 and 0 <= exact.min() and exact.max() <= 255
    assert np.abs(tokenizer.decode(codes) - exact).max() <= 0.5 and (exact % 1 != 0).mean() > 0.5


def run(*flags):
    evaluate.main([str(flag) for flag in flags])


def failure(*flags):
    with pytest.raises(SystemExit) as stop:
        run(*flags)
    return str(stop.value)


def test_the_command_measures_the_runs_own_split(tokenizer_workdir, capsys):
    run(f"--workdir={tokenizer_workdir}", "--protocol=official", "--batch_size=8")
    printed = capsys.readouterr().out
    own = json.loads((tokenizer_workdir / "evaluation.json").read_text())
    written = json.loads((tokenizer_workdir / "evaluation_official.json").read_text())
    results = written["results"]
    assert all(name.endswith("_official") for name in results)
    assert results["images_official"] == own["examples"] == 64
    for name in ("psnr", "ssim", "l1", "bits_per_pixel", "bits_per_pixel_all", "codebook_perplexity_pixel"):
        assert results[f"{name}_official"] == pytest.approx(own[name], rel=2e-3), name
        assert f"{name}_official" in printed
    assert written["model"] == "demo" and written["step"] == 2 and written["pixels"] == 16
    for wanted in ("pt_inception-2015-12-05-6726825d.pth", "SHA-256 begins with 6726825d", "vgg16-397923af.pth"):
        assert wanted in printed and wanted in "".join(written["left_out"])


def test_the_command_names_a_missing_weight_file_and_computes_the_rest(tokenizer_workdir, folder, tmp_path, capsys):
    (tmp_path / "classes.json").write_text(json.dumps({name: list(items) for name, items in PROMPTS._asdict().items()}))
    files = (f"--inception={tmp_path / 'gone.pth'}", f"--classes={tmp_path / 'classes.json'}")
    output, flickr = (
        tmp_path / "new" / "out.json",
        (f"--retrieval={captions(tmp_path)}", f"--retrieval_images={folder}"),
    )
    run_on = (f"--workdir={tokenizer_workdir}", "--protocol=official", f"--images={folder}", "--batch_size=8")
    assert "holds none of the 3 pictures" in failure(*run_on, *flickr)
    assert "something that was asked for is left out" in failure(*run_on, *files, f"--output={output}")
    printed = capsys.readouterr()
    assert f"there is no file {tmp_path / 'gone.pth'}" in printed.err and "broken.jpg" in printed.err
    assert "1 of 10 pictures could not be used" in printed.out
    results = json.loads(output.read_text())["results"]
    assert results["images_official"] == 9 and 0 <= results["zero_shot_top1_official"] <= 1
    assert results["zero_shot_top5_official"] == 1  # of three classes


def test_the_command_refuses_what_cannot_be(tokenizer_workdir, folder, tmp_path, capsys):
    official = (f"--workdir={tokenizer_workdir}", "--protocol=official")
    (tmp_path / "wrong.safetensors").write_bytes(b"12345678")
    for flags, message in (
        ([*official, f"--images={tmp_path / 'gone'}"], "there is no image folder"),
        ([*official, f"--images={tmp_path}"], "holds no pictures"),
        ([*official, f"--images={folder}", f"--inception={tmp_path / 'wrong.safetensors'}"], "damaged"),
        ([*official, f"--images={folder}", f"--classes={tmp_path / 'gone.json'}"], "no such file.*open_clip"),
        ([f"--workdir={tmp_path}", "--protocol=official"], "is no run with pictures of its own.*--images=DIR"),
        ([f"--workdir={tokenizer_workdir}", "--protocol=adm"], "'adm' is defined at 256 px"),
    ):
        assert re.search(message, failure(*flags), re.DOTALL), flags
    for flags, message in (
        ([f"--workdir={tokenizer_workdir}", f"--images={folder}"], "--images needs --protocol=official|adm"),
        ([*official, "--retrieval=x"], "--retrieval_images=DIR go together"),
        ([*official, "--limit=0"], "'0' must be an integer of at least 1"),
    ):
        assert failure(*flags) == "2" and message in capsys.readouterr().err, flags


@pytest.fixture
def flickr(folder, tmp_path):
    """Flags for two pictures with captions, and class names."""
    (tmp_path / "classes.json").write_text(json.dumps(PROMPTS._asdict()))
    tokens = captions(tmp_path, "a_red/0.png#0\tred\nb_green/0.png#0\tgreen\n")
    return f"--retrieval={tokens}", f"--retrieval_images={folder}", f"--classes={tmp_path / 'classes.json'}"


def test_a_model_without_texts_is_measured_by_the_rest(tokenizer_workdir, folder, flickr, tmp_path, capsys):
    export.main([f"--workdir={tokenizer_workdir}", f"--output={tmp_path / 'out'}", "--format=huggingface",
                 "--without_text"])  # fmt: skip
    assert not dualtoken_jax.load(tmp_path / "out").embeds_text
    message = failure(f"--workdir={tmp_path / 'out'}", "--protocol=official", f"--images={folder}", *flickr)
    written = json.loads((tmp_path / "out" / "evaluation_official.json").read_text())
    assert "left out" in message and written["results"]["images_official"] == 9
    assert protocol_run.NO_TEXTS in written["left_out"] and "--text_tokenizer=FILE" in capsys.readouterr().out
    assert not any(name.startswith(("zero_shot", "flickr8k")) for name in written["results"])


def test_figures_survive_a_retrieval_that_fails(tokenizer_workdir, folder, flickr, tmp_path, monkeypatch):
    output, retrieve, before = tmp_path / "out.json", protocol_run.retrieval, []

    def unreadable(tokenizer, captions, images, report):
        before.append(json.loads(output.read_text()))
        return retrieve(tokenizer, captions, tmp_path, report)

    flags = (f"--workdir={tokenizer_workdir}", "--protocol=official", f"--images={folder}", f"--output={output}")
    run(*flags, *flickr)
    assert json.loads(output.read_text())["results"]["flickr8k_images_official"] == 2
    output.unlink()
    monkeypatch.setattr(protocol_run, "retrieval", unreadable)
    assert "left out" in failure(*flags, *flickr)
    after = json.loads(output.read_text())
    assert after["results"] == before[0]["results"] and "zero_shot_top1_official" in after["results"]
    assert "retrieval: none of the 2 pictures" in after["left_out"][-1]


@pytest.mark.slow
def test_the_command_with_inception(tokenizer_workdir, folder, tmp_path):
    import safetensors.numpy

    safetensors.numpy.save_file(random_state(), tmp_path / "inception.safetensors")
    weights, output = f"--inception={tmp_path / 'inception.safetensors'}", tmp_path / "out.json"
    run(f"--workdir={tokenizer_workdir}", "--protocol=official", f"--images={folder}", weights, f"--output={output}")
    written = json.loads(output.read_text())
    assert written["results"]["frechet_inception_official"] > 0 and len(written["notes"]) == 3
