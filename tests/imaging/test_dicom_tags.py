from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from boneage.imaging.dicom_tags import (
    read_items,
    read_number,
    read_numbers,
    read_words,
    replace_tag,
)


def _raw(keyword: str, vr: str, value: bytes) -> Dataset:
    dataset = Dataset()
    tag = Tag(keyword)
    dataset[tag] = DataElement(tag, vr, None)
    dataset._dict[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)
    return dataset


def test_numbers_are_read_as_far_as_they_are_numbers() -> None:
    for value, numbers in (
        (b"2048,5\\100 ", [2048.5, 100.0]), (b"", []), (b"wide", []), (b"1e999\\2", [2.0]),
        (b"nan", []), (b"7\\\\8", [7.0, 8.0]),
    ):  # fmt: skip
        assert read_numbers(_raw("WindowCenter", "DS", value), "WindowCenter") == numbers
    assert read_number(Dataset(), "WindowCenter") is None


def test_words_are_read_in_upper_case_and_without_blanks() -> None:
    assert read_words(_raw("ShutterShape", "CS", b"circular \\BITMAP"), "ShutterShape") == [
        "CIRCULAR", "BITMAP",
    ]  # fmt: skip
    assert read_words(Dataset(), "ShutterShape") == []


def test_a_sequence_that_is_missing_or_damaged_has_no_items() -> None:
    assert read_items(Dataset(), "VOILUTSequence") == []
    assert read_items(_raw("VOILUTSequence", "CQ", b"no sequence"), "VOILUTSequence") == []


def test_a_replaced_tag_is_that_of_the_copy_alone() -> None:
    source = Dataset()
    source.Rows = 3
    copied = Dataset(dict(source.items()))
    replace_tag(copied, "Rows", 4)
    assert (source.Rows, copied.Rows) == (3, 4)
