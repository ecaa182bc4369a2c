import dataclasses
import itertools
import re

import numpy as np
import pytest

from dualtoken_jax.data import scene_captions, scene_rendering
from dualtoken_jax.data.scene_rendering import BACKGROUNDS, COLOURS, SIZES
from dualtoken_jax.data.scene_shapes import SHAPES
from dualtoken_jax.data.scenes import WORDS, Scenes, ScenesConfig

RECORDED = (5966966, 66312)


def scenes(split="train", seed=0, **settings) -> Scenes:
    return Scenes(ScenesConfig(**settings), seed=seed, split=split)


def words(text: str) -> list[str]:
    return text.replace(",", " ").split()


@pytest.fixture(scope="module")
def many():
    source = scenes(resolution=16)
    return source.read(np.arange(2000)), [source.describe(i) for i in range(2000)]


@pytest.mark.parametrize("resolution", [16, 32, 40])
def test_an_example_is_a_square_uint8_picture_a_caption_and_a_label(resolution):
    for example in scenes(resolution=resolution).read(np.arange(5)):
        assert example.image.shape == (resolution, resolution, 3)
        assert example.image.dtype == np.uint8
        assert isinstance(example.caption, str)
        assert example.label is None or isinstance(example.label, int)


@pytest.mark.parametrize("resolution", [32, 96])
def test_a_scene_is_bitwise_the_same_in_every_batch(resolution):
    source = scenes(resolution=resolution, difficulty=1.0)
    together = source.read(np.arange(70))
    order = np.random.default_rng(0).permutation(70)
    shuffled = scenes(resolution=resolution, difficulty=1.0).read(order)
    for position, index in enumerate(order):
        alone = source.read(np.array([index]))[0]
        for other in (shuffled[position], alone):
            np.testing.assert_array_equal(together[index].image, other.image)
            assert together[index][1:] == other[1:]


def test_the_bits_of_a_scene_never_change():
    """A recorded experiment depends on them: change the recorded sum only with a note in the results."""
    images = np.stack([example.image for example in scenes(seed=7).read(np.arange(100, 116))]).astype(np.int64)
    assert (images.sum(), (images * np.arange(images.size).reshape(images.shape)).sum() % 1_000_003) == RECORDED


def test_splits_seeds_and_indices_share_no_scene():
    sources = [scenes(split, seed) for seed in (0, 1) for split in ("train", "eval")]
    seen = {example.image.tobytes() for source in sources for example in source.read(np.arange(200))}
    assert len(seen) == 4 * 200
    keys = np.concatenate([source._draw(np.arange(5000)).keys for source in sources])
    assert len(np.unique(keys)) == len(keys)


def test_noise_is_white_across_pixels_channels_and_scenes():
    noise = scene_rendering._noise(scenes()._draw(np.arange(64)).keys, 32, np.float32(1)).astype(np.float64)
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01
    for axis in range(4):
        one, other = np.delete(noise, 0, axis), np.delete(noise, -1, axis)
        assert abs((one * other).mean()) < 0.01


def test_labels_are_for_single_scenes_and_agree_with_caption_and_truth(many):
    examples, truths = many
    names = Scenes.class_names
    assert len(set(names)) == 40
    for example, truth in zip(examples, truths, strict=True):
        assert (example.label is None) == (len(truth.objects) > 1)
        if example.label is not None:
            (thing,) = truth.objects
            assert names[example.label] == f"{thing.colour} {thing.shape}"
            assert names[example.label] in example.caption


def test_every_class_and_count_occurs_about_as_often_as_it_should(many):
    examples, truths = many
    labels = [example.label for example in examples if example.label is not None]
    assert len(set(labels)) == 40
    assert abs(len(labels) / 2000 - 0.5) < 0.04
    counts = np.bincount([len(truth.objects) for truth in truths])
    assert abs(counts[2] - counts[3]) < 200


@pytest.mark.parametrize(("settings", "counts"), [
    ({"single_fraction": 1.0, "max_objects": 1}, {1}),
    ({"single_fraction": 0.0, "max_objects": 2}, {2}),
    ({"single_fraction": 0.0}, {2, 3}),
    ({"single_fraction": 0.2}, {1, 2, 3}),
])  # fmt: skip
def test_the_number_of_objects_follows_the_config(settings, counts):
    source = scenes(**settings)
    assert {len(source.describe(i).objects) for i in range(60)} == counts


