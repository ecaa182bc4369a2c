"""The released code's config.json as our DualTokenConfig, and back."""

import json
from pathlib import Path

from dualtoken_jax.interop.name_table import StateDict
from dualtoken_jax.interop.siglip_config import read_huggingface_config
from dualtoken_jax.interop.siglip_shapes import siglip_config_of
from dualtoken_jax.models.decoder import DecoderConfig
from dualtoken_jax.models.dualtoken import DualTokenConfig
from dualtoken_jax.models.quantizer import QuantizerConfig
from dualtoken_jax.models.siglip import SiglipConfig

_UPDATES = {"rq": "per_depth", "rq_ema": "per_step_aliased"}  # bottleneck_type → codebook_update


def read_released_config(file: Path, tensors: StateDict) -> DualTokenConfig:
    """The architecture that a released config.json and its checkpoint's tensors describe together.

    The file says nothing of the SigLIP itself: that comes from the config.json in the folder `pretrained_model` where
    it is there (looked for beside the file, then one folder up), else from the tensors' shapes.

    Raises FileNotFoundError for a missing file, ValueError for one that is not of the released code.
    """
    file = Path(file)
    if not file.exists():
        raise FileNotFoundError(f"there is no {file}: name the checkpoint's config.json")
    try:
        found = json.loads(file.read_text())
        values = found.get("rqvaesiglip", found)
        image_size = values["ddconfig"]["resolution"]
        _check_kinds(file, values)
        siglip = _siglip(siglip_folder(file), tensors, image_size)
        config = _model(values, siglip)
    except (json.JSONDecodeError, AttributeError, TypeError) as error:
        raise ValueError(f"{file} is damaged or no config.json of the released code: {error}") from error
    except KeyError as error:
        raise ValueError(f"{file} is no config.json of the released code: it has no {error.args[0]!r}") from None
    _check_grids(file, values, config)
    return config


def siglip_folder(file: Path) -> Path | None:
    """The folder that `pretrained_model` names, looked for beside the config.json and one folder up; None without."""
    found = json.loads(Path(file).read_text())
    name = found.get("rqvaesiglip", found).get("pretrained_model")
    folders = (file.parent / name, file.parent.parent / name) if name else ()
    return next((folder for folder in folders if (folder / "config.json").exists()), None)


def _siglip(folder: Path | None, tensors: StateDict, image_size: int) -> SiglipConfig:
    if folder:
        return read_huggingface_config(folder)
    prefix = "siglip_model."
    return siglip_config_of({n.removeprefix(prefix): x for n, x in tensors.items() if n.startswith(prefix)}, image_size)


def _model(values: dict, siglip: SiglipConfig) -> DualTokenConfig:
    decoder = values["ddconfig"]
    return DualTokenConfig(
        siglip=siglip,
        pixel_layer=values["layer_recon"],
        semantic_layer=values["layer_sem"],
        shortcut_layer=values["layer_shortcut"],
        shortcut_weight=values["weight_shortcut"],
        pixel=_quantizer(values["vq_pix"]),
        semantic=_quantizer(values["vq_sem"]),
        decoder=DecoderConfig(
            channels=decoder["ch"],
            multipliers=tuple(decoder["ch_mult"]),
            residual_blocks=decoder["num_res_blocks"],
            latent_grid=decoder["resolution"] // 2 ** (len(decoder["ch_mult"]) - 1),
            attention_grids=tuple(decoder["attn_resolutions"]),
        ),
    )


def _quantizer(values: dict) -> QuantizerConfig:
    return QuantizerConfig(
        codes=values["n_embed"],
        width=values["embed_dim"],
        depth=values["code_shape"][-1],
        shared_codebook=values["shared_codebook"],
        codebook_update=_UPDATES[values["bottleneck_type"]],
        decay=values["decay"],
        restart_threshold=1.0 if values["restart_unused_codes"] else None,
    )


