"""Times the dense CRF on photographs: milliseconds per image, beside pydensecrf's.

    PYTHONPATH=. python benchmarks/dense_crf.py [--images GLOB] [--size 375 500] [--batch 1 4]

Without images they are drawn. Where pydensecrf can be imported it runs on the same input, in this
process and on one core, and the labels are compared. Otherwise the ratio is to 488 ms: what it
took, built from source, on one core of an AMD EPYC (Zen 4) for 500x375 pixels, 21 classes and 10
iterations with widths 3 and (80, 13). The least of several runs counts, in wall-clock time and in
CPU time of the whole process: the latter tells something on a machine that is not idle, too.
"""

import argparse
import glob
import importlib.util
import time

import jax
import numpy as np

from jaxseg.ops.dense_crf import dense_crf

PYDENSECRF_MS = 488.0
MEASURED = (375, 500, 21, 10, 13.0)
SETTINGS = {
    "(80, 13), as pydensecrf's examples": dict(
        smooth_sxy=3.0, smooth_weight=3.0,
        bilateral_sxy=80.0, bilateral_srgb=13.0, bilateral_weight=10.0,
    ),
    "(67, 3), as DeepLab": dict(
        smooth_sxy=3.0, smooth_weight=3.0,
        bilateral_sxy=67.0, bilateral_srgb=3.0, bilateral_weight=4.0,
    ),
}  # fmt: skip


def drawn(h: int, w: int, rng: np.random.Generator) -> np.ndarray:
    """Shaded rectangles with a photograph's noise, uint8 [h, w, 3]."""
    image = np.zeros((h, w, 3))
    for _ in range(60):
        y, x = rng.integers(0, h), rng.integers(0, w)
        image[y : y + rng.integers(20, h // 2), x : x + rng.integers(20, w // 2)] = rng.uniform(
            20, 235, 3
        )
    y, x = np.mgrid[:h, :w]
    image += 25 * np.sin(x / 70 + y / 50)[..., None] + rng.normal(0, 4, (h, w, 3))
    return np.clip(image, 0, 255).astype(np.uint8)


def photographs(pattern: str, h: int, w: int) -> list[np.ndarray]:
    """The files' pixels, resized to h x w."""
    from PIL import Image

    images = []
    for path in sorted(glob.glob(pattern)):
        with Image.open(path) as picture:
            picture = picture.convert("RGB").resize((w, h), Image.BICUBIC)
            images.append(np.asarray(picture))
    return images


def least_ms(function, repeats: int) -> tuple[float, float]:
    """Least milliseconds of wall-clock and of CPU time, after one call to warm up."""
    function()
    times = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        function()
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    return tuple(1e3 * min(column) for column in zip(*times, strict=True))


def pydensecrf(p: np.ndarray, image: np.ndarray, iterations: int, settings: dict) -> np.ndarray:
    """Marginals [h, w, C] of pydensecrf."""
    from pydensecrf.densecrf import DenseCRF2D

    h, w, c = p.shape
    crf = DenseCRF2D(w, h, c)
    energy = -np.log(np.maximum(p, 1e-8)).transpose(2, 0, 1).reshape(c, -1)
    crf.setUnaryEnergy(np.ascontiguousarray(energy, np.float32))
    crf.addPairwiseGaussian(sxy=settings["smooth_sxy"], compat=settings["smooth_weight"])
    crf.addPairwiseBilateral(
        sxy=settings["bilateral_sxy"], srgb=settings["bilateral_srgb"],
        rgbim=np.ascontiguousarray(image), compat=settings["bilateral_weight"],
    )  # fmt: skip
    return np.asarray(crf.inference(iterations)).reshape(c, h, w).transpose(1, 2, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", help="a glob; drawn images without")
    parser.add_argument("--size", type=int, nargs=2, default=(375, 500), help="height and width")
    parser.add_argument("--classes", type=int, default=21)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--batch", type=int, nargs="+", default=(1, 4))
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    h, w = options.size
    rng = np.random.default_rng(0)
    images = photographs(options.images, h, w) if options.images else []
    most = max(options.batch)
    images = (images or [drawn(h, w, rng) for _ in range(most)]) * most
    image = np.stack(images[:most])
    # Blocks of 50 pixels that the unary terms mostly get right.
    c = options.classes
    block = rng.integers(0, c, (most, -(-h // 50), -(-w // 50)))
    label = block.repeat(50, 1).repeat(50, 2)[:, :h, :w]
    p = 0.7 * rng.random((most, h, w, c)) * 2 / c
    p = np.float32(p + 0.3 * np.eye(c)[label])
    p /= p.sum(-1, keepdims=True)

    beside = importlib.util.find_spec("pydensecrf") is not None
    device = jax.devices()[0]
    print(f"{device.device_kind}, jax {jax.__version__}, {w}x{h}, {c} classes,", end=" ")
    print(f"{options.iterations} iterations; ms per image")
    for name, settings in SETTINGS.items():
        print(name)
        measured = (h, w, c, options.iterations, settings["bilateral_srgb"]) == MEASURED
        reference = PYDENSECRF_MS if measured else None
        if beside:
            _, reference = least_ms(
                lambda s=settings: pydensecrf(p[0], image[0], options.iterations, s), 3
            )
            print(f"  pydensecrf            {reference:8.1f} (CPU time, one core)")
        for b in options.batch:
            given = jax.device_put((p[:b], image[:b]))
            run = lambda g=given, s=settings: jax.block_until_ready(  # noqa: E731
                dense_crf(*g, iterations=options.iterations, **s)
            )
            wall, cpu = (ms / b for ms in least_ms(run, options.repeats))
            print(f"  jaxseg, batch {b:3d}     {wall:8.1f} wall, {cpu:8.1f} CPU", end="")
            print(f"; pydensecrf takes {reference / wall:.2f} times as long" if reference else "")
        if beside:
            want = pydensecrf(p[0], image[0], options.iterations, settings)
            got = np.asarray(dense_crf(p[:1], image[:1], iterations=options.iterations, **settings))
            equal = (got[0].argmax(-1) == want.argmax(-1)).mean()
            print(
                f"  labels equal {100 * equal:.3f} %, marginals to {np.abs(got - want).max():.1e}"
            )


if __name__ == "__main__":
    main()
