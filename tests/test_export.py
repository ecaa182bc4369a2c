"""Exports: both formats read back bit for bit, and opened by transformers as a stranger would."""

import dataclasses
import gzip
import io
import json

import jax
import numpy as np
import pytest
from conftest import tiny_config
from PIL import Image
from released_record import CONFIG, DATA, weights

from dualtoken_jax import export, loop, sharding
from dualtoken_jax.checkpoint import Checkpoints
from dualtoken_jax.frozen_weights import save_frozen
from dualtoken_jax.interop.files import WeightFileError, read_tensors
from dualtoken_jax.interop.huggingface import read_export
from dualtoken_jax.interop.output import new_folder, write_safetensors
from dualtoken_jax.interop.released import import_released, import_siglip
from dualtoken_jax.interop.released_config import read_released_config, released_config_json
from dualtoken_jax.interop.released_files import read_released, write_released
from dualtoken_jax.models.decoder import DecoderConfig
from dualtoken_jax.models.dualtoken import DualTokenConfig
from dualtoken_jax.models.siglip import SiglipConfig
from dualtoken_jax.pretrained import open_workdir
from dualtoken_jax.tasks import make_task
from dualtoken_jax.workdir import claim_workdir


def run(workdir, output, *flags) -> None:
    export.main([f"--workdir={workdir}", f"--output={output}", *flags])


def assert_bitwise(ours, theirs) -> None:
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


# --- Hugging Face


@pytest.fixture(scope="module")
def before(tokenizer_workdir):
    """What is exported."""
    return open_workdir(tokenizer_workdir)


@pytest.fixture(scope="module")
def raw_export(tokenizer_workdir, tmp_path_factory):
    """The export of the weights that were not evaluated."""
    output = tmp_path_factory.mktemp("export") / "raw"
    run(tokenizer_workdir, output, "--format=huggingface", "--weights=raw", "--without_text")
    return output


def test_huggingface_round_trip_is_bitwise(tokenizer_workdir, before, exported, raw_export):
    found = read_export(exported)
    assert len(list(exported.glob("model-*.safetensors"))) > 2
    assert_bitwise(found.tree, jax.device_get(before.tree))
    assert (found.model, found.name, found.step) == (before.model, before.name, before.step)
    assert found.words == before.text_tokenizer.words and found.text_tokenizer == ""
    raw = read_export(raw_export)
    expected = jax.device_get(open_workdir(tokenizer_workdir, "raw").tree)
    assert raw.tree.keys() == {"params", "codebooks"} and raw.words is None and raw.text_tokenizer == ""
    assert_bitwise(raw.tree, {name: expected[name] for name in raw.tree})
    assert not np.array_equal(
        raw.tree["params"]["vision"]["norm"]["bias"], found.tree["params"]["vision"]["norm"]["bias"]
    )
    assert [file.name for file in raw_export.glob("*.safetensors")] == ["model.safetensors"]


def test_a_card_has_no_figures_of_other_weights_or_steps(tokenizer_workdir, raw_export):
    measured = json.loads((tokenizer_workdir / "evaluation.json").read_text())
    assert (measured["step"], measured["weights"]) == (2, "ema")
    card = (raw_export / "README.md").read_text()
    assert "weights of the last step" in card and "These weights were not evaluated" in card and "| psnr |" not in card
    assert "psnr" in export._results(tokenizer_workdir, 2, "ema")
    assert export._results(tokenizer_workdir, 3, "ema") is export._results(tokenizer_workdir, 2, "raw") is None


def test_the_card_tells_the_recipe_and_what_was_measured(tokenizer_workdir, exported):
    card, results = (
        (exported / "README.md").read_text(),
        json.loads((tokenizer_workdir / "evaluation.json").read_text()),
    )
    assert f"| psnr | {results['psnr']:.4g} |" in card and "after 2 steps, moving average of the weights" in card
    assert '"hidden_mse": 5.0' in card and "configs/tokenizer.py:demo" in card
    assert str(tokenizer_workdir.parent) not in card


@pytest.fixture(scope="module")
def transformers(tmp_path_factory):
    """The library, which keeps the export's code in a folder of its own and reaches no network."""
    import torch_packages

    library = torch_packages.imported("transformers")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("code")))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield library


