import numpy as np
import pytest

from boneage.imaging.orientation import ORIENTATIONS, TURNS, UPRIGHT, Orientation, find_orientation

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


def predict(truth: Orientation, certainty: float) -> np.ndarray:
    """What a head of that certainty predicts for an image in its four rotations."""
    probabilities = np.full((TURNS, 8), (1.0 - certainty) / 7)
    for turns in range(TURNS):
        there = Orientation((truth.quarter_turns + turns) % TURNS, truth.is_inverted)
        probabilities[turns, there.code] = certainty
    return probabilities


@pytest.mark.parametrize("truth", ORIENTATIONS, ids=Orientation.describe)
def test_four_predictions_that_agree_give_the_orientation(truth: Orientation) -> None:
    assert find_orientation(predict(truth, 0.9)) == truth
    one_wrong = predict(truth, 0.9)
    one_wrong[2] = predict(ORIENTATIONS[truth.code - 1], 0.9)[2]
    assert find_orientation(one_wrong) == truth


def test_predictions_that_do_not_agree_leave_an_image_as_it_is() -> None:
    assert find_orientation(np.full((TURNS, 8), 1 / 8)) == UPRIGHT
    two_of_each = predict(ORIENTATIONS[1], 0.9)
    two_of_each[:2] = predict(ORIENTATIONS[2], 0.9)[:2]
    assert find_orientation(two_of_each) == UPRIGHT


def test_probabilities_of_zero_leave_numbers() -> None:
    assert find_orientation(np.eye(8)[[3, 0, 1, 2]]) == ORIENTATIONS[3]
