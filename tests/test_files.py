import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from boneage.errors import BoneAgeError
from boneage.files import (
    LONGEST_NAME,
    cut_suffix,
    fit_name,
    hash_file,
    locked,
    replacing,
    save_text,
)


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
    path = tmp_path / f"{'long' * 64}.csv"
    with pytest.raises(OSError, match="name too long") as caught:
        save_text(path, "a")
    assert caught.value.filename == str(path)


def test_a_name_as_long_as_the_system_takes_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("x" * (LONGEST_NAME - 4) + ".csv")
    save_text(path, "a")
    assert path.read_text() == "a"


def test_a_name_too_long_is_cut_and_marked() -> None:
    names = [fit_name("x" * 255 + end, ".png") for end in ("a", "b")]
    assert len(set(names)) == 2
    assert all(len(name) == LONGEST_NAME and name.endswith(".png") for name in names)
    assert len(fit_name("ü" * 200, ".png").encode()) <= LONGEST_NAME
    assert fit_name("7", ".png") == "7.png"


def test_one_run_at_a_time_may_write_a_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "out.csv"
    code = (
        "import sys; from pathlib import Path; from boneage.files import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.readline()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(BoneAgeError, match=r"out\.csv is being written by another run\. Wait"),
            locked(path),
        ):
            pytest.fail("both runs hold the file")
        other.kill()
    link = tmp_path / "link.csv"
    link.symlink_to(path)
    with (
        locked(path),  # free again, however the other run ended
        pytest.raises(BoneAgeError, match="is being written by another run"),
        locked(link),
    ):
        pytest.fail("one file was locked twice")


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="needs a device that is a file")
def test_what_is_no_ordinary_file_is_not_locked() -> None:
    before = set(Path("/dev").iterdir())
    with (
        pytest.raises(BoneAgeError, match="/dev/null is no ordinary file"),
        locked(Path("/dev/null")),
    ):
        pytest.fail("a device was locked")
    assert set(Path("/dev").iterdir()) == before


def test_a_file_is_known_by_its_content(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"content")
    second.write_bytes(b"content")
    assert hash_file(first) == hash_file(second) == hashlib.sha256(b"content").hexdigest()


def test_text_is_utf_8_and_keeps_its_line_ends(tmp_path: Path) -> None:
    save_text(tmp_path / "table.csv", "R²\nb\r\n")
    assert (tmp_path / "table.csv").read_bytes() == "R²\nb\r\n".encode()


def test_a_file_that_cannot_be_put_in_its_place_leaves_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(part: Path, target: Path) -> None:
        raise OSError("disk full")

    save_text(tmp_path / "b.txt", "older")
    save_text(tmp_path / "b.txt", "old")
    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_text(tmp_path / "b.txt", "new")
    assert (tmp_path / "b.txt").read_text() == "old"


@pytest.mark.parametrize(
    ("name", "image_id"),
    [("7.png", "7"), ("7.PNG", "7"), ("a.b.dcm", "a.b"), ("1.2.840", "1.2.840"), ("png", "png")],
)
def test_an_id_loses_an_image_suffix_and_no_other(name: str, image_id: str) -> None:
    assert cut_suffix(name) == image_id
