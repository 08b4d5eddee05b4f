import numpy as np
import pytest

from boneage.imaging.geometry import HAND_VIEW, LANDMARKS, MEAN_HAND
from boneage.imaging.outline import draw_outline
from boneage.phantom.cohort import draw_image


@pytest.mark.parametrize("months", [24.0, 90.0, 190.0])
def test_the_outline_holds_the_bones_and_leaves_out_the_corners(months: float) -> None:
    drawn = draw_image(months, "M", np.random.default_rng(3), height=300, masks=True)
    places = np.array([drawn.landmarks[name] for name in LANDMARKS])
    outline = np.asarray(draw_outline(places, (drawn.image.shape[1], drawn.image.shape[0])))
    bones = np.any([mask for name, mask in drawn.masks.items() if name.startswith("bone")], axis=0)
    assert (outline[bones] > 0).mean() > 0.97
    assert not outline[:20, :20].any()
    assert 0.2 < (outline > 0).mean() < 0.75


def test_the_outline_reaches_the_lower_border() -> None:
    landmarks = HAND_VIEW.frame(200).apply(MEAN_HAND)
    outline = np.asarray(draw_outline(landmarks, (200, 200)))
    assert outline[-1].any()
    assert set(np.unique(outline)) == {0, 255}
