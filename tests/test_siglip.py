"""SigLIP weights of Hugging Face and of big_vision: every hidden state, other resolutions, and the errors."""

import dataclasses

import jax
import numpy as np
import pytest
from released_record import CONFIG, assert_close, jit, weights
from siglip_files import ATTENTION, TOWER_FIELDS, big_vision, random_params, write_config, write_huggingface
from torch_packages import imported as imported_package

from dualtoken_jax.interop import positions
from dualtoken_jax.interop.files import WeightFileError, read_tensors
from dualtoken_jax.interop.name_table import mismatches
from dualtoken_jax.interop.released import export_siglip, import_siglip, module_shapes
from dualtoken_jax.interop.released_names import siglip_table
from dualtoken_jax.interop.siglip import holds_siglip, load_siglip, read_siglip_config
from dualtoken_jax.models import bind, definition
from dualtoken_jax.models.siglip import Attention, Siglip, SiglipConfig, TowerConfig

# As in the giant size, the text tower is the narrower one and is projected to the images' width.
TINY = SiglipConfig(24, 8, TowerConfig(32, 3, 4, 48), TowerConfig(24, 2, 2, 40), vocabulary=50, text_length=6)
IMAGES = np.random.default_rng(0).uniform(-1, 1, (2, 24, 24, 3)).astype(np.float32)
IDS = np.random.default_rng(1).integers(0, 50, (3, 6)).astype(np.int32)


@pytest.fixture(scope="module")
def params():
    return random_params(TINY)


@pytest.fixture(scope="module")
def directory(params, tmp_path_factory):
    folder = tmp_path_factory.mktemp("huggingface")
    write_huggingface(folder, params, TINY)
    return folder


@pytest.fixture(scope="module")
def model(directory):
    """What transformers makes of the same directory."""
    return imported_package("transformers").SiglipModel.from_pretrained(directory).eval()


@pytest.fixture(scope="module")
def archive(params, tmp_path_factory):
    """The same weights as big_vision lays them out, one layer a name."""
    file = tmp_path_factory.mktemp("big_vision") / "siglip.npz"
    np.savez(file, **big_vision(params, TINY))
    return file


@jit
def forward(params, images, ids):
    """h_0 … h_L, the pooled images and the texts."""
    siglip = bind(definition(lambda rngs: Siglip(TINY, rngs)), params)
    hidden = [siglip.vision.embed(images)]
    for layer in range(TINY.vision.depth):
        hidden.append(siglip.vision.encoder(hidden[-1], layer, layer + 1))
    return hidden, siglip.vision.pool(hidden[-1]), siglip.text(ids)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_every_hidden_state_and_embedding_equals_transformers(model, directory):
    import torch

    params = load_siglip(directory, TINY)
    hidden, pooled, texts = forward(params, IMAGES, IDS)
    with torch.no_grad():
        pixels = torch.tensor(IMAGES.transpose(0, 3, 1, 2))
        theirs = model.vision_model(pixels, output_hidden_states=True)
        text = model.text_model(torch.tensor(IDS, dtype=torch.long)).pooler_output
    assert len(hidden) == len(theirs.hidden_states) == TINY.vision.depth + 1
    for layer, (ours, expected) in enumerate(zip(hidden, theirs.hidden_states, strict=True)):
        assert_close(ours, expected, f"siglip h_{layer}")
    assert_close(pooled, theirs.pooler_output, "siglip pooled")
    assert_close(texts, text, "siglip text")
    for name in ("logit_scale", "logit_bias"):
        np.testing.assert_array_equal(params[name], getattr(model, name).detach())


