"""evaluate's part with a protocol: opens what the flags name, measures, prints and writes the figures."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from dualtoken_jax import api
from dualtoken_jax.config import ConfigError
from dualtoken_jax.data.dataset import open_source
from dualtoken_jax.data.prompts import RECIPE, read_prompts
from dualtoken_jax.data.sources import Folder, Selection, Source, spread
from dualtoken_jax.evaluation import protocol_report
from dualtoken_jax.evaluation.fid import InceptionFeatures
from dualtoken_jax.evaluation.imagenet import check_labels
from dualtoken_jax.evaluation.protocols import PROTOCOLS, Protocol, Weights, measure_protocol
from dualtoken_jax.evaluation.retrieval import read_captions, retrieval
from dualtoken_jax.interop.inception import load_inception
from dualtoken_jax.interop.lpips import load_lpips
from dualtoken_jax.interop.published import INCEPTION, LPIPS_LINEAR, VGG16
from dualtoken_jax.workdir import load_config

_SHOWN = 5  # unusable pictures that are named

# What is left out without a flag, and how to get it.
NO_INCEPTION = f"rFID needs --inception=FILE\n{INCEPTION}"
NO_LPIPS = f"LPIPS needs --lpips FILE FILE\n{VGG16}\n{LPIPS_LINEAR}"
NO_CLASSES = f"zero-shot classification needs --classes=imagenet.json, which open_clip makes:\n{RECIPE}"
NO_RETRIEVAL = "retrieval needs --retrieval=Flickr8k.token.txt --retrieval_images=DIR, both of the Flickr8K dataset"
NO_TEXTS = (
    "zero-shot classification and retrieval need a text tower, which an export --without_text lacks,\n"
    "and its text tokenizer: --text_tokenizer=FILE"
)


def run_protocol(flags: argparse.Namespace) -> bool:
    """Prints and writes the figures; False where something that was asked for is left out."""
    protocol, problems = PROTOCOLS[flags.protocol], _Problems()
    _check_files(flags)
    source, where = _open_pictures(flags)
    absent = [path for path in (flags.inception, *(flags.lpips or [])) if path and not path.exists()]
    for path in absent:
        print(f"there is no file {path}; the rest is computed", file=sys.stderr)
    weights, missing = _open_weights(flags, source, absent)
    captions = _open_captions(flags)
    tokenizer = api.load(flags.workdir, flags.model_config, flags.text_tokenizer, flags.batch_size)

    complete = not absent
    if not tokenizer.embeds_text and (weights.prompts or captions):
        weights, captions, complete = dataclasses.replace(weights, prompts=None), {}, False
        missing.append(NO_TEXTS)

    facts = {"protocol": protocol.name, "model": tokenizer.name, "step": tokenizer.step, "pictures": where}
    facts["pixels"] = tokenizer.image_size
    results = measure_protocol(tokenizer, source, protocol, weights, problems)
    if captions:
        _write(flags, facts | _contents(results, weights, missing, protocol))  # whatever becomes of the retrieval
        try:
            results |= retrieval(tokenizer, captions, flags.retrieval_images, problems)
        except (OSError, ValueError) as error:
            complete = False
            missing.append(f"retrieval: {error}")
    contents = _contents(results, weights, missing, protocol)
    heading = "{protocol}: {model} at step {step}, {pictures} at {pixels} px\n".format(**facts)
    print(protocol_report.text(heading, contents["results"], contents["notes"], missing))
    written = _write(flags, facts | contents)
    print(f"\nwritten to {written}" if written else "\nnot written to a file: give --output=FILE.json")
    return complete


def _contents(results: dict, weights: Weights, missing: list[str], protocol: Protocol) -> dict[str, Any]:
    notes = list(protocol_report.caveats(results, protocol, weights.prompts))
    return {"results": protocol_report.named(results, protocol), "notes": notes, "left_out": missing}


class _Problems:
    """Names the first few unusable pictures on stderr."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self, problem: str) -> None:
        self._count += 1
        if self._count <= _SHOWN:
            print(f"left out: {problem}", file=sys.stderr)
        if self._count == _SHOWN:
            print("left out: further ones are only counted", file=sys.stderr)


def _open_pictures(flags: argparse.Namespace) -> tuple[Source, str]:
    source, where = (Folder(flags.images, "all"), str(flags.images)) if flags.images else _own_split(flags.workdir)
    if flags.limit and flags.limit < len(source):
        return spread(source, flags.limit), f"{flags.limit:,} of the {len(source):,} pictures of {where}"
    return source, f"{len(source):,} pictures of {where}"


def _own_split(workdir: Path) -> tuple[Source, str]:
    """The pictures of the run's own evaluation, in its order."""
    try:
        config = load_config(workdir)
    except ConfigError as error:
        raise ConfigError(f"{workdir} is no run with pictures of its own ({error}); give --images=DIR") from error
    source = open_source(config.data, config.seed, "eval")
    count = min(len(source), config.data.eval_examples)
    return Selection(source, np.arange(count)), "the run's own evaluation split"


def _open_weights(flags: argparse.Namespace, source: Source, absent: list[Path]) -> tuple[Weights, list[str]]:
    """What is there, and a line for each that is not. A wrong file or class list is an error before anything runs."""
    inception = lpips = prompts = None
    if flags.inception and flags.inception not in absent:
        inception = InceptionFeatures(load_inception(flags.inception), flags.batch_size)
    if flags.lpips and not set(flags.lpips) & set(absent):
        lpips = load_lpips(*flags.lpips)
    if flags.classes:
        prompts = read_prompts(flags.classes)
        check_labels(prompts, source.class_names, str(flags.images or flags.workdir))
    missing = [
        note
        for found, note in (
            (inception, NO_INCEPTION),
            (lpips, NO_LPIPS),
            (prompts, NO_CLASSES),
            (flags.retrieval, NO_RETRIEVAL),
        )
        if found is None
    ]
    return Weights(inception, lpips, prompts), missing


def _open_captions(flags: argparse.Namespace) -> dict[str, list[str]]:
    if not flags.retrieval:
        return {}
    captions = read_captions(flags.retrieval, flags.retrieval_split)
    if not any((flags.retrieval_images / name).exists() for name in captions):
        raise ConfigError(
            f"--retrieval_images={flags.retrieval_images} holds none of the {len(captions):,} pictures that "
            f"{flags.retrieval} describes, such as {next(iter(captions))}"
        )
    return captions


def _check_files(flags: argparse.Namespace) -> None:
    for flag in ("classes", "retrieval", "retrieval_images", "retrieval_split"):
        path = getattr(flags, flag)
        if path and not path.exists():
            needed = {"classes": NO_CLASSES}.get(flag, NO_RETRIEVAL)
            raise ConfigError(f"--{flag}={path}: there is no such file; {needed}")


def _write(flags: argparse.Namespace, contents: dict[str, Any]) -> Path | None:
    path = flags.output
    if path is None and flags.workdir.is_dir():
        path = flags.workdir / f"evaluation_{flags.protocol}.json"
    if path is None:
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(contents, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path
