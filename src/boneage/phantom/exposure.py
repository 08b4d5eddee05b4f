"""From a hand to an 8-bit image: beam, attenuation, noise, markers and display window.

Attenuation adds along the ray and intensity falls with its exponential (Beer-Lambert); the
display shows the logarithm, bone bright. Everything is computed on a grid twice as fine as
the image and averaged.

Source: attenuation coefficients at about 40 keV, NIST XCOM (Hubbell & Seltzer 1995).
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from boneage.phantom.hand import Hand

Array = np.ndarray

_SOFT_PER_CM = 0.28
_BONE_PER_CM = 1.00  # above the soft tissue it displaces
_FINE = 2


@dataclass(frozen=True)
class Frame:
    """Where the hand lies on the image.

    Attributes:
        height, width: Size of the image in pixels.
        unit: Pixels per PP3.
        centre: (x, y) of the carpal centre in pixels.
        tilt: Clockwise rotation in radians.
    """

    height: int
    width: int
    unit: float
    centre: tuple[float, float]
    tilt: float

    def to_image_plane(self, points: Array) -> Array:
        """Hand coordinates (N, 2) to pixels (N, 2)."""
        cos, sin = np.cos(self.tilt), np.sin(self.tilt)
        rotated = points @ np.array([[cos, sin], [-sin, cos]])
        return self.unit * rotated + np.array(self.centre)

    def grid(self) -> tuple[Array, Array]:
        """Hand coordinates (x, y) of the fine grid, each (2H, 2W) float32."""
        rows = (np.arange(_FINE * self.height, dtype=np.float32) + 0.5) / _FINE - self.centre[1]
        columns = (np.arange(_FINE * self.width, dtype=np.float32) + 0.5) / _FINE - self.centre[0]
        cos, sin = np.float32(np.cos(self.tilt)), np.float32(np.sin(self.tilt))
        unit = np.float32(self.unit)
        x = (cos * columns[None, :] + sin * rows[:, None]) / unit
        y = (cos * rows[:, None] - sin * columns[None, :]) / unit
        return x, y

    def patch(self, box: tuple[float, float, float, float]) -> tuple[slice, slice]:
        """Rows and columns of the fine grid that hold a box of hand coordinates."""
        x0, y0, x1, y1 = box
        corners = _FINE * self.to_image_plane(np.array([(x0, y0), (x1, y0), (x0, y1), (x1, y1)]))
        low = np.floor(corners.min(axis=0)).astype(int)
        high = np.ceil(corners.max(axis=0)).astype(int) + 1
        size = (_FINE * self.width, _FINE * self.height)
        (c0, r0), (c1, r1) = np.clip(low, 0, size), np.clip(high, 0, size)
        return slice(int(r0), int(r1)), slice(int(c0), int(c1))


def place(hand: Hand, height: int, age_months: float, rng: np.random.Generator) -> Frame:
    """Place the hand on an image of the given height, as RSNA images are cropped.

    Source: geometry over 323 annotated RSNA radiographs: height over width 1.29 (1.00-1.62),
    PP3 16.3% of the height (11.9-19.6) at all ages, carpal centre at x 0.50 and y 0.69, tilt
    -1.7 degrees (SD 5.8; 24 under five years).
    """
    width = round(height / float(np.clip(rng.normal(1.29, 0.13), 1.0, 1.62)))
    spread = float(np.interp(age_months, (24, 60), (16.0, 5.8)))
    tilt = np.radians(float(np.clip(rng.normal(-1.7, spread), -40, 40)))
    proportion = float(np.clip(rng.normal(0.163, 0.017), 0.119, 0.196))
    extent = np.array([p for part in hand.flesh[:-1] for p in (part.start, part.end)])
    extent = Frame(1, 1, 1.0, (0.0, 0.0), tilt).to_image_plane(extent)
    low, high = extent.min(axis=0) - 0.18, extent.max(axis=0) + 0.18
    fill = rng.uniform(0.95, 1.0)
    unit = min(
        proportion * height, fill * width / (high - low)[0], fill * height / (high[1] - low[1])
    )
    wanted = np.array([width, height]) * (0.50 + rng.normal(0, 0.05), 0.69 + rng.normal(0, 0.035))
    lowest = -unit * low + 1
    highest = np.array([width, height]) - unit * high - 1
    x, y = np.clip(wanted, np.minimum(lowest, highest), np.maximum(lowest, highest))
    return Frame(height, width, unit, (float(x), float(y)), float(tilt))


def soft_tissue(hand: Hand, frame: Frame, x: Array, y: Array) -> Array:
    """Thickness of flesh along the ray in units of PP3, on the fine grid."""
    power = np.zeros_like(x)
    for part in hand.flesh:
        (x0, y0), (x1, y1) = part.start, part.end
        reach = max(part.radii)
        box = (min(x0, x1) - reach, min(y0, y1) - reach, max(x0, x1) + reach, max(y0, y1) + reach)
        patch = frame.patch(box)
        px, py = x[patch] - np.float32(x0), y[patch] - np.float32(y0)
        dx, dy = np.float32(x1 - x0), np.float32(y1 - y0)
        along = np.clip((px * dx + py * dy) / (dx * dx + dy * dy), 0, 1)
        px -= along * dx
        py -= along * dy
        radius = part.radii[0] + along * np.float32(part.radii[1] - part.radii[0])
        depth = part.depths[0] + along * np.float32(part.depths[1] - part.depths[0])
        square = np.maximum(1 - (px * px + py * py) / (radius * radius), 0) * depth * depth
        square *= square
        power[patch] += square * square
    # A high-power mean joins the cones without creases where they overlap.
    return 2 * np.sqrt(np.sqrt(np.sqrt(power)))


def bone_tissue(
    hand: Hand, frame: Frame, x: Array, y: Array, masks: bool
) -> tuple[Array, dict[str, Array]]:
    """Mineral along the ray in units of PP3 on the fine grid, and truth masks on the image."""
    total = np.zeros_like(x)
    truth: dict[str, Array] = {}
    pixel = 1 / (_FINE * frame.unit)
    for bone in hand.bones:
        patch = frame.patch(bone.box())
        if total[patch].size == 0:
            continue
        exposed = bone.expose(x[patch], y[patch], pixel)
        total[patch] += exposed.thickness
        if not masks:
            continue
        for kind, part in (("bone", exposed.bone), ("plate", exposed.plate)):
            if part is not None and part.any():
                fine = truth.setdefault(f"{kind}:{bone.name}", np.zeros(x.shape, bool))
                fine[patch] |= part
    covered = {name: coarse(mask.astype(np.float32)) for name, mask in truth.items()}
    return total, {name: part >= 0.5 for name, part in covered.items() if (part >= 0.5).any()}


def coarse(fine: Array) -> Array:
    """Fine grid to image by averaging."""
    height, width = fine.shape[0] // _FINE, fine.shape[1] // _FINE
    blocks = fine.reshape(height, _FINE, width, _FINE)
    mean: Array = blocks.mean(axis=(1, 3), dtype=np.float32)
    return mean


def blur(image: Array, radius: float) -> Array:
    """Blur with a short symmetric kernel along both axes, for focal spot and light spread."""
    side = np.float32(min(radius * radius / 2, 0.33))
    for axis in (0, 1):
        padded = np.pad(image, [(1, 1) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
        low, high = np.delete(padded, [-1, -2], axis), np.delete(padded, [0, 1], axis)
        image = (1 - 2 * side) * image + side * (low + high)
    return image


def beam(frame: Frame, rng: np.random.Generator) -> Array:
    """Intensity of the beam without the hand, (H, W): 1 in the centre, lower to the edges."""
    angle = rng.uniform(0, 2 * np.pi)
    rows = np.linspace(-1, 1, frame.height, dtype=np.float32)[:, None]
    columns = np.linspace(-1, 1, frame.width, dtype=np.float32)[None, :]
    heel = abs(rng.normal(0, 0.07))
    slope = np.float32(np.cos(angle)) * columns + np.float32(np.sin(angle)) * rows
    field: Array = 1 + heel * slope - rng.uniform(0.02, 0.10) * (rows * rows + columns * columns)
    return np.maximum(field, 0.3).astype(np.float32)


def collimation(frame: Frame, flesh: Array, rng: np.random.Generator) -> Array:
    """Proportion of the beam let through, (H, W) in 0..1: usually all, else a rotated rectangle.

    The edges stay off the fingers.
    """
    if rng.random() < 0.65:
        return np.ones((frame.height, frame.width), np.float32)
    turn = rng.normal(0, 0.03)
    rows = np.arange(frame.height, dtype=np.float32)[:, None]
    columns = np.arange(frame.width, dtype=np.float32)[None, :]
    across, down = columns + turn * rows, rows - turn * columns
    inset = np.where(rng.random(4) < 0.55, rng.uniform(0.004, 0.045, 4), -0.2)
    hand = np.flatnonzero(flesh.any(axis=0))
    left = min(inset[0] * frame.width, hand[0])
    right = max((1 - inset[1]) * frame.width, hand[-1] + turn * frame.height)
    top = min(inset[2] * frame.height, np.flatnonzero(flesh.any(axis=1))[0] - turn * frame.width)
    bottom = (1 - inset[3] / 2) * frame.height
    edge = np.minimum(np.minimum(across - left, right - across),
                      np.minimum(down - top, bottom - down))  # fmt: skip
    return np.clip(edge / (0.004 * frame.height) + 0.5, 0, 1)


def marker(frame: Frame, flesh: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Lead letters and their plastic plate, each (H, W) in 0..1, off the hand; or nothing."""
    nothing = np.zeros((frame.height, frame.width), np.float32)
    size = int(frame.height * rng.uniform(0.05, 0.13))
    turn = rng.normal(0, 12) + (rng.choice((90, -90)) if rng.random() < 0.12 else 0)
    letters = "".join(rng.choice(list("ABCDEGHJKMNPRST"), 2))
    kind = rng.random()
    if kind < 0.06:
        return nothing, nothing
    lead, plate = _stamp(size, letters if kind > 0.35 else "", turn)
    for _ in range(12):
        row = int(rng.uniform(0.01, 0.99) * (frame.height - lead.shape[0]))
        column = int(rng.choice((rng.uniform(0, 0.2), rng.uniform(0.8, 1.0)), p=(0.75, 0.25))
                     * (frame.width - lead.shape[1]))  # fmt: skip
        patch = (slice(row, row + lead.shape[0]), slice(column, column + lead.shape[1]))
        if row >= 0 and column >= 0 and not (flesh[patch] > 0.02).any():
            letters_map, plate_map = nothing.copy(), nothing.copy()
            letters_map[patch], plate_map[patch] = lead, plate
            return letters_map, plate_map * (rng.random() < 0.7)
    return nothing, nothing


