from pathlib import Path

import pytest

from boneage.files import replacing, save_text


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


def test_text_keeps_its_line_ends(tmp_path: Path) -> None:
    save_text(tmp_path / "table.csv", "a\nb\r\n")
    assert (tmp_path / "table.csv").read_bytes() == b"a\nb\r\n"
