"""A pinhole camera over buffers: paints walls and floors given in metres, then takes the picture.

Painting is deferred. A painter only writes, per pixel, which ink (a colour and a class) it used,
how brightly it is lit and how much haze lies before it; `develop` turns the three buffers into
an image and `labels` into a label map. So an image and its labels cannot disagree.

Only additions, multiplications, divisions and comparisons touch pixels, and random numbers come
as integers or uniforms: no function whose last bit depends on the platform's maths library.
"""

import dataclasses
import functools
import math

import numpy as np

RGB = tuple[float, float, float]
Point = tuple[float, float]  # (x, z): metres to the right of the camera, metres before it
TILE = 256


@functools.cache
def _tile() -> np.ndarray:
    """Periodic fractal noise, float32 [256, 256] in 0..1, the same for every scene."""
    rng = np.random.Generator(np.random.Philox(key=7))
    total = np.zeros((TILE, TILE), np.float32)
    for step, weight in ((1, 0.25), (4, 0.25), (16, 0.3), (64, 0.2)):
        cells = rng.random((TILE // step, TILE // step), np.float32)
        layer = np.repeat(np.repeat(cells, step, 0), step, 1)
        for axis in (0, 1):
            # The mean over one cell's width joins neighbouring cells linearly.
            layer = sum(np.roll(layer, i, axis) for i in range(step)) / np.float32(step)
        total += np.float32(weight) * layer
    return (total - total.min()) / (total.max() - total.min())


def grain(u: np.ndarray, v: np.ndarray, scale: float, seed: int) -> np.ndarray:
    """Noise in 0..1 at `scale` texels per metre of the surface coordinates, broadcast together."""
    column = (u * scale + (4096 + (seed & 255))).astype(np.intp)
    row = (v * scale + (4096 + (seed >> 8))).astype(np.intp)
    return _tile().take((row & (TILE - 1)) * TILE + (column & (TILE - 1)))


def clouds(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Fractal noise without grain at any size, float32 [h, w] in 0..1."""
    total = rng.random((41, 41), np.float32) * np.float32(0.15)
    for cells, weight in ((4, 0.4), (9, 0.3), (19, 0.15)):
        total += stretch(rng.random((cells, cells), np.float32), total.shape) * np.float32(weight)
    return stretch(total, size)


def stretch(grid: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes [n, m] smoothly, corners onto corners."""
    for axis, n in enumerate(size):
        last = grid.shape[axis] - 1
        at = np.arange(n, dtype=np.float32) * np.float32(last / max(n - 1, 1))
        low = np.minimum(at.astype(np.intp), last - 1)
        part = at - low.astype(np.float32)
        part = np.expand_dims(part * part * (3 - 2 * part), 1 - axis)
        first = np.take(grid, low, axis)
        grid = np.take(grid, low + 1, axis)
        grid -= first
        grid *= part
        grid += first
    return grid


@dataclasses.dataclass(frozen=True)
class Patch:
    """The part of the picture that a surface covers, with surface coordinates in metres.

    Attributes:
      window: (rows, columns) slices into the picture.
      u: along the surface, float32 [1, columns] (wall) or [rows, columns] (floor).
      v: height above ground (wall) or distance from the camera (floor), float32 [rows, columns],
        or [rows, 1] where it is the same for all columns.
      z: distance from the camera, float32, broadcastable to [rows, columns].
      pixel: metres that a pixel covers where the surface is nearest.
    """

    window: tuple[slice, slice]
    u: np.ndarray
    v: np.ndarray
    z: np.ndarray
    pixel: float


class Canvas:
    """The camera and its three buffers."""

    def __init__(
        self,
        size: tuple[int, int],
        *,
        focal: float,
        horizon: float,
        center: float,
        eye: float,
        visibility: float,
        light: RGB,
    ):
        """An empty canvas: until something is painted, all of it is the first ink.

        Args:
          size: (h, w) in pixels.
          focal: focal length in pixels.
          horizon: row of the vanishing point.
          center: column of the vanishing point.
          eye: height of the camera above ground, metres.
          visibility: distance at which haze hides half of the contrast, metres.
          light: what every ink is multiplied with unless it glows by itself.
        """
        self.size = size
        self.focal, self.horizon, self.center, self.eye = focal, horizon, center, eye
        self.visibility, self.light = visibility, light
        self.inks = np.zeros(size, np.uint16)
        self.shades = np.ones(size, np.float32)
        self.haze = np.zeros(size, np.float32)
        self.rows = np.arange(size[0], dtype=np.float32)[:, None] + np.float32(0.5)
        self.columns = np.arange(size[1], dtype=np.float32)[None, :] + np.float32(0.5)
        self._colors: list[RGB] = []
        self._labels: list[int] = []
        self._glows: list[bool] = []

    def ink(self, color: RGB, label: int, glows: bool = False) -> int:
        """A new ink: RGB in 0..255 and the class of what is painted with it."""
        self._colors.append(color)
        self._labels.append(label)
        self._glows.append(glows)
        return len(self._colors) - 1

    def wall(self, a: Point, b: Point, low: float, high: float) -> Patch | None:
        """The upright rectangle over the ground line from `a` to `b`; None when out of view."""
        (xa, za), (xb, zb) = a, b
        if xa * zb > xb * za:  # seen from the other side: draw from left to right, u stays from a
            patch = self.wall(b, a, low, high)
            length = _length(a, b)
            return patch and dataclasses.replace(patch, u=length - patch.u)
        left = self.center + self.focal * xa / za
        right = self.center + self.focal * xb / zb
        near = self.focal / min(za, zb)
        far = self.focal / max(za, zb)
        top = self.horizon - (high - self.eye) * (near if high > self.eye else far)
        bottom = self.horizon - (low - self.eye) * (far if low > self.eye else near)
        window = self._window(top, bottom, left, right)
        if window is None:
            return None
        t = (self.columns[:, window[1]] - left) * (1.0 / (right - left))
        if za == zb:
            u, inverse = t * (xb - xa), np.full((1, 1), 1 / za, np.float32)
        else:
            inverse = (1 - t) * (1 / za) + t * (1 / zb)  # 1/z is linear along the row
            u = t * (_length(a, b) / zb) / inverse
        v = self.eye + (self.horizon - self.rows[window[0]]) / (self.focal * inverse)
        return Patch(window, u, v, 1 / inverse, 1 / near)

    def floor(self, x: Point, z: Point, level: float = 0.0) -> Patch | None:
        """The level rectangle between x[0] < x[1] and z[0] < z[1]; None when out of view.

        `u` is the absolute x, `v` the absolute z; the caller masks what lies outside.
        """
        drop = self.eye - level
        if drop <= 0:
            return None
        top = self.horizon + self.focal * drop / z[1]
        bottom = self.horizon + self.focal * drop / z[0]
        scale = [self.focal / depth for depth in z]
        left = self.center + min(x[0] * k for k in scale)
        right = self.center + max(x[1] * k for k in scale)
        window = self._window(top, bottom, left, right)
        if window is None:
            return None
        depth = self.focal * drop / (self.rows[window[0]] - self.horizon)
        u = (self.columns[:, window[1]] - self.center) * (depth * (1 / self.focal))
        return Patch(window, u, depth, depth, z[0] / self.focal)

    def paint(self, patch: Patch, where: np.ndarray, ink, shade) -> None:
        """Paints `ink` and `shade` (numbers or arrays) over the pixels of `patch` in `where`."""
        np.copyto(self.inks[patch.window], ink, where=where)
        np.copyto(self.shades[patch.window], shade, where=where)
        np.copyto(self.haze[patch.window], self.haze_at(patch.z), where=where)

    def darken(self, patch: Patch, where: np.ndarray, factor: float) -> None:
        """A shadow: multiplies the light on what is painted there already."""
        shades = self.shades[patch.window]
        np.multiply(shades, np.float32(factor), out=shades, where=where)

    def haze_at(self, z: np.ndarray) -> np.ndarray:
        """The share of haze in what is seen at distance z; hyperbolic, for want of an exp."""
        return z / (z + self.visibility)

    def labels(self) -> np.ndarray:
        """The class of every pixel, uint8 [h, w]."""
        return np.array(self._labels, np.uint8)[self.inks]

    def colors(self, haze: RGB) -> np.ndarray:
        """The scene as the lens sees it, float32 [3, h, w] in 0..255, not clipped."""
        light = np.where(np.array(self._glows)[:, None], 1, np.array(self.light))
        table = (np.array(self._colors) * light).astype(np.float32).T  # [3, inks]
        image = np.empty((3, *self.size), np.float32)
        for plane, inks, veil in zip(image, table, haze, strict=True):
            np.multiply(inks.take(self.inks), self.shades, out=plane)
            plane += (np.float32(veil) - plane) * self.haze
        return image

    def _window(self, top, bottom, left, right) -> tuple[slice, slice] | None:
        # Pixel i is covered when its centre i + 0.5 lies inside.
        h, w = self.size
        first_row, last_row = max(int(max(top, 0) + 0.5), 0), int(min(max(bottom, 0), h) + 0.5)
        first, last = max(int(max(left, 0) + 0.5), 0), int(min(max(right, 0), w) + 0.5)
        if first_row >= last_row or first >= last:
            return None
        return slice(first_row, last_row), slice(first, last)


def _length(a: Point, b: Point) -> float:
    x, z = a[0] - b[0], a[1] - b[1]
    return math.sqrt(x * x + z * z)


def develop(
    colors: np.ndarray,
    rng: np.random.Generator,
    *,
    gain: RGB,
    contrast: float,
    blur: float,
    noise: float,
    vignette: float,
) -> np.ndarray:
    """Lens and sensor: blur, vignette, white balance, tone curve and noise.

    Args:
      colors: float32 [3, h, w] in 0..255; overwritten.
      rng: draws the noise.
      gain: exposure and white balance, per channel.
      contrast: k of the tone curve x (1 + k - k x) on 0..1; positive lifts the shadows.
      blur: weight of either neighbour in a three-tap filter, along rows and columns.
      noise: standard deviation in grey levels.
      vignette: loss of light in the corners, 0..1.

    Returns:
      uint8 [h, w, 3].
    """
    _, h, w = colors.shape
    y = (np.arange(h, dtype=np.float32)[:, None] + np.float32(0.5)) * np.float32(2 / h) - 1
    x = (np.arange(w, dtype=np.float32)[None, :] + np.float32(0.5)) * np.float32(2 / w) - 1
    lens = (1 - (x * x + y * y) * np.float32(vignette / 2)) * np.float32(1 / 255)
    image = np.empty((h, w, 3), np.uint8)
    # The sum of two bytes has mean 255 and variance (256^2 - 1) / 6: a triangle, close to a bell.
    words = rng.bit_generator.random_raw((3 * h * w + 3) // 4).astype("<u8", copy=False)
    pairs = words.view("<u2")[: 3 * h * w].reshape(3, h, w)
    grit = (pairs >> 8) + (pairs & 255)
    unit = np.float32(noise / ((256**2 - 1) / 6) ** 0.5)
    for c in range(3):
        plane = colors[c]
        for lines in (plane, plane.T):
            step = lines[1:] - lines[:-1]
            step *= np.float32(blur)
            lines[:-1] += step
            lines[1:] -= step
        plane *= lens
        plane *= np.float32(gain[c])
        np.clip(plane, 0, 1, out=plane)
        plane *= np.float32((1 + contrast) * 255) - plane * np.float32(contrast * 255)
        plane += grit[c] * unit
        plane += np.float32(0.5) - 255 * unit
        np.clip(plane, 0, 255, out=plane)
        image[..., c] = plane
    return image
