import numpy as np
import pytest

from boneage.imaging.orientation import ORIENTATIONS, UPRIGHT, Orientation

IMAGE = np.arange(6.0).reshape(2, 3) / 10


def test_there_are_eight_ways_in_the_order_of_their_codes() -> None:
    assert [orientation.code for orientation in ORIENTATIONS] == list(range(8))
    assert Orientation(0, False) == UPRIGHT == ORIENTATIONS[0]


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=Orientation.describe)
def test_every_way_can_be_undone(orientation: Orientation) -> None:
    laid = orientation.apply(IMAGE)
    assert (laid.shape == IMAGE.shape) == (orientation.quarter_turns % 2 == 0)
    np.testing.assert_allclose(orientation.undo(laid), IMAGE)
    assert (
        np.allclose(laid, IMAGE) == (orientation == UPRIGHT) if laid.shape == IMAGE.shape else True
    )


def test_left_is_left() -> None:
    left = Orientation(1, False).apply(IMAGE)
    assert left[0, 0] == IMAGE[0, -1]  # the right upper corner has come to the left
    assert Orientation(1, False).describe() == "rotated by 90° to the left"


def test_a_way_is_said_in_words() -> None:
    assert UPRIGHT.describe() == "upright"
    assert Orientation(2, True).describe() == "rotated by 180° and inverted"
    assert Orientation(0, True).describe() == "inverted"
