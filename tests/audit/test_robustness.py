import json

import numpy as np
import pandas as pd
import pytest
import statsmodels.stats.multitest
import statsmodels.stats.proportion
from scipy.stats import wilcoxon

from boneage.audit.robustness import summarise_stress
from boneage.audit.stress import CLEAN, COLUMNS
from boneage.errors import BoneAgeError

REFERENCE = [100.0, 140.0, 150.0, 200.0]  # Child, Child, Adolescent, Adolescent
CLEAN_MONTHS = [104.0, 138.0, 156.0, 204.0]  # errors of 4, 2, 6, 4


def make_answers(**stressed: list[float]) -> pd.DataFrame:
    """Answers to four boys, clean and under the stresses named."""
    rows: list[dict[str, object]] = []
    for family, months in {CLEAN: CLEAN_MONTHS[: len(next(iter(stressed.values())))],
                           **stressed}.items():  # fmt: skip
        for i, value in enumerate(months):
            stage = "Child" if value < 144 else "Adolescent" if value <= 216 else "Adult"
            rows.append(
                {"model": "m", "path": f"{i}.png", "image_id": str(i), "sex": "M",
                 "family": family, "level": "", "reference_months": REFERENCE[i],
                 "predicted_months": value, "predicted_stage": stage,
                 "status": "warn" if (family, i) == ("turn", 3) else "ok"}
            )  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


TURN = [110.0, 146.0, 142.0, 200.0]  # errors of 10, 6, 8, 0; the second and third change stage


def test_a_stress_is_compared_with_the_clean_answers_by_hand() -> None:
    turn, still = summarise_stress(make_answers(turn=TURN, still=CLEAN_MONTHS), resamples=500)
    assert (turn["family"], turn["n"], turn["n_unanswered"]) == ("turn", 4, 0)
    assert turn["mae_months"]["value"] == 6.0
    assert turn["mae_change_months"]["value"] == 2.0
    assert turn["moved_months"]["value"] == 8.0
    assert turn["mae_change_months"]["low"] < 2.0 < turn["mae_change_months"]["high"]
    assert turn["wilcoxon_p"] == pytest.approx(wilcoxon([6.0, 4.0, 2.0, -4.0]).pvalue)
    low, high = statsmodels.stats.proportion.proportion_confint(2, 4, method="wilson")
    assert turn["stage_changed"] == pytest.approx({"value": 0.5, "low": low, "high": high})
    assert turn["mcnemar_p"] == 0.5
    assert turn["warned"]["value"] == 0.25
    assert turn["clinical"] is None
    assert still["mae_change_months"] == {"value": 0.0, "low": None, "high": None}
    assert still["moved_months"]["value"] == still["stage_changed"]["value"] == 0.0
    assert still["wilcoxon_p"] == still["mcnemar_p"] == still["p_corrected"] == 1.0
    assert turn["p_corrected"] == min(1.0, 2 * turn["wilcoxon_p"])


def test_p_values_are_corrected_over_all_stresses_as_statsmodels_does() -> None:
    rng = np.random.default_rng(0)
    clean = pd.DataFrame(
        {"model": "m", "path": np.arange(40).astype(str), "image_id": np.arange(40).astype(str),
         "sex": "M", "family": CLEAN, "level": "", "reference_months": rng.uniform(20, 200, 40),
         "predicted_stage": "Child", "status": "ok"}
    )  # fmt: skip
    clean["predicted_months"] = clean["reference_months"] + rng.normal(0, 5, 40)
    tables = [clean]
    for i in range(6):
        moved = clean["predicted_months"] + rng.normal(0, 2 * i + 0.5, 40)
        tables.append(clean.assign(family="noise", level=str(i), predicted_months=moved))
    rows = summarise_stress(pd.concat(tables), resamples=0)
    assert [row["level"] for row in rows] == list("012345")
    p_values = [row["wilcoxon_p"] for row in rows]
    expected = statsmodels.stats.multitest.multipletests(p_values, method="holm")[1]
    assert [row["p_corrected"] for row in rows] == pytest.approx(expected.tolist())
    assert min(p_values) < 0.05 < max(p_values)
    assert rows[0]["mae_months"]["low"] is None


def test_the_share_of_clinically_significant_errors_is_told_where_ages_are_known() -> None:
    # Brush boys: at 120 months 125.7 (SD 9.8), at 138 months 143.1 (10.2), at 180 182.7 (11.3).
    # By the reader delayed, normal, delayed; the turn makes the first normal.
    ages = {"0": 120.0, "1": 138.0, "2": 180.0}
    (turn,) = summarise_stress(make_answers(turn=TURN), resamples=0, chronological_months=ages)
    found = turn["clinical"]
    assert found["n"] == 3
    assert (found["clean"]["value"], found["stressed"]["value"]) == (0.0, pytest.approx(1 / 3))
    assert found["mcnemar_p"] == 1.0
    (turn,) = summarise_stress(
        make_answers(turn=TURN), resamples=0, chronological_months={"0": 2.0}
    )
    assert turn["clinical"] is None


def test_movements_of_the_last_bit_are_no_movements() -> None:
    (still,) = summarise_stress(make_answers(still=[m + 1e-5 for m in CLEAN_MONTHS]), resamples=0)
    assert still["wilcoxon_p"] == 1.0
    (moved,) = summarise_stress(make_answers(moved=[m + 1e-2 for m in CLEAN_MONTHS]), resamples=0)
    assert moved["wilcoxon_p"] < 1.0


def test_one_image_has_a_summary_without_intervals() -> None:
    (turn,) = summarise_stress(make_answers(turn=[110.0]), resamples=50)
    assert turn["n"] == 1
    assert turn["mae_change_months"] == {"value": 6.0, "low": None, "high": None}
    assert turn["wilcoxon_p"] == turn["p_corrected"] == 1.0
    json.dumps(turn, allow_nan=False)


def test_images_that_one_of_the_two_did_not_answer_are_counted_and_left_out() -> None:
    answers = make_answers(turn=TURN, still=CLEAN_MONTHS)
    is_turn = answers["family"] == "turn"
    answers.loc[is_turn & (answers["image_id"] == "0"), "predicted_months"] = np.nan
    turn, _ = summarise_stress(answers, resamples=50)
    assert (turn["n"], turn["n_unanswered"]) == (3, 1)
    assert turn["mae_months"]["value"] == pytest.approx(14 / 3)
    answers.loc[is_turn, ["predicted_months", "predicted_stage"]] = [np.nan, None]
    turn, still = summarise_stress(answers, resamples=50, chronological_months={"0": 120.0})
    assert (turn["n"], turn["n_unanswered"]) == (0, 4)
    nothing = {"value": None, "low": None, "high": None}
    for name in ("mae_months", "mae_change_months", "moved_months", "stage_changed", "warned"):
        assert turn[name] == nothing
    assert turn["clinical"] is None
    assert still["n"] == 4
    json.dumps([turn, still], allow_nan=False)


def test_images_none_of_which_was_answered_have_no_summary() -> None:
    answers = make_answers(turn=TURN).assign(predicted_months=np.nan)
    with pytest.raises(BoneAgeError, match="answered none of the images"):
        summarise_stress(answers, resamples=9)