def test_captions_use_only_the_vocabulary_and_at_most_20_words(many):
    used = {word for example in many[0] for word in words(example.caption)}
    assert used <= set(WORDS)
    assert set(WORDS) == used | {word for name in Scenes.class_names for word in words(name)}
    assert list(WORDS) == sorted(set(WORDS))
    assert max(len(words(example.caption)) for example in many[0]) <= 20
    assert len({example.caption for example in many[0]}) > 1000


def test_every_phrase_of_a_caption_is_true(many):
    """The caption is parsed again, independently of how it was written."""
    for example, truth in zip(*many, strict=True):
        phrases = re.findall(rf"a ([a-z ]*?\b(?:{'|'.join(SHAPES)}))\b", example.caption)
        phrases = [re.sub(r".*\ba ", "", phrase) for phrase in phrases]
        assert len(phrases) == len(truth.objects)
        for phrase in phrases:
            assert any(
                set(phrase.split()) <= {thing.size, thing.texture, thing.colour, thing.shape} for thing in truth.objects
            ), (example.caption, truth)
        background = re.search(r"a ([a-z ]*?) background", example.caption)
        if background:
            said = re.sub(r".*\ba ", "", background.group(1)).split()
            assert set(said) <= {truth.background, truth.pattern}, (example.caption, truth)


def test_relations_are_true_and_unmistakable(many):
    axis = {"left of": ("x", 1), "right of": ("x", -1), "above": ("y", 1), "below": ("y", -1)}
    seen = set()
    for example, truth in zip(*many, strict=True):
        said = re.search("left of|right of|above|below", example.caption)
        if not said:
            continue
        seen.add(said.group())
        before, after = example.caption.split(said.group())
        first, second = truth.objects
        if f"{first.colour} {first.shape}" not in before:
            first, second = second, first
        assert f"{first.colour} {first.shape}" in before
        assert f"{second.colour} {second.shape}" in after
        name, sign = axis[said.group()]
        other = "y" if name == "x" else "x"
        along = sign * (getattr(second, name) - getattr(first, name))
        assert along > abs(getattr(second, other) - getattr(first, other))
    assert seen == set(axis)


def test_objects_stay_in_the_frame_apart_and_as_large_as_their_name(many):
    for truth in many[1]:
        for thing in truth.objects:
            assert thing.radius < min(thing.x, thing.y, 1 - thing.x, 1 - thing.y)
            assert abs(thing.radius / SIZES[thing.size] - 1) < 0.05
            assert thing.radius * 32 >= 5
        for one, other in itertools.combinations(truth.objects, 2):
            assert np.hypot(one.x - other.x, one.y - other.y) > one.radius + other.radius
            assert (one.shape, one.colour) != (other.shape, other.colour)


@pytest.mark.parametrize("difficulty", [0.0, 0.5, 1.0])
def test_an_object_has_its_named_colour_and_the_frame_the_background(difficulty):
    source = scenes(difficulty=difficulty, max_objects=1, single_fraction=1.0)
    palette = {name: np.array(rgb) for name, rgb in (COLOURS | BACKGROUNDS).items()}
    for index, example in enumerate(source.read(np.arange(300))):
        truth = source.describe(index)
        (thing,) = truth.objects
        image = example.image.astype(np.float64) / 255
        if thing.shape != "ring" and thing.texture == "plain":
            row, column = int(thing.y * 32), int(thing.x * 32)
            seen = image[row - 1 : row + 2, column - 1 : column + 2].mean((0, 1))
            assert min(palette, key=lambda name: np.abs(palette[name] - seen).sum()) == thing.colour
        border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        assert np.abs(np.median(border, 0) - palette[truth.background]).max() < 0.2


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_fit_the_unit_circle_and_differ(name):
    at = np.linspace(-1.5, 1.5, 301, dtype=np.float32)
    x, y = np.meshgrid(at, at)
    inside = SHAPES[name](x, y) < 0
    assert np.hypot(x, y)[inside].max() <= 1.001
    for other in SHAPES:
        if other != name:
            union = inside | (SHAPES[other](x, y) < 0)
            assert (inside ^ (SHAPES[other](x, y) < 0)).sum() > 0.2 * union.sum()


