import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw

from boneage.config import Crop, ImageSettings
from boneage.imaging.geometry import HAND_LENGTH, HAND_VIEW, LANDMARKS, Affine, render
from boneage.imaging.header import Header
from boneage.imaging.preprocess import Preprocessing
from boneage.imaging.radiograph import read_radiograph
from boneage.inference.hand_finder import HandFinder
from boneage.inference.hand_view import HandReader, find_aspect, make_reader, show_hand
from boneage.phantom.cohort import draw_image

HAND = Preprocessing(96, 160, "never", crop="hand")


@pytest.fixture(scope="module")
def hand() -> npt.NDArray[np.uint8]:
    return draw_image(120.0, "F", np.random.default_rng(4), height=400).image


@pytest.fixture(scope="module")
def reader() -> HandReader:
    made = make_reader(HAND)
    assert isinstance(made, HandReader)
    return made


def show(reader: HandReader, pixels: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    return np.asarray(reader.read(np.ascontiguousarray(pixels)).convert("L"), dtype=float)


def enlarge_field(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return np.pad(pixels, ((150, 90), (60, 200)))


@pytest.mark.parametrize(
    "change",
    [np.fliplr, np.flipud, np.rot90, lambda p: np.rot90(p, 3), lambda p: 255 - p, enlarge_field,
     lambda p: np.asarray(Image.fromarray(p).rotate(25, expand=True)),
     lambda p: np.asarray(Image.fromarray(p).reduce(2))],
)  # fmt: skip
def test_the_view_of_a_hand_is_the_same_however_the_hand_lies(
    hand: npt.NDArray[np.uint8], reader: HandReader, change: Callable[[Any], Any]
) -> None:
    expected, found = show(reader, hand), show(reader, change(hand))
    assert found.shape == (160, 160)
    inner = (slice(20, 140), slice(20, 140))  # what lies outside the image is the border's grey
    assert np.corrcoef(expected[inner].ravel(), found[inner].ravel())[0, 1] > 0.95


def find_places(
    reader: HandReader, image: Image.Image, truth: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Where the view shows what lies at known places of an image."""
    radiograph = read_radiograph(np.asarray(image), "never")
    found = reader.finder.find(radiograph.to_image())
    shown = show_hand(radiograph, found, reader.finder, HAND)
    assert shown.to_view is not None
    return shown.to_view.apply(truth)


def move(degrees: float, scale: float, size: tuple[int, int], *, mirrored: bool) -> Affine:
    """Rotate, scale and mirror about the middle, into a square field of one and a half its size."""
    angle, middle = np.radians(degrees), np.array(size) / 2
    sign = -1.0 if mirrored else 1.0
    turn = np.array([[np.cos(angle) * sign, -np.sin(angle)],
                     [np.sin(angle) * sign, np.cos(angle)]])  # fmt: skip
    to = 0.75 * scale * max(size) - scale * turn @ middle
    return Affine(np.column_stack([scale * turn, to]))


@pytest.mark.parametrize(
    ("degrees", "scale", "mirrored"),
    [(30, 1.0, False), (-70, 1.0, False), (111, 1.0, True), (170, 1.0, False), (0, 1.0, True),
     (10, 0.3, False), (-40, 0.5, True), (20, 2.0, False), (200, 2.0, True)],
)  # fmt: skip
@pytest.mark.parametrize("months", [60.0, 120.0, 190.0])
def test_a_phantom_comes_back_to_the_same_view_within_2_percent_of_its_length(
    reader: HandReader, months: float, degrees: float, scale: float, mirrored: bool
) -> None:
    drawn = draw_image(months, "M", np.random.default_rng(int(months)), height=500)
    image, truth = Image.fromarray(drawn.image), np.array([drawn.landmarks[n] for n in LANDMARKS])
    length = HAND_LENGTH * HAND.view.unit * HAND.view_height
    expected = find_places(reader, image, truth)
    to_field = move(degrees, scale, image.size, mirrored=mirrored)
    side = round(1.5 * scale * max(image.size))
    field = render(image, to_field, (side, side))
    found = find_places(reader, field, to_field.apply(truth))
    assert np.hypot(*(found - expected).T).mean() < 0.02 * length


@pytest.mark.parametrize("grey", [255, 90])
def test_a_frame_or_a_window_around_a_phantom_does_not_move_its_view(
    hand: npt.NDArray[np.uint8], reader: HandReader, grey: int
) -> None:
    image, corner = Image.fromarray(hand), (170, 60)
    places = np.stack(np.meshgrid([50.0, 150.0, 250.0], [60.0, 200.0, 340.0]), axis=-1)
    truth = places.reshape(-1, 2)
    window = Image.new("L", (image.width + 260, image.height + 110), grey)
    ImageDraw.Draw(window).text((20, 20), "File  View  Window", 10)
    window.paste(image, corner)
    length = HAND_LENGTH * HAND.view.unit * HAND.view_height
    moved = find_places(reader, window, truth + corner) - find_places(reader, image, truth)
    assert np.hypot(*moved.T).mean() < 0.02 * length


@pytest.mark.parametrize("squeezed", [False, True])
def test_only_a_squeezed_image_has_its_proportions_corrected(
    hand: npt.NDArray[np.uint8], reader: HandReader, squeezed: bool
) -> None:
    true = 0.75
    image = Image.fromarray(hand)
    left = (image.width - round(true * image.height)) // 2
    image = image.crop((left, 0, left + round(true * image.height), image.height))
    size = (160, 160) if squeezed else (round(160 * true), 160)
    radiograph = read_radiograph(np.asarray(image.resize(size)), "never")
    found = reader.finder.find(radiograph.to_image())
    shown = show_hand(radiograph, found, reader.finder, HAND)
    assert shown.aspect == pytest.approx(1.0 / true if squeezed else 1.0, rel=0.12)
    assert (shown.aspect == 1.0) == (not squeezed)
    sideways = read_radiograph(
        np.ascontiguousarray(np.rot90(np.asarray(image.resize(size)))), "never"
    )
    found = reader.finder.find(sideways.to_image())
    aspect = find_aspect(sideways, found, reader.finder)
    assert aspect == pytest.approx(true if squeezed else 1.0, rel=0.12)
    assert (aspect == 1.0) == (not squeezed)


def test_the_spacing_of_the_pixels_decides_the_proportions(
    hand: npt.NDArray[np.uint8], reader: HandReader
) -> None:
    square = np.asarray(Image.fromarray(hand).resize((160, 160)))
    radiograph = read_radiograph(square, "never")
    found = reader.finder.find(radiograph.to_image())
    for spacing, aspect in (((0.2, 0.2), 1.0), ((0.3, 0.2), 1.5)):
        stated = replace(radiograph, header=Header(pixel_spacing_mm=spacing))
        assert find_aspect(stated, found, reader.finder) == pytest.approx(aspect)
    absurd = replace(radiograph, header=Header(pixel_spacing_mm=(9.0, 0.1)))
    assert find_aspect(absurd, found, reader.finder) == find_aspect(
        radiograph, found, reader.finder
    )


@pytest.mark.parametrize(("crop", "is_view"), [("none", False), ("hand", True)])
def test_the_crop_decides_what_is_shown(
    hand: npt.NDArray[np.uint8], reader: HandReader, crop: Crop, is_view: bool
) -> None:
    radiograph = read_radiograph(hand, "never")
    found = reader.finder.find(radiograph.to_image())
    shown = show_hand(radiograph, found, reader.finder, replace(HAND, crop=crop))
    assert (shown.to_view is not None) == is_view
    assert shown.image.size == (HAND_VIEW.size(160) if is_view else radiograph.to_image().size)
    assert shown.image.mode == ("LA" if is_view else "L")


def test_an_image_without_a_hand_is_shown_whole(reader: HandReader) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (90, 70), dtype=np.uint8)
    radiograph = read_radiograph(noise, "never")
    shown = show_hand(radiograph, reader.finder.find(radiograph.to_image()), reader.finder, HAND)
    assert shown.to_view is None
    assert np.array_equal(np.asarray(shown.image), noise)


def test_a_reader_finds_hands_only_if_it_must() -> None:
    whole = Preprocessing(24, None, "never")
    assert make_reader(whole) is whole


def test_a_reader_travels_to_other_processes(
    hand: npt.NDArray[np.uint8], reader: HandReader
) -> None:
    copy = pickle.loads(pickle.dumps(reader))
    assert np.array_equal(show(copy, hand), show(reader, hand))
    assert copy.stamp == reader.stamp
    assert copy.stamp["hand_finder_sha256"] == HandFinder().sha256


def test_the_view_is_cut_out_of_the_full_resolution(
    hand: npt.NDArray[np.uint8], reader: HandReader, tmp_path: Path
) -> None:
    """A thin line of one pixel stays visible where the view is as fine as the image."""
    fine = replace(
        reader, preprocessing=Preprocessing.of_processed(ImageSettings(400, crop="hand"))
    )
    assert fine.read(hand).size == (400, 400)
    sharp = [np.abs(np.diff(show(r, hand), axis=1)).max() for r in (reader, fine)]
    assert sharp[1] >= 0.9 * sharp[0]
