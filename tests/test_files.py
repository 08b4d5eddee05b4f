from pathlib import Path

import pytest

from boneage.files import cut_suffix, replacing, save_text


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "table.csv"
    with replacing(path) as part:
        part.write_text("half")
        assert not path.exists()
        part.write_text("whole")
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("earlier")
    with pytest.raises(TypeError), replacing(path) as part:
        part.write_text(b"half")  # type: ignore[arg-type]
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_written_is_named_as_the_user_knows_it(tmp_path: Path) -> None:
    path = tmp_path / f"{'long' * 62}.csv"  # the temporary name is longer than a name may be
    with pytest.raises(OSError, match="name too long") as caught:
        save_text(path, "a")
    assert caught.value.filename == str(path)


def test_text_keeps_its_line_ends(tmp_path: Path) -> None:
    save_text(tmp_path / "table.csv", "a\nb\r\n")
    assert (tmp_path / "table.csv").read_bytes() == b"a\nb\r\n"


@pytest.mark.parametrize(
    ("name", "image_id"),
    [("7.png", "7"), ("7.PNG", "7"), ("a.b.dcm", "a.b"), ("1.2.840", "1.2.840"), ("png", "png")],
)
def test_an_id_loses_an_image_suffix_and_no_other(name: str, image_id: str) -> None:
    assert cut_suffix(name) == image_id
