"""Which settings go together: every rule that one field of a config puts on another, in one place."""

from dualtoken_jax.config import SHALLOW, Config, ConfigError
from dualtoken_jax.sharding import AXES


def check(config: Config) -> Config:
    """Raises ConfigError, with all that is wrong in the first part that is, for combinations that cannot work."""
    parts = [_tower_requirements(config), _run_requirements(config)]
    parts += [_tokenizer_requirements(config)] if config.task == "tokenizer" else []
    for part in parts:  # in order: later ones divide by what earlier ones check
        if problems := [message for holds, message in part if not holds]:
            raise ConfigError("; ".join(problems))
    return config


def _tower_requirements(config):
    siglip = config.model.siglip
    yield siglip.vision.width % 4 == 0, f"model.siglip.vision.width {siglip.vision.width} must be divisible by 4"
    for name, tower in (("vision", siglip.vision), ("text", siglip.text)):
        yield (
            tower.heads >= 1 and tower.width % tower.heads == 0,
            f"model.siglip.{name}.width {tower.width} must be divisible by its {tower.heads} heads",
        )
    yield (
        1 <= siglip.patch_size <= siglip.image_size,
        f"model.siglip.patch_size {siglip.patch_size} must lie between 1 and the image's {siglip.image_size} px",
    )


def _run_requirements(config):
    train, data = config.train, config.data
    for name in (
        "steps",
        "batch_size",
        "accumulate",
        "log_every",
        "checkpoint_every",
        "keep_checkpoints",
        "max_consecutive_skips",
    ):
        yield getattr(train, name) >= 1, f"train.{name} is {getattr(train, name)}, must be at least 1"
    yield (
        train.accumulate < 1 or train.batch_size % train.accumulate == 0,
        f"train.batch_size {train.batch_size} must be divisible by train.accumulate {train.accumulate}",
    )
    yield (
        data.source != "scenes" or data.scenes.resolution == config.model.siglip.image_size,
        f"data.scenes.resolution {data.scenes.resolution} must equal model.siglip.image_size "
        f"{config.model.siglip.image_size}",
    )
    yield data.source == "scenes" or data.path, f"data.source {data.source!r} needs data.path, the pictures' folder"
    yield not data.eval_path or data.source in ("folder", "shards"), "data.eval_path is for folders and prepared shards"
    for name in ("weight", "shuffle_block", "shuffle_window"):
        yield getattr(data, name) >= 1, f"data.{name} {getattr(data, name)} must be at least 1"
    for number, one in enumerate(data.mixture):
        yield one.weight >= 1, f"data.mixture[{number}].weight {one.weight} must be at least 1"
        yield one.source == "scenes" or one.path, f"data.mixture[{number}] needs a path, the pictures' folder"
    reading = data.reading
    yield min(reading.threads, reading.workers) >= 0, f"data.reading {reading} must not have negative counts"
    yield reading.stall_seconds > 0, f"data.reading.stall_seconds {reading.stall_seconds} must be positive"
    yield (
        train.evaluate_every is None or train.evaluate_every >= 1,
        f"train.evaluate_every {train.evaluate_every} must be at least 1, or None to evaluate at the end only",
    )
    yield train.max_rollbacks >= 0, f"train.max_rollbacks {train.max_rollbacks} must not be negative"
    yield train.hang_seconds > 0, f"train.hang_seconds {train.hang_seconds} must be positive"
    yield data.eval_examples >= 1, f"data.eval_examples {data.eval_examples} must be at least 1"
    for name in AXES:
        size = getattr(config.mesh, name)
        yield size is None or size >= 1, f"mesh.{name} {size} must be at least 1, or None for what the others leave"
    yield 0 < data.eval_fraction < 1, f"data.eval_fraction {data.eval_fraction} must lie between 0 and 1"
    for name in ("optimizer", "discriminator_optimizer"):
        rate = getattr(config, name).learning_rate
        yield rate > 0, f"{name}.learning_rate {rate} must be positive"


