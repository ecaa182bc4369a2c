"""The embedded dataset: captioned, labelled scenes of one to three objects, rendered from (seed, split, index)."""

import dataclasses
from typing import Literal

import numpy as np

from dualtoken_jax.data.scene_captions import CLASS_NAMES, RELATIONS, WORDS, SceneDescription, caption, describe
from dualtoken_jax.data.scene_rendering import (
    BACKGROUNDS,
    COLOURS,
    PATTERNS,
    SIZES,
    SceneArrays,
    choice,
    mix,
    render,
    uniform,
)
from dualtoken_jax.data.scene_shapes import TEXTURES
from dualtoken_jax.data.sources import Example, digest_of

__all__ = ["WORDS", "SceneDescription", "Scenes", "ScenesConfig"]

VERSION = 1  # of what is rendered and said
_SPLITS = ("train", "eval")
_RADIUS = np.array(list(SIZES.values()), np.float32)
_PAIRS = np.array([(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 0)])  # sizes of two objects that fit side by side
_CORNERS = np.array([(1, 2, 3), (0, 2, 3), (0, 1, 3), (0, 1, 2)])  # quarters of the picture taken by three objects
_MARGIN = np.float32(0.008)  # clear of the frame and of each other, fraction of the side


@dataclasses.dataclass(frozen=True)
class ScenesConfig:
    """Settings of the scenes; an impossible one raises ValueError when the config is made."""

    resolution: int = 32  # pixels of the square picture's side; the scene itself does not depend on it
    max_objects: int = 3  # most objects in one scene, 1 to 3
    single_fraction: float = 0.5  # share of scenes with exactly one object; these carry a label
    spread: float = 0.4  # of the room that a lone object has around the centre, the share it uses; photographers centre
    detail: float = 0.5  # share of captions that may name sizes, textures and the background too
    difficulty: float = 0.5  # 0 flat and clean; 1 patterns, clutter, strong shading, noise sigma 3 % of full range
    size: int = 1_000_000  # scenes in the split

    def __post_init__(self):
        _check(self.resolution >= 16, "resolution", self.resolution, "use at least 16 pixels: shapes vanish below")
        _check(self.max_objects in (1, 2, 3), "max_objects", self.max_objects, "use 1, 2 or 3")
        _check(0 <= self.single_fraction <= 1, "single_fraction", self.single_fraction, "use a share from 0 to 1")
        _check(
            self.max_objects > 1 or self.single_fraction == 1,
            "single_fraction",
            self.single_fraction,
            "max_objects=1 makes every scene a single: set single_fraction=1.0, or raise max_objects",
        )
        _check(0 <= self.detail <= 1, "detail", self.detail, "use a share from 0 to 1")
        _check(0 <= self.spread <= 1, "spread", self.spread, "use a share from 0 to 1")
        _check(0 <= self.difficulty <= 1, "difficulty", self.difficulty, "use a value from 0 to 1")
        _check(1 <= self.size < 2**62, "size", self.size, "use at least 1 scene and fewer than 2**62")


def _check(holds: bool, field: str, value: object, remedy: str) -> None:
    if not holds:
        raise ValueError(f"scenes: {field}={value!r} is impossible: {remedy}")


class Scenes:
    """Source of rendered scenes; scene i is a pure function of (config, seed, split, i), bitwise, on every machine.

    Captions are lower-case words of WORDS with spaces and commas, at most 20 words, always true to the picture.
    """

    class_names = CLASS_NAMES

    def __init__(self, config: ScenesConfig, seed: int, split: Literal["train", "eval"]):
        """Raises ValueError for a split other than "train" or "eval", or a seed outside [0, 2**63)."""
        _check(split in _SPLITS, "split", split, 'use "train" or "eval"')
        _check(0 <= seed < 2**63, "seed", seed, "use an integer from 0 to 2**63 - 1")
        self._config = config
        self.fingerprint = digest_of([f"scenes {VERSION}", repr(config), str(seed), split])
        self._seed = mix(mix(np.array([seed], np.uint64)) + np.uint64(1))
        self._split = np.uint64(_SPLITS.index(split))

    def __len__(self) -> int:
        return self._config.size

    def read(self, indices: np.ndarray) -> list[Example]:
        """Examples at `indices` (integer [n]), in that order.

        Images are uint8 [resolution, resolution, 3]; a scene of one object has a label, an index into class_names.
        Raises IndexError for an index outside [0, len).
        """
        scenes = self._draw(indices)
        images = render(scenes, self._config.resolution, self._config.difficulty)
        dice = uniform(scenes.keys, "caption", 9).tolist()
        labels = (scenes.shape[:, 0] * len(COLOURS) + scenes.colour[:, 0]).tolist()
        examples = []
        for image, description, dice_row, label in zip(images, describe(scenes), dice, labels, strict=True):
            single = len(description.objects) == 1
            examples.append(
                Example(image, caption(description, dice_row, self._config.detail), label if single else None)
            )
        return examples

    def describe(self, index: int) -> SceneDescription:
        """The full ground truth of scene `index`. Raises IndexError for an index outside [0, len)."""
        return describe(self._draw(np.array([index])))[0]

    def _draw(self, indices: np.ndarray) -> SceneArrays:
        indices = np.asarray(indices, np.int64)
        outside = indices[(indices < 0) | (indices >= len(self))]
        if outside.size:
            raise IndexError(f"scene index {outside[0]} is outside [0, {len(self)}): raise `size` or wrap the index")
        # mix is a bijection and so is (index, split) → 2 index + split: no two scenes of one seed share a key.
        keys = mix(self._seed ^ (indices.astype(np.uint64) * np.uint64(2) + self._split))
        return _draw_scenes(keys, self._config)


