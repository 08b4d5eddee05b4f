import os
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    BasicTextSRStorage,
    ExplicitVRLittleEndian,
    GrayscaleSoftcopyPresentationStateStorage,
    RTPlanStorage,
)

from boneage.errors import BoneAgeError, LabelError
from boneage.files import clean_id
from boneage.imaging.discovery import discover, match_ids, name_images
from builders import save_dicom

needs_links = pytest.mark.skipif(os.name == "nt", reason="links need rights there")


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("content")


def _names(folder: Path, found: list[Path]) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in found]


def _save_object(path: Path, sop_class: str) -> None:
    """Write a DICOM object without an image."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, "1.2.3"
    dataset.PatientSex = "F"
    dataset.save_as(path, enforce_file_format=True)


def test_images_are_found_in_folders_and_all_below_them(tmp_path: Path) -> None:
    _touch(tmp_path, "b.png", "a.JPG", "deep/er/c.tiff", "deep/d.dcm", "notes.txt", "x.csv",
           "deep/e.gif", ".f.png", "DICOMDIR")  # fmt: skip
    save_dicom(tmp_path / "deep/1.2.840", np.eye(4, dtype=np.uint8))
    found = discover([tmp_path])
    assert _names(tmp_path, found.images) == [
        "a.JPG", "b.png", "deep/1.2.840", "deep/d.dcm", "deep/er/c.tiff",
    ]  # fmt: skip
    assert (found.others, found.without_image, found.skipped) == (5, 0, [])


def test_a_file_that_is_named_is_an_image_whatever_its_name_and_counts_once(
    tmp_path: Path,
) -> None:
    _touch(tmp_path, "b.png", "a.png")
    named = [tmp_path / "scan", tmp_path / "b.png", tmp_path, tmp_path / "scan"]
    found = discover(named)
    assert found.images == [tmp_path / n for n in ("scan", "b.png", "a.png")]
    assert found.describe_rest() == []


def test_a_disc_s_dicomdir_is_no_image(tmp_path: Path) -> None:
    save_dicom(tmp_path / "DICOMDIR", np.eye(4, dtype=np.uint8))
    with pytest.raises(BoneAgeError, match=r"holds no images \(1 other file left out\)"):
        discover([tmp_path])


def test_no_image_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BoneAgeError, match=r"holds no images; expected \.png, "):
        discover([tmp_path])
    with pytest.raises(BoneAgeError, match=r"nothing to predict; pass images or folders of them"):
        discover([])


@needs_links
def test_linked_folders_and_files_are_followed(tmp_path: Path) -> None:
    _touch(tmp_path, "elsewhere/1.png", "elsewhere/2.png", "in/3.png", "away/4.png")
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "4.png").symlink_to(tmp_path / "away" / "4.png")
    found = discover([tmp_path / "in"])
    assert _names(tmp_path / "in", found.images) == [
        "3.png", "4.png", "linked/1.png", "linked/2.png",
    ]  # fmt: skip


@needs_links
def test_a_folder_linked_twice_or_to_itself_is_read_once_and_named(tmp_path: Path) -> None:
    _touch(tmp_path, "a/1.png")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    found = discover([tmp_path])
    assert _names(tmp_path, found.images) == ["a/1.png"]
    assert sorted(found.skipped) == [
        f"{tmp_path}/a/loop (linked, read elsewhere)", f"{tmp_path}/b (linked, read elsewhere)",
    ]  # fmt: skip


@needs_links
def test_a_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    _touch(tmp_path, "1.png")
    (tmp_path / "2.png").symlink_to(tmp_path / "gone.png")
    assert discover([tmp_path]).skipped == [f"{tmp_path}/2.png (a link to nothing)"]


@pytest.mark.parametrize(
    "folder", [".hidden", "@eaDir", ".ipynb_checkpoints", "__MACOSX", "checkpoints", "#recycle"]
)
def test_folders_of_thumbnails_and_leftovers_are_skipped_and_named(
    tmp_path: Path, folder: str
) -> None:
    _touch(tmp_path, "1.png", f"deep/{folder}/1.png", f"deep/{folder}/x/2.png")
    found = discover([tmp_path])
    assert _names(tmp_path, found.images) == ["1.png"]
    assert found.describe_rest() == [f"1 not read: {tmp_path}/deep/{folder}"]


def test_a_hidden_folder_that_is_asked_for_is_read(tmp_path: Path) -> None:
    _touch(tmp_path, ".cache/1.png")
    assert len(discover([tmp_path / ".cache"]).images) == 1


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    _touch(tmp_path, "1.png", "secret/2.png")
    (tmp_path / "secret").chmod(0)
    assert discover([tmp_path]).skipped == [f"{tmp_path}/secret (Permission denied)"]


@pytest.mark.parametrize(
    "sop_class", [BasicTextSRStorage, RTPlanStorage, GrayscaleSoftcopyPresentationStateStorage]
)
def test_dicom_objects_without_an_image_are_counted_and_left_out(
    tmp_path: Path, sop_class: str
) -> None:
    save_dicom(tmp_path / "a.dcm", np.eye(4, dtype=np.uint8))
    _save_object(tmp_path / "sr.dcm", sop_class)
    _save_object(tmp_path / "1.2.840", sop_class)
    found = discover([tmp_path])
    assert _names(tmp_path, found.images) == ["a.dcm"]
    assert found.describe_rest() == ["2 DICOM objects without an image left out"]


def test_a_dicom_object_without_an_image_that_is_named_is_left_to_the_reader(
    tmp_path: Path,
) -> None:
    _save_object(tmp_path / "sr.dcm", BasicTextSRStorage)
    assert discover([tmp_path / "sr.dcm"]).images == [tmp_path / "sr.dcm"]


def test_an_id_is_the_end_of_a_path_folder_by_folder() -> None:
    paths = [Path(p) for p in ("/in/A/1.png", "/in/B/1.png", "/in/2.dcm", "/in/xB/3.png")]
    found = match_ids(paths, ["A/1", "in/B/1", "2", "B/3"])
    assert found == {paths[0]: "A/1", paths[1]: "in/B/1", paths[2]: "2"}


def test_a_longer_id_takes_its_image_from_a_shorter_one() -> None:
    paths = [Path("/in/1.png"), Path("/in/A/1.png")]
    assert match_ids(paths, ["1", "A/1"]) == {paths[0]: "1", paths[1]: "A/1"}


@pytest.mark.parametrize("other", ["/in/B/1.png", "/in/A/1.dcm"])
def test_an_id_that_fits_two_images_is_refused(other: str) -> None:
    with pytest.raises(
        LabelError, match=r"id '1' fits /in/A/1\.png and /in/.*; expected one image"
    ):
        match_ids([Path("/in/A/1.png"), Path(other)], ["1"])


def test_several_suffixes_are_cut_on_both_sides() -> None:
    path = Path("/in/00001.dcm.png")
    for written in ("00001.dcm.png", "00001.dcm", "00001", "./00001.dcm.png"):
        assert match_ids([path], [clean_id(written)]) == {path: "00001"}


@needs_links
def test_a_link_into_a_folder_that_may_not_be_read_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _touch(tmp_path, "1.png", "2.png")
    exists = Path.exists

    def refuse(path: Path) -> bool:
        if path.name == "2.png":
            raise PermissionError(13, "Permission denied", str(path))
        return exists(path)

    monkeypatch.setattr(Path, "exists", refuse)
    found = discover([tmp_path])
    assert _names(tmp_path, found.images) == ["1.png"]
    assert found.skipped == [f"{tmp_path}/2.png (Permission denied)"]


def test_a_file_named_as_a_whole_number_with_decimals_matches_its_number() -> None:
    assert match_ids([Path("900004.0.png")], ["900004"]) == {Path("900004.0.png"): "900004"}


def test_names_tell_images_apart_with_as_few_folders_as_will_do() -> None:
    paths = [Path(p) for p in ("/s/PA0/ST0/IM0", "/s/PA1/ST0/IM0", "/s/PA1/ST1/IM1.png")]
    assert list(name_images(paths).values()) == ["PA0/ST0/IM0", "PA1/ST0/IM0", "IM1"]
    same_folder = [Path("/s/1.png"), Path("/s/1.jpg"), Path("/s/2.jpg")]
    assert list(name_images(same_folder).values()) == ["1 (png)", "1 (jpg)", "2"]
