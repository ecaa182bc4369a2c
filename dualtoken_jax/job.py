"""The main job: teacher, tokenizer, evaluation, report; every part is skipped when the workdir already holds it."""

import json
import logging
import traceback
from pathlib import Path

import jax
import numpy as np

from dualtoken_jax import loop, sharding
from dualtoken_jax.checkpoint import CheckpointError, Checkpoints
from dualtoken_jax.config import Config, ConfigError, teacher_config
from dualtoken_jax.config_checks import check
from dualtoken_jax.data.bad_images import TooManyBadImages
from dualtoken_jax.data.dataset import DataConfig, open_source, open_training
from dualtoken_jax.data.reading import DataError
from dualtoken_jax.data.text import open_fitting_tokenizer, text_tokenizer_file
from dualtoken_jax.evaluation.report import format_value, write_report
from dualtoken_jax.frozen_weights import FROZEN, load_frozen
from dualtoken_jax.interop.lpips import load_lpips
from dualtoken_jax.interop.name_table import shape_differences
from dualtoken_jax.interop.released import model_shapes
from dualtoken_jax.interop.siglip import holds_siglip, load_siglip
from dualtoken_jax.metric_writer import MetricWriter, read_metrics
from dualtoken_jax.pretrained import open_pretrained
from dualtoken_jax.tasks import make_task
from dualtoken_jax.tasks.frozen import needs_lpips
from dualtoken_jax.tasks.state import TrainState
from dualtoken_jax.text_tokenizer_copy import keep_text_tokenizer, with_kept_text_tokenizer
from dualtoken_jax.workdir import claim_workdir, load_config

log = logging.getLogger("dualtoken_jax")
EXPECTED_ERRORS = (ConfigError, CheckpointError, loop.NonFiniteError, TooManyBadImages, OSError, ValueError)
RESTARTABLE = (loop.Interrupted, DataError)  # what starting again mends


def is_expected(error: Exception) -> bool:
    """Whether the message alone tells what to do.

    This program's own ValueErrors do; one that a library raises is a mistake in here, and wants its traceback.
    """
    if not isinstance(error, ValueError):
        return isinstance(error, EXPECTED_ERRORS)
    frames = traceback.extract_tb(error.__traceback__)
    from_jax = any("JAX" in note for note in getattr(error, "__notes__", []))  # which cuts its frames off, and says so
    return bool(frames) and Path(frames[-1].filename).is_relative_to(Path(__file__).parent) and not from_jax


def run(config: Config, workdir: Path) -> dict:
    """Trains whatever is missing and returns the evaluation's results."""
    preflight(config, workdir)
    frozen = frozen_weights(config, workdir) if config.task == "tokenizer" else {}
    state = loop.run(config, workdir, frozen, earlier_stage(config))
    return conclude(config, workdir, state)


def preflight(config: Config, workdir: Path) -> None:
    """Finds out at once what would stop the run after the teacher; keeps compiled programs for a restart."""
    open_training(config.data, config.seed)
    mesh = sharding.make_mesh(config.mesh)
    runs = [config]
    if config.task == "tokenizer" and not config.teacher.path:
        runs.append(check(teacher_config(config)))
    for one in runs:
        sharding.check_batch(one.train.batch_size, one.train.accumulate, mesh)
        make_task(one).check_parameters()
    kept = (Path(workdir) / FROZEN).exists()
    if needs_lpips(config) and not kept and not Path(config.loss.lpips_path).exists():
        raise ConfigError(
            f"loss.lpips_path {config.loss.lpips_path!r} does not exist; name LPIPS's weights, such as a folder with "
            "torchvision's vgg16-397923af.pth and weights/v0.1/vgg.pth of the lpips package"
        )
    claim_workdir(config, workdir)
    siglip, kept = config.model.siglip, keep_text_tokenizer(config, workdir)
    open_fitting_tokenizer(kept.text_tokenizer, siglip.text_length, siglip.vocabulary)
    if jax.config.jax_compilation_cache_dir is None:  # JAX_COMPILATION_CACHE_DIR goes first
        jax.config.update("jax_compilation_cache_dir", str(Path(workdir).absolute() / "compilation_cache"))


def conclude(config: Config, workdir: Path, state: TrainState) -> dict:
    """Evaluates a trained state; writes evaluation.json and report.html, and prints what is where."""
    config = with_kept_text_tokenizer(config, workdir)
    mesh, writer = sharding.make_mesh(config.mesh), MetricWriter(workdir)
    with jax.set_mesh(mesh):
        measurement, samples = loop.evaluate(make_task(config), state, config, mesh, writer)
    writer.close()
    if jax.process_index() == 0:
        what = {"step": int(state.step), "weights": "ema" if state.ema else "raw"}
        (workdir / "evaluation.json").write_text(json.dumps(what | measurement.results, indent=1) + "\n")
        trained = {config.task: read_metrics(workdir), "teacher": read_metrics(workdir / "teacher")}
        report = write_report(workdir, config, measurement, samples, trained)
        print(f"{table(measurement.results)}\n\n{places(workdir, report)}")
    return measurement.results