# ---- what stands where


def _draw_scenes(keys: np.ndarray, config: ScenesConfig) -> SceneArrays:
    single = uniform(keys, "single", 1)[:, 0] < config.single_fraction
    several = 2 + choice(keys, "several", max(1, config.max_objects - 1), 1)[:, 0]
    count = np.where(single, 1, several)
    size = _draw_sizes(keys, count)
    # 4.5 % either way leaves the three sizes far apart.
    radius = _RADIUS[size] * (1 + np.float32(0.09) * (uniform(keys, "radius", 3) - np.float32(0.5)))
    vertical = choice(keys, "vertical", 2, 1)[:, 0]
    x, y = _place(keys, count, radius, vertical, config.spread)
    kind = _draw_kinds(keys)
    patterned = uniform(keys, "patterned", 1)[:, 0] < 1.5 * config.difficulty
    return SceneArrays(
        keys=keys,
        count=count,
        shape=kind // len(COLOURS),
        colour=kind % len(COLOURS),
        size=size,
        texture=choice(keys, "texture", len(TEXTURES), 3),
        x=x,
        y=y,
        radius=radius,
        background=choice(keys, "background", len(BACKGROUNDS), 1)[:, 0],
        pattern=np.where(patterned, 1 + choice(keys, "pattern", len(PATTERNS) - 1, 1)[:, 0], 0),
        relation=np.where(count == 2, vertical, len(RELATIONS)),
    )


def _draw_kinds(keys: np.ndarray) -> np.ndarray:
    """Three different classes per scene, uniform: "a red circle and a red circle" would say too little."""
    kinds = len(CLASS_NAMES)
    first = choice(keys, "first kind", kinds, 1)
    second = 1 + choice(keys, "second kind", kinds - 1, 1)
    third = 1 + choice(keys, "third kind", kinds - 2, 1)
    third += third >= second
    return (first + np.concatenate([np.zeros_like(first), second, third], axis=1)) % kinds


def _draw_sizes(keys: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Any size alone, a pair that fits, small or medium for three: int64 [n, 3]."""
    sizes = choice(keys, "size", 2, 3)
    sizes[:, 0] = np.where(count == 1, choice(keys, "single size", 3, 1)[:, 0], sizes[:, 0])
    pair = _PAIRS[choice(keys, "pair sizes", len(_PAIRS), 1)[:, 0]]
    sizes[:, :2] = np.where((count == 2)[:, None], pair, sizes[:, :2])
    return sizes


def _place(
    keys: np.ndarray, count: np.ndarray, radius: np.ndarray, vertical: np.ndarray, spread: float
) -> tuple[np.ndarray, np.ndarray]:
    """Centres (x, y), float32 [n, 3] each; inside the frame and apart by construction."""
    reach = radius + _MARGIN
    chance = uniform(keys, "place", 6)
    room = np.float32(spread) * (np.float32(0.5) - reach[:, :1])
    alone = np.float32(0.5) + room * (2 * chance[:, :2] - 1)  # [n, 2]: x, y of a lone object
    along, across = _place_pair(chance, reach)
    quarter = _CORNERS[choice(keys, "corners", 4, 1)[:, 0]]
    slack = np.float32(0.25) - reach
    centres = []
    for axis, cell in enumerate((quarter % 2, quarter // 2)):
        middle = np.float32(0.25) + np.float32(0.5) * cell.astype(np.float32)
        centre = middle + (2 * chance[:, 3 * axis : 3 * axis + 3] - 1) * slack
        pair = np.where((vertical == axis)[:, None], along, across)
        centre[:, :2] = np.where((count == 2)[:, None], pair, centre[:, :2])
        centre[:, 0] = np.where(count == 1, alone[:, axis], centre[:, 0])
        centres.append(centre)
    return centres[0], centres[1]


def _place_pair(chance: np.ndarray, reach: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of two objects, float32 [n, 2]: along the axis that relates them, and nearly level across it."""
    slack = 1 - 2 * (reach[:, 0] + reach[:, 1])
    before, after = np.minimum(chance[:, 0], chance[:, 1]), 1 - np.maximum(chance[:, 0], chance[:, 1])
    along = np.stack([reach[:, 0] + slack * before, 1 - reach[:, 1] - slack * after], axis=1)
    level = np.float32(0.2) + np.float32(0.6) * chance[:, 2:3]
    wobble = np.float32(0.16) * (chance[:, 3:5] - np.float32(0.5))
    return along, np.clip(level + wobble, reach[:, :2], 1 - reach[:, :2])
