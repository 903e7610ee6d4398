"""What moves in a street and what is put up for it: cars, people, poles and clutter."""

import numpy as np

from jaxseg.data.scene_canvas import Canvas, Point
from jaxseg.data.scene_objects import (
    CAR,
    GREYS,
    PERSON,
    POLE,
    VOID,
    Light,
    Thing,
    number,
    pick,
    tint,
)

PAINTS = (
    *GREYS,
    *GREYS,
    (215, 216, 214),
    (215, 216, 214),
    (140, 30, 30),
    (40, 62, 110),
    (92, 118, 146),
    (60, 84, 62),
    (176, 158, 124),
    (190, 150, 60),
)
CLOTHES = (
    *GREYS,
    *GREYS[:2],
    (40, 52, 84),
    (88, 104, 132),
    (140, 44, 44),
    (96, 74, 54),
    (170, 150, 120),
    (70, 84, 56),
    (205, 202, 196),
    (196, 160, 60),
    (110, 60, 100),
)
SKINS = ((196, 150, 124), (160, 112, 86), (98, 66, 50), (214, 172, 148))

# Outlines seen from the side, tail to nose: fractions of length and of height; then where the
# cabin's glass begins and ends, and the pillars.
SHAPES = {
    "sedan": ((0, 0.04, 0.16, 0.3, 0.58, 0.74, 0.97, 1), (0.5, 0.66, 0.7, 1, 1, 0.68, 0.58, 0.4)),
    "hatch": ((0, 0.02, 0.1, 0.16, 0.58, 0.76, 0.96, 1), (0.5, 0.66, 0.93, 1, 1, 0.67, 0.6, 0.4)),
    "van": ((0, 0.01, 0.03, 0.1, 0.76, 0.88, 0.98, 1), (0.7, 0.9, 0.98, 1, 1, 0.6, 0.52, 0.3)),
}
TAIL = {"sedan": 0.2, "hatch": 0.05, "van": 0.02}  # how far the rear window stands in


