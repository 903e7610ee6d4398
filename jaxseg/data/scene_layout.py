"""Lays out a street: its ground plan, and where everything upright stands."""

import dataclasses

import numpy as np

from jaxseg.data.scene_objects import Light, Thing, make_building, make_hedge, make_tree, number
from jaxseg.data.scene_traffic import make_car, make_clutter, make_person, make_pole

FAR = 150.0  # metres: the street's end; beyond it only a skyline


@dataclasses.dataclass(frozen=True)
class Street:
    """The ground plan, in metres. `t` is the distance to the right of the road's middle.

    Attributes:
      half: half the width of the carriageway.
      walks: width of the left and the right sidewalk.
      parking: width of the parking lanes inside the carriageway, 0 without.
      lane: width of a lane.
      lanes: lanes per direction.
      offset: x of the road's middle where the camera is.
      bend: curvature; the middle is at x = offset + bend z^2.
      crossing: (near, far) z of a crossing street, or None.
      zebra: z where a zebra crossing begins, or None.
      verge: whether grass lies beyond the sidewalks.
    """

    half: float
    walks: tuple[float, float]
    parking: float
    lane: float
    lanes: int
    offset: float
    bend: float
    crossing: tuple[float, float] | None
    zebra: float | None
    verge: bool

    def x(self, t: float, z: float) -> float:
        return self.offset + t + self.bend * z * z

    def is_open(self, z: float, margin: float = 2.0) -> bool:
        """Whether z is clear of the crossing street."""
        return self.crossing is None or not (
            self.crossing[0] - margin < z < self.crossing[1] + margin
        )


def make_street(rng: np.random.Generator) -> Street:
    """A random ground plan."""
    lane, lanes = number(rng, 2.9, 3.5), 1 + int(rng.random() < 0.4)
    parking = 2.1 if rng.random() < 0.6 else 0.0
    half = lanes * lane + parking
    hand = 1.0 if rng.random() < 0.7 else -1.0  # which side of the road one drives on
    own = hand * (int(rng.integers(lanes)) + 0.5) * lane + number(rng, -0.4, 0.4)
    crossing = None
    if rng.random() < 0.4:
        near = number(rng, 14, 50)
        crossing = (near, near + number(rng, 7, 13))
    zebra = crossing[0] - 5.0 if crossing else None
    if crossing is None and rng.random() < 0.5:
        zebra = number(rng, 7, 25)
    return Street(
        half=half,
        walks=(number(rng, 1.8, 4.5), number(rng, 1.8, 4.5)),
        parking=parking,
        lane=lane,
        lanes=lanes,
        offset=-own,
        bend=number(rng, -0.0016, 0.0016),
        crossing=crossing,
        zebra=zebra,
        verge=bool(rng.random() < 0.45),
    )


