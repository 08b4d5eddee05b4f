import numpy as np
import pytest
from PIL import Image

from boneage.imaging.geometry import (
    HAND_VIEW,
    JOINTS,
    LANDMARKS,
    MEAN_HAND,
    Affine,
    HandView,
    Points,
    ShapeModel,
    edge_grey,
    fit_similarity,
    is_usual,
    render,
    spread_map,
    undo_turns,
)
from boneage.phantom.cohort import draw_image


def turn(
    degrees: float, scale: float, shift: tuple[float, float], *, mirrored: bool = False
) -> Affine:
    """Scale, mirror left and right if asked, turn clockwise, shift."""
    angle = np.radians(degrees)
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if mirrored:
        linear = linear * (-1.0, 1.0)
    return Affine(np.column_stack([linear, shift]))


def vary(rng: np.random.Generator, n: int = 60) -> list[Points]:
    """Joints of hands that differ a little from the mean one."""
    return [MEAN_HAND[: len(JOINTS)] + rng.normal(0, 0.05, (len(JOINTS), 2)) for _ in range(n)]


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [-170.0, -90.0, 0.0, 33.0, 180.0])
def test_a_similarity_is_found_from_the_points_it_moved(degrees: float, mirrored: bool) -> None:
    truth = turn(degrees, 23.0, (40.0, -7.0), mirrored=mirrored)
    found = fit_similarity(MEAN_HAND, truth.apply(MEAN_HAND), mirrored=mirrored)
    assert found.matrix == pytest.approx(truth.matrix)
    assert found.is_mirrored is mirrored
    assert found.scale == pytest.approx(23.0)
    assert np.cos(np.radians(found.rotation - degrees)) == pytest.approx(1.0)


def test_points_without_weight_do_not_count() -> None:
    moved = turn(10.0, 2.0, (1.0, 2.0)).apply(MEAN_HAND)
    moved[3] += 100.0
    weights = np.ones(len(moved))
    weights[3] = 0.0
    found = fit_similarity(MEAN_HAND, moved, weights)
    assert found.matrix == pytest.approx(turn(10.0, 2.0, (1.0, 2.0)).matrix)


