import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageOps

from boneage.audit.acquisition import ACQUISITION, group_acquisition, measure_acquisition
from boneage.phantom.cohort import draw_image


@pytest.fixture(scope="module")
def hand() -> Image.Image:
    """A synthetic image whose hand is upright, or nearly so."""
    return Image.fromarray(draw_image(150, "F", np.random.default_rng(6), height=128).image)


def group(**images: Image.Image) -> pd.DataFrame:
    """Put images into groups, a row a name."""
    greys = {
        name: np.asarray(image, np.float32) / np.float32(255) for name, image in images.items()
    }
    table = group_acquisition(
        pd.DataFrame(
            [{"image_id": name, **measure_acquisition(grey)} for name, grey in greys.items()]
        )
    )
    assert list(table.columns) == ["image_id", *ACQUISITION]
    assert table["image_id"].tolist() == list(images)
    return table.set_index("image_id")


def background(image: Image.Image) -> int:
    return int(np.asarray(image)[:10].mean())


def test_images_are_ranked_by_the_grey_of_the_hand_and_the_range_of_their_greys(
    hand: Image.Image,
) -> None:
    dark, bright = hand.point(lambda g: 0.5 * g), hand.point(lambda g: 1.3 * g)
    assert group(plain=hand, dark=dark, bright=bright)["exposure"].to_dict() == {
        "plain": "2 of 3", "dark": "1 of 3, darkest", "bright": "3 of 3, brightest"
    }  # fmt: skip
    flat, hard = hand.point(lambda g: 100 + 0.4 * (g - 100)), ImageOps.autocontrast(hand)
    assert group(flat=flat, hard=hard, plain=hand)["contrast"].to_dict() == {
        "flat": "1 of 3, flattest", "hard": "3 of 3, hardest", "plain": "2 of 3"
    }  # fmt: skip


def test_small_and_large_hands_are_known_by_the_proportion_of_the_image(hand: Image.Image) -> None:
    wide, wider = (ImageOps.expand(hand, border, fill=background(hand)) for border in (40, 80))
    assert group(plain=hand, wide=wide, wider=wider)["hand size"].to_dict() == {
        "plain": "3 of 3, largest", "wide": "2 of 3", "wider": "1 of 3, smallest"
    }  # fmt: skip


def test_a_tilt_is_the_angle_of_the_hand_either_way(hand: Image.Image) -> None:
    wide = ImageOps.expand(hand, 30, fill=background(hand))
    rotated = {
        name: wide.rotate(angle, Image.Resampling.BILINEAR, fillcolor=background(hand))
        for name, angle in (("left", 30), ("right", -30), ("sideways", 80))
    }
    found = group(wide=wide, **rotated)["tilt"].to_dict()
    assert found.pop("wide") in ("0 to 5°", "5 to 15°")
    assert set(found.values()) == {"15 to 90°"}


@pytest.mark.parametrize("grey", [0, 255])
def test_a_frame_of_one_grey_value_is_found(hand: Image.Image, grey: int) -> None:
    found = group(
        plain=hand,
        narrow=ImageOps.expand(hand, 1, fill=grey),
        framed=ImageOps.expand(hand, 12, fill=grey),
        side=ImageOps.expand(hand, (30, 0, 0, 0), fill=grey),
    )
    assert found["frame"].to_dict() == {
        "plain": "without a frame", "narrow": "without a frame", "framed": "with a frame",
        "side": "with a frame",
    }  # fmt: skip


def test_no_image_gives_no_groups() -> None:
    nothing = group_acquisition(pd.DataFrame(columns=["image_id", *ACQUISITION]))
    assert nothing.empty
    assert list(nothing.columns) == ["image_id", *ACQUISITION]
