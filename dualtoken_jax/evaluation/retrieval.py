"""Image–text retrieval on Flickr8K as its authors distribute it (Hodosh et al. 2013; METHOD section 7)."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from dualtoken_jax.data.pictures import picture_groups
from dualtoken_jax.data.sources import Files
from dualtoken_jax.evaluation.metrics import retrieval_at_1

TEST_IMAGES = 1000  # of Flickr_8k.testImages.txt


def read_captions(tokens: str | Path, split: str | Path | None = None) -> dict[str, list[str]]:
    """File name → captions, in order, from Flickr8k.token.txt: `NAME.jpg#0<TAB>caption` a line.

    `split` is a file of one name a line, as Flickr_8k.testImages.txt, that says which pictures to take. ValueError,
    with the line, for anything else, and for names of the split that have no captions.
    """
    captions: dict[str, list[str]] = {}
    for number, line in enumerate(Path(tokens).read_text("utf-8").splitlines(), start=1):
        key, tab, caption = line.partition("\t")
        name, mark, _ = key.partition("#")
        if line.strip() and not (tab and mark and name and caption.strip()):
            raise ValueError(f"{tokens}, line {number}: expected NAME.jpg#0<TAB>caption, found {line[:80]!r}")
        if line.strip():
            captions.setdefault(name, []).append(caption.strip())
    if not captions:
        raise ValueError(f"{tokens} holds no captions; expected lines of NAME.jpg#0<TAB>caption")
    if split is None:
        return captions
    names = Path(split).read_text("utf-8").split()
    if missing := [name for name in names if name not in captions]:
        raise ValueError(f"{split}: {len(missing)} of {len(names)} names have no captions in {tokens}: {missing[0]} …")
    return {name: captions[name] for name in names}


def retrieval(
    tokenizer, captions: dict[str, list[str]], folder: str | Path, report: Callable[[str], None]
) -> dict[str, float]:
    """R@1 both ways, and how many pictures there were; `report` is told of each that cannot be used.

    Raises ValueError where none can.
    """
    names, vectors, used = list(captions), [], []
    source = Files([Path(folder) / name for name in names])
    for group in picture_groups(source, tokenizer.image_size, tokenizer.batch_size):
        for picture in group:
            if picture.problem:
                report(picture.problem)
        usable = [picture for picture in group if picture.example]
        if usable:
            vectors.append(tokenizer.embed_image(np.stack([picture.example.image for picture in usable])))
            used += [names[picture.index] for picture in usable]
    if not used:
        raise ValueError(f"none of the {len(names)} pictures that have captions can be read from {folder}")
    texts = [caption for name in used for caption in captions[name]]
    owner = np.repeat(np.arange(len(used)), [len(captions[name]) for name in used])
    found = retrieval_at_1(np.concatenate(vectors), tokenizer.embed_text(texts), texts, owner)
    counts = {"flickr8k_images": len(used), "flickr8k_captions": len(texts)}
    return {f"flickr8k_{way}_r1": share for way, share in found.items()} | counts