def test_a_map_and_its_inverse_cancel_out() -> None:
    way = turn(25.0, 3.0, (5.0, 6.0), mirrored=True)
    assert way.inverse().after(way).matrix == pytest.approx(np.eye(2, 3))
    assert way.after(Affine.scaling(2.0, 0.5)).apply(MEAN_HAND) == pytest.approx(
        way.apply(MEAN_HAND * (2.0, 0.5))
    )


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("scale", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("degrees", [0.0, 47.0, 180.0])
def test_a_drawn_hand_comes_back_to_the_same_view(
    degrees: float, scale: float, mirrored: bool
) -> None:
    drawn = draw_image(120, "F", np.random.default_rng(5), height=300)
    joints = np.array([drawn.landmarks[name] for name in LANDMARKS])
    home = HAND_VIEW.of(fit_similarity(MEAN_HAND, joints), 400)
    change = turn(degrees, scale, (700.0, 650.0), mirrored=mirrored)
    placement = fit_similarity(MEAN_HAND, change.apply(joints), mirrored=mirrored)
    view = HAND_VIEW.of(placement, 400)
    assert view.apply(change.apply(joints)) == pytest.approx(home.apply(joints), abs=1e-6)
    field = render(Image.fromarray(drawn.image), change, (1400, 1300))
    wanted = np.asarray(render(Image.fromarray(drawn.image), home, (400, 400)), dtype=float)
    got = np.asarray(render(field, view, (400, 400)), dtype=float)
    # An image that was reduced and enlarged again is the same but for its sharpness.
    assert np.abs(got - wanted).mean() < 6.0


def test_the_view_holds_the_whole_hand_upright_whatever_its_side() -> None:
    for mirrored in (False, True):
        placement = turn(140.0, 50.0, (300.0, 200.0), mirrored=mirrored)
        seen = HAND_VIEW.of(placement, 256).apply(placement.apply(MEAN_HAND))
        assert seen.min() > 15.0
        assert seen.max() < 256.0 - 15.0
        places = dict(zip(LANDMARKS, seen, strict=True))
        assert places["tip3"][1] < places["carpus"][1] < places["radius"][1]
        assert places["tip5"][0] < places["tip1"][0]  # the thumb is on the right


def test_a_squeezed_image_is_stretched_in_its_view() -> None:
    placement = turn(5.0, 60.0, (250.0, 400.0))
    squeezed = placement.apply(MEAN_HAND) * (0.75, 1.0)
    seen = HAND_VIEW.of(placement, 256, aspect=0.75).apply(squeezed)
    assert seen == pytest.approx(HAND_VIEW.frame(256).apply(MEAN_HAND))


def test_a_view_of_the_rsna_layout_is_usual_and_a_wide_field_is_not() -> None:
    layout = HandView(0.775, 0.163, 0.50, 0.69)  # medians of the RSNA images
    size, usual = layout.size(640), layout.frame(640)
    assert size == (496, 640)
    assert is_usual(usual, size)
    assert not is_usual(usual, (2 * size[0], 2 * size[1]), slack=1.25)
    assert not is_usual(usual, (round(1.3 * size[0]), round(1.3 * size[1])))
    assert is_usual(usual, (round(1.3 * size[0]), round(1.3 * size[1])), slack=1.4)
    assert not is_usual(usual.after(turn(40.0, 1.0, (0.0, 0.0))), size)
    assert not is_usual(Affine.scaling(2.0, 2.0).after(usual), size)


def test_the_shape_of_hands_tells_how_much_an_image_was_squeezed() -> None:
    rng = np.random.default_rng(0)
    model = ShapeModel.fit(vary(rng))
    for aspect in (0.75, 1.0, 1.25):
        found = [
            model.find_aspect(turn(12.0, 40.0, (9.0, 9.0)).apply(hand) * (aspect, 1.0))
            for hand in vary(rng, 10)
        ]
        assert np.median([value for value, _ in found]) == pytest.approx(aspect, rel=0.04)
        assert max(distance for _, distance in found) < 200.0
    scattered = rng.normal(0, 1.0, (len(JOINTS), 2))
    assert model.find_aspect(scattered)[1] > 500.0


def test_quarter_turns_of_an_image_are_undone_on_its_landmarks() -> None:
    image = np.zeros((40, 30), np.uint8)
    image[5, 20] = 255
    for turns in range(4):
        turned = np.rot90(image, turns)
        row, column = np.argwhere(turned)[0]
        mark = turn(0.0, 1.0, (column + 0.5, row + 0.5))
        back = undo_turns(mark, turns, (turned.shape[1], turned.shape[0]))
        assert back.matrix[:, 2] == pytest.approx((20.5, 5.5))


def test_a_map_of_a_view_lies_on_the_image_where_the_view_lies() -> None:
    cells = np.arange(9, dtype=np.float32).reshape(3, 3) - 2.0
    to_view = Affine.scaling(1.0, 1.0).after(turn(0.0, 1.0, (-100.0, -50.0)))  # at (100, 50)
    spread = spread_map(cells, to_view, (60, 60), (240, 240))
    assert spread.mean() == pytest.approx(cells.mean(), abs=1e-5)
    rows, columns = np.nonzero(spread)
    assert (10 * columns.min(), 10 * columns.max() + 10) == (100, 160)
    assert (10 * rows.min(), 10 * rows.max() + 10) == (50, 110)
    outside = spread_map(cells, turn(0.0, 1.0, (1000.0, 0.0)), (60, 60), (240, 240))
    assert outside.mean() == pytest.approx(cells.mean(), abs=1e-5)


def test_the_grey_of_the_border_fills_what_lies_outside() -> None:
    image = Image.new("L", (50, 60), 37)
    image.paste(200, (10, 10, 40, 50))
    assert edge_grey(image) == 37
    shown = render(image, turn(0.0, 1.0, (30.0, 30.0)), (120, 120), edge_grey(image))
    assert shown.getpixel((2, 2)) == 37
    assert shown.getpixel((60, 60)) == 200