def make_car(
    rng: np.random.Generator,
    light: Light,
    x: float,
    z: float,
    *,
    toward: bool,
    across: bool = False,
) -> Thing:
    """A car centred on x whose near end is at z; `across` turns it to show its flank.

    `toward` faces the camera, or faces left where the car is across.
    """
    shape = ("sedan", "hatch", "hatch", "van")[int(rng.integers(4))]
    length, width, height = number(rng, 3.7, 4.8), number(rng, 1.65, 1.85), number(rng, 1.38, 1.6)
    if shape == "van":
        length, width, height = length + 0.5, width + 0.15, height + number(rng, 0.3, 0.8)
    body = pick(rng, PAINTS)
    pane = pick(rng, ((34, 38, 44), (66, 76, 86), (112, 124, 134)))
    gloss = number(rng, 0.1, 0.4)
    plate = pick(rng, ((220, 220, 214), (214, 190, 90)))
    lamps_on = light.night or rng.random() < 0.3
    belt, sill = 0.62 * height, 0.17 * height
    wheel = number(rng, 0.3, 0.36)
    inset = (0.3 if toward else TAIL[shape]) * length
    outline = [np.array(points, np.float32) for points in SHAPES[shape]]

    def flank(canvas: Canvas, inks: dict[str, int], a: Point, b: Point, flip: bool, lit: float):
        patch = canvas.wall(a, b, 0.0, height)
        if patch is None:
            return
        u, v = (length - patch.u if flip else patch.u), patch.v
        top = np.interp(u, outline[0] * length, outline[1] * height).astype(np.float32)
        wheels = [0.18 * length, 0.81 * length]
        arch = np.minimum(*((u - at) ** 2 + (v - wheel) ** 2 for at in wheels))
        hull = (v < top) & (v > sill) & (arch > (wheel + 0.06) ** 2)
        shade = 0.7 + v * (0.35 / height) + gloss * (np.abs(v - 0.8 * belt) < 0.08)
        part = u * (1 / length)
        last = 0.3 if shape == "van" else 0.74
        glass = (v > belt) & (v < top - 0.09) & (part > (0.55 if last < 0.5 else 0.1))
        glass &= (np.abs(part - 0.43) > 0.012) & (part < 0.8)
        ink = np.where(glass, inks["glass"], inks["body"]).astype(np.uint16)
        shade = np.where(glass, 0.6 + (v - belt), shade) * np.float32(lit)
        canvas.paint(
            patch,
            (v >= 0.12) & (v < 0.6 * height) & (arch < (wheel + 0.06) ** 2),
            inks["tyre"],
            0.5,
        )
        canvas.paint(patch, hull, ink, shade)
        canvas.paint(patch, (arch < wheel**2) & (v >= 0), inks["tyre"], 1.0)
        canvas.paint(patch, arch < (0.6 * wheel) ** 2, inks["rim"], np.float32(lit))

    def end(canvas: Canvas, inks: dict[str, int], left: float) -> None:
        deck = (0.62 if toward else 0.68) * height
        cabin = canvas.wall((left, z + inset), (left + width, z + inset), deck * 0.9, height)
        if cabin is not None:
            u, v = np.abs(cabin.u - width / 2), cabin.v
            slope = width / 2 - 0.04 - (v - deck) * 0.3
            glass = (u < slope - 0.08) & (v < height - 0.1)
            ink = np.where(glass, inks["glass"], inks["body"]).astype(np.uint16)
            shade = np.where(glass, 0.55 + 0.9 * (v - deck) + 0.2 * u, 0.9) * np.float32(
                light.front
            )
            canvas.paint(cabin, (u < slope) & (v < height - 0.25 * u**2), ink, shade)
        hood = canvas.floor((left, left + width), (z, z + inset), deck)
        if hood is not None:
            inside = (hood.u > left + 0.05) & (hood.u < left + width - 0.05)
            canvas.paint(hood, inside, inks["body"], 1.15)
        patch = canvas.wall((left, z), (left + width, z), 0.0, deck)
        if patch is None:
            return
        u, v = np.abs(patch.u - width / 2), patch.v
        tyre = (u > width / 2 - 0.26) & (u < width / 2 - 0.04) & (v >= 0) & (v < 0.45)
        canvas.paint(patch, tyre, inks["tyre"], 1.0)
        hull = (v > sill) & (u < width / 2 - 0.25 * np.abs(v - 0.45 * height) ** 2)
        shade = (0.72 + v * (0.3 / height)) * np.float32(light.front)
        canvas.paint(patch, hull, inks["body"], shade)
        canvas.paint(patch, hull & (v < 0.27 * height), inks["tyre"], 1.2)
        canvas.paint(patch, (u < 0.26) & (np.abs(v - 0.36 * height) < 0.06), inks["plate"], 1.0)
        if toward:
            grille = (u < 0.5) & (np.abs(v - 0.47 * height) < 0.07)
            canvas.paint(patch, grille, inks["tyre"], 1.4)
        lamp = (u > width / 2 - 0.36) & (u < width / 2 - 0.05) & (np.abs(v - 0.5 * height) < 0.1)
        canvas.paint(patch, lamp, inks["lamp"], 1.0)

    def paint(canvas: Canvas) -> None:
        if toward and not across:
            lamp = canvas.ink((250, 244, 216) if lamps_on else (170, 172, 172), CAR, lamps_on)
        else:
            lamp = canvas.ink((220, 40, 30) if lamps_on else (120, 26, 24), CAR, lamps_on)
        inks = {
            "body": canvas.ink(body, CAR),
            "glass": canvas.ink(pane, CAR),
            "tyre": canvas.ink((26, 26, 28), CAR),
            "rim": canvas.ink((128, 130, 132), CAR),
            "plate": canvas.ink(plate, CAR),
            "lamp": lamp,
        }
        span, deep = (length, width) if across else (width, length)
        left, right = x - span / 2, x + span / 2
        shadow = canvas.floor((left - 0.3, right + 0.3), (z - 0.25, z + deep))
        if shadow is not None:
            under = np.abs(shadow.u - x) < span / 2 + 0.15
            canvas.darken(shadow, under, 0.45 if light.night else 0.3)
        roof = canvas.floor((left, right), (z + 0.3 * deep, z + 0.75 * deep), height)
        if roof is not None:
            canvas.paint(roof, np.abs(roof.u - x) < span / 2 - 0.12, inks["body"], 1.2)
        if across:
            edge = left if x > 0 else right
            side = canvas.wall((edge, z), (edge, z + width), sill, 0.55 * height)
            if side is not None:
                lit = light.left if x > 0 else light.right
                canvas.paint(side, side.v > sill, inks["body"], 0.85 * lit)
            flank(canvas, inks, (left, z), (right, z), toward, light.front)
            return
        if left > 0 or right < 0:
            edge, lit = (left, light.left) if left > 0 else (right, light.right)
            flank(canvas, inks, (edge, z), (edge, z + length), toward, lit)
        end(canvas, inks, left)

    return Thing(z, paint)  # by its near end, so that it hides who walks behind it on the sidewalk


