"""The figures of a protocol as a file and as lines to read, with what they do not say."""

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from dualtoken_jax.evaluation.imagenet import CLASSES, TEMPLATES, Prompts
from dualtoken_jax.evaluation.protocols import IMAGES, Protocol, distance_name
from dualtoken_jax.evaluation.report import format_value
from dualtoken_jax.evaluation.retrieval import TEST_IMAGES
from dualtoken_jax.models.inception import CHANNELS


def named(results: Mapping[str, Any], protocol: Protocol) -> dict[str, Any]:
    """The results under names that end in the protocol's."""
    return {f"{name}_{protocol.name}": value for name, value in results.items()}


def caveats(results: Mapping[str, Any], protocol: Protocol, prompts: Prompts | None) -> Iterator[str]:
    """What a reader of these results must know, a sentence each. Names in `results` are without the protocol's."""
    images, unusable = results["images"], results["unusable_images"]
    distance = distance_name(images)
    if distance in results and images != IMAGES:
        yield (
            f"{distance}_{protocol.name} is over {images:,} pictures and not the published rFID, which is over "
            f"ImageNet's {IMAGES:,} validation pictures: fewer pictures give a greater distance"
        )
    if distance in results and images <= CHANNELS:
        yield (
            f"with {images:,} pictures the covariance of {CHANNELS:,} features has no full rank: the distance compares "
            f"only runs over the same pictures; take at least {CHANNELS + 1:,}"
        )
    if "psnr" not in results:
        yield "this model has no decoder: nothing is reconstructed, and codes are all that is measured"
    if unusable:
        yield f"{unusable:,} of {images + unusable:,} pictures could not be used and are left out"
    if prompts and (len(prompts.classes), len(prompts.templates)) != (CLASSES, TEMPLATES):
        yield (
            f"zero_shot is over {len(prompts.classes)} classes and {len(prompts.templates)} templates, not ImageNet's "
            f"{CLASSES} and {TEMPLATES}"
        )
    if results.get("flickr8k_images", TEST_IMAGES) != TEST_IMAGES:
        yield (
            f"flickr8k is over {results['flickr8k_images']:,} pictures, not the {TEST_IMAGES:,} of "
            "Flickr_8k.testImages.txt: fewer are easier"
        )


def text(heading: str, results: Mapping[str, Any], notes: list[str], missing: list[str]) -> str:
    """What the command prints."""
    width = max(map(len, results))
    lines = [heading, *(f"  {name:<{width}}  {format_value(value):>10}" for name, value in results.items())]
    if notes:
        lines += ["\nnotes"]
        lines += [textwrap.fill(note, 100, initial_indent="  - ", subsequent_indent="    ") for note in notes]
    if missing:  # addresses and commands are not wrapped: they are to be copied
        lines += ["\nleft out", *(textwrap.indent(item, "    ").replace("    ", "  - ", 1) for item in missing)]
    return "\n".join(lines)