def test_transformers_opens_the_export(before, exported, transformers):
    import torch

    from dualtoken_jax.api import ImageTokenizer

    ours = ImageTokenizer(before, batch_size=8)
    pictures = list(np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8))
    model = transformers.AutoModel.from_pretrained(exported, trust_remote_code=True).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(exported, trust_remote_code=True)
    inputs = processor(pictures, return_tensors="pt").pixel_values
    codes, expected = model.encode(inputs), ours.encode(pictures)
    np.testing.assert_array_equal(codes.pixel, expected.pixel)
    np.testing.assert_array_equal(codes.semantic, expected.semantic)
    images = ((model.decode(codes.pixel).clamp(-1, 1) + 1) * 127.5).round().numpy().transpose(0, 2, 3, 1)
    assert np.abs(images - ours.decode(expected)).max() <= 1  # of 255, where rounding meets a half
    np.testing.assert_allclose(model.embed_image(inputs), ours.embed_image(pictures), atol=1e-5)
    texts = ["A red circle!", "zwölf Boxkämpfer", ""]
    np.testing.assert_array_equal(model.tokenize(texts), ours._text_tokenizer.encode(texts))
    np.testing.assert_allclose(model.embed_text(model.tokenize(texts)), ours.embed_text(texts), atol=1e-5)

    rough = transformers.AutoModel.from_pretrained(exported, trust_remote_code=True, dtype=torch.bfloat16).eval()
    assert rough.dtype == torch.bfloat16 and rough.quantizer_pix.codebooks[0].weight.dtype == torch.float32
    assert torch.equal(rough.quantizer_pix.codebooks[0].weight, model.quantizer_pix.codebooks[0].weight)
    assert torch.isfinite(rough.decode(rough.encode(inputs).pixel)).all()


