import numpy as np
import pytest

from boneage.imaging.orientation import TURNS, UPRIGHT, Orientation

IMAGE = np.linspace(0.0, 1.0, 12).reshape(3, 4)


@pytest.mark.parametrize("is_inverted", [False, True])
@pytest.mark.parametrize("turns", range(TURNS))
def test_every_way_can_be_undone(turns: int, is_inverted: bool) -> None:
    laid = np.rot90(IMAGE, turns)
    laid = 1.0 - laid if is_inverted else laid
    np.testing.assert_allclose(Orientation(turns, is_inverted).undo(laid), IMAGE)


def test_orientations_are_described() -> None:
    assert UPRIGHT.describe() == "upright"
    assert Orientation(2, is_inverted=True).describe() == "rotated by 180° and inverted"
    assert Orientation(1, is_inverted=False).describe() == "rotated by 90° to the left"
