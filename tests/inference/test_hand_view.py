import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from boneage.config import Crop, ImageSettings
from boneage.imaging.geometry import HAND_VIEW
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


@pytest.mark.parametrize(("crop", "is_view"), [("none", False), ("unusual", False), ("hand", True)])
def test_the_crop_decides_what_is_shown(
    hand: npt.NDArray[np.uint8], reader: HandReader, crop: Crop, is_view: bool
) -> None:
    radiograph = read_radiograph(hand, "never")
    found = reader.finder.find(radiograph.to_image())
    shown = show_hand(radiograph, found, reader.finder, replace(HAND, crop=crop))
    assert (shown.to_view is not None) == is_view
    assert shown.image.size == (HAND_VIEW.size(160) if is_view else radiograph.to_image().size)


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
