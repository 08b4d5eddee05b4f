"""Images that show no hand, drawn for the hand finder to learn from."""

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps
from torch import Tensor

from boneage.training.hand_network import SIDE
from boneage.training.hand_samples import HandImages

Grey = npt.NDArray[np.uint8]


def draw_others(n: int, hands: HandImages, seed: int = 0) -> Tensor:
    """Draw images that show no hand: uint8 (n, 128, 128).

    Pages of text, windows of a viewer, noise, gradients, patterns, plain shapes, scattered long
    bones, rib cages, skulls, feet, landscapes of noise, and radiographs cut into tiles that are
    dealt out anew.
    """
    rng = np.random.default_rng(seed)
    kinds = (
        _draw_text, _draw_window, _draw_noise, _draw_gradient, _draw_pattern, _draw_shapes,
        _draw_long_bones, _draw_ribs, _draw_skull, _draw_foot, _draw_landscape, _draw_blobs,
    )  # fmt: skip
    drawn = []
    for i in range(n):
        kind = kinds[rng.integers(len(kinds))]
        drawn.append(kind(rng) if i % 4 else _shuffle_tiles(hands, rng))
    return torch.from_numpy(np.stack(drawn))


def _canvas(rng: np.random.Generator) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("L", (SIDE, SIDE), int(rng.choice((0, 0, 255, int(rng.integers(256))))))
    return image, ImageDraw.Draw(image)


def _other_grey(image: Image.Image, rng: np.random.Generator) -> int:
    ground = image.getpixel((0, 0))
    grey = int(rng.integers(256))
    return grey if abs(grey - int(ground)) > 60 else 255 - int(ground)  # type: ignore[arg-type]


def _draw_text(rng: np.random.Generator) -> Grey:
    image, draw = _canvas(rng)
    ink, size = _other_grey(image, rng), int(rng.integers(5, 26))
    for y in range(int(rng.integers(0, 12)), SIDE, int(size * rng.uniform(1.1, 1.8))):
        letters = "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz    ABCDEFG0123456789"), 30))
        draw.text((int(rng.integers(0, 10)), y), letters, ink, ImageFont.load_default(size))
    return np.asarray(image.rotate(int(rng.choice((0, 0, 90, 180, int(rng.integers(360)))))))


def _draw_window(rng: np.random.Generator) -> Grey:
    image, draw = _canvas(rng)
    for _ in range(rng.integers(2, 9)):
        x, y = rng.integers(-10, SIDE, 2)
        box = (x, y, x + rng.integers(8, 110), y + rng.integers(4, 60))
        draw.rectangle([int(v) for v in box], int(rng.integers(256)), int(rng.integers(256)))
    for _ in range(rng.integers(0, 8)):
        size = int(rng.integers(5, 12))
        place = rng.integers(0, SIDE, 2)
        letters = "".join(rng.choice(list("abcdefgh 0123456789:"), 12))
        draw.text((int(place[0]), int(place[1])), letters, int(rng.integers(256)),
                  ImageFont.load_default(size))  # fmt: skip
    return np.asarray(image)


def _draw_noise(rng: np.random.Generator) -> Grey:
    cells = int(rng.choice((128, 64, 32, 16, 8)))
    grey = rng.normal(rng.uniform(40, 210), rng.uniform(5, 80), (cells, cells)).clip(0, 255)
    return np.asarray(
        Image.fromarray(grey.astype(np.uint8)).resize((SIDE, SIDE), int(rng.integers(0, 4)))
    )


def _draw_gradient(rng: np.random.Generator) -> Grey:
    y, x = np.mgrid[-1:1:128j, -1:1:128j]
    a, b, c = rng.normal(0, 1, 3)
    field = a * x + b * y + c * (x * x + y * y)
    return (255 * (field - field.min()) / np.ptp(field)).astype(np.uint8)


def _draw_pattern(rng: np.random.Generator) -> Grey:
    y, x = np.mgrid[0:128, 0:128]
    angle, period = rng.uniform(0, np.pi), rng.uniform(4, 50)
    u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    wave = np.sin(2 * np.pi * u / period)
    if rng.random() < 0.5:
        wave = wave * np.sin(2 * np.pi * v / rng.uniform(4, 50))
    if rng.random() < 0.5:
        wave = np.sign(wave)
    return (127.5 + rng.uniform(40, 127) * wave).clip(0, 255).astype(np.uint8)


def _draw_shapes(rng: np.random.Generator) -> Grey:
    image, draw = _canvas(rng)
    for _ in range(rng.integers(1, 12)):
        x, y = rng.integers(0, SIDE, 2)
        w, h = rng.integers(5, 70, 2)
        box = [int(v) for v in (x - w, y - h, x + w, y + h)]
        grey = int(rng.integers(256))
        shape = rng.integers(4)
        if shape == 0:
            draw.ellipse(box, grey)
        elif shape == 1:
            draw.rectangle(box, grey)
        elif shape == 2:
            draw.line(box, grey, int(rng.integers(1, 14)))
        else:
            draw.polygon([(int(a), int(b)) for a, b in rng.integers(0, SIDE, (5, 2))], grey)
    return np.asarray(image.filter(ImageFilter.GaussianBlur(float(rng.choice((0, 0, 1, 3))))))


