import numpy as np
import pytest

from boneage.errors import ImageError
from boneage.imaging.decoded import MOST_PIXELS, check_size, join_masks


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded() -> None:
    check_size(1, MOST_PIXELS, "7.png")
    with pytest.raises(ImageError, match=r"^7\.png declares 2×50000000 pixels; expected 50,000,0"):
        check_size(2, MOST_PIXELS, "7.png")
    with pytest.raises(ImageError, match=r"^7\.png declares 0×5 pixels; expected 1 or more a side"):
        check_size(0, 5, "7.png")


def test_masks_are_joined_where_there_are_any() -> None:
    one, other = np.array([True, False, False]), np.array([False, True, False])
    assert join_masks(None, None) is None
    assert join_masks(None, one) is one
    joined = join_masks(one, None, other)
    assert joined is not None
    assert joined.tolist() == [True, True, False]