@pytest.mark.parametrize(("shard", "least"), [("30KB", 3), ("1GB", 1)])
def test_what_transformers_saves_is_read_in_one_piece_or_several(shard, least, model, params, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert len(list(tmp_path.glob("*.safetensors"))) >= least
    assert read_siglip_config(tmp_path) == TINY
    assert_same(load_siglip(tmp_path, TINY), params)


def test_the_released_teacher_s_directory(tmp_path):
    """Its config.json was written by transformers 4.44 and names few fields."""
    from safetensors.numpy import save_file

    save_file(weights("teacher"), tmp_path / "model.safetensors")
    tower = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    vision = {**tower, "image_size": 32, "num_hidden_layers": 4, "patch_size": 4}
    text = {**tower, "max_position_embeddings": 8, "num_hidden_layers": 2, "vocab_size": 100}
    write_config(tmp_path, vision_config=vision, text_config=text)
    assert read_siglip_config(tmp_path) == CONFIG.siglip
    assert_same(load_siglip(tmp_path, CONFIG.siglip), import_siglip(weights("teacher"), CONFIG.siglip))


@pytest.mark.parametrize("scan", [False, True])
def test_big_vision_layouts_hold_the_same(scan, params, tmp_path):
    file = tmp_path / "siglip.npz"
    np.savez(file, **big_vision(params, TINY, scan))
    assert any("encoderblock/" in name for name in read_tensors(file)) == scan
    assert read_siglip_config(file) == TINY
    assert_same(load_siglip(file, TINY), params)


def test_big_vision_s_attention_computes_the_same_from_its_layout(params):
    """Its networks are built of flax.linen's attention, which says what each axis of a kernel means."""
    linen = pytest.importorskip("flax.linen")
    tensors = big_vision(params, TINY)
    x = np.random.default_rng(4).normal(size=(2, 9, 32)).astype(np.float32)
    prefix = f"params/img/MAPHead_0/{ATTENTION}/"
    theirs_params: dict = {}
    for name in (name for name in tensors if name.startswith(prefix)):
        module, leaf = name.removeprefix(prefix).split("/")
        theirs_params.setdefault(module, {})[leaf] = tensors[name]
    theirs = linen.MultiHeadDotProductAttention(num_heads=4).apply({"params": theirs_params}, x[:, :1], x)
    graphdef = definition(lambda rngs: Attention(32, 4, "plain", np.float32, rngs))
    ours = bind(graphdef, params["vision"]["head"]["attention"])(x[:, :1], x)
    assert_close(ours, theirs, "attention of linen")


def test_bfloat16_archives(params, tmp_path):
    import ml_dtypes

    tensors = {name: x.astype(ml_dtypes.bfloat16) for name, x in big_vision(params, TINY).items()}
    np.savez(tmp_path / "half.npz", **tensors)
    expected = jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16).astype(np.float32), params)
    assert_same(load_siglip(tmp_path / "half.npz", TINY), expected)


GRIDS = [(3, 5), (4, 7), (7, 4), (24, 16), (5, 5)]


@pytest.mark.parametrize(("old", "new"), GRIDS)
def test_resampled_positions_equal_torch_s(old, new):
    torch = pytest.importorskip("torch")
    table = np.random.default_rng(old).normal(size=(old * old, 6)).astype(np.float32)
    plane = torch.tensor(table).reshape(1, old, old, 6).permute(0, 3, 1, 2)
    for ours, mode, corners in ((positions.bicubic, "bicubic", False), (positions.bilinear, "bilinear", True)):
        theirs = torch.nn.functional.interpolate(plane, (new, new), mode=mode, align_corners=corners)
        theirs = theirs[0].permute(1, 2, 0).reshape(new * new, 6).numpy()
        np.testing.assert_allclose(ours(table, new), theirs, atol=1e-5)


@pytest.mark.parametrize("resample", [positions.bicubic, positions.bilinear])
def test_resampling_keeps_constants_and_the_grid_it_has(resample):
    np.testing.assert_allclose(resample(np.full((9, 4), 1.5, np.float32), 7), 1.5, atol=1e-6)
    table = np.random.default_rng(0).normal(size=(25, 4)).astype(np.float32)
    np.testing.assert_allclose(resample(table, 5), table, atol=1e-6)


