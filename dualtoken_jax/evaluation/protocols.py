"""The protocols under which tokenizers are compared (METHOD section 7). Every figure carries its protocol's name.

`official` is the released evaluation, at the model's own resolution: input and reconstruction are truncated to 8 bits
(the input has no more to begin with), written as JPEG, resized as clean-fid does and compared by Inception's features.
`adm` is what most papers quote: 256 px, PNG, and the resize inside the graph that ADM's evaluation runs, which is also
torch-fidelity's; pytorch-fid's bilinear differs by half a pixel. PSNR, SSIM, L1 and LPIPS are those of the unrounded
reconstruction under both.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from dualtoken_jax.config import ConfigError
from dualtoken_jax.data.pictures import Picture, picture_groups
from dualtoken_jax.data.sources import Source
from dualtoken_jax.evaluation.fid import FrechetInception, InceptionFeatures
from dualtoken_jax.evaluation.image_files import clean_bicubic, tensorflow_bilinear, through_jpeg, through_png
from dualtoken_jax.evaluation.imagenet import Prompts, ZeroShot
from dualtoken_jax.evaluation.measure import bit_rates, codebook_use
from dualtoken_jax.evaluation.similarity import Similarity

if TYPE_CHECKING:  # the room above, whose objects come in as arguments
    from dualtoken_jax.api import Codes, ImageTokenizer

IMAGES = 50_000  # ImageNet's validation pictures, over which rFID is published


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What happens to a picture between the tokenizer and Inception."""

    name: str
    side: int | None  # pixels; None is whatever the model has
    stored: Callable[[np.ndarray], np.ndarray]  # values from 0 to 255 → uint8, as the file gives them back
    resized: Callable[[np.ndarray], np.ndarray]  # uint8 [H, W, 3] → float32 [299, 299, 3]

    def prepare(self, values: np.ndarray) -> np.ndarray:
        """One picture [H, W, 3] from 0 to 255, not rounded, as Inception sees it."""
        return self.resized(self.stored(values))

    def check(self, tokenizer: "ImageTokenizer") -> None:
        """Raises ConfigError for a model that the protocol is not defined for."""
        if self.side not in (None, tokenizer.image_size):
            raise ConfigError(
                f"the protocol '{self.name}' is defined at {self.side} px, and {tokenizer.name} works at "
                f"{tokenizer.image_size} px: pictures of another size give another figure; use --protocol=official"
            )


OFFICIAL = Protocol("official", None, through_jpeg, clean_bicubic)
ADM = Protocol("adm", 256, through_png, tensorflow_bilinear)
PROTOCOLS = {protocol.name: protocol for protocol in (OFFICIAL, ADM)}


@dataclasses.dataclass(frozen=True)
class Weights:
    """What the figures beyond the plain ones need; what is None is left out."""

    inception: InceptionFeatures | None = None
    lpips: dict | None = None  # parameters of models.vgg.Lpips
    prompts: Prompts | None = None  # class names and templates


def measure_protocol(
    tokenizer: "ImageTokenizer", source: Source, protocol: Protocol, weights: Weights, report: Callable[[str], None]
) -> dict[str, Any]:
    """All figures of `source` in one pass; names are without the protocol's.

    A picture that cannot be used is left out and counted, and `report` is told of it. What is held does not grow with
    the number of pictures. Raises ConfigError as `Protocol.check`, ValueError where no picture can be used.
    """
    protocol.check(tokenizer)
    pictures = _Pictures(tokenizer, source, report)
    use, model = CodeUse(tokenizer.model), tokenizer.model
    similarity = Similarity(tokenizer.batch_size, weights.lpips)
    frechet = weights.inception and FrechetInception(weights.inception, protocol.prepare)
    zero_shot = weights.prompts and ZeroShot(weights.prompts, tokenizer.embed_text)
    for images, labels in pictures:
        codes = tokenizer.encode(images)
        use.add(codes)
        if model.reconstructs:
            decoded = tokenizer.decode_float(codes)
            similarity.add(images.astype(np.float32) / np.float32(127.5) - 1, decoded)
            if frechet:
                frechet.add(images, (decoded + 1) * np.float32(127.5))
        if zero_shot:
            zero_shot.add(tokenizer.embed_image(images), labels)
    results = {"images": pictures.used, "unusable_images": pictures.unusable}
    if not pictures.used:
        raise ValueError(f"none of the {pictures.unusable} pictures can be used; the reasons stand above")
    if model.reconstructs and frechet and pictures.used > 1:
        results[distance_name(pictures.used)] = frechet.distance()
    results |= similarity.results() if model.reconstructs else {}
    results |= bit_rates(model) | (zero_shot.results() if zero_shot else {})
    return results | use.results()


def distance_name(images: int) -> str:
    """rFID is the distance over all validation pictures: its bias depends on their number, so no other is called so."""
    return "rfid" if images == IMAGES else "frechet_inception"


class _Pictures:
    """Batches of usable pictures: uint8 [n, R, R, 3], labels [n] with −1 for none; counts the others."""

    def __init__(self, tokenizer: "ImageTokenizer", source: Source, report: Callable[[str], None]) -> None:
        self._source, self._report = source, report
        self._groups = picture_groups(source, tokenizer.image_size, tokenizer.batch_size)
        self.used = self.unusable = 0

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        with tqdm(total=len(self._source), unit="image", disable=None) as bar:  # None: on a terminal only
            for group in self._groups:
                usable = [picture.example for picture in group if picture.example]
                self._count(group, len(usable))
                if usable:
                    labels = np.array([-1 if example.label is None else example.label for example in usable])
                    yield np.stack([example.image for example in usable]), labels
                bar.update(len(group))

    def _count(self, group: list[Picture], usable: int) -> None:
        self.used += usable
        self.unusable += len(group) - usable
        for picture in group:
            if picture.problem:
                self._report(picture.problem)


class CodeUse:
    """How often each depth of each vocabulary used each code."""

    def __init__(self, model) -> None:
        self._sizes = {branch: model.quantizer(branch) for branch in model.branches}
        self._counts = {branch: np.zeros((size.depth, size.codes), np.int64) for branch, size in self._sizes.items()}

    def add(self, codes: "Codes") -> None:
        """Codes [n, h, w, D] by vocabulary."""
        for branch, counts in self._counts.items():
            found = getattr(codes, branch)
            for depth, count in enumerate(counts):
                count += np.bincount(found[..., depth].ravel(), minlength=len(count))

    def results(self) -> dict[str, Any]:
        """Use, perplexity and KL, all depths together and by depth."""
        results: dict[str, Any] = {}
        for branch, counts in self._counts.items():
            results |= codebook_use(branch, counts, self._sizes[branch].shared_codebook)
        return results
