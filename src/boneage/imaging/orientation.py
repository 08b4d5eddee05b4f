"""Turned and inverted images: the eight ways an image can lie, and the way back."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

TURNS = 4
_TURNED = ("", "turned by 90° to the left", "turned by 180°", "turned by 90° to the right")


@dataclass(frozen=True)
class Orientation:
    """How an image lies, beside upright with bright bones.

    Attributes:
        quarter_turns: Turns by 90° to the left, 0 to 3.
        is_inverted: Whether bones are dark.
    """

    quarter_turns: int
    is_inverted: bool

    @property
    def code(self) -> int:
        """Place in `ORIENTATIONS`."""
        return self.quarter_turns + TURNS * self.is_inverted

    def apply(self, pixels: Any) -> Any:
        """Lay an upright image (..., H, W) in [0, 1] this way; numpy."""
        turned = np.rot90(pixels, self.quarter_turns, axes=(-2, -1))
        return 1.0 - turned if self.is_inverted else turned

    def undo(self, pixels: Any) -> Any:
        """Bring an image (..., H, W) in [0, 1] that lies this way upright; numpy."""
        turned = np.rot90(pixels, -self.quarter_turns, axes=(-2, -1))
        return 1.0 - turned if self.is_inverted else turned

    def describe(self) -> str:
        """Say it: "turned by 180° and inverted"."""
        words = [_TURNED[self.quarter_turns], "inverted" if self.is_inverted else ""]
        return " and ".join(word for word in words if word) or "upright"


ORIENTATIONS = tuple(
    Orientation(turns, inverted) for inverted in (False, True) for turns in range(4)
)
"""All eight, upright first, in the order of an orientation head's answers."""

UPRIGHT = ORIENTATIONS[0]


def find_orientation(chances: npt.NDArray[np.floating]) -> Orientation:
    """Tell how an image lies from what was found of it in each of the four turns.

    The four findings must agree: an image that lies on its side lies upright after one turn, upside
    down after two, and so on. That tells far more images right than one look does.

    Args:
        chances: (4, 8), row r the probabilities of `ORIENTATIONS` for the image after r quarter
            turns to the left.

    Returns:
        How the image lies before any turn; upright if no way is likelier than all others together.
    """
    logs = np.log(chances.clip(min=1e-9))
    total = np.array(
        [
            sum(
                logs[r, Orientation((o.quarter_turns + r) % TURNS, o.is_inverted).code]
                for r in range(TURNS)
            )
            for o in ORIENTATIONS
        ]
    )
    agreed = np.exp(total - total.max())
    best = int(agreed.argmax())
    return ORIENTATIONS[best] if agreed[best] > agreed.sum() / 2 else UPRIGHT
