"""Recipes, overrides, and the errors that a wrong setting gets."""

import dataclasses
import importlib
from pathlib import Path

import jax
import pytest
from absl import flags
from ml_collections import config_flags

from configs import demo
from configs import tokenizer as recipes
from dualtoken_jax import config as config_lib
from dualtoken_jax.config import ConfigError, difference, from_dict, to_config_dict, to_json
from dualtoken_jax.config_checks import check
from dualtoken_jax.models import init_params
from dualtoken_jax.models.siglip import TextTower
from dualtoken_jax.optimizer import trainable, update_scales
from dualtoken_jax.sharding import MeshConfig
from dualtoken_jax.tasks import make_task

NAMES = [*recipes.RECIPES, *demo.ABLATIONS]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_recipes_are_valid_and_survive_the_command_line_and_json(name, stage):
    config = recipes.with_stage(recipes.recipe(name), stage)
    if stage == 2 and name in ("demo_single", "demo_semantic_only"):
        with pytest.raises(ConfigError, match="freeze.modules names 'pixel'"):
            check(config)
        return
    assert from_dict(to_config_dict(config)) == check(config)
    assert from_dict(to_json(config)) == config


# Millions of text, vision, decoder and projections. METHOD, "where the work is": 708, 428, 168 + 12, 31.
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("so400m_384", (708, 428, 180, 31)),
        ("so400m_256", (None, 428, 180, 31)),
        ("paper_so400m_384", (450, 428, 180, 0)),  # SigLIP's vocabulary is 32k, SigLIP 2's 256k
        ("paper_l16_256", (336, 316, 179, 0)),  # both towers: 652 M
        ("improved_384", (None, 428, 180, 33)),
    ],
)
def test_full_recipes_have_the_paper_s_parameters_and_what_they_freeze_and_slow(name, expected):
    config = recipes.recipe(name)
    millions = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree)) / 1e6  # noqa: E731
    shapes = lambda make: jax.eval_shape(lambda key: init_params(make, key), jax.random.key(0))  # noqa: E731
    task = make_task(config)
    params = shapes(task.make)
    projections = millions([params.get("pixel", {}), params.get("semantic", {})])
    found = [millions(params["vision"]), millions(params["decoder"]), projections]
    if expected[0]:
        found.insert(0, millions(shapes(lambda rngs: TextTower(config.model.siglip, rngs))))
    assert tuple(map(round, found)) == expected[-len(found) :]
    update_scales(params, config.optimizer)
    for stage in (0, 1, 2):  # what check_parameters does with parameters of its own
        frozen = recipes.with_stage(config, stage).freeze
        masks = trainable(params, task.freezable(frozen, params))
        assert (sum(mask.sum() for mask in jax.tree.leaves(masks)) > 0) and bool(frozen.modules) == (stage != 1)


def test_released_update_orders():
    for name in ("so400m_256", "so400m_384"):
        model = recipes.recipe(name).model
        assert (model.pixel.codebook_update, model.semantic.codebook_update) == ("per_depth", "per_step")


def test_an_ablation_changes_what_it_names_and_nothing_else():
    base, improved = recipes.recipe("demo"), recipes.recipe("demo_improved")
    parts = ("gram", "normalised", "ema", "slow_encoder")
    alone = [set(difference(base, recipes.recipe(f"demo_{part}"))) for part in parts]
    named = lambda lines: {line for line in lines if not line.startswith("name:")}  # noqa: E731
    assert named(set().union(*alone)) == named(difference(base, improved))
    assert difference(base, recipes.recipe("demo_aliased")) == [
        "model.semantic.codebook_update: 'per_step' → 'per_step_aliased'",
        "name: 'demo' → 'demo_aliased'",
    ]


def test_benchmarks_compare_recipes_that_exist(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    for name in ("conflict", "improvements"):
        benchmark = importlib.import_module(name)
        assert set(benchmark.VARIANTS) <= set(NAMES)
    table = importlib.import_module("ablation").summary({"a": [{"x": 1.0}, {"x": 2.0}], "b": [{}, {}]}, ["x"])
    assert table.splitlines()[2:] == ["| a | 1.500 ± 0.707 |", "| b | – |"]


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
        ({"model__pixel__kind": "product"}, ["model.pixel.kind 'product'", "shared_codebook=False"]),
        (
            {"model__semantic__kind": "product", "model__semantic__width": 12},
            ["model.semantic.width 12 × depth 4 = 48", "128"],
        ),
        ({"model__pixel__normalise": True}, ["model.pixel.normalise", "depth 2 … 8", "model.pixel.kind='product'"]),
        (
            {
                "model__pixel__normalise": True,
                "model__pixel__depth": 1,
                "model__pixel__codebook_update": "per_step_aliased",
            },
            ["model.pixel.codebook_update 'per_step_aliased'", "'per_step'"],
        ),
        ({"model__projection": "none"}, ["model.pixel.width 32", "128", "'none'"]),
        ({"loss__gram": 1.0, "loss__perceptual": 0.0, "loss__perceptual_network": "lpips"}, ["lpips_path", "gram=0"]),
        ({"data__source": "folder"}, ["data.path"]),
        ({"loss__perceptual_network": "lpips"}, ["lpips_path"]),
        ({"train__evaluate_every": 0}, ["train.evaluate_every 0", "at least 1"]),
        ({"model__siglip__patch_size": 0}, ["patch_size 0"]),
        ({"model__siglip__vision__heads": 0}, ["heads"]),
        ({"train__batch_size": 0}, ["train.batch_size", "at least 1"]),
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


def test_what_may_be_none_can_be_set_to_it_and_back_on_the_command_line():
    values = flags.FlagValues()
    settings = to_config_dict(recipes.recipe("demo"))
    named = ["mesh.data=1", "mesh.fsdp=None", "model.pixel.restart_threshold=None", "train.evaluate_every=5"]
    arguments = ["program", *(f"--config.{setting}" for setting in named)]
    config_flags.DEFINE_config_dict("config", settings, flag_values=values, sys_argv=arguments)
    values(arguments)
    config = from_dict(values.config)
    assert config.mesh == MeshConfig(data=1, fsdp=None, tensor=1)
    assert (config.model.pixel.restart_threshold, config.train.evaluate_every) == (None, 5)
    assert config.model.semantic.restart_threshold == 1.0
