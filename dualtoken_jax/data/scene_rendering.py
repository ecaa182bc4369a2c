"""Pixels of the embedded dataset: counter-based randomness, anti-aliased objects, backgrounds, sensor noise.

Only + - * / sqrt floor abs and comparisons touch a pixel: IEEE rounds these exactly, so a scene has the same bits on
every CPU and in every batch, which sin, exp or a matrix product would not promise.
"""

import zlib
from dataclasses import dataclass

import numpy as np

from dualtoken_jax.data.scene_shapes import SHAPES, TEXTURES

# Saturated or extreme, and far apart from each other after shading, so that a small network can tell them apart.
COLOURS = {
    "red": (0.86, 0.12, 0.12),
    "green": (0.12, 0.62, 0.18),
    "blue": (0.12, 0.22, 0.86),
    "yellow": (0.95, 0.85, 0.10),
    "purple": (0.60, 0.15, 0.74),
    "cyan": (0.10, 0.84, 0.90),
    "white": (0.95, 0.95, 0.95),
    "black": (0.05, 0.05, 0.05),
}
# Muted and mid-toned: none can be taken for one of the COLOURS.
BACKGROUNDS = {
    "grey": (0.50, 0.50, 0.50),
    "brown": (0.47, 0.37, 0.28),
    "tan": (0.66, 0.57, 0.45),
    "slate": (0.38, 0.45, 0.54),
    "mauve": (0.57, 0.44, 0.50),
    "moss": (0.43, 0.48, 0.34),
}
PATTERNS = ("plain", "shaded", "striped", "mottled")  # of a background
# Radius as a fraction of the side. The same in every scene, so that a size word always means the same thing; a small
# and a large object just fit beside each other, and 0.165 is 5 pixels at 32, the least that shows a shape.
SIZES = {"small": 0.165, "medium": 0.225, "large": 0.30}

_OBJECT_RGB = np.array(list(COLOURS.values()), np.float32)
_BACKGROUND_RGB = np.array(list(BACKGROUNDS.values()), np.float32)
# A texture darkens its object, which keeps the hue. Black can only get lighter, and neither black nor white may reach
# the greys of a background.
_TEXTURE_RGB = _OBJECT_RGB * np.float32(0.5)
_TEXTURE_RGB[list(COLOURS).index("white")] = 0.68
_TEXTURE_RGB[list(COLOURS).index("black")] = 0.25
_PIXELS_PER_CHUNK = 1 << 15  # working arrays that fit the cache: measured a fifth faster than one pass


@dataclass(frozen=True)
class SceneArrays:
    """Ground truth of n scenes, three object slots each; slots at and beyond `count` are never drawn."""

    keys: np.ndarray  # uint64 [n], source of all cosmetic randomness
    count: np.ndarray  # int64 [n], objects in the scene, 1..3
    shape: np.ndarray  # int64 [n, 3], index into SHAPES
    colour: np.ndarray  # int64 [n, 3], index into COLOURS
    size: np.ndarray  # int64 [n, 3], index into SIZES
    texture: np.ndarray  # int64 [n, 3], index into TEXTURES
    x: np.ndarray  # float32 [n, 3], centre, fraction of the side from the left
    y: np.ndarray  # float32 [n, 3], centre, fraction of the side from the top
    radius: np.ndarray  # float32 [n, 3], of the circle round the object, fraction of the side
    background: np.ndarray  # int64 [n], index into BACKGROUNDS
    pattern: np.ndarray  # int64 [n], index into PATTERNS
    relation: np.ndarray  # int64 [n], first object to second: 0 left of, 1 above, 2 not stated

    def rows(self, rows: slice) -> "SceneArrays":
        return SceneArrays(**{name: value[rows] for name, value in vars(self).items()})


# ---- randomness: a value is a hash of (key, name of the draw), so no draw disturbs another


def mix(bits: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): a bijection of uint64 without visible structure."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def uniform(keys: np.ndarray, name: str, count: int) -> np.ndarray:
    """float32 [n, count] in [0, 1) for uint64 keys [n]; draws under different names are independent."""
    slots = (np.uint64(zlib.crc32(name.encode())) << np.uint64(8)) + np.arange(count, dtype=np.uint64)
    bits = mix(keys[:, None] + mix(slots)[None])
    return (bits >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)


def choice(keys: np.ndarray, name: str, options: int, count: int) -> np.ndarray:
    """int64 [n, count], each in [0, options)."""
    return (uniform(keys, name, count) * np.float32(options)).astype(np.int64)


