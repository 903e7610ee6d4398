"""What scenes are made of: classes, colours and light; buildings, trees and hedges.

Each `make_*` draws its random numbers at once and returns a `Thing`: a depth to sort by and a
function that paints it. What a thing is thus never depends on the size of the picture.
Lengths are metres; x is to the right of the camera, z before it.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from jaxseg.data.scene_canvas import RGB, Canvas, Point, grain

CLASSES = (
    "road",
    "sidewalk",
    "marking",
    "building",
    "pole",
    "vegetation",
    "sky",
    "person",
    "car",
)
ROAD, SIDEWALK, MARKING, BUILDING, POLE, VEGETATION, SKY, PERSON, CAR = range(len(CLASSES))
VOID = 255
PALETTE = (
    (128, 64, 128),
    (244, 35, 232),
    (250, 220, 60),
    (70, 70, 70),
    (153, 153, 153),
    (107, 142, 35),
    (70, 130, 180),
    (220, 20, 60),
    (0, 0, 142),
)

# Pools overlap on purpose: a grey may be a car, a wall, a coat, a pole or the road.
GREYS = ((38, 39, 42), (72, 74, 77), (104, 105, 106), (138, 138, 136), (176, 177, 178))
WALLS = (
    *GREYS[2:],
    (196, 180, 150),
    (168, 140, 110),
    (150, 84, 66),
    (120, 66, 52),
    (205, 200, 190),
    (118, 122, 96),
    (128, 142, 158),
    (214, 196, 128),
    (92, 82, 72),
    (186, 128, 104),
)
LEAVES = ((74, 92, 46), (54, 74, 40), (98, 104, 56), (60, 70, 52), (120, 112, 62), (112, 86, 56))


@dataclasses.dataclass(frozen=True)
class Thing:
    """Something to paint: things are painted from the largest `depth` to the smallest."""

    depth: float
    paint: Callable[[Canvas], None]


@dataclasses.dataclass(frozen=True)
class Light:
    """How surfaces are lit, by the side they face: `left` is for those that face left."""

    left: float
    right: float
    front: float
    shadow: float
    night: bool


def number(rng: np.random.Generator, low: float, high: float) -> float:
    """A plain float, so that float32 arrays stay float32; several times faster than `uniform`."""
    return low + (high - low) * rng.random()


def pick(rng: np.random.Generator, colors: tuple[RGB, ...], spread: float = 0.16) -> RGB:
    """One of `colors`, a little lighter or darker and a little off its hue."""
    which, value, *off = rng.random(5).tolist()
    r, g, b = colors[int(which * len(colors))]
    value = 1 + spread * (2 * value - 1)
    return (r * value + 14 * off[0] - 7, g * value + 14 * off[1] - 7, b * value + 14 * off[2] - 7)


def tint(color: RGB, factor: float) -> RGB:
    return tuple(c * factor for c in color)


def make_building(
    rng: np.random.Generator,
    light: Light,
    a: Point,
    b: Point,
    height: float,
    *,
    pitched: bool = False,
    detached: bool = True,
) -> Thing:
    """A house whose street front runs from `a` (near) to `b` (far); `detached`: its end shows."""
    wall, frame = pick(rng, WALLS), pick(rng, WALLS)
    roof = pick(rng, ((92, 60, 50), (72, 70, 72), (110, 96, 88)))
    glass = pick(rng, ((40, 46, 54), (70, 84, 98), (128, 146, 160), (58, 54, 50)))
    floor, bay = number(rng, 2.7, 3.6), number(rng, 1.7, 3.6)
    wide, tall = number(rng, 0.35, 0.75), number(rng, 0.4, 0.65)
    if rng.random() < 0.2:
        wide = 1.0  # ribbon windows
    shop = rng.random() < 0.4
    rise = number(rng, 2.0, 3.5) if pitched else 0.0
    depth = number(rng, 8, 14)
    seed = int(rng.integers(1 << 16))
    share_lit = number(rng, 0.1, 0.5) if light.night else 0.0
    side = 1.0 if a[0] > 0 else -1.0
    cornice = number(rng, 0.2, 0.6)

    def face(canvas: Canvas, inks: dict[str, int], start: Point, end: Point, lit: float, gable):
        patch = canvas.wall(start, end, 0.0, height + gable)
        if patch is None:
            return
        u, v = patch.u, patch.v
        top = height + gable * (1 - np.abs(u * (2 / depth) - 1)) if gable else height
        ink = np.full(np.broadcast_shapes(u.shape, v.shape), inks["wall"], np.uint16)
        shade = (0.86 + 0.28 * grain(u, v, 3.0, seed)) * (0.9 + np.minimum(v, 6.0) * (0.1 / 6))
        if patch.pixel < 0.2:
            shade *= 0.92 + 0.16 * grain(u, v, 14.0, seed)
        np.copyto(ink, inks["frame"], where=(v > height - cornice))
        if patch.pixel < 0.9:
            across, up = u * (1 / bay), (v - 0.6) * (1 / floor)
            column, storey = np.floor(across), np.floor(up)
            across, up = across - column, up - storey
            window = (np.abs(across - 0.5) < wide / 2) & (np.abs(up - 0.55) < tall / 2)
            window &= (v < height - cornice - 0.2) & (v > 0.6)
            if shop:
                window |= (v > 0.5) & (v < 2.6) & (np.abs(across - 0.5) < 0.44)
            around = (np.abs(across - 0.5) < wide / 2 + 0.05) & (
                np.abs(up - 0.55) < tall / 2 + 0.04
            )
            np.copyto(ink, inks["frame"], where=around & (v < height - cornice - 0.2))
            # One number per window: how much of the sky it mirrors, and whether somebody is in.
            cell = grain(column, storey, 37.0, seed)
            pane = np.where(cell < share_lit + 0.2, inks["lamp"], inks["glass"])
            np.copyto(ink, pane.astype(np.uint16) if light.night else inks["glass"], where=window)
            np.copyto(shade, 0.4 + 1.3 * cell + 0.25 * (up - 0.5), where=window)
        shade = np.where(ink == inks["lamp"], 1.0, shade * np.float32(lit))
        canvas.paint(patch, (v >= 0) & (v < top), ink, shade)

    def paint(canvas: Canvas) -> None:
        inks = {
            "wall": canvas.ink(wall, BUILDING),
            "frame": canvas.ink(frame, BUILDING),
            "glass": canvas.ink(glass, BUILDING),
            "lamp": canvas.ink((226, 178, 96), BUILDING, glows=True),
        }
        lit = light.left if side > 0 else light.right
        if pitched:
            ridge = [(x + side * depth / 2, z) for x, z in (a, b)]
            patch = canvas.wall(*ridge, height, height + rise)
            if patch is not None:
                tiles = 0.8 + 0.4 * grain(patch.u, patch.v, 6.0, seed)
                canvas.paint(
                    patch, patch.v < height + rise, canvas.ink(roof, BUILDING), tiles * lit
                )
        face(canvas, inks, a, b, lit, gable=0.0)
        if detached:
            face(canvas, inks, a, (a[0] + side * depth, a[1]), light.front, gable=rise)

    return Thing(max(a[1], b[1]), paint)


def make_tree(rng: np.random.Generator, light: Light, x: float, z: float, height: float) -> Thing:
    """A tree: a trunk under a crown of overlapping balls, or a cone."""
    leaf, bark = pick(rng, LEAVES, 0.25), pick(rng, ((84, 70, 58), (62, 56, 50), (110, 104, 94)))
    conifer = rng.random() < 0.2
    trunk = number(rng, 0.1, 0.22)
    clear = number(rng, 0.22, 0.4) * height * (0.5 if conifer else 1.0)
    radius = (height - clear) * number(rng, 0.36, 0.52) * (0.6 if conifer else 1.0)
    balls = [
        (number(rng, -0.6, 0.6) * radius, clear + number(rng, 0.3, 0.75) * (height - clear))
        for _ in range(6)
    ]
    sizes = [number(rng, 0.45, 0.75) * radius for _ in balls]
    seed = int(rng.integers(1 << 16))
    sun = 1.0 if light.right > light.left else -1.0

    def paint(canvas: Canvas) -> None:
        reach = radius * 1.35
        patch = canvas.wall((x - reach, z), (x + reach, z), 0.0, height * 1.08)
        if patch is None:
            return
        u, v = patch.u - reach, patch.v
        half = max(trunk, 0.5 * patch.pixel)
        wood = (np.abs(u) < half) & (v >= 0) & (v < clear + 0.3 * (height - clear))
        canvas.paint(patch, wood, canvas.ink(bark, VEGETATION), 0.8 - 0.3 * sun * u / half)
        fine, coarse = grain(u, v, 60.0, seed), grain(u, v, 18.0, seed + 77)
        if conifer:
            spread = (height - v) * (radius / (height - clear))
            field = 1 - np.abs(u) / np.maximum(spread, 0.01)
            field = np.where(v > clear, field, np.float32(-1))
        else:
            field = np.full((v.shape[0], u.shape[1]), -9, np.float32)
            for (bu, bv), size in zip(balls, sizes, strict=True):
                across, up = (u - bu) * (1 / size), (v - bv) * (1 / size)
                np.maximum(field, (1 - up * up) - across * across, out=field)
        crown = field + (coarse - 0.5) * 1.1 + (fine - 0.5) * 0.7 > 0.05
        side = u * (sun / reach) * 0.25 + (v - clear) * (0.3 / (height - clear))
        shade = (0.35 + 0.55 * fine + 0.55 * coarse + side) * np.float32(light.front)
        dark, pale = canvas.ink(tint(leaf, 0.8), VEGETATION), canvas.ink(leaf, VEGETATION)
        canvas.paint(patch, crown, np.where(coarse < 0.45, dark, pale).astype(np.uint16), shade)

    return Thing(z, paint)


def make_hedge(
    rng: np.random.Generator, light: Light, a: Point, b: Point, height: float, rough: float = 0.4
) -> Thing:
    """A hedge, a bank or a row of distant trees: a wall of leaves with an uneven top."""
    leaf, seed = pick(rng, LEAVES, 0.25), int(rng.integers(1 << 16))
    scale = 12.0 / height

    def paint(canvas: Canvas) -> None:
        patch = canvas.wall(a, b, 0.0, height)
        if patch is None:
            return
        u, v = patch.u, patch.v
        edge = height * (1 - rough * grain(u, np.float32(0) * u, 3 * scale, seed))
        coarse, fine = grain(u, v, 3 * scale, seed), grain(u, v, 10 * scale, seed + 5)
        shade = (0.3 + 0.6 * coarse + 0.5 * fine + v * (0.25 / height)) * np.float32(light.front)
        where = (v >= 0) & (v + (fine - 0.5) * (0.2 * height) < edge)
        canvas.paint(patch, where, canvas.ink(leaf, VEGETATION), shade)

    return Thing(max(a[1], b[1]), paint)