def _check_kinds(file, values):
    for branch in ("vq_pix", "vq_sem"):
        if (kind := values[branch]["bottleneck_type"]) not in _UPDATES:
            raise ValueError(f"{file}: {branch}.bottleneck_type is {kind!r}, not one of {', '.join(_UPDATES)}")


def _check_grids(file, values, config):
    grid, latent = config.siglip.grid, config.decoder.latent_grid
    for name, side, wanted in (
        ("ddconfig.resolution", values["ddconfig"]["resolution"], config.siglip.image_size),
        ("decoder_latent_shape", (values.get("decoder_latent_shape") or [grid])[0], latent),
        ("vq_pix.code_shape", values["vq_pix"]["code_shape"][0], grid),
        ("vq_sem.code_shape", values["vq_sem"]["code_shape"][0], grid),
    ):
        if side != wanted:
            raise ValueError(
                f"{file}: {name} is {side} a side, but images of {config.siglip.image_size} px in patches of "
                f"{config.siglip.patch_size} and a decoder of {len(config.decoder.multipliers)} levels need {wanted}"
            )


def released_config_json(config: DualTokenConfig, siglip_folder: str) -> dict:
    """A config.json that the released code reads; `siglip_folder` is where its `pretrained_model` points.

    It has no place for: computing types, remat and unrolling; a restart threshold other than 1; and the update
    `per_step`, which reads back as `per_step_aliased`, because that is what the released code makes of `rq_ema`.
    """
    siglip, decoder, width = config.siglip, config.decoder, config.siglip.vision.width
    inner = {
        "architectures": ["RQVAESiglip"],
        "model_type": "rqvaesiglip_model",
        "hidden_size": width,
        "layer_recon": config.pixel_layer,
        "layer_sem": config.semantic_layer,
        "layer_shortcut": config.shortcut_layer,
        "weight_shortcut": config.shortcut_weight,
        "ddconfig": {
            "attn_resolutions": list(decoder.attention_grids),
            "ch": decoder.channels,
            "ch_mult": list(decoder.multipliers),
            "decoder_in_channels": width,
            "double_z": False,
            "dropout": 0.0,
            "in_channels": 3,
            "num_res_blocks": decoder.residual_blocks,
            "out_ch": 3,
            "resolution": decoder.resolution,
        },
        "decoder_latent_shape": [decoder.latent_grid] * 2,
        "vq_sem": _quantizer_json(config.semantic, siglip.grid),
        "vq_pix": _quantizer_json(config.pixel, siglip.grid),
        "checkpointing": siglip.remat != "none",
        "ignore_keys": None,
        "pretrained_model": siglip_folder,
        "torch_dtype": "float32",
    }
    names = {"architectures": ["RQVAESIGLIPTransformer"], "model_type": "rqvaesigliptransformer_model"}
    return names | {"hidden_size": width, "rqvaesiglip": inner}


def not_in_released(config: DualTokenConfig) -> list[str]:
    """What training on from `released_config_json` would do differently, a sentence each; codes stay the same."""
    notes = []
    for branch in config.branches:
        quantizer = config.quantizer(branch)
        if quantizer.codebook_update == "per_step":
            notes.append(f"{branch}.codebook_update 'per_step' is written as rq_ema, which reads as 'per_step_aliased'")
        if quantizer.restart_threshold not in (None, 1.0):
            notes.append(f"{branch}.restart_threshold {quantizer.restart_threshold:g} has no place and reads as 1")
    return notes


def _quantizer_json(config: QuantizerConfig, grid: int) -> dict:
    return {
        "bottleneck_type": "rq" if config.codebook_update == "per_depth" else "rq_ema",
        "ckpt_path": None,
        "code_shape": [grid, grid, config.depth],
        "decay": config.decay,
        "embed_dim": config.width,
        "latent_shape": [grid, grid, config.width],
        "n_embed": config.codes,
        "restart_unused_codes": config.restart_threshold is not None,
        "shared_codebook": config.shared_codebook,
    }