def table(results: dict) -> str:
    """The plain numbers among the results, one a line."""
    numbers = loop.scalars(results, "")
    width = max(map(len, numbers))
    return "\n".join(f"  {name:<{width}}  {format_value(value):>10}" for name, value in numbers.items())


def places(workdir: Path, report: Path) -> str:
    """Where everything that a run leaves behind is."""
    return "\n".join(
        f"  {what:<12} {path}"
        for what, path in (
            ("report", report),
            ("measurements", workdir / "evaluation.json"),
            ("checkpoints", workdir / "checkpoints"),
            ("TensorBoard", f"tensorboard --logdir {workdir}"),
        )
    )


def frozen_weights(config: Config, workdir: Path) -> dict:
    """The weights that a tokenizer's run never changes: from its workdir, else from the teacher (trained if needed)."""
    frozen = load_frozen(workdir)
    if frozen:
        return frozen
    frozen = {"siglip": teacher_weights(config, workdir)}
    if needs_lpips(config):
        frozen["lpips"] = load_lpips(config.loss.lpips_path)
    elif config.model.reconstructs and config.loss.perceives:
        log.info("no LPIPS weights: the perceptual term is the distance of the teacher's first hidden states")
    return frozen


def earlier_stage(config: Config) -> dict:
    """What `init_path` hands on, as host arrays: parameters and codebooks and, from a workdir, the discriminator.

    It may be anything that `open_pretrained` opens, a released checkpoint included; raises as that does, and
    ConfigError for a model of other parameters.
    """
    if not config.init_path:
        return {}
    path = Path(config.init_path)
    found = open_pretrained(path, weights="raw")
    begin = {name: found.tree[name] for name in ("params", "codebooks")}
    if wrong := shape_differences(begin, model_shapes(config.model, text=False)):
        raise ConfigError(f"init_path {path} holds another model than this recipe's:\n  " + "\n  ".join(wrong))
    if config.train.ema_decay is not None:
        begin["ema"] = open_pretrained(path).tree["params"]
    if (path / FROZEN).exists() and config.loss.adversarial:
        discriminator = Checkpoints(path, read_only=True).restore_fields(("discriminator",))["discriminator"]
        begin |= {"discriminator": discriminator} if discriminator else {}
    return jax.tree.map(np.asarray, begin)


def teacher_weights(config: Config, workdir: Path) -> dict:
    """Parameters of the SigLIP in `teacher.path`, or of the one trained in WORKDIR/teacher, as host arrays."""
    if config.teacher.path:
        return named_teacher(with_kept_text_tokenizer(config, workdir))
    state = loop.run(teacher_config(config, teacher_data(config)), Path(workdir) / "teacher")
    return jax.tree.map(np.asarray, state.averaged)


def named_teacher(config: Config) -> dict:
    """What `teacher.path` names: a contrastive run's weights, or those of a published SigLIP.

    Raises ConfigError for a teacher that does not fit the config, and what `load_siglip` raises.
    """
    path = Path(config.teacher.path)
    if not path.exists():
        raise ConfigError(
            f"teacher.path {path} does not exist; name a contrastive run's workdir, a Hugging Face SigLIP folder or a "
            "big_vision .npz, or leave it empty to train a teacher"
        )
    if holds_siglip(path):
        if not config.text_tokenizer:
            raise ConfigError(
                f"teacher.path {path} is a published SigLIP: set text_tokenizer to the folder with its own"
            )
        return load_siglip(path, config.model.siglip)
    taught = load_config(path)
    if taught.task != "contrastive":
        raise ConfigError(f"teacher.path {path} is a {taught.task} run; its teacher is in {path / 'teacher'}")
    if taught.model.siglip != config.model.siglip:
        raise ConfigError(f"teacher.path {path} holds another tower than model.siglip: {taught.model.siglip}")
    if _text_tokenizer_bytes(with_kept_text_tokenizer(taught, path)) != _text_tokenizer_bytes(config):
        raise ConfigError(
            f"teacher.path {path} learned from text_tokenizer {taught.text_tokenizer!r}, not {config.text_tokenizer!r}"
        )
    return jax.tree.map(np.asarray, load_state(taught, path).averaged)


def _text_tokenizer_bytes(config: Config) -> bytes:
    return text_tokenizer_file(config.text_tokenizer).read_bytes() if config.text_tokenizer else b""


def teacher_data(config: Config) -> DataConfig:
    """The tokenizer's own pictures where they come with words, otherwise the scenes."""
    if config.data.source == "folder" and not open_source(config.data, config.seed, "train").has_captions:
        log.info("%s has neither captions nor labels: the teacher learns from rendered scenes", config.data.path)
        return DataConfig(reading=config.data.reading, scenes=config.data.scenes)
    return config.data


def load_state(config: Config, workdir: Path) -> TrainState:
    """The newest state of a workdir, on this machine's mesh."""
    mesh = sharding.make_mesh(config.mesh)
    checkpoints = Checkpoints(workdir, read_only=True)
    if checkpoints.latest is None:
        raise CheckpointError(f"{workdir} holds no finished checkpoint; train first")
    with jax.set_mesh(mesh):
        return loop.start_state(make_task(config), config, mesh, checkpoints, load_frozen(workdir), {})[0]
