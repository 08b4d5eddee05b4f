import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from boneage.audit.perturbations import PERTURBATIONS, Perturbation
from boneage.phantom.cohort import draw_image

Grey = npt.NDArray[np.int64]


def find(family: str, level: str) -> Perturbation:
    (found,) = (p for p in PERTURBATIONS if (p.family, p.level) == (family, level))
    return found


def change(grey: Grey, family: str, level: str) -> Grey:
    """Change an image, given and returned in grey values."""
    image = Image.fromarray(grey.astype(np.uint8))
    return np.asarray(find(family, level).change(image), dtype=np.int64)


@pytest.fixture(scope="module")
def image() -> Image.Image:
    """A synthetic image whose sides are no multiples of anything."""
    return Image.fromarray(draw_image(120, "M", np.random.default_rng(0), height=121).image)


@pytest.fixture(scope="module")
def grey(image: Image.Image) -> Grey:
    return np.asarray(image, dtype=np.int64)


def spot(x: int, y: int) -> Grey:
    """A dark image of 201×201 with a bright spot."""
    grey = np.zeros((201, 201), dtype=np.int64)
    grey[y - 3 : y + 4, x - 3 : x + 4] = 255
    return grey


def middle(grey: Grey) -> tuple[float, float]:
    rows, columns = np.indices(grey.shape)
    return (columns * grey).sum() / grey.sum(), (rows * grey).sum() / grey.sum()


def test_every_perturbation_has_a_name_of_its_own() -> None:
    names = [(each.family, each.level) for each in PERTURBATIONS]
    assert len(set(names)) == len(names) > 40
    assert "clean" not in {family for family, _ in names}


@pytest.mark.parametrize("each", PERTURBATIONS, ids=lambda p: f"{p.family} {p.level}")
def test_a_perturbation_changes_the_image_or_the_sex_and_keeps_the_mode(
    each: Perturbation, image: Image.Image, grey: Grey
) -> None:
    before = grey.copy()
    changed = each.change(image)
    is_quarter_turn = each.level in ("90°", "270°")
    assert changed.mode == "L"
    if each.family not in ("field", "padding", "aspect", "screenshot"):
        assert changed.size == (image.size[::-1] if is_quarter_turn else image.size)
    is_same = np.array_equal(np.asarray(changed), grey) if changed.size == image.size else False
    assert is_same == (each.sex is not None)
    np.testing.assert_array_equal(np.asarray(each.change(image)), np.asarray(changed))
    np.testing.assert_array_equal(np.asarray(image), before)


@pytest.mark.parametrize(
    "level", ["-45°", "-20°", "-10°", "-5°", "+5°", "+10°", "+20°", "+45°", "90°", "180°", "270°"]
)
def test_an_image_rotates_to_the_left_by_the_degrees_of_its_level(level: str) -> None:
    angle = np.radians(float(level.rstrip("°")))
    found = middle(change(spot(180, 100), "rotation", level))
    assert found == pytest.approx((100 + 80 * np.cos(angle), 100 - 80 * np.sin(angle)), abs=0.6)


def test_right_angles_lose_nothing(grey: Grey) -> None:
    for level, turns in (("90°", 1), ("180°", 2), ("270°", 3)):
        np.testing.assert_array_equal(change(grey, "rotation", level), np.rot90(grey, turns))
    for first, second in (("180°", "180°"), ("90°", "270°"), ("270°", "90°")):
        there = change(grey, "rotation", first)
        np.testing.assert_array_equal(change(there, "rotation", second), grey)


def test_flips_mirror_the_image(grey: Grey) -> None:
    np.testing.assert_array_equal(change(grey, "flip", "left-right"), grey[:, ::-1])
    np.testing.assert_array_equal(change(grey, "flip", "upside down"), grey[::-1])


@pytest.mark.parametrize("level", ["-30%", "-10%", "+10%", "+30%"])
def test_brightness_scales_every_grey_value_up_to_white(grey: Grey, level: str) -> None:
    proportion = float(level.rstrip("%")) / 100
    changed = change(grey, "brightness", level)
    assert np.abs(changed - np.minimum(grey * (1 + proportion), 255)).max() <= 0.5 + 1e-9
    assert (np.sign(proportion) * (changed - grey) >= 0).all()


@pytest.mark.parametrize("level", ["-30%", "-10%", "+10%", "+30%"])
def test_contrast_scales_the_spread_about_the_mean(level: str) -> None:
    flat = np.linspace(80, 170, 120 * 100).reshape(120, 100).astype(np.int64)
    changed = change(flat, "contrast", level)
    assert changed.mean() == pytest.approx(flat.mean(), abs=0.5)
    assert changed.std() / flat.std() == pytest.approx(1 + float(level[:-1]) / 100, abs=0.01)


@pytest.mark.parametrize("level", ["0.67", "0.8", "1.25", "1.5"])
def test_gamma_bends_the_greys_between_black_and_white(level: str) -> None:
    greys = np.arange(256)[None]
    changed = change(greys, "gamma", level)
    assert np.abs(changed - 255 * (greys / 255) ** float(level)).max() <= 0.5 + 1e-9
    assert (changed[0, 0], changed[0, 255]) == (0, 255)
    assert (changed > greys).any() == (float(level) < 1)
    assert (changed < greys).any() == (float(level) > 1)


def test_inversion_exchanges_black_and_white_and_undoes_itself(grey: Grey) -> None:
    changed = change(grey, "inversion", "")
    np.testing.assert_array_equal(changed, 255 - grey)
    np.testing.assert_array_equal(change(changed, "inversion", ""), grey)


