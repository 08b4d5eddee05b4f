"""The outline of a hand, drawn from its landmarks."""

from math import hypot

import numpy as np
from PIL import Image, ImageDraw

from boneage.imaging.geometry import LANDMARKS, Points

_FINGER = 0.50
_PALM = 0.62
_FOREARM = 1.5
_TIP = 0.16


def draw_outline(landmarks: Points, size: tuple[int, int]) -> Image.Image:
    """Draw where a hand and its forearm are, soft tissue included.

    Fingers, palm and forearm have the width that they have in most hands; what counts is that
    nothing of the hand is left out.

    Args:
        landmarks: (22, 2), in pixels of the image.
        size: Width and height of the image in pixels.

    Returns:
        An 8-bit grey image, 255 on the hand and 0 elsewhere.
    """
    image = Image.new("L", size)
    draw = ImageDraw.Draw(image)
    at = dict(zip(LANDMARKS, landmarks, strict=True))
    unit = hypot(*(at["PIP3"] - at["MCP3"]))

    def tube(points: list[Points], width: float) -> None:
        draw.line([(float(x), float(y)) for x, y in points], 255, max(1, round(width * unit)))
        for x, y in points:
            r = width * unit / 2
            draw.ellipse((x - r, y - r, x + r, y + r), 255)

    for digit in range(1, 6):
        names = [f"MCP{digit}", f"PIP{digit}", f"DIP{digit}", f"tip{digit}"]
        chain = [at[name] for name in names if name in at]
        end = chain[-1] + _TIP * (chain[-1] - chain[-2])
        tube([*chain, end], _FINGER)
        tube([at["carpus"], at[f"MCP{digit}"]], _PALM)
    for a, b in ((2, 3), (3, 4), (4, 5)):
        tube([at[f"MCP{a}"], at[f"MCP{b}"]], _PALM)
    palm = [at["carpus"], *(at[f"MCP{digit}"] for digit in range(1, 6))]
    draw.polygon([(float(x), float(y)) for x, y in palm], 255)
    wrist = (at["radius"] + at["ulna"]) / 2
    away = wrist - at["carpus"]
    elbow = wrist + away / max(hypot(*away), 1e-6) * 2 * max(size)
    tube([at["carpus"], wrist, np.asarray(elbow)], _FOREARM)
    return image