def make_person(rng: np.random.Generator, light: Light, x: float, z: float) -> Thing:
    """Somebody standing or walking."""
    height = number(rng, 1.55, 1.9) * (0.68 if rng.random() < 0.12 else 1.0)
    k = height / 1.75
    top, legs, skin = pick(rng, CLOTHES), pick(rng, CLOTHES), pick(rng, SKINS)
    hair = pick(rng, ((30, 26, 24), (84, 60, 40), (150, 122, 80), (120, 118, 116)))
    stride, swing, build = number(rng, 0, 0.35), number(rng, 0, 0.3), number(rng, 0.17, 0.23)
    coat = number(rng, 0.25, 0.42) if rng.random() < 0.35 else 0.48
    sun = 0.15 if light.right > light.left else -0.15

    def paint(canvas: Canvas) -> None:
        patch = canvas.wall((x - 0.5 * k, z), (x + 0.5 * k, z), 0.0, height)
        if patch is None:
            return
        shadow = canvas.floor((x - 0.5, x + 0.5), (z - 0.2, z + 0.3))
        if shadow is not None:
            blob = ((shadow.u - x) * 2.2) ** 2 + ((shadow.v - z) * 4) ** 2 < 1
            canvas.darken(shadow, blob, 0.6)
        u, v = patch.u * (1 / k) - 0.5, patch.v * (1 / k)
        lit = (1 + sun * np.sign(u)) * np.float32(light.front)
        side = np.abs(u)
        leg = np.abs(side - 0.085 - stride * np.maximum(0.84 - v, 0) * 0.5) < 0.075
        canvas.paint(patch, leg & (v >= 0) & (v < 0.86), canvas.ink(legs, PERSON), lit * 0.9)
        canvas.paint(patch, leg & (v >= 0) & (v < 0.07), canvas.ink(hair, PERSON), 0.7)
        torso = side < build + 0.1 * np.maximum(0.9 - v, 0) - np.maximum(v - 1.4, 0) * 1.3
        torso &= (v > coat * 1.75) & (v < 1.52)
        arm = np.abs(side - build - 0.05 - swing * np.maximum(1.4 - v, 0) * 0.6) < 0.05
        canvas.paint(patch, arm & (v > 0.85) & (v < 1.42), canvas.ink(tint(top, 0.85), PERSON), lit)
        canvas.paint(patch, torso, canvas.ink(top, PERSON), lit * (0.7 + 0.2 * v))
        face = canvas.ink(skin, PERSON)
        canvas.paint(patch, arm & (v > 0.76) & (v < 0.85), face, lit)
        head = (u * 1.2) ** 2 + (v - 1.62) ** 2 < 0.13**2
        canvas.paint(patch, head | ((side < 0.055) & (v > 1.48) & (v < 1.6)), face, lit)
        canvas.paint(patch, head & (v > 1.64), canvas.ink(hair, PERSON), lit)

    return Thing(z, paint)