@pytest.mark.parametrize("level", ["0.5% of the height", "1% of the height"])
def test_blur_widens_an_edge_by_its_proportion_of_the_height(level: str) -> None:
    edge = np.zeros((600, 100), dtype=np.int64)
    edge[:, 50:] = 255
    profile = np.diff(change(edge, "blur", level)[300]) / 255
    places = np.arange(len(profile))
    mean = (places * profile).sum()
    sigma = np.sqrt((profile * (places - mean) ** 2).sum())
    assert sigma == pytest.approx(6.0 * float(level.split("%")[0]), rel=0.1)


@pytest.mark.parametrize(("level", "sigma"), [("2% of the range", 5.1), ("5% of the range", 12.75)])
def test_noise_has_its_proportion_of_the_range_and_no_bias(level: str, sigma: float) -> None:
    plain = np.full((120, 100), 128)
    noise = change(plain, "noise", level) - plain
    assert noise.std() == pytest.approx(sigma, rel=0.03)
    assert abs(noise.mean()) < 0.3


def test_a_lower_resolution_loses_what_is_finer_than_its_pixels(grey: Grey) -> None:
    stripes = np.tile([0, 255], (120, 50))
    assert change(stripes, "resolution", "1/2").std() < 1
    detail = [np.abs(np.diff(picture)).mean()
              for picture in (grey, change(grey, "resolution", "1/1.5"),
                           change(grey, "resolution", "1/2"))]  # fmt: skip
    assert detail[0] > detail[1] > detail[2]


@pytest.mark.parametrize(("level", "proportion"), [("3% a side", 0.03), ("8% a side", 0.08)])
def test_a_crop_cuts_the_sides_off_and_magnifies_the_middle(level: str, proportion: float) -> None:
    picture = np.zeros((300, 200), dtype=np.int64)
    picture[120:180, 70:130] = 255
    picture[: int(300 * proportion) - 2] = picture[:, : int(200 * proportion) - 2] = 255
    changed = change(picture, "crop", level)
    assert changed.sum() / 255 == pytest.approx(3600 / (1 - 2 * proportion) ** 2, rel=0.02)
    assert middle(changed) == pytest.approx((99.5, 149.5), abs=0.5)


@pytest.mark.parametrize(("level", "proportion"), [("5%", 0.05), ("10%", 0.1)])
def test_a_translation_moves_the_image_right_and_down_over_black(
    level: str, proportion: float
) -> None:
    picture = 1 + np.random.default_rng(0).integers(0, 255, (120, 100))
    changed = change(picture, "translation", level)
    down, right = round(120 * proportion), round(100 * proportion)
    np.testing.assert_array_equal(changed[down:, right:], picture[:-down, :-right])
    assert not changed[:down].any()
    assert not changed[:, :right].any()


def test_jpeg_loses_more_at_a_lower_quality(grey: Grey) -> None:
    lost = [np.abs(change(grey, "JPEG", f"quality {q}") - grey).mean() for q in (75, 40, 20)]
    assert 0 < lost[0] < lost[1] < lost[2] < 10


def test_a_marker_is_white_and_in_the_upper_left_corner_only(grey: Grey) -> None:
    changed = change(grey, "marker", "added")
    rows, columns = np.nonzero(changed != grey)
    assert (changed[rows, columns] == 255).all()
    assert len(rows) > 20
    assert rows.max() < 0.2 * grey.shape[0]
    assert columns.max() < 0.2 * grey.shape[1]


@pytest.mark.parametrize(("level", "proportion"), [("3%", 0.03), ("6%", 0.06)])
def test_a_border_is_black_and_leaves_what_is_inside(
    grey: Grey, level: str, proportion: float
) -> None:
    changed = change(grey, "border", level)
    y, x = (round(proportion * side) for side in grey.shape)
    inside = (slice(y, grey.shape[0] - y), slice(x, grey.shape[1] - x))
    np.testing.assert_array_equal(changed[inside], grey[inside])
    assert changed.sum() == grey[inside].sum()


@pytest.mark.parametrize(
    ("family", "level", "factors"),
    [("field", "2 by 2", (2.0, 2.0)), ("field", "2 by 1", (2.0, 1.0)),
     ("aspect", "1.2 times as wide", (1.2, 1.0))],
)  # fmt: skip
def test_a_field_or_aspect_changes_the_size(
    family: str, level: str, factors: tuple[float, float]
) -> None:
    image = Image.new("L", (60, 80), 90)
    changed = find(family, level).change(image)
    assert changed.size == (round(60 * factors[0]), round(80 * factors[1]))


def test_padding_and_stretching_end_in_a_square() -> None:
    image = Image.new("L", (60, 80), 90)
    black, white = (find("padding", f"to a square, {c}").change(image) for c in ("black", "white"))
    assert black.size == white.size == find("aspect", "to a square").change(image).size == (80, 80)
    assert (black.getpixel((0, 0)), white.getpixel((0, 0))) == (0, 255)
    assert black.getpixel((40, 40)) == white.getpixel((40, 40)) == 90


def test_a_print_darkens_soft_tissue_and_processing_raises_local_contrast() -> None:
    ramp = np.tile(np.arange(256, dtype=np.uint8), (64, 1))
    printed = np.asarray(find("print", "threshold 0.5, grain 6%").change(Image.fromarray(ramp)))
    assert printed[:, 60:80].mean() < 0.5 * ramp[:, 60:80].mean()
    assert printed[:, 200:].mean() > 235
    step = np.full((100, 100), 100, np.uint8)
    step[:, 50:] = 110

    def contrast(level: str) -> int:
        changed = np.asarray(find("processing", level).change(Image.fromarray(step)), dtype=int)
        return int(np.abs(np.diff(changed, axis=1)).max())

    assert contrast("sharpened by 300%") > contrast("sharpened by 150%") > 10
    assert contrast("evened out by 60%") > 10
