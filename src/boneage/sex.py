"""The patient's sex: "M", "F", or None where it is not known, and the words that mean each."""

from typing import Literal

from boneage.errors import BoneAgeError

Sex = Literal["M", "F"]

ProvidedSex = Literal["M", "F", "unknown"]
"""What a caller may say of an image's sex, where it is not left to the file."""

SEX_CODE: dict[str | None, float] = {"M": 1.0, "F": -1.0, None: 0.0}
"""What a network is given for the sex; unknown is neither."""

ACCEPTED = "M or F (also male, female, boy, girl, 1 for male, 0 for female)"
"""What `parse_sex` takes for a known sex, in words."""

_MALE = {"m", "male", "boy", "1", "1.0", "1,0", "true"}
_FEMALE = {"f", "female", "girl", "0", "0.0", "0,0", "false"}
_UNKNOWN = {"", "u", "unknown", "o", "other", "nan", "none", "null", "n/a", "na", "<na>"}


def parse_sex(word: object) -> Sex | None:
    """Read a word or a number for the patient's sex, whatever its case.

    True and 1 stand for male, as in a column `male` of the RSNA tables.

    Returns:
        "M", "F", or None where the word says that the sex is not known.

    Raises:
        ValueError: If the word means none of these.

    Example:
        >>> parse_sex("FEMALE"), parse_sex(1), parse_sex("U")
        ('F', 'M', None)
    """
    text = str(word).strip().lower()
    if text in _MALE:
        return "M"
    if text in _FEMALE:
        return "F"
    if text in _UNKNOWN:
        return None
    raise ValueError(f"{word!r}; expected {ACCEPTED}")


def parse_provided_sex(word: object) -> ProvidedSex | None:
    """Read what a caller says of an image's sex; None leaves it to the file.

    Raises:
        BoneAgeError: If the word means no sex and not that it is unknown.
    """
    if word is None:
        return None
    try:
        return parse_sex(word) or "unknown"
    except ValueError as error:
        raise BoneAgeError(f"sex is {error}, or unknown.") from None
