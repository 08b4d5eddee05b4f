import io

import pytest
from PIL import Image

from boneage.imaging.codestream import mend_scan, read_size
from builders import draw_hand


def _encode(kind: str, **options: object) -> bytes:
    content = io.BytesIO()
    Image.fromarray(draw_hand()).save(content, kind, **options)
    return content.getvalue()


@pytest.mark.parametrize(
    "frame",
    [_encode("JPEG"), _encode("JPEG", progressive=True), _encode("JPEG2000", no_jp2=True),
     _encode("JPEG2000")],
)  # fmt: skip
def test_a_frame_s_size_is_read(frame: bytes) -> None:
    assert read_size(frame) == (160, 120)


@pytest.mark.parametrize(
    "frame", [b"", b"\xff\xd8", b"no frame", b"\xff\xd8\xff\xc0\xff\xff", b"\xff\x4f\xff\x51\0"]
)
def test_what_is_no_frame_has_no_size(frame: bytes) -> None:
    assert read_size(frame) is None
    assert mend_scan(frame) == frame


def test_a_scan_of_a_sequential_jpeg_has_all_coefficients() -> None:
    frame = _encode("JPEG")
    place = frame.index(b"\xff\xda")
    end = place + 2 + int.from_bytes(frame[place + 2 : place + 4])
    assert frame[end - 3 : end] == b"\x00\x3f\x00"
    broken = frame[: end - 3] + b"\0\0\0" + frame[end:]
    assert mend_scan(broken) == frame
    progressive = _encode("JPEG", progressive=True)
    assert mend_scan(progressive) == progressive
