import numpy as np
import pytest

from boneage.orientation import ORIENTATIONS, UPRIGHT, Orientation

FILM = np.arange(6.0).reshape(2, 3) / 10


def test_there_are_eight_ways_in_the_order_of_their_codes() -> None:
    assert [orientation.code for orientation in ORIENTATIONS] == list(range(8))
    assert Orientation(0, False) == UPRIGHT == ORIENTATIONS[0]


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=Orientation.describe)
def test_every_way_can_be_undone(orientation: Orientation) -> None:
    laid = orientation.apply(FILM)
    assert (laid.shape == FILM.shape) == (orientation.quarter_turns % 2 == 0)
    np.testing.assert_allclose(orientation.undo(laid), FILM)
    assert np.allclose(laid, FILM) == (orientation == UPRIGHT) if laid.shape == FILM.shape else True


def test_left_is_left() -> None:
    left = Orientation(1, False).apply(FILM)
    assert left[0, 0] == FILM[0, -1]  # the right upper corner has come to the left
    assert Orientation(1, False).describe() == "turned by 90° to the left"


def test_a_way_is_said_in_words() -> None:
    assert UPRIGHT.describe() == "upright"
    assert Orientation(2, True).describe() == "turned by 180° and inverted"
    assert Orientation(0, True).describe() == "inverted"