def test_another_resolution_equals_transformers_own_resampling(model, directory, archive, params):
    import torch

    larger = dataclasses.replace(TINY, image_size=44)  # 5 × 5 patches, a remainder is cut off
    images = np.random.default_rng(3).uniform(-1, 1, (2, 44, 44, 3)).astype(np.float32)
    resampled = load_siglip(directory, larger)
    embed = jit(lambda p, x: bind(definition(lambda rngs: Siglip(larger, rngs)), p).vision.embed(x))
    with torch.no_grad():
        pixels = torch.tensor(images.transpose(0, 3, 1, 2))
        theirs = model.vision_model.embeddings(pixels, interpolate_pos_encoding=True)
    assert_close(embed(resampled, images), theirs, "siglip at another resolution")
    assert_same(resampled["vision"]["encoder"], params["vision"]["encoder"])
    theirs = positions.bilinear(params["vision"]["position_embedding"], 5)
    np.testing.assert_array_equal(load_siglip(archive, larger)["vision"]["position_embedding"], theirs)


def test_positions_that_are_no_square_are_refused():
    with pytest.raises(ValueError, match="10 position embeddings are no square grid"):
        positions.bicubic(np.zeros((10, 4)), 4)


# --- errors


@pytest.mark.parametrize("source", ["directory", "archive"])
def test_another_architecture_is_an_error_that_names_every_difference(source, request):
    wanted = dataclasses.replace(
        TINY,
        patch_size=6,
        vision=TowerConfig(64, 4, 8, 96),
        text=dataclasses.replace(TINY.text, heads=3),
        vocabulary=60,
        text_length=7,
    )
    with pytest.raises(WeightFileError, match="another SigLIP than model.siglip") as error:
        load_siglip(request.getfixturevalue(source), wanted)
    for line in (
        "patch_size: the file has 8, wanted 6",
        "vision.width: the file has 32, wanted 64",
        "vision.depth: the file has 3, wanted 4",
        "vision.heads: the file has 4, wanted 8",
        "vision.mlp_width: the file has 48, wanted 96",
        "text.heads: the file has 2, wanted 3",
        "vocabulary: the file has 50, wanted 60",
        "text_length: the file has 6, wanted 7",
    ):
        assert line in str(error.value)
    assert "text.width" not in str(error.value)


def test_missing_and_unexpected_tensors_are_listed_at_once(params, tmp_path):
    from safetensors.numpy import save_file

    tensors = export_siglip(params, TINY)
    del tensors["vision_model.post_layernorm.bias"], tensors["logit_bias"]
    tensors["text_model.head.weight"] = np.zeros((32, 25), np.float32)
    tensors["vision_model.lora.weight"] = np.zeros(3, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    text = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 40}
    text |= {"vocab_size": 50, "max_position_embeddings": 6, "projection_size": 32}
    vision = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
    write_config(tmp_path, vision_config={**vision, "image_size": 24, "patch_size": 8}, text_config=text)
    with pytest.raises(ValueError, match="4 problems") as error:
        load_siglip(tmp_path, TINY)
    for line in (
        "missing: vision_model.post_layernorm.bias (32,)",
        "missing: logit_bias (1,)",
        "unexpected: vision_model.lora.weight (3,)",
        "wrong shape: text_model.head.weight is (32, 25), expected (32, 24)",
    ):
        assert line in str(error.value)


def test_defaults_are_those_of_transformers(tmp_path):
    transformers = imported_package("transformers")
    write_config(tmp_path, vision_config={}, text_config=None)
    base, config = read_siglip_config(tmp_path), transformers.SiglipConfig()
    assert (base.image_size, base.patch_size) == (config.vision_config.image_size, config.vision_config.patch_size)
    assert (base.vocabulary, base.text_length) == (32_000, 64)
    for tower, theirs in ((base.vision, config.vision_config), (base.text, config.text_config)):
        assert (tower.width, tower.depth) == (theirs.hidden_size, theirs.num_hidden_layers)
        assert (tower.heads, tower.mlp_width) == (theirs.num_attention_heads, theirs.intermediate_size)


