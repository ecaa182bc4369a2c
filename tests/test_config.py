"""Recipes, overrides, and the errors that a wrong setting gets."""

import dataclasses

import jax
import pytest

from configs import tokenizer as recipes
from dualtoken_jax import config as config_lib
from dualtoken_jax.config import ConfigError, check, difference, from_dict, to_config_dict, to_json
from dualtoken_jax.models import init_params
from dualtoken_jax.models.dualtoken import DualToken

NAMES = ["demo", "demo_single", "demo_dual_deep", "demo_pixel_only", "demo_semantic_only", "demo_large"]


@pytest.mark.parametrize("name", [*NAMES, "so400m_256", "so400m_384"])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_recipes_are_valid_and_survive_the_command_line_and_json(name, stage):
    config = recipes.with_stage(recipes.recipe(name), stage)
    if stage == 2 and name in ("demo_single", "demo_semantic_only"):
        with pytest.raises(ConfigError, match="freeze.modules names 'pixel'"):
            check(config)
        return
    assert from_dict(to_config_dict(config)) == check(config)
    assert from_dict(to_json(config)) == config


def test_paper_recipes_have_the_paper_s_parameters():
    config = recipes.recipe("so400m_384").model
    shapes = jax.eval_shape(lambda key: init_params(lambda rngs: DualToken(config, rngs), key), jax.random.key(0))
    millions = {name: sum(leaf.size for leaf in jax.tree.leaves(part)) / 1e6 for name, part in shapes.items()}
    # METHOD, "where the work is": vision 428 M, decoder 168 + 12 M, projections 31 M.
    assert round(millions["vision"]) == 428
    assert round(millions["decoder"]) == 180
    assert round(millions["pixel"] + millions["semantic"]) == 31


def _changed(**flat):
    values = to_json(recipes.recipe("demo"))
    for path, value in flat.items():
        *folders, name = path.split("__")
        target = values
        for folder in folders:
            target = target[folder]
        target[name] = value
    return values


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train__stepz": 3}, ["config.train", "unknown field", "stepz", "batch_size"]),
        ({"train__steps": "many"}, ["config.train.steps", "'many'", "int"]),
        ({"model__projection": "conv"}, ["config.model.projection", "'conv'", "'attention'", "'none'"]),
        ({"data__scenes__difficulty": 3.0}, ["config.data.scenes", "difficulty", "3.0"]),
        ({"model__semantic_layer": 40}, ["layer 40", "4 layers"]),
        ({"model__pixel__width": 48}, ["model.pixel.width 48", "128"]),
        ({"data__source": "folder"}, ["data.path"]),
        ({"loss__perceptual_network": "lpips"}, ["lpips_path"]),
        ({"train__evaluate_every": 0}, ["train.evaluate_every 0", "at least 1"]),
        ({"model__siglip__patch_size": 0}, ["patch_size 0"]),
        ({"model__siglip__vision__heads": 0}, ["heads"]),
        ({"train__batch_size": 0}, ["train.batch_size", "at least 1"]),
        ({"model__siglip__vocabulary": 10}, ["vocabulary 10"]),
    ],
)
def test_errors_name_the_field_the_value_and_the_remedy(change, words):
    with pytest.raises(ConfigError) as error:
        check(from_dict(_changed(**change)))
    for word in words:
        assert word in str(error.value)


def test_overrides_reach_the_dataclass_and_wrong_ones_do_not():
    flags = recipes.get_config("demo")
    flags.optimizer.learning_rate = 1e-4
    flags.train.ema_decay = 0.9
    config = from_dict(flags)
    assert (config.optimizer.learning_rate, config.train.ema_decay) == (1e-4, 0.9)
    with pytest.raises(TypeError):
        flags.train.steps = "many"
    with pytest.raises(AttributeError):
        flags.train.stepz = 3


def test_difference_lists_every_changed_field():
    config = recipes.recipe("demo")
    other = dataclasses.replace(config, seed=5, train=dataclasses.replace(config.train, steps=7))
    assert difference(config, other) == ["seed: 0 → 5", f"train.steps: {config.train.steps} → 7"]


def test_unknown_recipe_and_stage_are_named():
    with pytest.raises(ValueError, match="demo_single"):
        recipes.get_config("dmo")
    with pytest.raises(ValueError, match="stage 7"):
        recipes.get_config("demo,stage=7")


def test_teacher_follows_the_tokenizer():
    config = recipes.recipe("demo")
    teacher = config_lib.teacher_config(config)
    assert teacher.task == "contrastive" and teacher.model.siglip == config.model.siglip
    assert check(teacher) == teacher
