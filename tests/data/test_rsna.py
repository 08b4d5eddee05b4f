"""Kaggle's own client runs, against a server on this machine that responds as Kaggle's does."""

import io
import json
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from boneage.cli.app import main
from boneage.data.rsna import download_rsna
from boneage.errors import BoneAgeError

IMAGE = "boneage-training-dataset/boneage-training-dataset/1377.png"


class Kaggle(BaseHTTPRequestHandler):
    """The two calls that the client makes: the data set's version, and its archive."""

    status = 200

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = json.dumps({"currentVersionNumber": 2}).encode()
        if self.path.endswith("DownloadDataset"):
            archive = io.BytesIO()
            with zipfile.ZipFile(archive, "w") as file:
                file.writestr("boneage-training-dataset.csv", "id,boneage,male\n1377,180,False\n")
                file.writestr(IMAGE, b"image")
            body = archive.getvalue()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def kaggle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[Kaggle]]:
    # 7777 is where the client looks for Kaggle in its own test setting.
    try:
        server = ThreadingHTTPServer(("127.0.0.1", 7777), Kaggle)
    except OSError:
        pytest.skip("port 7777 of this machine is taken")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "TEST")
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Kaggle, "status", 200)
    yield Kaggle
    server.shutdown()
    server.server_close()


def test_nothing_is_downloaded_before_the_terms_are_accepted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["download", str(tmp_path / "raw")]) == 1
    printed = capsys.readouterr()
    assert "Radiological Society of North America" in printed.out
    assert "pass --accept-terms" in printed.err
    assert not (tmp_path / "raw").exists()


@pytest.mark.usefixtures("kaggle")
def test_the_images_arrive_in_the_kaggle_layout(tmp_path: Path) -> None:
    out = tmp_path / "raw"
    assert main(["download", str(out), "--accept-terms"]) == 0
    assert (out / IMAGE).read_bytes() == b"image"
    assert (out / "boneage-training-dataset.csv").read_text().startswith("id,boneage,male")


@pytest.mark.usefixtures("kaggle")
def test_a_download_that_was_cut_off_is_completed(tmp_path: Path) -> None:
    out = tmp_path / "raw"
    download_rsna(out)
    (out / "boneage-training-dataset.csv").unlink()
    (out / IMAGE).unlink()
    download_rsna(out)
    assert (out / IMAGE).read_bytes() == b"image"
    assert (out / "boneage-training-dataset.csv").is_file()


def test_without_access_it_says_what_to_do(
    kaggle: type[Kaggle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kaggle.status = 403
    assert main(["download", str(tmp_path / "raw"), "--accept-terms"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("boneage: Kaggle did not give kmader/rsna-bone-age")
    for remedy in ("kaggle.json", "in a browser", "boneage phantom"):
        assert remedy in error
    assert not (tmp_path / "raw").exists()


def test_labels_that_are_there_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "boneage-training-dataset.csv").write_text("id,boneage,male\n")
    with pytest.raises(BoneAgeError, match=r"holds boneage-training-dataset.csv already"):
        download_rsna(tmp_path)


def test_a_missing_client_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "kagglehub", None)
    with pytest.raises(BoneAgeError, match="pip install kagglehub"):
        download_rsna(tmp_path)