def make_pole(rng: np.random.Generator, light: Light, x: float, z: float) -> Thing:
    """A street lamp, a traffic sign or a traffic light."""
    kind = ("lamp", "lamp", "sign", "sign", "signal")[int(rng.integers(5))]
    metal = pick(rng, (*GREYS, (60, 72, 62), (106, 88, 70)))
    height = {"lamp": number(rng, 5, 8.5), "sign": number(rng, 2.2, 3), "signal": 3.4}[kind]
    radius = number(rng, 0.07, 0.11) * (1.3 if kind == "lamp" else 1.0)
    reach = number(rng, 1.0, 2.2) * (-1 if x > 0 else 1)
    board = number(rng, 0.32, 0.5)
    outline = int(rng.integers(3))
    rim = pick(rng, ((170, 36, 34), (36, 70, 150), (40, 44, 48)))
    center = pick(rng, ((226, 226, 222), (40, 84, 160), (214, 176, 50)))
    phase = int(rng.integers(3))

    def beam(canvas: Canvas, ink: int, a: Point, b: Point, low: float, high: float) -> None:
        patch = canvas.wall(a, b, low, high)
        if patch is not None:
            shade = np.where(patch.u < (b[0] - a[0]) / 2, light.right, light.left)
            canvas.paint(patch, (patch.v >= low) & (patch.v < high), ink, shade)

    def paint(canvas: Canvas) -> None:
        pixel = z / canvas.focal
        half = max(radius, 0.55 * pixel)  # at least about a pixel wide
        ink = canvas.ink(metal, POLE)
        beam(canvas, ink, (x - half, z), (x + half, z), 0.0, height)
        if kind == "lamp":
            a, b = sorted((x, x + reach))
            beam(canvas, ink, (a, z), (b, z), height - max(0.12, 1.1 * pixel), height)
            a, b = sorted((x + 0.6 * reach, x + 1.15 * reach))
            bulb = canvas.ink(
                (255, 226, 160) if light.night else (170, 172, 170), POLE, light.night
            )
            beam(canvas, bulb, (a, z), (b, z), height - max(0.2, pixel), height)
            return
        wide = board if kind == "sign" else 0.2
        tall = board if kind == "sign" else 0.5
        patch = canvas.wall((x - wide, z), (x + wide, z), height - 2 * tall, height)
        if patch is None:
            return
        u, v = np.abs(patch.u - wide), patch.v - (height - tall)
        if kind == "sign":
            disc = np.sqrt(u * u + v * v)
            square = np.maximum(u, np.abs(v))
            triangle = np.maximum(u * 1.2 + v * 0.6 + 0.4 * board, -v)
            form = (disc, square, triangle)[outline] + 0 * disc
            canvas.paint(patch, form < board, canvas.ink(rim, POLE), light.front)
            canvas.paint(patch, form < 0.75 * board, canvas.ink(center, POLE), light.front)
            return
        canvas.paint(patch, (u < wide) & (np.abs(v) < tall), canvas.ink((34, 36, 36), POLE), 1.0)
        for i, color in enumerate(((235, 50, 40), (240, 180, 50), (60, 220, 130))):
            disc = u * u + (v - 0.32 * (1 - i)) ** 2 < 0.12**2
            on = i == phase
            lens = canvas.ink(color if on else tint(color, 0.25), POLE, glows=on)
            canvas.paint(patch, disc, lens, 1.0)

    return Thing(z, paint)


def make_clutter(rng: np.random.Generator, light: Light, x: float, z: float) -> Thing:
    """A bin, a box or a bench: belongs to no class."""
    color = pick(rng, (*GREYS, (60, 72, 62), (120, 84, 60), (60, 74, 100)))
    half, height = number(rng, 0.2, 0.6), number(rng, 0.5, 1.2)

    def paint(canvas: Canvas) -> None:
        patch = canvas.wall((x - half, z), (x + half, z), 0.0, height)
        if patch is not None:
            shade = (0.7 + patch.v * (0.4 / height)) * np.float32(light.front)
            canvas.paint(patch, patch.v >= 0, canvas.ink(color, VOID), shade)

    return Thing(z, paint)
