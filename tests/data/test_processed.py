import io
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

import boneage.data.processed
from boneage.config import ImageSettings, Invert
from boneage.data.processed import PreprocessSummary, find_processed, preprocess_folder
from boneage.errors import BoneAgeError, ImageError
from boneage.imaging.preprocess import Preprocessing
from boneage.imaging.radiograph import Radiograph
from builders import draw_hand, save_pixels, write_hands

Images = dict[str, Path]
IMAGES = ImageSettings(image_size=32)


def _png(pixels: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


CUT = [
    pytest.param(lambda whole: b"", id="empty"),
    pytest.param(lambda whole: whole[:20], id="in the header"),
    pytest.param(lambda whole: whole[: len(whole) // 2], id="in the pixels"),
    pytest.param(lambda whole: whole[:-5], id="in the last bytes"),
    pytest.param(lambda whole: _png(draw_hand()), id="a foreign file"),
]
VIEWS = ImageSettings(image_size=32, crop="hand")


class FixedView(Preprocessing):
    """Takes the same part of every image as the view of its hand."""

    @property
    def stamp(self) -> dict[str, Any]:
        return {**super().stamp, "crop": "hand", "hand_finder_sha256": "0a1b2c3d" * 8}

    def prepare(self, radiograph: Radiograph) -> Image.Image:
        return radiograph.to_image().crop((0, 0, 32, 32))


@pytest.fixture
def images(tmp_path: Path) -> Images:
    """Three images of different sizes."""
    return write_hands(tmp_path / "raw")


@pytest.fixture
def processed(tmp_path: Path) -> Path:
    return tmp_path / "processed"


def _run(images: Images, processed: Path, folder: ImageSettings = IMAGES) -> PreprocessSummary:
    reader = None if folder.crop == "none" else FixedView.of_processed(folder)
    return preprocess_folder(images, processed, folder, workers=1, reader=reader)


def _state(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and modification time of every file, hidden ones too."""
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()}


def _bytes(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def _read(path: Path) -> npt.NDArray[Any]:
    return np.asarray(Image.open(path))


def test_every_image_becomes_a_square_8_bit_png_named_by_its_id(
    images: Images, tmp_path: Path
) -> None:
    raw, processed = _state(images["7"].parent), tmp_path / "new" / "processed"
    summary = _run(images, processed)
    assert sorted(p.name for p in processed.iterdir()) == ["7.png", "8.png", "9.png"]
    for path in processed.iterdir():
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "L", (32, 32))
    assert summary == PreprocessSummary(written=3, up_to_date=0, inverted=(), broken={})
    assert _state(images["7"].parent) == raw


def test_a_second_run_makes_only_what_is_missing(images: Images, processed: Path) -> None:
    _run(images, processed)
    before = _state(processed)
    assert _run(images, processed) == PreprocessSummary(0, up_to_date=3, inverted=(), broken={})
    assert _state(processed) == before
    (processed / "8.png").unlink()
    summary = _run(images, processed)
    assert (summary.written, summary.up_to_date) == (1, 2)
    after = _state(processed)
    assert after["8.png"][0] == before["8.png"][0]
    assert after["7.png"] == before["7.png"]


def test_another_size_crop_or_polarity_makes_all_images_anew(
    images: Images, processed: Path
) -> None:
    always = ImageSettings(image_size=32, invert="always")
    for settings in (IMAGES, ImageSettings(image_size=48), VIEWS, IMAGES, always):
        assert _run(images, processed, settings).written == 3
        assert _read(processed / "7.png").shape == (settings.image_size,) * 2
    inverted = _read(processed / "7.png")
    _run(images, processed)
    np.testing.assert_allclose(inverted, 255.0 - _read(processed / "7.png"), atol=1)


def test_a_source_of_other_content_is_made_anew(images: Images, processed: Path) -> None:
    _run(images, processed)
    before = _state(processed)
    save_pixels(images["8"], draw_hand(100, 150, shade=160))
    summary = _run(images, processed)
    assert (summary.written, summary.up_to_date) == (1, 2)
    assert _state(processed)["8.png"][0] != before["8.png"][0]


def test_a_source_of_another_time_or_of_other_length_and_the_same_time_is_made_anew(
    images: Images, processed: Path
) -> None:
    _run(images, processed)
    os.utime(images["8"], ns=(1, 1))
    assert _run(images, processed).written == 1
    with images["8"].open("ab") as file:
        file.write(b"\0")
    os.utime(images["8"], ns=(1, 1))
    assert _run(images, processed).written == 1


def test_leftovers_of_a_run_that_was_cut_off_are_removed(images: Images, processed: Path) -> None:
    processed.mkdir()
    (processed / ".7.png.part").write_bytes(b"half")
    (processed / ".gone.png.part").write_bytes(b"half")
    _run(images, processed)
    assert sorted(p.name for p in processed.iterdir()) == ["7.png", "8.png", "9.png"]


def test_a_run_cut_off_while_writing_leaves_no_half_image_under_its_name(
    images: Images, processed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(part: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", cut_off)
        with pytest.raises(KeyboardInterrupt):
            _run(images, processed)
    assert list(processed.iterdir()) == []
    assert _run(images, processed).written == 3


@pytest.mark.parametrize("cut", CUT)
def test_a_processed_image_cut_short_or_replaced_is_made_anew(
    images: Images, processed: Path, cut: Callable[[bytes], bytes]
) -> None:
    _run(images, processed)
    target = processed / "8.png"
    whole = target.read_bytes()
    target.write_bytes(cut(whole))
    assert _run(images, processed).written == 1
    assert target.read_bytes() == whole


def test_a_broken_image_is_named_stops_nothing_and_is_tried_again(
    images: Images, processed: Path
) -> None:
    images["8"].write_bytes(images["8"].read_bytes()[:-200])
    summary = _run(images, processed)
    assert (summary.written, list(summary.broken)) == (2, ["8"])
    assert f"{images['8']} cannot be read as an image" in summary.broken["8"]
    assert sorted(p.name for p in processed.iterdir()) == ["7.png", "9.png"]
    save_pixels(images["8"], draw_hand())
    summary = _run(images, processed)
    assert (summary.written, summary.up_to_date, summary.broken) == (1, 2, {})


def test_every_image_is_counted_once_and_a_broken_one_is_not_replaced_by_its_past(
    images: Images, processed: Path
) -> None:
    _run({"7": images["7"], "8": images["8"]}, processed)
    images["8"].write_text("no image")
    summary = _run(images, processed)
    assert (summary.written, summary.up_to_date, list(summary.broken)) == (1, 1, ["8"])
    assert summary.total == 3
    assert list(find_processed(processed, images, ImageSettings())[0]) == ["7", "9"]
    images["9"].unlink()
    summary = _run(images, processed)
    assert list(summary.broken) == ["8", "9"]
    assert "cannot be read: No such file" in summary.broken["9"]


def test_images_none_of_which_can_be_read_are_an_error_that_shows_the_first(
    images: Images, processed: Path
) -> None:
    for path in images.values():
        path.write_text("no image")
    message = r"none of 3 images could be read; the first: .*7\.png is not an im"
    with pytest.raises(ImageError, match=message):
        _run(images, processed)
    with pytest.raises(ImageError, match="0 images"):
        _run({}, processed)


def test_images_with_dark_bones_are_inverted_and_named_or_left_on_request(
    images: Images, processed: Path
) -> None:
    _run({"8": images["8"]}, processed)
    upright = _read(processed / "8.png")
    save_pixels(images["8"], 255 - draw_hand(100, 150))
    summary = _run(images, processed)
    assert (summary.inverted, summary.written) == (("8",), 3)
    np.testing.assert_allclose(_read(processed / "8.png"), upright, atol=1)
    assert _run(images, processed, ImageSettings(image_size=32, invert="never")).inverted == ()


@pytest.fixture
def many(tmp_path: Path) -> Images:
    """More images than one worker takes at a time: two dark ones, one broken."""
    images = {}
    for i in range(20):
        hand = draw_hand(60 + i, 80)
        images[str(i)] = save_pixels(
            tmp_path / "raw" / f"{i}.png", 255 - hand if i in (3, 17) else hand
        )
    images["5"].write_text("no image")
    return images


def test_one_worker_and_two_give_the_same_bytes_and_summary(many: Images, tmp_path: Path) -> None:
    one = preprocess_folder(many, tmp_path / "one", IMAGES, workers=1)
    two = preprocess_folder(many, tmp_path / "two", IMAGES, workers=2)
    assert len(_bytes(tmp_path / "one")) == 19
    assert _bytes(tmp_path / "two") == _bytes(tmp_path / "one")
    assert two == one
    assert one.inverted == ("3", "17")
    assert list(one.broken) == ["5"]


@pytest.mark.parametrize(("cores", "started"), [(None, []), (1, []), (2, [2])])
def test_by_default_there_is_one_worker_a_core(
    images: Images, processed: Path, monkeypatch: pytest.MonkeyPatch,
    cores: int | None, started: list[int],
) -> None:  # fmt: skip
    asked: list[int] = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, workers: int) -> None:
            asked.append(workers)
            super().__init__(workers)

    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(boneage.data.processed, "ProcessPoolExecutor", Pool)
    assert preprocess_folder(images, processed, IMAGES).written == 3
    assert asked == started


def test_processed_images_are_found_by_their_ids_with_their_size(
    images: Images, processed: Path
) -> None:
    _run(images, processed)
    save_pixels(processed / "other.png", draw_hand())  # a foreign file under no id of ours
    found, size = find_processed(processed, dict.fromkeys(["9", "7", "nobody"]), IMAGES)
    assert found == {"9": processed / "9.png", "7": processed / "7.png"}
    assert size == 32


def test_no_processed_image_is_an_error(images: Images, processed: Path, tmp_path: Path) -> None:
    _run(images, processed)
    message = r"holds none of the images\. Run `boneage preprocess` first, or leave"
    for folder, ids in ((processed, []), (processed, ["nobody"]), (tmp_path / "gone", ["7"])):
        with pytest.raises(BoneAgeError, match=message):
            find_processed(folder, dict.fromkeys(ids), ImageSettings())


@pytest.mark.parametrize("content", [b"no image", _png(draw_hand(32, 32))], ids=["text", "image"])
def test_a_foreign_file_among_the_processed_is_refused(
    images: Images, processed: Path, content: bytes
) -> None:
    _run(images, processed)
    (processed / "8.png").write_bytes(content)
    message = r"8\.png was not made by `boneage preprocess`\. Move it away and run preprocess\."
    with pytest.raises(BoneAgeError, match=message):
        find_processed(processed, images, ImageSettings())


def test_a_file_of_another_version_is_refused(images: Images, processed: Path) -> None:
    class OtherVersion(Preprocessing):
        @property
        def stamp(self) -> dict[str, Any]:
            return {**super().stamp, "sampled": True}

    preprocess_folder(
        images, processed, IMAGES, workers=1, reader=OtherVersion.of_processed(IMAGES)
    )
    with pytest.raises(BoneAgeError, match=r"\.png was made by another version of boneage\. Run"):
        find_processed(processed, images, IMAGES)


@pytest.mark.parametrize(
    ("settings", "other"),
    [
        (ImageSettings(image_size=48), "48 px, invert auto"),
        (ImageSettings(image_size=32, invert="always"), "32 px, invert always"),
        (VIEWS, "32 px, invert auto, crop hand (hand finder 0a1b2c3d)"),
    ],
)
def test_images_made_in_two_ways_are_refused_with_one_of_each(
    images: Images, processed: Path, settings: ImageSettings, other: str
) -> None:
    _run(images, processed)
    _run({"8": images["8"]}, processed, settings)
    message = (
        rf"processed mixes images of 32 px, invert auto \(7\.png\) and {re.escape(other)} "
        r"\(8\.png\)\. Run `boneage preprocess` again\."
    )
    with pytest.raises(BoneAgeError, match=message):
        find_processed(processed, images, ImageSettings())


@pytest.mark.parametrize("invert", ["auto", "never", "always"])
@pytest.mark.parametrize(
    "source",
    [draw_hand(), 255 - draw_hand(), draw_hand().astype(np.uint16) * 16],
    ids=["8 bits", "8 bits, dark bones", "12 bits"],
)
def test_serving_reads_a_raw_image_exactly_as_the_processed_folder_holds_it(
    tmp_path: Path, processed: Path, source: npt.NDArray[Any], invert: Invert
) -> None:
    path = save_pixels(tmp_path / "raw" / "7.png", source)
    _run({"7": path}, processed, ImageSettings(image_size=32, invert=invert))
    served = Preprocessing(image_size=24, stored_size=32, invert=invert).read(path)
    stored = Image.open(processed / "7.png")
    assert served.mode == stored.mode
    np.testing.assert_array_equal(np.asarray(served), np.asarray(stored))


@pytest.mark.parametrize("shape", [(60, 200), (200, 60)])
def test_an_image_that_is_not_square_is_stretched_and_keeps_its_corners(
    tmp_path: Path, processed: Path, shape: tuple[int, int]
) -> None:
    source = np.full(shape, 10, np.uint8)
    source[:20, :20], source[:20, -20:], source[-20:, :20], source[-20:, -20:] = 100, 150, 200, 250
    path = save_pixels(tmp_path / "raw" / "7.png", source)
    _run({"7": path}, processed, ImageSettings(image_size=40, invert="never"))
    small = _read(processed / "7.png")
    assert (small[0, 0], small[0, -1], small[-1, 0], small[-1, -1]) == (100, 150, 200, 250)


@pytest.mark.parametrize(
    ("made", "asked", "message"),
    [
        (VIEWS, IMAGES,
         "--crop hand, this run has none. Run `boneage preprocess --crop none` first."),
        (ImageSettings(image_size=32, invert="never"), IMAGES,
         "--invert never, this run has auto. Run `boneage preprocess --invert auto` first."),
    ],
)  # fmt: skip
def test_images_made_otherwise_than_asked_are_refused(
    images: Images, processed: Path, made: ImageSettings, asked: ImageSettings, message: str
) -> None:
    _run(images, processed, made)
    with pytest.raises(BoneAgeError, match=re.escape(f"processed was made with {message}")):
        find_processed(processed, images, asked)