@pytest.mark.parametrize("resolution", [64, 128, 256])
def test_a_scene_is_the_same_picture_at_every_resolution(resolution):
    settings = {"difficulty": 0.3, "seed": 3}
    small = scenes(**settings).read(np.arange(8))
    large = scenes(resolution=resolution, **settings).read(np.arange(8))
    for one, other in zip(small, large, strict=True):
        assert one[1:] == other[1:]
        factor = resolution // 32
        shrunk = other.image.reshape(32, factor, 32, factor, 3).mean((1, 3), dtype=np.float64)
        error = np.abs(shrunk - one.image) / 255
        assert error.mean() < 0.02
        assert np.quantile(error, 0.95) < 0.06


def test_noise_has_the_stated_strength():
    settings = {"max_objects": 1, "single_fraction": 1.0, "difficulty": 0.5}
    source = scenes(resolution=64, **settings)
    examples = source.read(np.arange(100))
    plain = [e.image for i, e in enumerate(examples) if source.describe(i).pattern == "plain"]
    corners = np.stack([image[:4, :4] for image in plain]).astype(np.float64) / 255
    # A lone object never reaches the corner: what varies there is noise.
    assert abs(corners.std((1, 2), ddof=1).mean() - 0.015) < 0.002


def test_difficulty_zero_is_flat_and_more_is_harder():
    def roughness(difficulty):
        images = [e.image for e in scenes(difficulty=difficulty).read(np.arange(50))]
        return np.stack([image[0] for image in images]).astype(np.float64).std(1).mean()

    source = scenes(difficulty=0.0, max_objects=1, single_fraction=1.0)
    assert all(np.ptp(example.image[0, :3], axis=0).max() == 0 for example in source.read(np.arange(50)))
    assert roughness(0.0) < roughness(0.5) < roughness(1.0)


@pytest.mark.parametrize(("field", "value"), [
    ("resolution", 8), ("max_objects", 4), ("max_objects", 0), ("single_fraction", 1.5),
    ("single_fraction", float("nan")), ("difficulty", -0.1), ("size", 0),
])  # fmt: skip
def test_an_impossible_setting_is_an_error_with_field_value_and_remedy(field, value):
    with pytest.raises(ValueError, match=rf"{field}={re.escape(repr(value))}.*use "):
        ScenesConfig(**{field: value})


def test_one_object_at_most_needs_every_scene_to_be_single():
    with pytest.raises(ValueError, match=r"single_fraction=0.5.*set single_fraction=1.0"):
        ScenesConfig(max_objects=1)


def test_wrong_split_seed_and_index_are_errors():
    with pytest.raises(ValueError, match=r"split='test'.*\"eval\""):
        scenes("test")
    with pytest.raises(ValueError, match="seed=-1"):
        scenes(seed=-1)
    source = scenes(size=10)
    assert len(source) == 10
    for index in (-1, 10):
        with pytest.raises(IndexError, match=rf"{index} is outside \[0, 10\)"):
            source.read(np.array([0, index]))
        with pytest.raises(IndexError, match=str(index)):
            source.describe(index)


def test_reading_nothing_gives_nothing():
    assert scenes().read(np.array([], np.int64)) == []


def test_the_longest_caption_has_20_words():
    thing = scene_captions.ObjectDescription("circle", "red", "small", "striped", 0.5, 0.5, 0.2)
    lengths = []
    for count, relation in ((1, None), (2, "left of"), (3, None)):
        scene = scene_captions.SceneDescription((thing,) * count, "grey", "striped", relation)
        for dice in itertools.product((0.0, 0.4, 0.6, 0.99), repeat=8):
            lengths.append(len(words(scene_captions.caption(scene, [*dice, 0.0], detail=1.0))))
    assert max(lengths) == 20


def test_the_description_is_plain_data():
    truth = scenes().describe(5)
    assert dataclasses.asdict(truth)["objects"][0]["shape"] in SHAPES
    assert all(type(value) in (str, float) for value in vars(truth.objects[0]).values())