def _bone(draw: ImageDraw.ImageDraw, a: npt.NDArray[np.floating], b: npt.NDArray[np.floating],
          width: float, grey: float) -> None:  # fmt: skip
    """A tube with a bright cortex and wide ends."""
    ends = [(float(p[0]), float(p[1])) for p in (a, b)]
    draw.line(ends, int(grey), max(1, int(width)))
    draw.line(ends, int(0.75 * grey), max(1, int(0.55 * width)))
    for x, y in ends:
        r = 0.75 * width
        draw.ellipse((x - r, y - r, x + r, y + r), int(0.85 * grey))


def _film(rng: np.random.Generator, image: Image.Image) -> Grey:
    soft = np.asarray(image.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 1.6))))
    grainy = soft + rng.normal(0, rng.uniform(1, 8), soft.shape)
    return grainy.clip(0, 255).astype(np.uint8)


def _draw_long_bones(rng: np.random.Generator) -> Grey:
    """One to three long bones in their soft tissue, such as a forearm, a knee or an elbow."""
    image = Image.new("L", (SIDE, SIDE), int(rng.integers(0, 40)))
    draw = ImageDraw.Draw(image)
    centre, angle = rng.uniform(30, 98, 2), rng.uniform(0, 2 * np.pi)
    for _ in range(rng.integers(1, 4)):
        way = np.array([np.cos(angle), np.sin(angle)])
        width = rng.uniform(6, 26)
        a, b = centre, centre + way * rng.uniform(40, 130)
        ends = [(float(p[0]), float(p[1])) for p in (a - 5 * way, b)]
        draw.line(ends, int(rng.uniform(60, 110)), int(width * rng.uniform(2.0, 3.2)))
        bones = rng.integers(1, 3)
        for k in range(bones):
            off = (k - (bones - 1) / 2) * 1.6 * width * np.array([-way[1], way[0]])
            _bone(draw, a + off, b + off, width, rng.uniform(140, 255))
        angle += rng.normal(np.pi, 0.6)
    return _film(rng, image)


def _draw_ribs(rng: np.random.Generator) -> Grey:
    """Two dark lungs between a bright middle and ribs across them."""
    image = Image.new("L", (SIDE, SIDE), int(rng.uniform(120, 220)))
    draw = ImageDraw.Draw(image)
    top, low = rng.uniform(8, 24), rng.uniform(90, 122)
    for left, right in ((rng.uniform(8, 20), 58), (70, rng.uniform(108, 120))):
        draw.ellipse((left, top, right, low), int(rng.uniform(15, 80)))
    for i in range(rng.integers(5, 11)):
        y = top + (low - top) * i / 9
        for side in (0, 1):
            box = (6 + 58 * side, y - 8, 64 + 58 * side, y + rng.uniform(14, 30))
            draw.arc(box, 180, 360, int(rng.uniform(90, 200)), int(rng.integers(1, 5)))
    heart = rng.uniform(20, 36)
    draw.ellipse((62 - heart / 2, 62, 62 + heart, 62 + 1.4 * heart), int(rng.uniform(150, 230)))
    draw.line((63, 0, 63, 127), int(rng.uniform(150, 230)), int(rng.integers(5, 14)))
    for y in range(4, 128, 11):
        draw.line((57, y, 69, y), int(rng.uniform(80, 255)), 2)
    return _film(rng, image)


def _draw_skull(rng: np.random.Generator) -> Grey:
    image = Image.new("L", (SIDE, SIDE), int(rng.integers(0, 40)))
    draw = ImageDraw.Draw(image)
    x, y, r = 64 + rng.normal(0, 6), 52 + rng.normal(0, 5), rng.uniform(34, 48)
    draw.ellipse((x - r, y - r, x + r, y + 1.15 * r), int(rng.uniform(90, 150)),
                 int(rng.uniform(190, 255)), int(rng.integers(2, 6)))  # fmt: skip
    draw.rectangle((x - 0.5 * r, y + 0.8 * r, x + 0.5 * r, y + 1.7 * r), int(rng.uniform(110, 180)))
    for side in (-1, 1):
        eye = x + 0.4 * side * r
        box = (eye - 9, y + 0.3 * r - 8, eye + 9, y + 0.3 * r + 8)
        draw.ellipse(box, int(rng.uniform(20, 80)))
    for i in range(8):
        tooth = x - 0.4 * r + i * 0.1 * r
        draw.rectangle((tooth, y + 1.25 * r, tooth + 3, y + 1.4 * r), int(rng.uniform(180, 255)))
    return _film(rng, image.rotate(float(rng.uniform(-30, 30))))