def _stamp(size: int, letters: str, turn: float) -> tuple[Array, Array]:
    """Draw an "L", with initials below when given, and the plate under it, rotated by degrees."""
    big, small = ImageFont.load_default(3 * size), ImageFont.load_default(1.7 * size)
    wide, high = 4 * size, (5 if letters else 4) * size
    lead = Image.new("L", (wide, high))
    draw = ImageDraw.Draw(lead)
    draw.text((wide / 2, 0.1 * size), "L", 255, big, anchor="ma", stroke_width=size // 12)
    if letters:
        draw.text((wide / 2, 2.95 * size), letters, 255, small, anchor="ma",
                  stroke_width=size // 24)  # fmt: skip
    plate = Image.new("L", (wide, high), 255)
    rotated = [part.rotate(turn, Image.Resampling.BILINEAR, expand=True) for part in (lead, plate)]
    target = (max(2, rotated[0].width // 4), max(2, rotated[0].height // 4))
    small_parts = [part.resize(target, Image.Resampling.BOX) for part in rotated]
    return tuple(np.asarray(part, np.float32) / 255 for part in small_parts)  # type: ignore[return-value]


def expose(
    hand: Hand, frame: Frame, rng: np.random.Generator, masks: bool
) -> tuple[Array, dict[str, Array]]:
    """Compute the image, uint8 (H, W), and the masks of bones and growth plates."""
    x, y = frame.grid()
    flesh = soft_tissue(hand, frame, x, y)
    mineral, truth = bone_tissue(hand, frame, x, y, masks)
    attenuation = hand.pp3_cm * (_SOFT_PER_CM * flesh + _BONE_PER_CM * mineral)
    transmitted = coarse(np.exp(-attenuation))
    flesh = coarse(flesh)
    lead, plate = marker(frame, flesh, rng)
    transmitted *= np.exp(-4.0 * lead - rng.uniform(0.03, 0.25) * plate)
    scatter = np.float32(rng.uniform(0.01, 0.05))
    open_part = collimation(frame, flesh, rng)
    signal = blur(beam(frame, rng) * transmitted, rng.uniform(0.2, 0.7)) * open_part + scatter
    photons = 10 ** rng.uniform(3.5, 4.7)
    noise = rng.standard_normal(signal.shape, dtype=np.float32)
    signal = np.maximum(signal + np.sqrt(signal / photons) * noise, 0.004)
    return _window(-np.log(signal), flesh, open_part, rng), truth


def _window(density: Array, flesh: Array, open_part: Array, rng: np.random.Generator) -> Array:
    """Turn the log signal into grey, uint8, with contrast and brightness set to the hand."""
    inside = density[(flesh > 0.1) & (open_part > 0.9)]
    bright = float(np.quantile(inside, 0.997)) if inside.size else 1.0
    air = float(np.quantile(density[open_part > 0.9], 0.02))
    low, high = _display(rng)
    gamma = float(np.clip(rng.normal(1.05, 0.17), 0.7, 1.6))
    scaled = np.maximum((density - air) / (bright - air), 0) ** gamma
    grey = low + (high - low) * scaled
    shutter = rng.choice((0.0, 40.0, 110.0, 255.0), p=(0.45, 0.15, 0.1, 0.3))
    grey = open_part * grey + (1 - open_part) * shutter
    return np.clip(np.rint(grey), 0, 255).astype(np.uint8)


def _display(rng: np.random.Generator) -> tuple[float, float]:
    """Draw the grey of air and of the densest bone: most images dark, some grey, some flat."""
    kind = rng.random()
    if kind < 0.76:
        return rng.uniform(1, 14), rng.uniform(150, 262)
    if kind < 0.90:
        low = rng.uniform(22, 75)
        return low, low + rng.uniform(90, 190)
    low = rng.uniform(5, 40)
    return low, low + rng.uniform(45, 90)
