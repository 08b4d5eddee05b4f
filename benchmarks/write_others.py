"""Write folders of images that show no whole hand, to measure the validity check on.

    python benchmarks/write_others.py OUT [--hands FOLDER] [--n 30]

One folder for each kind. None of the drawn kinds is one that the hand finder learns from
(`boneage.training.other_images`). From `--hands`, radiographs of single hands, parts of hands are
cut: halves, fingers alone, wrists alone, forearms. Photographs come from scikit-image,
scikit-learn and matplotlib, other DICOM files from pydicom.
"""

import argparse
import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from boneage.imaging.geometry import LANDMARKS
from boneage.inference.hand_finder import FoundHand, HandFinder

Generator = np.random.Generator
SIDE = 512


def main() -> None:
    """Write every kind."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--hands", type=Path)
    parser.add_argument("--n", type=int, default=30, help="images of a drawn kind")
    options = parser.parse_args()
    for kind, draw in DRAWN.items():
        for i in range(options.n):
            rng = np.random.default_rng([i, *kind.encode()])
            _save(draw(rng), options.out / kind / f"{i}.png")
    for name, image in _photographs():
        _save(image, options.out / "photographs" / f"{name}.png")
    _copy_dicom(options.out / "dicom_samples")
    if options.hands:
        _cut_hands(options.hands, options.out)


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def _canvas(rng: Generator, grey: float = 20) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("L", (SIDE, SIDE), int(rng.uniform(0, 2 * grey)))
    return image, ImageDraw.Draw(image)


def _film(image: Image.Image, rng: Generator) -> Image.Image:
    soft = image.filter(ImageFilter.GaussianBlur(rng.uniform(1.5, 5.0)))
    grain = rng.normal(0, rng.uniform(1, 6), (SIDE, SIDE))
    return Image.fromarray((np.asarray(soft) + grain).clip(0, 255).astype(np.uint8))


def _draw_chart(rng: Generator) -> Image.Image:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5))
    axes = figure.subplots()
    kind = rng.integers(5)
    x = np.linspace(0, 10, 80)
    if kind == 0:
        axes.plot(x, rng.normal(0, 1, (80, 3)).cumsum(axis=0))
    elif kind == 1:
        axes.bar(np.arange(8), rng.uniform(1, 9, 8))
    elif kind == 2:
        axes.scatter(*rng.normal(0, 1, (2, 120)), s=rng.uniform(5, 90))
    elif kind == 3:
        axes.pie(rng.uniform(1, 5, 6))
    else:
        axes.imshow(rng.random((9, 9)), cmap="gray")
    axes.set_title("".join(rng.choice(list("abcdefgh "), 14)))
    file = io.BytesIO()
    figure.savefig(file, dpi=100)
    return Image.open(file).convert("L")


def _draw_pelvis(rng: Generator) -> Image.Image:
    image, draw = _canvas(rng)
    soft, bone = rng.uniform(50, 100), rng.uniform(140, 240)
    draw.ellipse((10, 60, SIDE - 10, SIDE + 120), int(soft))
    for side in (-1, 1):
        x = 256 + side * rng.uniform(95, 120)
        draw.ellipse((x - 85, 110, x + 85, 300), int(0.8 * bone))
        draw.ellipse((x - 55, 140, x + 55, 250), int(0.6 * bone))
        hip = 256 + side * rng.uniform(120, 150)
        draw.ellipse((hip - 34, 290, hip + 34, 358), int(bone))
        draw.line((hip, 330, hip + side * 60, 400, hip + side * 40, SIDE), int(0.9 * bone), 48)
        draw.ellipse(
            (256 + side * 50 - 34, 340, 256 + side * 50 + 34, 420), int(0.7 * bone), width=3
        )
    for k in range(5):
        draw.rounded_rectangle((226, 20 + 46 * k, 286, 60 + 46 * k), 8, int(0.9 * bone))
    return _film(image, rng)


def _draw_spine(rng: Generator) -> Image.Image:
    image, draw = _canvas(rng)
    draw.rectangle((110, 0, 400, SIDE), int(rng.uniform(50, 110)))
    bone, bend = rng.uniform(150, 240), rng.uniform(-60, 60)
    for k in range(int(rng.integers(7, 11))):
        y = 56 * k
        x = 256 + bend * np.sin(y / 160)
        width = 45 + 2 * k
        draw.rounded_rectangle((x - width, y, x + width, y + 44), 9, int(bone))
        draw.line((x - width - 40, y + 22, x + width + 40, y + 22), int(0.7 * bone), 10)
    return _film(image, rng)


def _draw_teeth(rng: Generator) -> Image.Image:
    image, draw = _canvas(rng, 60)
    bone = rng.uniform(160, 245)
    draw.arc((-60, -240, SIDE + 60, 420), 20, 160, int(0.7 * bone), 90)
    for row, y0 in ((0, 190), (1, 300)):
        for k in range(14):
            x = 40 + 32 * k
            y = y0 - 0.0012 * (x - 256) ** 2
            draw.rounded_rectangle((x, y, x + 26, y + 50), 7, int(bone))
            root = (x + 13, y + 45, x + 13, y + 95) if row else (x + 13, y + 5, x + 13, y - 45)
            draw.line(root, int(0.85 * bone), 12)
    return _film(image, rng)


def _draw_knee(rng: Generator) -> Image.Image:
    image, draw = _canvas(rng)
    soft, bone = rng.uniform(60, 110), rng.uniform(150, 235)
    draw.rectangle((256 - rng.uniform(110, 150), 0, 256 + rng.uniform(110, 150), SIDE), int(soft))
    gap = rng.uniform(236, 276)
    draw.rectangle((216, 0, 296, gap - 80), int(0.8 * bone))
    draw.rectangle((222, gap + 60, 290, SIDE), int(0.8 * bone))
    for side in (-1, 1):
        x = 256 + 42 * side
        draw.ellipse((x - 52, gap - 100, x + 52, gap - 8), int(bone))
        draw.rounded_rectangle((x - 50, gap + 6, x + 50, gap + 80), 16, int(bone))
    draw.ellipse((226, gap - 96, 286, gap - 30), int(0.95 * bone))
    draw.line((330, gap + 50, 340, SIDE), int(0.75 * bone), 26)
    return _film(image.rotate(rng.uniform(-25, 25)), rng)


def _draw_rings(rng: Generator) -> Image.Image:
    y, x = np.mgrid[0:SIDE, 0:SIDE] - rng.uniform(100, 400, 2)[:, None, None]
    wave = np.cos(np.hypot(x, y) ** rng.uniform(0.8, 1.6) / rng.uniform(6, 40))
    return Image.fromarray((127.5 + 127 * wave).clip(0, 255).astype(np.uint8))


def _draw_code(rng: Generator) -> Image.Image:
    n = int(rng.integers(21, 60))
    cells = rng.integers(0, 2, (n, n)).astype(np.uint8) * 255
    for y, x in ((0, 0), (0, n - 7), (n - 7, 0)):
        cells[y : y + 7, x : x + 7] = 0
        cells[y + 1 : y + 6, x + 1 : x + 6] = 255
        cells[y + 2 : y + 5, x + 2 : x + 5] = 0
    soft = Image.fromarray(cells).resize((SIDE, SIDE), Image.Resampling.NEAREST)
    return _film(soft, rng)


def _draw_contours(rng: Generator) -> Image.Image:
    coarse = Image.fromarray(rng.normal(0, 1, (9, 9)).astype(np.float32))
    field = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    lines = np.abs(field * rng.uniform(3, 8) % 1.0 - 0.5) < rng.uniform(0.05, 0.2)
    return Image.fromarray(np.where(lines, 40, 220).astype(np.uint8))


def _draw_scribble(rng: Generator) -> Image.Image:
    image = Image.new("L", (SIDE, SIDE), int(rng.uniform(180, 255)))
    draw = ImageDraw.Draw(image)
    for line in range(int(rng.integers(4, 10))):
        x = np.arange(30, SIDE - 30, 4.0)
        y = 50 + 48 * line + rng.normal(0, 9, len(x)).cumsum() * 0.6
        draw.line([(float(a), float(b)) for a, b in zip(x, y, strict=True)], 30, 3)
    return image


def _draw_cells(rng: Generator) -> Image.Image:
    image, draw = _canvas(rng, 90)
    for _ in range(int(rng.integers(30, 160))):
        x, y, r = *rng.uniform(0, SIDE, 2), rng.uniform(8, 40)
        draw.ellipse((x - r, y - r, x + r, y + r), int(rng.uniform(60, 255)), 0, 2)
    return _film(image, rng)


def _draw_glyphs(rng: Generator) -> Image.Image:
    """Arrows, stars and polygons as icons have them."""
    image, draw = _canvas(rng, 120)
    for _ in range(int(rng.integers(1, 5))):
        centre, r, n = rng.uniform(120, 392, 2), rng.uniform(60, 200), int(rng.integers(3, 9))
        angle = np.arange(2 * n) * np.pi / n + rng.uniform(0, 6)
        radius = np.where(np.arange(2 * n) % 2, r * rng.uniform(0.3, 0.9), r)
        star = centre[:, None] + radius * np.stack([np.cos(angle), np.sin(angle)])
        draw.polygon([(float(a), float(b)) for a, b in star.T], int(rng.uniform(0, 255)))
    return image


DRAWN: dict[str, Callable[[Generator], Image.Image]] = {
    "charts": _draw_chart, "pelvis": _draw_pelvis, "spine": _draw_spine, "teeth": _draw_teeth,
    "knee": _draw_knee, "rings": _draw_rings, "codes": _draw_code, "contours": _draw_contours,
    "scribbles": _draw_scribble, "cells": _draw_cells, "glyphs": _draw_glyphs,
}  # fmt: skip


def _photographs() -> Iterator[tuple[str, Image.Image]]:
    import matplotlib.cbook
    import skimage.data
    from sklearn.datasets import load_sample_image

    names = ("astronaut", "brick", "camera", "cat", "cell", "checkerboard", "chelsea", "clock",
             "coffee", "coins", "colorwheel", "grass", "gravel", "horse", "hubble_deep_field",
             "immunohistochemistry", "microaneurysms", "moon", "page", "retina", "rocket",
             "shepp_logan_phantom", "text")  # fmt: skip
    for name in names:
        try:
            pixels: npt.NDArray[Any] = getattr(skimage.data, name)()
        except (OSError, ModuleNotFoundError, ValueError, AttributeError):
            continue  # one that is downloaded on demand
        if pixels.dtype != np.uint8:
            pixels = (255 * (pixels.astype(float) / pixels.max())).astype(np.uint8)
        yield name, Image.fromarray(pixels)
    for name in ("china.jpg", "flower.jpg"):
        yield name[:-4], Image.fromarray(load_sample_image(name))
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        yield "portrait", Image.open(file).convert("RGB")


def _copy_dicom(folder: Path) -> None:
    """Copy the image files that are part of pydicom itself."""
    import pydicom

    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted((Path(pydicom.__file__).parent / "data" / "test_files").glob("*.dcm")):
        try:
            if "PixelData" in pydicom.dcmread(path):
                shutil.copy(path, folder / path.name)
        except pydicom.errors.InvalidDicomError:
            continue


def _cut_hands(hands: Path, out: Path) -> None:
    """Cut parts off radiographs of upright hands, by the landmarks that the finder sees."""
    finder = HandFinder(threads=1)
    for path in sorted(hands.rglob("*.png"))[::3]:
        image = Image.open(path).convert("L")
        for kind, box in _find_parts(finder.find(image), image.size).items():
            if min(box[2] - box[0], box[3] - box[1]) >= 50:
                _save(image.crop(box), out / kind / path.name)


def _find_parts(hand: FoundHand, size: tuple[int, int]) -> dict[str, tuple[int, int, int, int]]:
    places = dict(zip(LANDMARKS, hand.landmarks.tolist(), strict=True))
    width, height = size
    middle = int(places["MCP3"][0])
    carpus, radius = int(places["carpus"][1]), int(max(places["radius"][1], places["ulna"][1]))
    knuckles = int(max(places[f"MCP{d}"][1] for d in range(2, 6)))
    unit = abs(places["PIP3"][1] - places["MCP3"][1])
    return {
        "left_halves": (0, 0, middle, height),
        "right_halves": (middle, 0, width, height),
        "fingers_alone": (0, 0, width, int(knuckles - 0.3 * unit)),
        "wrists_alone": (0, int(carpus - 0.8 * unit), width, height),
        "forearms": (0, int(radius + 0.3 * unit), width, height),
    }


if __name__ == "__main__":
    main()