def _draw_foot(rng: np.random.Generator) -> Grey:
    """A foot from above or from its side: a heel, a row of long bones, short toes."""
    image = Image.new("L", (SIDE, SIDE), int(rng.integers(0, 40)))
    draw = ImageDraw.Draw(image)
    soft, bone = rng.uniform(50, 110), rng.uniform(150, 255)
    from_side = rng.random() < 0.4
    spread = rng.uniform(1.0, 3.0) if from_side else rng.uniform(6.5, 10.0)
    ankle, length = np.array([64.0, rng.uniform(84, 100)]), rng.uniform(26, 38)
    draw.ellipse((64 - 4 * spread, ankle[1] - 14, 64 + 4 * spread, 127), int(soft))
    if from_side:  # the leg stands on the foot
        draw.line((80, ankle[1], 120, ankle[1] + 4), int(soft), 34)
        _bone(draw, np.array([78.0, ankle[1]]), np.array([126.0, ankle[1] + 4]), 14, bone)
    for _ in range(rng.integers(4, 8)):  # heel and tarsal bones
        x, y = 64 + rng.normal(0, 2 * spread), ankle[1] + rng.uniform(-6, 26)
        r = rng.uniform(5, 12)
        draw.ellipse((x - r, y - r, x + r, y + r), int(bone * rng.uniform(0.7, 1.0)))
    for i in range(5):
        x = 64 + (i - 2) * spread
        joint = np.array([x * 1.1 - 6.4, ankle[1] - 10 - length * rng.uniform(0.9, 1.05)])
        width = rng.uniform(2.5, 5.0) * (1.6 if i == 0 else 1.0)
        toes = [joint]
        for k in range(2 if i == 0 else 3):
            step = rng.uniform(8, 14) * (0.8**k) * (1.5 if i == 0 else 0.7)
            toes.append(toes[-1] + (rng.normal(0, 1), -step))
        tip = toes[-1]
        draw.line((x, ankle[1], joint[0], joint[1], tip[0], tip[1] - 3), int(soft),
                  int(3 * width))  # fmt: skip
        _bone(draw, np.array([x, ankle[1] - 8]), joint + np.array([0.0, 2.0]), width, bone)
        for a, b in pairwise(toes):
            _bone(draw, a - np.array([0.0, 2.0]), b, 0.8 * width, bone)
    if rng.random() < 0.5:
        image = ImageOps.mirror(image)
    return _film(rng, image.rotate(float(rng.choice((0, 90, 180, 270)) + rng.normal(0, 15))))


def _draw_landscape(rng: np.random.Generator) -> Grey:
    """Noise whose spectrum falls as that of photographs, with an outline or two."""
    waves = np.fft.fftfreq(SIDE)
    power = np.hypot(waves[:, None], waves[None, :])
    power[0, 0] = 1.0
    noise = np.fft.fft2(rng.normal(size=(SIDE, SIDE))) / power ** rng.uniform(0.8, 1.8)
    field = np.fft.ifft2(noise).real
    grey = 255 * (field - field.min()) / np.ptp(field)
    image = Image.fromarray(grey.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(0, 4)):
        corners = rng.integers(-20, SIDE + 20, (int(rng.integers(3, 7)), 2))
        draw.polygon([(int(a), int(b)) for a, b in corners], int(rng.integers(256)))
    return np.asarray(image)


def _draw_blobs(rng: np.random.Generator) -> Grey:
    """Round shadows in round shadows, such as a section of a trunk or a breast."""
    image = Image.new("L", (SIDE, SIDE), int(rng.integers(0, 30)))
    draw = ImageDraw.Draw(image)
    x, y = rng.uniform(50, 78, 2)
    radius = rng.uniform(30, 60, 2)
    for i in range(rng.integers(2, 10)):
        size = radius if i == 0 else radius * rng.uniform(0.08, 0.6)
        at = (
            (x, y)
            if i == 0
            else (x + rng.normal(0, 0.4) * radius[0], y + rng.normal(0, 0.4) * radius[1])
        )
        box = (at[0] - size[0], at[1] - size[1], at[0] + size[0], at[1] + size[1])
        draw.ellipse(box, int(rng.integers(40, 256)))
    return _film(rng, image)


def _shuffle_tiles(hands: HandImages, rng: np.random.Generator) -> Grey:
    """Cut a radiograph into tiles too small for a hand, and deal them out anew."""
    i = int(rng.integers(len(hands)))
    width, height = hands.sizes[i].int().tolist()
    whole = Image.fromarray(hands.pixels[i, :height, :width].numpy()).resize((SIDE, SIDE))
    n = int(rng.choice((3, 4, 5)))
    side = SIDE // n + 1
    corners = [(side * (k % n), side * (k // n)) for k in range(n * n)]
    tiles = [whole.crop((x, y, x + side, y + side)) for x, y in corners]
    dealt = Image.new("L", (SIDE, SIDE))
    for corner, j in zip(corners, rng.permutation(n * n), strict=True):
        dealt.paste(tiles[j].rotate(float(rng.choice((0, 90, 180, 270)))), corner)
    return np.asarray(dealt)