def _tokenizer_requirements(config):
    model, loss = config.model, config.loss
    depth = model.siglip.vision.depth
    taps = [model.semantic_layer, model.pixel_tap] + ([model.shortcut_layer] if model.has_shortcut else [])
    for layer in taps:
        yield 0 <= layer <= depth, f"a tap at layer {layer} is outside the vision tower, which has {depth} layers"
    yield (
        max(taps) == model.semantic_layer,
        (f"model.semantic_layer {model.semantic_layer} must be the deepest tap, got taps {taps}"),
    )
    for branch in model.branches:
        yield from _quantizer_requirements(model, branch, config.train.accumulate)
    if model.reconstructs:
        yield from _decoder_requirements(model)
        yield (
            not loss.perceives or loss.perceptual_network == "teacher" or loss.lpips_path,
            (
                "loss.perceptual_network 'lpips' needs loss.lpips_path, a weight file; without one use "
                "loss.perceptual_network='teacher', or loss.perceptual=0 and loss.gram=0"
            ),
        )
    trains = config.teacher.train and config.teacher.optimizer
    yield config.teacher.path or trains, "teacher.path is empty and the recipe trains no teacher: name one"
    yield (
        model.semantic_layer >= SHALLOW or loss.perceptual_network == "lpips",
        f"model.semantic_layer {model.semantic_layer} must be at least {SHALLOW}, whose features stand in for LPIPS",
    )
    for name in config.freeze.modules:
        branch = name.split("/")[0]
        yield (
            branch not in ("pixel", "semantic") or branch in model.branches,
            f"freeze.modules names {name!r}, which supervision {model.supervision!r} does not have",
        )


def _quantizer_requirements(model, branch, accumulate):
    quantizer, tower, name = model.quantizer(branch), model.siglip.vision.width, f"model.{branch}"
    enough = quantizer.depth >= 1 and quantizer.codes >= 2 and quantizer.width >= 1
    yield enough, f"{name} needs depth ≥ 1, codes ≥ 2 and width ≥ 1"
    channels, product = max(quantizer.channels, 1), quantizer.kind == "product"
    stated = f"{name}.width {quantizer.width}" + (f" × depth {quantizer.depth} = {channels}" if product else "")
    yield (
        model.projection != "attention" or max(tower, channels) % min(tower, channels) == 0,
        f"{stated} must divide the tower's width {tower}, or be a multiple of it",
    )
    yield (
        model.projection != "none" or channels == tower,
        f"{stated} must equal the tower's width {tower} where model.projection is 'none'",
    )
    yield (
        not (product and quantizer.shared_codebook),
        f"{name}.kind 'product' has a codebook for each group: set {name}.shared_codebook=False",
    )
    yield (
        not quantizer.normalise or product or quantizer.depth == 1,
        f"{name}.normalise needs unit vectors, which the residuals of depth 2 … {quantizer.depth} are not: "
        f"set {name}.kind='product', or {name}.depth=1",
    )
    in_lookup = quantizer.codebook_update == "per_depth" and quantizer.shared_codebook
    yield (
        accumulate == 1 or not in_lookup,
        f"{name}.codebook_update 'per_depth' of a shared codebook needs the whole batch at every depth: use "
        f"'per_step', or train.accumulate=1 instead of {accumulate}",
    )
    yield (
        quantizer.codebook_update != "per_step_aliased" or not (product or quantizer.normalise),
        f"{name}.codebook_update 'per_step_aliased' is about residuals of codes that are not normalised: "
        f"use 'per_step'",
    )


def _decoder_requirements(model):
    decoder, siglip = model.decoder, model.siglip
    if decoder.kind == "convolutional":
        yield (
            decoder.resolution == siglip.image_size,
            (
                f"model.decoder makes {decoder.resolution} px (latent_grid × 2^(levels − 1)), "
                f"images have {siglip.image_size}"
            ),
        )
    else:
        covered = siglip.grid * siglip.patch_size
        yield covered == siglip.image_size, f"the transformer decoder makes {covered} px, not {siglip.image_size}"
