from typing import Any

import numpy as np
import pytest

from boneage.errors import BoneAgeError
from boneage.sex import parse_provided_sex, parse_sex


@pytest.mark.parametrize("word", ["M", "m", "male", "MALE", " boy ", "1", "1.0", 1, 1.0, True,
                                  np.True_, np.int64(1)])  # fmt: skip
def test_words_and_numbers_for_male(word: Any) -> None:
    assert parse_sex(word) == "M"


@pytest.mark.parametrize("word", ["F", "f", "Female", "FEMALE", "girl", "0", "0.0", 0, 0.0, False])
def test_words_and_numbers_for_female(word: Any) -> None:
    assert parse_sex(word) == "F"


@pytest.mark.parametrize("word", ["", "U", "unknown", "O", "Other", "nan", None, float("nan")])
def test_words_for_an_unknown_sex(word: Any) -> None:
    assert parse_sex(word) is None


@pytest.mark.parametrize("word", ["X", "2", "-1", "weiblich", "mal", "yes"])
def test_another_word_is_refused_with_what_is_accepted(word: str) -> None:
    with pytest.raises(ValueError, match=f"'{word}'; expected M or F .also male, female, boy, gi"):
        parse_sex(word)
    with pytest.raises(BoneAgeError, match=f"sex is '{word}'; expected M or F .*, or unknown"):
        parse_provided_sex(word)


def test_what_a_caller_leaves_out_is_left_to_the_file() -> None:
    assert [parse_provided_sex(word) for word in (None, "unknown", "girl")] == [
        None,
        "unknown",
        "F",
    ]