def _direction(keys: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors, two float32 [n, 1], in all directions."""
    cos, sin = _rotation(2 * uniform(keys, name, 1) - 1)  # the half with x >= 0
    side = 1 - 2 * choice(keys, name + " side", 2, 1).astype(np.float32)
    return side * cos, side * sin


def _rotation(half_tangent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine from the tangent of half the angle, by the rational formula: sin and cos are not exact."""
    square = half_tangent * half_tangent
    return (1 - square) / (1 + square), 2 * half_tangent / (1 + square)


# ---- pixels


def render(scenes: SceneArrays, resolution: int, difficulty: float) -> np.ndarray:
    """Draw n scenes: uint8 [n, resolution, resolution, 3], sRGB. Edges are anti-aliased over one pixel."""
    images = np.empty((len(scenes.keys), resolution, resolution, 3), np.uint8)
    step = max(1, _PIXELS_PER_CHUNK // resolution**2)
    for start in range(0, len(images), step):
        rows = slice(start, start + step)
        images[rows] = _render_chunk(scenes.rows(rows), resolution, np.float32(difficulty))
    return images


def _render_chunk(scenes: SceneArrays, resolution: int, difficulty: np.float32) -> np.ndarray:
    planes = _background(scenes, resolution, difficulty)  # [n, 3, H, W]: whole planes are quicker than pixels of three
    for slot in range(3):
        rows = np.flatnonzero(scenes.count > slot)
        if rows.size:
            _paint(planes, rows, slot, scenes, difficulty)
    planes *= np.float32(255)
    if difficulty > 0:
        planes += _noise(scenes.keys, resolution, np.float32(0.03 * 255) * difficulty)
    planes += np.float32(0.5)
    np.clip(planes, 0, 255, out=planes)
    return planes.astype(np.uint8).transpose(0, 2, 3, 1)


def _paint(planes: np.ndarray, rows: np.ndarray, slot: int, scenes: SceneArrays, difficulty: np.float32) -> None:
    """Lay the object of one slot over the scenes `rows` of `planes`, in place."""
    keys, radius = scenes.keys[rows], scenes.radius[rows, slot]
    x, y = _object_coordinates(scenes, rows, slot, planes.shape[-1])
    pixels = (radius * np.float32(planes.shape[-1]))[:, None, None]  # of one radius
    shape, texture = scenes.shape[rows, slot], scenes.texture[rows, slot]
    cover = _apply_per_kind(tuple(SHAPES.values()), shape, x, y)
    mark = _apply_per_kind(tuple(TEXTURES.values()), texture, x, y)
    np.maximum(mark, cover + np.float32(0.08), out=mark)  # a rim stays plain, so that a texture never eats the outline
    cover *= -pixels
    _coverage(cover)
    mark *= -pixels
    _coverage(mark)

    light_x, light_y = (part[:, :, None] for part in _direction(keys, "light"))
    lit = 1 + (x * light_x + y * light_y) * (np.float32(0.35) * difficulty)
    lit *= cover
    mark *= lit
    jitter = (uniform(keys, f"colour jitter {slot}", 3) - np.float32(0.5)) * np.float32(0.09)
    colour = _OBJECT_RGB[scenes.colour[rows, slot]]
    delta = _TEXTURE_RGB[scenes.colour[rows, slot]] - colour
    everything = len(rows) == len(planes)
    background = planes if everything else planes[rows]
    background *= 1 - cover[:, None]
    background += (colour + jitter)[:, :, None, None] * lit[:, None]
    background += delta[:, :, None, None] * mark[:, None]
    if not everything:
        planes[rows] = background


def _object_coordinates(
    scenes: SceneArrays, rows: np.ndarray, slot: int, resolution: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pixel centres in the frame of one object, turned by up to 15 degrees: two float32 [n, H, W], in radii."""
    at = (np.arange(resolution, dtype=np.float32) + np.float32(0.5)) / np.float32(resolution)
    x = (at - scenes.x[rows, slot, None]) / scenes.radius[rows, slot, None]
    y = (at - scenes.y[rows, slot, None]) / scenes.radius[rows, slot, None]
    turn = 2 * uniform(scenes.keys[rows], f"turn {slot}", 1) - 1
    cos, sin = _rotation(turn * np.float32(0.13165))  # tan(15 degrees / 2)
    return (cos * x)[:, None, :] + (sin * y)[:, :, None], (cos * y)[:, :, None] - (sin * x)[:, None, :]


def _apply_per_kind(functions: tuple, kinds: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """functions[kinds[i]](x[i], y[i]) for every object i, one call per kind that occurs."""
    result = np.empty_like(x)
    for kind, function in enumerate(functions):
        chosen = np.flatnonzero(kinds == kind)
        if chosen.size:
            result[chosen] = function(x[chosen], y[chosen])
    return result


def _coverage(inside: np.ndarray) -> None:
    """Distance inside an edge, in pixels → share of the pixel that is covered, in place; exact for straight edges."""
    inside += np.float32(0.5)
    np.clip(inside, 0, 1, out=inside)


def _background(scenes: SceneArrays, resolution: int, difficulty: np.float32) -> np.ndarray:
    """float32 [n, 3, H, W]: a muted colour plus one scalar field in a slightly tinted direction."""
    keys = scenes.keys
    base = _BACKGROUND_RGB[scenes.background] + (uniform(keys, "background jitter", 3) - np.float32(0.5)) * 0.06
    planes = np.empty((len(keys), 3, resolution, resolution), np.float32)
    planes[:] = base[:, :, None, None]
    rows = np.flatnonzero(scenes.pattern > 0)
    if rows.size:
        # Below 0.05 a pattern that the caption names could not be seen; above 0.15 it could pass for an object.
        amplitude = (np.float32(0.05) + np.float32(0.08) * difficulty) * (1 + uniform(keys[rows], "tint", 3) / 2)
        field = _pattern_field(keys[rows], scenes.pattern[rows], resolution, difficulty)
        planes[rows] += amplitude[:, :, None, None] * field[:, None]
    return planes


def _pattern_field(keys: np.ndarray, pattern: np.ndarray, resolution: int, difficulty: np.float32) -> np.ndarray:
    """float32 [n, H, W], about -1 to 1: shading, stripes or blotches, with finer clutter as difficulty grows."""
    at = (np.arange(resolution, dtype=np.float32) + np.float32(0.5)) / np.float32(resolution) - np.float32(0.5)
    cos, sin = _direction(keys, "background direction")
    slope = (cos * at)[:, None, :] + (sin * at)[:, :, None]  # within -0.71 .. 0.71
    frequency = (3 + 3 * uniform(keys, "background frequency", 1))[:, :, None]  # periods per side
    wave = slope * frequency
    wave = np.abs(wave - np.floor(wave) - np.float32(0.5)) * 4 - 1
    field = np.where((pattern == PATTERNS.index("striped"))[:, None, None], wave, slope * np.float32(1.6))
    mottled = np.flatnonzero(pattern == PATTERNS.index("mottled"))
    if mottled.size:
        field[mottled] = _blotches(keys[mottled], "blotches", 5, resolution)
    if difficulty > 0:
        field += _blotches(keys, "clutter", 9, resolution) * (np.float32(0.4) * difficulty)
    return field


def _blotches(keys: np.ndarray, name: str, cells: int, resolution: int) -> np.ndarray:
    """Value noise, float32 [n, H, W] in -1..1: random corners of a grid of cells, blended smoothly."""
    grid = (2 * uniform(keys, name, (cells + 1) ** 2) - 1).reshape(-1, cells + 1, cells + 1)
    at = (np.arange(resolution, dtype=np.float32) + np.float32(0.5)) * np.float32(cells / resolution)
    corner = at.astype(np.int64)
    part = at - corner.astype(np.float32)
    part = part * part * (3 - 2 * part)
    grid = grid[:, :, corner] + (grid[:, :, corner + 1] - grid[:, :, corner]) * part
    return grid[:, corner] + (grid[:, corner + 1] - grid[:, corner]) * part[:, None]


def _noise(keys: np.ndarray, resolution: int, sigma: np.float32) -> np.ndarray:
    """float32 [n, 3, H, W], nearly Gaussian: the sum of the four bytes of one 32-bit hash (lowbias32) per value."""
    bits = np.arange(3 * resolution**2, dtype=np.uint32) * np.uint32(0x9E3779B9)
    bits ^= bits >> np.uint32(16)
    bits = bits[None] ^ (mix(keys) >> np.uint64(32)).astype(np.uint32)[:, None]
    for factor, shift in ((0x7FEB352D, 15), (0x846CA68B, 16)):
        bits *= np.uint32(factor)
        bits ^= bits >> np.uint32(shift)
    pairs = bits & np.uint32(0x00FF00FF)
    bits >>= np.uint32(8)
    bits &= np.uint32(0x00FF00FF)
    pairs += bits  # two sums of two bytes, side by side
    total = ((pairs & np.uint32(0xFFFF)) + (pairs >> np.uint32(16))).astype(np.float32)
    total -= np.float32(510)  # the mean, and below the standard deviation, of a sum of four bytes
    total *= sigma / np.float32(147.8)
    return total.reshape(-1, 3, resolution, resolution)
