"""Rotated and inverted images: how one differs from an upright image, and how it is corrected."""

from dataclasses import dataclass
from typing import Any

import numpy as np

TURNS = 4
"""Number of rotations by a quarter turn."""

_ROTATED = ("", "rotated by 90° to the left", "rotated by 180°", "rotated by 90° to the right")


@dataclass(frozen=True)
class Orientation:
    """How an image differs from an upright one with bright bones.

    Attributes:
        quarter_turns: Rotations by 90° to the left, 0 to 3.
        is_inverted: Whether bones are dark.
    """

    quarter_turns: int
    is_inverted: bool

    def undo(self, pixels: Any) -> Any:
        """Correct an image (..., H, W) in [0, 1] of this orientation; numpy."""
        rotated = np.rot90(pixels, -self.quarter_turns, axes=(-2, -1))
        return 1.0 - rotated if self.is_inverted else rotated

    def describe(self) -> str:
        """Describe the orientation, such as "rotated by 180° and inverted"."""
        words = [_ROTATED[self.quarter_turns], "inverted" if self.is_inverted else ""]
        return " and ".join(word for word in words if word) or "upright"


UPRIGHT = Orientation(0, is_inverted=False)
