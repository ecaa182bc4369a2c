"""Words of the embedded dataset: ground truth of a scene, its caption, its class."""

from dataclasses import dataclass

from dualtoken_jax.data.scene_rendering import BACKGROUNDS, COLOURS, PATTERNS, SIZES, SceneArrays
from dualtoken_jax.data.scene_shapes import SHAPES, TEXTURES

RELATIONS = (("left of", "right of"), ("above", "below"))  # first object to second, second to first
CLASS_NAMES = tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)
_GLUE = "a and background below above left right of on picture there is with"
WORDS: tuple[str, ...] = tuple(
    sorted({*_GLUE.split(), *SHAPES, *COLOURS, *SIZES, *TEXTURES, *BACKGROUNDS, *PATTERNS})
)  # every word of a caption or class name; captions add commas


@dataclass(frozen=True)
class ObjectDescription:
    """Ground truth of one object; lengths are fractions of the picture's side, y points down."""

    shape: str
    colour: str
    size: str
    texture: str
    x: float  # centre
    y: float
    radius: float  # of the circle the object just fits into


@dataclass(frozen=True)
class SceneDescription:
    """Ground truth of one scene, against which a picture or a caption can be checked."""

    objects: tuple[ObjectDescription, ...]
    background: str  # colour name
    pattern: str  # of the background
    relation: str | None  # how the first object stands to the second ("left of", "above"); only for two objects


def describe(scenes: SceneArrays) -> list[SceneDescription]:
    """Descriptions of n scenes, in their order."""
    columns = (scenes.shape, scenes.colour, scenes.size, scenes.texture, scenes.x, scenes.y, scenes.radius)
    shape, colour, size, texture, x, y, radius = (column.tolist() for column in columns)
    shapes, colours, sizes, textures, backgrounds = map(tuple, (SHAPES, COLOURS, SIZES, TEXTURES, BACKGROUNDS))
    relations = (*(there for there, _ in RELATIONS), None)
    descriptions = []
    for i, count in enumerate(scenes.count.tolist()):
        objects = tuple(
            ObjectDescription(
                shapes[shape[i][j]],
                colours[colour[i][j]],
                sizes[size[i][j]],
                textures[texture[i][j]],
                x[i][j],
                y[i][j],
                radius[i][j],
            )
            for j in range(count)
        )
        background, pattern = backgrounds[scenes.background[i]], PATTERNS[scenes.pattern[i]]
        descriptions.append(SceneDescription(objects, background, pattern, relations[scenes.relation[i]]))
    return descriptions


def caption(scene: SceneDescription, dice: list[float], detail: float) -> str:
    """One true sentence; `dice` (9 numbers in [0, 1)) decide what it mentions, beyond colours, shapes and relations
    with probability `detail`.
    """
    if dice[8] >= detail:
        dice = [1.0] * 4 + dice[4:6] + [0.0, 0.5]
    text = _things(scene, dice)
    background = _background_phrase(scene, dice[6])
    if background and len(scene.objects) == 1 and dice[7] < 0.2:
        return f"{background} with {text}"
    if background:
        text = f"{text} on {background}"
    if len(scene.objects) < 3 and dice[7] > 0.7:  # three objects with an opening would pass 20 words
        return f"{'a picture of' if dice[7] > 0.85 else 'there is'} {text}"
    return text


def _things(scene: SceneDescription, dice: list[float]) -> str:
    if len(scene.objects) == 3:
        phrases = [_short_phrase(thing, die) for thing, die in zip(scene.objects, dice, strict=False)]
        return f"{phrases[0]}, {phrases[1]} and {phrases[2]}"
    phrases = [_phrase(thing, dice[2 * j], dice[2 * j + 1]) for j, thing in enumerate(scene.objects)]
    if len(phrases) == 1:
        return phrases[0]
    there, back = next(names for names in RELATIONS if names[0] == scene.relation)
    if dice[4] < 0.25:
        return f"{phrases[0]} and {phrases[1]}"
    return f"{phrases[0]} {there} {phrases[1]}" if dice[5] < 0.5 else f"{phrases[1]} {back} {phrases[0]}"


def _phrase(thing: ObjectDescription, size_die: float, texture_die: float) -> str:
    size = f"{thing.size} " if size_die < 0.5 else ""
    texture = f"{thing.texture} " if texture_die < 0.5 else ""
    return f"a {size}{texture}{thing.colour} {thing.shape}"


def _short_phrase(thing: ObjectDescription, die: float) -> str:
    """At most one of size and texture, which keeps a list of three within the length."""
    return _phrase(thing, *((0, 1) if die < 0.3 else (1, 0) if die < 0.6 else (1, 1)))


def _background_phrase(scene: SceneDescription, die: float) -> str:
    if die < 0.5:
        return ""
    pattern = f"{scene.pattern} " if die < 0.75 else ""
    return f"a {pattern}{scene.background} background"