def test_the_image_processor_reads_pictures_as_decode_does(transformers):
    from dualtoken_jax.data.images import decode
    from dualtoken_jax.interop.torch_images import DualTokenImageProcessor

    rng = np.random.default_rng(0)
    grey, rgba = rng.integers(0, 2**16, (16, 16), np.uint16), rng.integers(0, 256, (16, 16, 4), np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    for picture, options in (
        (Image.fromarray(grey), {}),
        (Image.fromarray(rgba), {}),
        (Image.fromarray(rgba).convert("RGB"), {"exif": turned}),
        (Image.fromarray(rgba).convert("P"), {"transparency": 3}),
    ):
        file = io.BytesIO()
        picture.save(file, "PNG", **options)
        found = DualTokenImageProcessor({"height": 16, "width": 16})(Image.open(file), return_tensors="np")
        expected = decode(file.getvalue()) / 127.5 - 1
        np.testing.assert_allclose(found["pixel_values"][0].transpose(1, 2, 0), expected, atol=1e-6)
    with pytest.raises(TypeError, match="crop_size"):
        DualTokenImageProcessor()


@pytest.mark.parametrize("height, width", [(16, 16), (40, 31), (33, 50), (17, 61), (200, 90)])
def test_the_image_processor_prepares_as_evaluation_does(exported, transformers, height, width):
    from dualtoken_jax.data.images import resize_crop

    picture = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    expected = resize_crop(picture, 16, None) / 127.5 - 1
    ours = transformers.AutoImageProcessor.from_pretrained(exported, trust_remote_code=True)
    np.testing.assert_allclose(ours(picture).pixel_values[0].permute(1, 2, 0), expected, atol=1e-6)
    theirs = transformers.AutoImageProcessor.from_pretrained(exported, backend="pil")
    assert type(theirs).__name__.startswith("CLIPImageProcessor")
    side = max(height, width) * 16 // min(height, width)
    if (side - 16) % 4 != 3:  # else the corner of its crop is one pixel off
        found = theirs(picture, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        assert np.abs(found - expected).max() <= 2 / 255 + 1e-6  # 1 of 255 levels


# --- the released code's format


@pytest.fixture(scope="module")
def released():
    """The recorded miniature: its tree and its teacher's parameters."""
    return import_released(weights("model"), CONFIG), import_siglip(weights("teacher"), CONFIG.siglip)


@pytest.mark.parametrize("file", ["safetensors", "pt"])
@pytest.mark.parametrize("text", [True, False])
def test_released_round_trip_is_bitwise(released, tmp_path, file, text):
    if file == "pt":
        pytest.importorskip("torch")
    tree, siglip = released
    tree = tree if text else {name: tree[name] for name in ("params", "codebooks")}
    write_released(tmp_path, CONFIG, tree, siglip, "tiny", "", file)
    config, found = read_released(tmp_path)
    assert config == CONFIG
    assert_bitwise(found, tree)
    single = next(path for path in tmp_path.iterdir() if path.suffix in (".pt", ".safetensors"))
    assert_bitwise(read_released(single, tmp_path / "config.json")[1], tree)
    names = {
        name for name in weights("model") if text or not name.startswith(("siglip_model.text", "siglip_model.logit"))
    }
    assert read_tensors(single).keys() == names
    teacher = {name for name in weights("teacher") if text or name.startswith("vision_model.")}
    assert read_tensors(tmp_path / "siglip" / "model.safetensors").keys() == teacher


WORDS = 400  # ids, enough for the scenes' words
ROOMY = dataclasses.replace(CONFIG, siglip=dataclasses.replace(CONFIG.siglip, vocabulary=WORDS))


@pytest.fixture(scope="module")
def released_workdir(released, tmp_path_factory):
    """A run that holds the recorded miniature, with settings that its format has no place for."""
    workdir, (tree, siglip) = tmp_path_factory.mktemp("runs") / "released", released
    words = np.pad(siglip["text"]["token_embedding"], ((0, WORDS - CONFIG.siglip.vocabulary), (0, 0)))
    siglip = siglip | {"text": siglip["text"] | {"token_embedding": words}}
    semantic = dataclasses.replace(CONFIG.semantic, codebook_update="per_step", restart_threshold=2.0)
    config = tiny_config()
    train, model = dataclasses.replace(config.train, ema_decay=None), dataclasses.replace(ROOMY, semantic=semantic)
    config = dataclasses.replace(config, model=model, train=train)
    claim_workdir(config, workdir)
    save_frozen(workdir, {"siglip": siglip})
    mesh, checkpoints = sharding.make_mesh(config.mesh), Checkpoints(workdir)
    begin = {name: tree[name] for name in ("params", "codebooks")}
    with jax.set_mesh(mesh):
        state, _ = loop.start_state(make_task(config), config, mesh, checkpoints, {"siglip": siglip}, begin)
        checkpoints.save(state, {})
    checkpoints.close()
    return workdir, siglip


def test_the_command_writes_the_released_format(released, released_workdir, tmp_path, capsys):
    workdir, siglip = released_workdir
    run(workdir, tmp_path / "out", "--format=released")
    printed = capsys.readouterr().out
    config, found = read_released(tmp_path / "out")
    assert config == ROOMY
    assert_bitwise(found, {name: released[0][name] for name in ("params", "codebooks")} | {
        name: siglip[name] for name in ("text", "logit_scale", "logit_bias")
    })  # fmt: skip
    assert "note: semantic.codebook_update 'per_step' is written as rq_ema" in printed
    assert "note: semantic.restart_threshold 2 has no place" in printed and "note: pixel" not in printed


@pytest.mark.parametrize("flags", ["--format=huggingface --file=pt", "--format=released --max_shard_gb=1"])
def test_a_flag_of_the_other_format_is_refused(flags, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(tmp_path, tmp_path / "out", *flags.split())
    assert " is of --format=" in capsys.readouterr().err


def test_an_unknown_kind_of_quantizer_is_named(tmp_path):
    found = json.loads((DATA / "config.json").read_text())
    found["rqvaesiglip"]["vq_pix"]["bottleneck_type"] = "lfq"
    (tmp_path / "config.json").write_text(json.dumps(found))
    with pytest.raises(ValueError, match="vq_pix.bottleneck_type is 'lfq', not one of rq, rq_ema"):
        read_released_config(tmp_path / "config.json", {})


def test_a_released_pt_is_what_its_code_reads(released, tmp_path):
    torch = pytest.importorskip("torch")
    write_released(tmp_path, CONFIG, *released, "tiny", "", "pt")
    found = torch.load(tmp_path / "epoch_0.pt", weights_only=True)
    assert found.keys() == {"epoch", "name", "state_dict"} and found["name"] == "tiny"
    for name, tensor in weights("model").items():
        assert torch.equal(found["state_dict"][name], torch.from_numpy(tensor)), name


def test_siglip_of_a_released_export_is_one_of_transformers(released, tmp_path, transformers):
    import torch

    write_released(tmp_path, CONFIG, *released, "tiny", "", "safetensors")
    siglip = transformers.SiglipModel.from_pretrained(tmp_path / "siglip")
    for name, tensor in weights("teacher").items():
        assert torch.equal(siglip.state_dict()[name], torch.from_numpy(tensor)), name


def test_the_recorded_config_is_read_and_written():
    assert read_released_config(DATA / "config.json", {}) == CONFIG
    theirs, ours = json.loads((DATA / "config.json").read_text()), released_config_json(CONFIG, "tiny_siglip")
    for config in (ours, theirs):  # which of its layers are recomputed is no part of an architecture
        del config["rqvaesiglip"]["checkpointing"]
    del theirs["transformers_version"], theirs["rqvaesiglip"]["transformers_version"], theirs["_name_or_path"]
    assert ours == theirs


@pytest.mark.parametrize("resolution, patch, depth", [(384, 14, 8), (256, 16, 4)])
def test_architecture_from_the_published_shapes(tmp_path, resolution, patch, depth):
    grid = resolution // 16
    quantizers = {
        name: dataclasses.replace(getattr(CONFIG, name), codes=16384, width=32, depth=depth)
        for name in ("pixel", "semantic")
    }
    config = DualTokenConfig(
        siglip=SiglipConfig(resolution, patch, vocabulary=256_000),
        decoder=DecoderConfig(latent_grid=grid, attention_grids=(grid,)),
        **quantizers,
    )
    (tmp_path / "config.json").write_text(json.dumps(released_config_json(config, "not_there")))
    tensors = {}
    for line in gzip.decompress((DATA / f"names_{resolution}.txt.gz").read_bytes()).decode().splitlines():
        name, *shape = line.split()
        tensors[name] = np.broadcast_to(np.float32(0), [int(side) for side in shape])
    assert read_released_config(tmp_path / "config.json", tensors) == config


# --- errors


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(tokenizer_workdir, tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").write_text("mine")
    for flags, message in (
        ((tokenizer_workdir / "teacher", tmp_path / "a", "--format=huggingface"), "holds a contrastive run"),
        (
            (tokenizer_workdir, tmp_path / "a", "--format=released"),
            "only projection 'attention', not 'linear', .* a shortcut",
        ),
        ((tokenizer_workdir, full, "--format=huggingface"), "exists and is not empty; choose another --output"),
        ((tmp_path / "nowhere", tmp_path / "a", "--format=released"), "is no workdir"),
    ):
        with pytest.raises(SystemExit, match=message):
            run(*flags)
    assert [path.name for path in tmp_path.iterdir()] == ["full"] and (full / "file").read_text() == "mine"


def test_a_half_written_folder_never_gets_its_name(tmp_path):
    with pytest.raises(RuntimeError, match="disk"), new_folder(tmp_path / "out") as folder:
        (folder / "half").write_text("")
        raise RuntimeError("disk")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out") as folder:
        (folder / "whole").write_text("")
    assert (tmp_path / "out" / "whole").exists()


def test_damaged_exports_are_named(exported, released, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        read_export(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    with pytest.raises(WeightFileError, match="'siglip', not 'dualtoken'"):
        read_export(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "dualtoken"}')
    with pytest.raises(WeightFileError, match="'architecture'"):
        read_export(tmp_path)
    with pytest.raises(FileNotFoundError, match="must hold"):
        read_released(tmp_path)
    write_safetensors(tmp_path / "model.safetensors", weights("model"))
    with pytest.raises(ValueError, match=r"config\.json of the released code: it has no 'ddconfig'"):
        read_released(tmp_path)
    found = json.loads((DATA / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(found))
    with pytest.raises(WeightFileError, match="width 64, and shapes do not tell its heads"):  # no tiny_siglip there
        read_released(tmp_path)
    found["rqvaesiglip"]["decoder_latent_shape"] = [8, 8]
    found["rqvaesiglip"]["pretrained_model"] = str(DATA / "tiny_siglip")
    (tmp_path / "config.json").write_text(json.dumps(found))
    with pytest.raises(ValueError, match="decoder_latent_shape is 8 a side.* need 16"):
        read_released(tmp_path)
