import io
import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw, ImageFilter
from pydicom.dataset import Dataset

from boneage.errors import BoneAgeError, ImageError
from boneage.imaging.radiograph import INVERTED_BELOW, polarity_score, read_radiograph

Grey8 = npt.NDArray[np.uint8]
Pixels = npt.NDArray[Any]

WHITE_IS_ZERO = {262: 0}
ORIENTATION = 0x0112


@pytest.fixture
def grey() -> Grey8:
    """Noise of 30 rows and 20 columns in every value of 8 bits, with no polarity to detect."""
    return (
        np.random.default_rng(0).permutation(np.arange(600) % 256).astype(np.uint8).reshape(30, 20)
    )


def _save(folder: Path, name: str, image: Image.Image | Pixels, **options: Any) -> Path:
    path = folder / name
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(path, **options)
    return path


def _read(path: Path) -> npt.NDArray[np.float32]:
    return read_radiograph(path, "never").pixels


def _stretched(values: Pixels) -> npt.NDArray[np.float64]:
    wide = values.astype(np.float64)
    return (wide - wide.min()) / (wide.max() - wide.min())


def _hand(width: int = 150, height: int = 200) -> Grey8:
    """Bright thin bones in a grey soft-tissue blob on dark air."""
    image = Image.new("L", (width, height), 12)
    draw = ImageDraw.Draw(image)
    draw.ellipse((0.1 * width, 0.05 * height, 0.9 * width, 0.95 * height), fill=90)
    for x in np.linspace(0.25, 0.75, 5) * width:
        draw.line((x, 0.15 * height, x, 0.85 * height), fill=210, width=width // 25)
    return np.asarray(image.filter(ImageFilter.GaussianBlur(1)))


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_8_bit_grey_keeps_its_scale(tmp_path: Path, grey: Grey8, suffix: str) -> None:
    faint = grey // 8 + 60
    path = _save(tmp_path, f"image.{suffix}", faint)
    radiograph = read_radiograph(path, "never")
    np.testing.assert_array_equal(radiograph.pixels, (faint / 255.0).astype(np.float32))
    assert radiograph.bits == 8


def test_a_radiograph_is_float32_between_0_and_1(tmp_path: Path, grey: Grey8) -> None:
    pixels = _read(_save(tmp_path, "image.png", grey))
    assert pixels.dtype == np.float32
    assert (pixels.min(), pixels.max()) == (0.0, 1.0)


def test_a_radiograph_knows_its_file(tmp_path: Path, grey: Grey8) -> None:
    path = _save(tmp_path, "image.png", grey)
    radiograph = read_radiograph(path)
    assert (radiograph.path, radiograph.name, radiograph.image_id) == (path, str(path), "image")


def test_height_comes_before_width(tmp_path: Path, grey: Grey8) -> None:
    assert _read(_save(tmp_path, "image.png", grey)).shape == (30, 20)


def test_an_8_bit_image_comes_back_exactly_as_an_image(tmp_path: Path, grey: Grey8) -> None:
    image = read_radiograph(_save(tmp_path, "image.png", grey), "never").to_image()
    assert image.mode == "L"
    np.testing.assert_array_equal(np.asarray(image), grey)


def test_an_inverted_8_bit_image_comes_back_exactly_as_an_image(
    tmp_path: Path, grey: Grey8
) -> None:
    image = read_radiograph(_save(tmp_path, "image.png", grey), "always").to_image()
    np.testing.assert_array_equal(np.asarray(image), 255 - grey)


@pytest.mark.parametrize(("low", "high"), [(0, 65535), (0, 4095), (100, 900), (30000, 30200)])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_stretched_whatever_bits_it_uses(
    tmp_path: Path, suffix: str, low: int, high: int
) -> None:
    values = np.linspace(low, high, 600).astype(np.uint16).reshape(30, 20)
    radiograph = read_radiograph(_save(tmp_path, f"image.{suffix}", values), "never")
    np.testing.assert_allclose(radiograph.pixels, _stretched(values), atol=1e-6)
    assert radiograph.bits == 16


def test_big_endian_16_bit_tiff_is_read_as_such(tmp_path: Path) -> None:
    values = np.arange(600, dtype=np.uint16).reshape(30, 20) * 7
    path = _save(tmp_path, "image.tif", values.astype(">u2"))
    assert path.read_bytes().startswith(b"MM")
    np.testing.assert_allclose(_read(path), _stretched(values), atol=1e-6)


def test_32_bit_integers_are_stretched(tmp_path: Path) -> None:
    values = np.arange(-300, 300, dtype=np.int32).reshape(30, 20) * 1000
    radiograph = read_radiograph(_save(tmp_path, "image.tif", values), "never")
    np.testing.assert_allclose(radiograph.pixels, _stretched(values), atol=1e-6)
    assert radiograph.bits == 32


def test_a_float_tiff_is_stretched(tmp_path: Path) -> None:
    values = np.linspace(-3.0, 7.0, 600, dtype=np.float32).reshape(30, 20)
    radiograph = read_radiograph(_save(tmp_path, "image.tif", values), "never")
    np.testing.assert_allclose(radiograph.pixels, _stretched(values), atol=1e-6)
    assert radiograph.bits == 32


def test_1_bit_is_black_and_white(tmp_path: Path) -> None:
    bits = np.random.default_rng(0).random((30, 20)) < 0.5
    path = _save(tmp_path, "image.png", bits)
    with Image.open(path) as image:
        assert image.mode == "1"
    np.testing.assert_array_equal(_read(path), bits.astype(np.float32))


def test_a_palette_is_looked_up(tmp_path: Path, grey: Grey8) -> None:
    shuffled = np.random.default_rng(1).permutation(256).astype(np.uint8)
    image = Image.fromarray(grey).convert("P")
    image.putpalette(np.repeat(shuffled, 3).tobytes())
    path = _save(tmp_path, "image.png", image)
    np.testing.assert_array_equal(_read(path), (shuffled[grey] / 255.0).astype(np.float32))


@pytest.mark.parametrize(
    ("colour", "luma"), [((255, 0, 0), 76), ((0, 255, 0), 150), ((0, 0, 255), 29)]
)
def test_colour_is_reduced_to_luma(tmp_path: Path, colour: tuple[int, int, int], luma: int) -> None:
    image = Image.new("RGB", (20, 30), colour)
    image.putpixel((0, 0), (0, 0, 0))
    pixels = _read(_save(tmp_path, "image.png", image))
    assert pixels[5, 5] == np.float32(luma / 255)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_grey_stored_as_rgb_reads_as_grey(tmp_path: Path, grey: Grey8, suffix: str) -> None:
    path = _save(tmp_path, f"image.{suffix}", np.dstack([grey] * 3))
    np.testing.assert_array_equal(_read(path), (grey / 255.0).astype(np.float32))


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpegs_of_every_colour_mode_are_read(tmp_path: Path, mode: str) -> None:
    hand = _hand()
    image = Image.fromarray(hand).convert("RGB").convert(mode)
    path = _save(tmp_path, "image.jpg", image, quality=100)
    with Image.open(path) as stored:
        assert stored.mode == mode
    np.testing.assert_allclose(_read(path), hand / 255.0, atol=4 / 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_shows_black_and_not_the_colour_under_it(
    tmp_path: Path, grey: Grey8, mode: str
) -> None:
    image = Image.fromarray(grey).convert(mode)
    alpha = np.full(grey.shape, 255, np.uint8)
    alpha[:, :10] = 0
    image.putalpha(Image.fromarray(alpha))
    expected = np.where(alpha == 0, 0, grey) / 255.0
    np.testing.assert_array_equal(
        _read(_save(tmp_path, "image.png", image)), expected.astype(np.float32)
    )


def test_half_transparency_is_half_as_bright(tmp_path: Path) -> None:
    image = Image.new("RGBA", (20, 30), (200, 200, 200, 128))
    image.putpixel((0, 0), (255, 255, 255, 255))
    assert _read(_save(tmp_path, "image.png", image))[5, 5] == pytest.approx(100 / 255, abs=1 / 255)


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_one_colour_declared_transparent_shows_black(
    tmp_path: Path, grey: Grey8, mode: str
) -> None:
    image = Image.fromarray(grey).convert(mode)
    clear = (200, 200, 200) if mode == "RGB" else 200
    path = _save(tmp_path, "image.png", image, transparency=clear)
    expected = np.where(grey == 200, 0, grey) / 255.0
    np.testing.assert_array_equal(_read(path), expected.astype(np.float32))


def test_an_8_bit_tiff_with_white_as_zero_is_inverted(tmp_path: Path, grey: Grey8) -> None:
    path = _save(tmp_path, "image.tif", grey, tiffinfo=WHITE_IS_ZERO)
    assert (255 - grey).tobytes() in path.read_bytes()
    np.testing.assert_array_equal(_read(path), (grey / 255.0).astype(np.float32))


def test_a_1_bit_tiff_with_white_as_zero_is_inverted(tmp_path: Path) -> None:
    bits = np.random.default_rng(0).random((30, 16)) < 0.5
    path = _save(tmp_path, "image.tif", bits, tiffinfo=WHITE_IS_ZERO)
    assert np.packbits(~bits, axis=1).tobytes() in path.read_bytes()
    np.testing.assert_array_equal(_read(path), bits.astype(np.float32))


def test_a_16_bit_tiff_with_white_as_zero_is_inverted(tmp_path: Path) -> None:
    stored = np.arange(600, dtype=np.uint16).reshape(30, 20) * 7
    path = _save(tmp_path, "image.tif", stored, tiffinfo=WHITE_IS_ZERO)
    assert stored.tobytes() in path.read_bytes()
    radiograph = read_radiograph(path, "never")
    np.testing.assert_allclose(radiograph.pixels, 1.0 - _stretched(stored), atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_declared_polarity_is_no_correction(tmp_path: Path, grey: Grey8, dtype: type) -> None:
    path = _save(tmp_path, "image.tif", grey.astype(dtype), tiffinfo=WHITE_IS_ZERO)
    assert not read_radiograph(path, "never").was_inverted


def _oriented(folder: Path, suffix: str, upright: Pixels, orientation: int, **options: Any) -> Path:
    """Store an image lying as its orientation tag says."""
    undo = {
        1: lambda source: source,
        2: np.fliplr,
        3: lambda source: np.rot90(source, 2),
        6: lambda source: np.rot90(source, 1),
        8: lambda source: np.rot90(source, -1),
    }
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = np.ascontiguousarray(undo[orientation](upright))
    return _save(folder, f"image.{suffix}", stored, exif=exif, **options)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("orientation", [1, 2, 3, 6, 8])
def test_an_exif_orientation_of_a_png_is_applied(
    tmp_path: Path, grey: Grey8, dtype: type, orientation: int
) -> None:
    path = _oriented(tmp_path, "png", grey.astype(dtype), orientation)
    np.testing.assert_allclose(_read(path), grey / 255.0, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
@pytest.mark.parametrize("orientation", [1, 2, 3, 6, 8])
def test_the_orientation_of_a_tiff_is_applied_once(
    tmp_path: Path, grey: Grey8, dtype: type, compression: str, orientation: int
) -> None:
    path = _oriented(tmp_path, "tif", grey.astype(dtype), orientation, compression=compression)
    np.testing.assert_allclose(_read(path), grey / 255.0, atol=1e-6)


def test_an_exif_orientation_of_a_jpeg_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    path = _save(tmp_path, "image.jpg", _hand(width=150, height=200), exif=exif)
    assert _read(path).shape == (150, 200)


@pytest.mark.parametrize("invert", ["auto", "never", "always"])
def test_one_grey_value_shows_no_hand(
    tmp_path: Path, invert: Literal["auto", "never", "always"]
) -> None:
    path = _save(tmp_path, "image.png", np.full((30, 20), 37, np.uint8))
    message = r"image\.png has one grey value \(37\) in all pixels; it shows no hand"
    with pytest.raises(ImageError, match=message):
        read_radiograph(path, invert)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.png does not exist\.$"):
        read_radiograph(tmp_path / "gone.png")


@pytest.mark.parametrize("content", [b"", b"not an image\n", b"\x89PNG\r\n"])
def test_a_file_that_is_no_image_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"image\.png is not an image; expected PNG, JPEG, TIFF"):
        read_radiograph(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp"])
@pytest.mark.parametrize("share", [0.5, 0.95])
def test_an_image_cut_short_is_named(
    tmp_path: Path, grey: Grey8, suffix: str, share: float
) -> None:
    content = _save(tmp_path, f"whole.{suffix}", np.tile(grey, (3, 3))).read_bytes()
    path = tmp_path / f"image.{suffix}"
    path.write_bytes(content[: int(share * len(content))])
    message = rf"image\.{suffix} (cannot be read as|is not) an image"
    with pytest.raises(ImageError, match=message) as caught:
        read_radiograph(path)
    assert "\n" not in str(caught.value)


def test_a_tiff_with_a_broken_second_frame_is_named(tmp_path: Path, grey: Grey8) -> None:
    grey[:2] = 0
    path = _save(tmp_path, "image.tif", grey)
    with Image.open(path) as image:
        (zeros,) = image.tag_v2[273]  # type: ignore[attr-defined]
    content = bytearray(path.read_bytes())
    directory = int.from_bytes(content[4:8], "little")
    entries = int.from_bytes(content[directory : directory + 2], "little")
    next_frame = directory + 2 + 12 * entries
    content[next_frame : next_frame + 4] = int(zeros).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"image\.tif cannot be read as an image"):
        read_radiograph(path)


def test_a_folder_is_no_image(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"cannot be read as an image: .*directory"):
        read_radiograph(tmp_path)


@pytest.mark.parametrize("n", [2, 3])
def test_a_file_of_several_frames_is_refused(tmp_path: Path, grey: Grey8, n: int) -> None:
    frames = [Image.fromarray(grey + i) for i in range(n)]
    path = _save(tmp_path, "image.tif", frames[0], save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match=rf"image\.tif holds {n} frames; expected one image"):
        read_radiograph(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    values = np.linspace(0.0, 1.0, 600, dtype=np.float32).reshape(30, 20)
    values[3, 3] = value
    path = _save(tmp_path, "image.tif", values)
    message = r"image\.tif cannot be read as an image: it holds pixels that are not finite numbers"
    with pytest.raises(ImageError, match=message):
        read_radiograph(path)


def test_a_colour_space_that_has_no_luma_here_is_refused(tmp_path: Path, grey: Grey8) -> None:
    path = _save(tmp_path, "image.tif", Image.fromarray(np.dstack([grey] * 3), mode="LAB"))
    with pytest.raises(ImageError, match=r"image\.tif cannot be read as an image: .*LAB"):
        read_radiograph(path)


def test_an_image_of_absurd_size_is_refused(
    tmp_path: Path, grey: Grey8, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _save(tmp_path, "image.png", grey)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(
        ImageError, match=r"image\.png declares more pixels than can be read; expected 50"
    ):
        read_radiograph(path)


def test_an_image_error_is_one_that_the_command_line_prints() -> None:
    assert issubclass(ImageError, BoneAgeError)


@pytest.mark.parametrize("bits", [8, 16])
def test_auto_leaves_bright_bones_as_they_are(tmp_path: Path, bits: int) -> None:
    hand = _hand() if bits == 8 else _hand().astype(np.uint16) * 16
    path = _save(tmp_path, "image.png", hand)
    radiograph = read_radiograph(path, "auto")
    assert not radiograph.was_inverted
    np.testing.assert_array_equal(radiograph.pixels, _read(path))


@pytest.mark.parametrize("bits", [8, 16])
def test_auto_turns_dark_bones_bright(tmp_path: Path, bits: int) -> None:
    hand = _hand() if bits == 8 else _hand().astype(np.uint16) * 16
    upright = _read(_save(tmp_path, "upright.png", hand))
    inverted = 255 - hand if bits == 8 else 4095 - hand
    radiograph = read_radiograph(_save(tmp_path, "image.png", inverted), "auto")
    assert radiograph.was_inverted
    np.testing.assert_allclose(radiograph.pixels, upright, atol=1e-6)


@pytest.mark.parametrize(("score", "is_turned"), [(-0.09, False), (-0.22, True)])
def test_auto_turns_an_image_only_where_the_score_leaves_little_doubt(
    tmp_path: Path, score: float, is_turned: bool
) -> None:
    skew = {-0.09: 1.1, -0.22: 1.3}[score]
    source = 255 - (np.random.default_rng(3).random((100, 100)) ** skew * 255).astype(np.uint8)
    assert _score(source / 255.0) == pytest.approx(score, abs=0.03)
    assert read_radiograph(_save(tmp_path, "image.png", source)).was_inverted == is_turned


def test_auto_is_the_default(tmp_path: Path) -> None:
    assert read_radiograph(_save(tmp_path, "image.png", 255 - _hand())).was_inverted


@pytest.mark.parametrize("stored", [_hand(), 255 - _hand()], ids=["bright bones", "dark bones"])
def test_never_turns_nothing(tmp_path: Path, stored: Grey8) -> None:
    radiograph = read_radiograph(_save(tmp_path, "image.png", stored), "never")
    assert not radiograph.was_inverted
    np.testing.assert_array_equal(radiograph.pixels, (stored / 255.0).astype(np.float32))


@pytest.mark.parametrize("stored", [_hand(), 255 - _hand()], ids=["bright bones", "dark bones"])
def test_always_turns_everything(tmp_path: Path, stored: Grey8) -> None:
    radiograph = read_radiograph(_save(tmp_path, "image.png", stored), "always")
    assert radiograph.was_inverted
    np.testing.assert_allclose(radiograph.pixels, 1.0 - stored / 255.0, atol=1e-6)


def test_auto_turns_what_a_tiff_declares_wrongly_back_again(tmp_path: Path) -> None:
    stored = _hand().astype(np.uint16) * 16
    path = _save(tmp_path, "image.tif", stored, tiffinfo=WHITE_IS_ZERO)
    radiograph = read_radiograph(path, "auto")
    assert radiograph.was_inverted
    np.testing.assert_allclose(radiograph.pixels, _stretched(stored), atol=1e-6)


def _score(pixels: Pixels) -> float:
    return polarity_score(pixels.astype(np.float32))


def test_the_polarity_score_tells_bright_bones_from_dark_ones() -> None:
    hand = _hand() / 255.0
    assert _score(hand) > -INVERTED_BELOW
    assert _score(1.0 - hand) < INVERTED_BELOW


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_polarity_score_is_negated_when_the_image_is_inverted(seed: int) -> None:
    source = np.random.default_rng(seed).random((170, 130)) ** 3
    score = _score(source)
    assert abs(score) > 0.1
    assert _score(1.0 - source) == pytest.approx(-score, abs=1e-4)


@pytest.mark.parametrize("shape", [(1, 2), (5, 400), (100, 100), (400, 90)])
def test_the_polarity_score_is_finite_for_any_shape(shape: tuple[int, int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score = _score(np.random.default_rng(0).random(shape))
    assert np.isfinite(score)


def test_a_white_frame_does_not_pass_for_inversion() -> None:
    framed = _hand().copy()
    framed[:12], framed[-12:], framed[:, :12], framed[:, -12:] = 255, 255, 255, 255
    assert _score(framed / 255.0) > -INVERTED_BELOW


def test_a_dark_exposure_does_not_pass_for_inversion() -> None:
    assert _score(_hand() / 255.0 * 0.2) > -INVERTED_BELOW


def test_noise_far_below_a_grey_level_does_not_decide_the_polarity() -> None:
    source = np.full((100, 100), 0.5)
    source[::10, ::10] -= 1e-4
    assert abs(_score(source)) < 0.01


def test_a_mark_far_brighter_than_the_image_leaves_it_its_greys(tmp_path: Path) -> None:
    hand = _hand().astype(np.uint16) * 16
    marked = hand.copy()
    marked[2:8, 2:8] = 65535
    plain, with_mark = (
        read_radiograph(_save(tmp_path, name, values))
        for name, values in (("plain.png", hand), ("marked.png", marked))
    )
    assert len(np.unique(np.asarray(with_mark.to_image()))) > 64
    inside = (slice(20, -20), slice(20, -20))
    one, other = (source.pixels[inside].ravel() for source in (plain, with_mark))
    assert np.corrcoef(one, other)[0, 1] > 0.99
    np.testing.assert_array_equal(plain.pixels, _stretched(hand).astype(np.float32))


def test_a_damaged_description_is_no_more_than_an_unreadable_image(tmp_path: Path) -> None:
    path = _save(tmp_path, "image.png", _hand(), exif=b"Exif\0\0II*\0")
    with pytest.raises(ImageError, match=r"image\.png cannot be read as an image: .+\.$"):
        read_radiograph(path)


def _dataset(grey: Pixels, **tags: Any) -> Dataset:
    """A Dataset that never was a file: without preamble, file meta or encoding."""
    dataset = Dataset()
    dataset.SOPInstanceUID = "1.2.3"
    dataset.Rows, dataset.Columns = grey.shape
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8 * grey.dtype.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = 0
    dataset.PixelData = grey.tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    return dataset


def test_a_dataset_in_memory_is_read_and_left_as_it_was(grey: Grey8) -> None:
    table = Dataset()
    table.LUTDescriptor = [4096, 0, 8]
    table.LUTData = (np.arange(4096, dtype=np.uint16) // 16).tobytes()
    table["LUTData"].VR = "OW"
    deep = grey.astype(np.uint16) * 16
    dataset = _dataset(deep, BitsStored=12, HighBit=11, VOILUTSequence=[table])
    before = deepcopy(dataset)
    radiograph = read_radiograph(dataset, "never")
    np.testing.assert_allclose(radiograph.pixels, grey / 255.0, atol=1e-6)
    assert (radiograph.image_id, radiograph.name, radiograph.path) == ("1.2.3", "1.2.3", None)
    assert dataset == before
    assert not hasattr(dataset, "file_meta")
    with pytest.raises(ImageError, match=r"^upload holds no image"):
        read_radiograph(Dataset(), name="upload")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, ">u2", np.float32, np.float64])
def test_an_array_is_read_and_left_as_it_was(grey: Grey8, dtype: Any) -> None:
    values = grey.astype(dtype) if dtype == np.uint8 else grey.astype(dtype) * 3
    before = values.copy()
    radiograph = read_radiograph(values, "never")
    np.testing.assert_allclose(radiograph.pixels, grey / 255.0, atol=1e-6)
    np.testing.assert_array_equal(values, before)
    assert radiograph.bits == (8 if dtype == np.uint8 else 8 * max(2, values.dtype.itemsize))
    assert (radiograph.image_id, radiograph.path) == ("image", None)


def test_8_bits_kept_in_an_array_of_16_keep_their_scale(grey: Grey8) -> None:
    faint = grey // 8 + 60
    radiograph = read_radiograph(faint.astype(np.uint16) * 257, "never")
    np.testing.assert_array_equal(radiograph.pixels, (faint / 255.0).astype(np.float32))


def test_an_array_of_colours_is_reduced_to_luma() -> None:
    colour = np.zeros((30, 20, 3), np.uint8)
    colour[10:] = (255, 0, 0)
    assert read_radiograph(colour, "never").pixels[20, 5] == pytest.approx(76 / 255)
    deep = colour.astype(np.uint16) * 100
    deep[0, 0] = (9, 9, 65535)
    assert read_radiograph(deep, "never").pixels.max() == 1.0


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((3, 4, 5), np.uint8), "uint8 and shape 3 x 4 x 5; expected numbers of shape H"),
        (np.zeros((0, 4), np.uint8), "shape 0 x 4; expected"),
        (np.zeros((3, 4), complex), "an array of complex128"),
        (np.zeros((3, 4), np.uint8), "has one grey value"),
        (np.full((3, 4), np.nan), "pixels that are not finite numbers"),
        (b"no image", "is not an image; expected PNG"),
        (io.StringIO("text"), "is open for reading text; open it with mode 'rb'"),
        (None, "is a NoneType; expected a path, bytes"),
    ],
)
def test_a_source_that_is_no_image_is_refused_by_its_name(source: Any, message: str) -> None:
    with pytest.raises(ImageError, match=rf"^ward 3/7\.png .*{message}"):
        read_radiograph(source, name="ward 3/7.png")


def test_a_name_counts_for_messages_and_the_id(tmp_path: Path, grey: Grey8) -> None:
    path = _save(tmp_path, "image.png", grey)
    radiograph = read_radiograph(path, name="ward 3/7.png")
    assert (radiograph.name, radiograph.image_id) == ("ward 3/7.png", "ward 3/7")
    assert radiograph.path == path
    with path.open("rb") as file:
        assert read_radiograph(file).image_id == "image"


def test_bytes_named_as_dicom_are_read_as_dicom_without_its_mark(grey: Grey8) -> None:
    content = io.BytesIO()
    _dataset(grey).save_as(content, implicit_vr=True, little_endian=True)
    pixels = read_radiograph(content.getvalue(), "never", name="7.dcm").pixels
    np.testing.assert_allclose(pixels, grey / 255.0, atol=1e-6)