def make_things(rng: np.random.Generator, street: Street, light: Light) -> list[Thing]:
    """Everything upright, in no order."""
    things = []
    density = number(rng, 0.0, 1.0)  # 1 is a city street, 0 a suburb
    for side in (-1.0, 1.0):
        walk = street.walks[0 if side < 0 else 1]
        things += _buildings(rng, street, light, side, density)
        kerb = side * street.half
        if rng.random() < 0.75:
            gap, z = number(rng, 7, 16), number(rng, 4, 14)
            while z < 80:
                t = kerb + side * 0.9
                if street.is_open(z, 4) and rng.random() < 0.85:
                    things.append(make_tree(rng, light, street.x(t, z), z, number(rng, 4, 9)))
                z += gap * number(rng, 0.8, 1.2)
        gap, z = number(rng, 8, 18), number(rng, 4, 10)
        while z < 70:
            t = kerb + side * 0.45
            things.append(make_pole(rng, light, street.x(t, z), z))
            z += gap * number(rng, 0.8, 1.2)
        if street.parking:
            share, z = number(rng, 0.3, 0.95), number(rng, 3, 9)
            while z < 70:
                t = kerb - side * (street.parking / 2)
                if street.is_open(z, 7) and rng.random() < share:
                    toward = bool(rng.random() < 0.5)
                    things.append(make_car(rng, light, street.x(t, z), z, toward=toward))
                z += number(rng, 5.6, 7.5)
        for _ in range(int(rng.integers(2, 10))):
            z = 4 + 24 * rng.random() * rng.random()  # mostly near: far ones are dots
            t = kerb + side * number(rng, 0.3, 0.9) * walk
            things.append(make_person(rng, light, street.x(t, z), z))
        for _ in range(int(rng.integers(0, 3))):
            z = number(rng, 6, 40)
            t = kerb + side * number(rng, 0.5, 0.95) * walk
            things.append(make_clutter(rng, light, street.x(t, z), z))
    own = 1.0 if street.offset < 0 else -1.0
    for lane in range(2 * street.lanes):
        t = (lane + 0.5 - street.lanes) * street.lane
        z = number(rng, 6, 40)
        while z < 80:
            toward = (t > 0) != (own > 0)
            things.append(make_car(rng, light, street.x(t, z), z, toward=toward))
            z += number(rng, 9, 50)
    if street.crossing:
        for _ in range(int(rng.integers(0, 3))):
            z, x = number(rng, *street.crossing), number(rng, -14, 14)
            left = bool(rng.random() < 0.5)
            things.append(make_car(rng, light, x, z, toward=left, across=True))
    if street.zebra:
        for _ in range(int(rng.integers(0, 5))):
            z = street.zebra + number(rng, 0.3, 2.7)
            t = number(rng, -1, 1) * street.half
            things.append(make_person(rng, light, street.x(t, z), z))
    return things + _skyline(rng, street, light)


def _buildings(
    rng: np.random.Generator, street: Street, light: Light, side: float, density: float
) -> list[Thing]:
    """One side of the street: houses, and gaps with hedges and trees."""
    things = []
    walk = street.walks[0 if side < 0 else 1]
    edge = street.half + walk
    low, high = 4 + 5 * density, 9 + 17 * density
    in_rows = density > 0.5  # houses share their end walls
    setback = number(rng, 0.0, 0.6) + (5.0 * (1 - density) if street.verge else 0.0)
    z, joined, above = number(rng, 1.5, 4.0), False, 0.0
    while z < FAR:
        length = number(rng, 7, 14 + 10 * density)
        if not street.is_open(z, 3) or not street.is_open(z + length, 3):
            z, joined = street.crossing[1] + 3.1, False
            if z + length > FAR or rng.random() < 0.2:
                continue
        t = side * (edge + setback + number(rng, 0, 0.0 if in_rows else 0.8))
        if rng.random() < 0.06 + 0.3 * (1 - density):
            t, joined = side * (edge + 0.3), False
            a, b = (street.x(t, z), z), (street.x(t, z + length), z + length)
            if rng.random() < 0.7:
                things.append(make_hedge(rng, light, a, b, number(rng, 0.9, 2.6)))
            for _ in range(int(rng.integers(1, 4))):
                at, out = z + number(rng, 0, 1) * length, side * number(rng, 2, 7)
                tree = make_tree(rng, light, street.x(t + out, at), at, number(rng, 5, 11))
                things.append(tree)
        else:
            a, b = (street.x(t, z), z), (street.x(t, z + length), z + length)
            pitched = bool(rng.random() < 0.75 - 0.6 * density)
            height = number(rng, low, high)
            detached = pitched or not joined or height > above
            things.append(
                make_building(rng, light, a, b, height, pitched=pitched, detached=detached)
            )
            above, joined = height, in_rows
        z += length + (0.0 if in_rows else number(rng, 0, 5))
    return things


def _skyline(rng: np.random.Generator, street: Street, light: Light) -> list[Thing]:
    """Rows of houses and trees beyond the street's end."""
    things = []
    tall = number(rng, 10, 30)
    for row in (1.8, 1.3):
        z, x = FAR * row, -1.2 * FAR * row
        while x < 1.2 * FAR * row:
            width = number(rng, 25, 70)
            a, b = (x, z), (x + width, z)
            kind = rng.random()
            if kind < 0.5:
                facade = make_building(
                    rng, light, a, b, number(rng, 0.4, 1.0) * tall, detached=False
                )
                things.append(facade)
            elif kind < 0.85:
                things.append(make_hedge(rng, light, a, b, number(rng, 5, 14), rough=0.6))
            x += width
    return things