# Widths, depths, heads and MLPs of big_vision's `decode_variant`.
BASE, LARGE = TowerConfig(768, 12, 12, 3072), TowerConfig(1024, 24, 16, 4096)
SO400M, GIANT = TowerConfig(1152, 27, 16, 4304), TowerConfig(1536, 40, 16, 6144)


@pytest.mark.parametrize(
    ("size", "patch", "vision", "text", "vocabulary"),
    [
        (224, 16, BASE, BASE, 32_000),
        (512, 16, BASE, BASE, 256_000),
        (384, 16, LARGE, LARGE, 256_000),
        (384, 14, SO400M, SO400M, 32_000),
        (256, 16, SO400M, SO400M, 256_000),
        (384, 16, GIANT, SO400M, 256_000),
    ],
)
def test_every_published_size_has_the_names_and_shapes_of_transformers(size, patch, vision, text, vocabulary, tmp_path):
    transformers = imported_package("transformers")
    import torch

    tower = lambda t: dict(zip(TOWER_FIELDS, dataclasses.astuple(t), strict=True))  # noqa: E731
    theirs = transformers.SiglipConfig(
        vision_config={**tower(vision), "image_size": size, "patch_size": patch},
        text_config={**tower(text), "vocab_size": vocabulary, "projection_size": vision.width},
    )
    with torch.device("meta"):
        tensors = transformers.SiglipModel(theirs).state_dict()
    theirs.save_pretrained(tmp_path)
    config = read_siglip_config(tmp_path)
    assert config == SiglipConfig(size, patch, vision, text, vocabulary)
    # Zeros that take no memory.
    tensors = {name: np.broadcast_to(np.float32(0), tuple(tensor.shape)) for name, tensor in tensors.items()}
    assert mismatches(siglip_table(config), tensors, module_shapes(Siglip, config)) == []


def test_the_giant_size_projects_its_texts_to_the_images_width():
    config = SiglipConfig(384, 16, GIANT, SO400M, vocabulary=256_000)
    giant = definition(lambda rngs: Siglip(config, rngs))
    ids = jax.ShapeDtypeStruct((2, 64), np.int32)
    texts = jax.eval_shape(lambda params, ids: bind(giant, params).text(ids), module_shapes(Siglip, config), ids)
    assert texts.shape == (2, 1536)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model_type": "siglip2"}, "NaFlex.*siglip2-so400m-patch16-256"),
        ({"model_type": "clip"}, "type 'clip'; give a SigLIP with both towers"),
        ({"vision_config": {"hidden_act": "gelu"}}, "vision_config.hidden_act = 'gelu', not 'gelu_pytorch_tanh'"),
        ({"vision_config": {"vision_use_head": False}}, "vision_config.vision_use_head = False"),
        ({"text_config": {"layer_norm_eps": 1e-5}}, "text_config.layer_norm_eps = 1e-05"),
        ({"text_config": {"hidden_size": 512}}, "text width 512 is not projected to the vision's 768"),
        ({"text_config": {"projection_size": 512}}, "text_config.projection_size = 512, not 768"),
        ({"vision_config": {"image_size": [224, 448]}}, r"vision_config.image_size = \[224, 448\], not one number"),
    ],
)
def test_models_that_are_not_computed_are_refused(values, words, tmp_path):
    write_config(tmp_path, **values)
    assert holds_siglip(tmp_path)
    with pytest.raises(WeightFileError, match=words):
        read_siglip_config(tmp_path)


def test_what_is_no_siglip_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="there are no SigLIP weights at"):
        load_siglip(tmp_path / "nowhere", TINY)
    with pytest.raises(FileNotFoundError, match="has no config.json"):
        load_siglip(tmp_path, TINY)
    (tmp_path / "config.json").write_text('{"model_type"')
    with pytest.raises(WeightFileError, match="config.json is damaged"):
        load_siglip(tmp_path, TINY)
    np.savez(tmp_path / "vit.npz", **{"head/kernel": np.zeros(3)})
    with pytest.raises(WeightFileError, match="no SigLIP checkpoint of big_vision.*img.embedding.kernel.*head.kernel"):
        load_siglip(tmp_path / "vit.npz", TINY)
