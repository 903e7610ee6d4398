"""Draws a street scene: weather, ground, everything upright, then the photograph of it."""

import dataclasses

import numpy as np

from jaxseg.data.scene_canvas import RGB, Canvas, clouds, develop, grain
from jaxseg.data.scene_layout import FAR, Street, make_street, make_things
from jaxseg.data.scene_objects import (
    CAR,
    GREYS,
    LEAVES,
    MARKING,
    PERSON,
    ROAD,
    SIDEWALK,
    SKY,
    VEGETATION,
    VOID,
    Light,
    number,
    pick,
)


@dataclasses.dataclass(frozen=True)
class Weather:
    """The sky, the light and the air. Colours are RGB in 0..255.

    Attributes:
      zenith, horizon: the sky's colours; what is far away fades into the second.
      clouds: how much of the sky clouds cover, 0..1.
      light: colour and strength of the light on everything that does not glow.
      visibility: metres to half contrast.
      faces: how differently turned surfaces are lit.
    """

    zenith: RGB
    horizon: RGB
    clouds: float
    light: RGB
    visibility: float
    faces: Light


def draw(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Draws one scene; the same generator state gives the same scene at any size.

    Args:
      rng: where every choice comes from.
      size: (h, w) in pixels.

    Returns:
      Image uint8 RGB [h, w, 3] and label uint8 [h, w]: an index into `CLASSES`, or 255.
    """
    h, w = size
    weather, street = _weather(rng), make_street(rng)
    canvas = Canvas(
        size,
        focal=number(rng, 0.95, 1.35) * (h + w) / 3,
        horizon=number(rng, 0.4, 0.52) * h,
        center=number(rng, 0.4, 0.6) * w,
        eye=number(rng, 1.35, 2.3),
        visibility=weather.visibility,
        light=weather.light,
    )
    things = make_things(rng, street, weather.faces)
    _paint_sky(canvas, rng, weather)
    _paint_ground(canvas, rng, street, weather.faces)
    for thing in sorted(things, key=lambda thing: -thing.depth):
        thing.paint(canvas)
    _paint_hood(canvas, rng)
    label = canvas.labels()
    _void_around(label, (PERSON, CAR), thickness=max(1, round(min(size) / 400)))
    gain, warmth, green = number(rng, 0.75, 1.3), number(rng, -0.14, 0.14), number(rng, -0.04, 0.04)
    image = develop(
        canvas.colors(weather.horizon),
        rng,
        gain=(gain * (1 + warmth), gain * (1 + green), gain * (1 - warmth)),
        contrast=number(rng, -0.15, 0.5),
        blur=number(rng, 0.02, 0.22),
        noise=number(rng, 1.0, 7.0),
        vignette=number(rng, 0.0, 0.3),
    )
    return image, label


def _weather(rng: np.random.Generator) -> Weather:
    kind = ("clear", "clear", "overcast", "haze", "dusk")[int(rng.integers(5))]
    sun = 1.0 if rng.random() < 0.5 else -1.0
    side = {"clear": 0.32, "overcast": 0.05, "haze": 0.12, "dusk": 0.14}[kind] * sun
    level = {"clear": 1.05, "overcast": 0.85, "haze": 0.9, "dusk": 0.42}[kind]
    level *= number(rng, 0.8, 1.15)
    zenith = {
        "clear": ((86, 130, 190), (110, 150, 196), (64, 110, 176)),
        "overcast": ((168, 172, 176), (140, 146, 154), (196, 198, 198)),
        "haze": ((184, 188, 188), (176, 170, 156)),
        "dusk": ((52, 60, 92), (40, 44, 62), (92, 78, 104)),
    }[kind]
    horizon = {
        "clear": ((206, 216, 224), (190, 204, 216), (220, 218, 206)),
        "overcast": ((196, 198, 200), (172, 176, 180)),
        "haze": ((206, 204, 198), (190, 184, 172)),
        "dusk": ((196, 134, 96), (128, 108, 116), (96, 92, 104)),
    }[kind]
    color = {
        "clear": (1.03, 1.0, 0.94),
        "overcast": (0.98, 1.0, 1.02),
        "haze": (1.02, 1.0, 0.95),
        "dusk": (0.95, 0.95, 1.12),
    }[kind]
    return Weather(
        zenith=pick(rng, zenith),
        horizon=pick(rng, horizon),
        clouds=number(rng, 0.0, 0.9),
        light=tuple(level * c for c in color),
        visibility=number(rng, 90, 220) if kind == "haze" else number(rng, 250, 1200),
        faces=Light(
            left=1 - side,
            right=1 + side,
            front=number(rng, 0.8, 1.1),
            shadow=number(rng, 0.45, 0.65) if kind == "clear" else 1.0,
            night=kind == "dusk",
        ),
    )


def _paint_sky(canvas: Canvas, rng: np.random.Generator, weather: Weather) -> None:
    """A gradient into the horizon's colour, with clouds that are bodies of haze."""
    ink = canvas.ink(weather.zenith, SKY, glows=True)
    end = int(canvas.horizon) + 1  # where the ground begins
    cover = clouds(rng, (end, canvas.size[1]))
    cover += np.float32(weather.clouds - 1)
    cover *= 4
    np.clip(cover, 0, 1, out=cover)
    slope = canvas.rows[:end] * np.float32(1 / end)  # 0 at the top, 1 at the horizon
    canvas.inks[:end] = ink
    canvas.haze[:end] = np.maximum(slope * slope, cover * np.float32(0.85))
    canvas.shades[:end] = 1 - cover * np.float32(0.12)


def _paint_ground(canvas: Canvas, rng: np.random.Generator, street: Street, light: Light) -> None:
    """The carriageway with its markings, the sidewalks, what lies beyond, and shadows."""
    asphalt = pick(rng, ((92, 92, 94), (74, 74, 78), (112, 108, 104), (128, 126, 122)), 0.2)
    paving = pick(rng, ((142, 138, 132), (120, 118, 118), (152, 128, 112), (104, 102, 100)), 0.2)
    paint = pick(rng, ((214, 212, 204), (186, 184, 178), (206, 170, 84)))
    grass, stone = pick(rng, LEAVES), pick(rng, GREYS[2:])
    seed = int(rng.integers(1 << 16))
    worn, slab = number(rng, 0.0, 0.6), number(rng, 0.5, 1.5)
    dash, wide = number(rng, 2.5, 5.0), number(rng, 0.14, 0.26)
    double, edged = bool(rng.random() < 0.3), bool(rng.random() < 0.6)
    shade_from = number(rng, -0.9, 1.6) * street.half
    house = number(rng, 6, 16)
    repairs = [
        (
            number(rng, -1, 1) * street.half,
            number(rng, 4, 40),
            number(rng, 0.4, 1.6),
            number(rng, 1, 6),
            number(rng, 0.75, 1.15),
        )
        for _ in range(5)
    ]
    patch = canvas.floor((-1e4, 1e4), (0.3, 1e5))
    if patch is None:
        return
    z = np.minimum(patch.z, 2000.0)
    t = patch.u - (street.offset + street.bend * np.minimum(z, FAR) ** 2)
    side = np.abs(t)
    walk = np.where(t < 0, *(np.float32(street.half + width) for width in street.walks))
    everywhere = np.ones((1, 1), bool)

    fine = grain(t, z, 30.0, seed + 9)
    rough = grain(t, z, 5.0, seed) * np.float32(0.2) + fine * np.float32(0.12) + np.float32(0.86)
    road = side < street.half
    if street.crossing:
        near, far = street.crossing
        road |= (z > near) & (z < far)
    joint = (t * (1 / slab) % 1 < 0.06) | (z * (1 / slab) % 1 < 0.06)
    tiles = rough * np.where(joint, np.float32(0.86), np.float32(1))
    canvas.paint(patch, everywhere, canvas.ink(paving, SIDEWALK), tiles)
    if street.verge:
        blades = 0.4 + fine
        beyond = (side > walk) & (z < 3 * FAR)
        if street.crossing:
            beyond &= (z < near - 3) | (z > far + 3)
        canvas.paint(patch, beyond, canvas.ink(grass, VEGETATION), blades)
    tarmac = canvas.ink(asphalt, ROAD)
    canvas.paint(patch, road, tarmac, rough)
    kerb = ~road & (side < street.half + 0.16)
    canvas.paint(patch, kerb, canvas.ink(stone, SIDEWALK), 1.0)
    for at, begin, half, length, factor in repairs:
        where = (np.abs(t - at) < half) & (z > begin) & (z < begin + length) & road
        canvas.darken(patch, where, factor)

    pixel = z * (0.5 / canvas.focal)
    half = np.maximum(pixel, wide / 2)  # at least about a pixel wide
    lines = np.zeros(t.shape, bool)
    dashes = (z + dash) % (2.5 * dash) < dash
    lines |= np.abs((side - 0.14) if double else t) < half
    if not double:
        lines &= dashes
    for lane in range(1, street.lanes):
        lines |= (np.abs(side - lane * street.lane) < half) & dashes
    if edged or street.parking:
        lines |= np.abs(side - (street.half - street.parking - 0.25)) < half
    lines &= z < 45
    if street.zebra:
        stop = street.zebra - 1.2
        lines &= (z < stop) | (z > street.zebra + 4)
        lines |= (np.abs(z - stop) < 0.2) & (t * street.offset < 0) & (z < 45)
        bars = (t + 50) % 1.0 < 0.5
        lines |= bars & (z > street.zebra) & (z < street.zebra + 3) & (side < street.half)
    if street.crossing:
        lines &= (z < near) | (z > far)
    lines &= road
    ink = canvas.ink(paint, MARKING)
    canvas.paint(patch, lines, ink, 1 - np.float32(worn) * fine)

    if light.shadow < 1:
        # Roofs of different heights cast a stepped edge, crowns a mottled one.
        sun = 1.0 if light.right > light.left else -1.0
        edge = shade_from + 2.5 * grain(np.float32(0) * z, z, 1 / house, seed) + 0.5 * rough
        canvas.darken(patch, t * sun > edge, light.shadow)


def _paint_hood(canvas: Canvas, rng: np.random.Generator) -> None:
    """In some scenes the bonnet of the car that carries the camera: void."""
    present = rng.random() < 0.3
    height, middle, half = number(rng, 0.04, 0.09), number(rng, 0.4, 0.6), number(rng, 0.5, 0.8)
    color = pick(rng, GREYS)
    if not present:
        return
    h, w = canvas.size
    arc = (canvas.columns * (1 / w) - middle) * (1 / half)
    edge = h * (1 - height * (1 - arc * arc))
    where = canvas.rows > edge
    np.copyto(canvas.inks, canvas.ink(color, VOID), where=where)
    np.copyto(canvas.shades, 0.6 + (canvas.rows - edge) * (6 / h), where=where)
    np.copyto(canvas.haze, np.float32(0.02), where=where)


def _void_around(label: np.ndarray, classes: tuple[int, ...], thickness: int) -> None:
    """Marks a band around objects as void, in place: nobody can say whose those pixels are."""
    inside = np.logical_or.reduce([label == c for c in classes])
    band = inside
    for _ in range(thickness):
        grown = band.copy()
        grown[1:] |= band[:-1]
        grown[:-1] |= band[1:]
        grown[:, 1:] |= band[:, :-1]
        grown[:, :-1] |= band[:, 1:]
        band = grown
    label[band & ~inside] = VOID
