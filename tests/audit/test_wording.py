from pathlib import Path
from typing import Any

import pytest

from boneage.audit.figures import audit
from boneage.audit.wording import (
    describe_agreement,
    describe_calibration,
    describe_differences,
    describe_groups,
    describe_regions,
    describe_robustness,
    describe_scatter,
    describe_skill,
    explain_no_test,
    format_figure,
    format_months,
    format_p,
    name_differences,
    name_perturbation,
    summarise,
)
from boneage.evaluation.prediction_table import read_predictions
from builders import make_biased, make_ends


@pytest.mark.parametrize(
    ("ends", "digits", "text"),
    [
        ((1.234, 1.0, 2.0), 2, "1.23 [1.00, 2.00]"),
        ((-0.04, -1.0, 0.04), 1, "0.0 [−1.0, 0.0]"),
        ((0.5, 0.25, 1.0), -1, "50.0% [25.0%, 100.0%]"),
        ((1.0, None, None), 1, "1.0"),
        ((None, None, None), 1, "–"),
    ],
)
def test_a_figure_is_shown_with_what_it_has(
    ends: tuple[float | None, ...], digits: int, text: str
) -> None:
    assert format_figure(dict(zip(("value", "low", "high"), ends, strict=True)), digits) == text


def test_p_values_and_months_are_short() -> None:
    assert [format_p(p) for p in (None, 0.0005, 0.0123, 1.0)] == ["–", "< 0.001", "0.012", "1.000"]
    assert [format_months(m) for m in (12.34, -0.01)] == ["12.3", "0.0"]
    assert [format_months(m, True) for m in (12.34, -3.0)] == ["+12.3", "−3.0"]


def make_result(draws: int = 999, **changes: Any) -> dict[str, Any]:
    accuracy = {"mae_months": make_ends(7.0, 0.5), "bias_months": make_ends(-1.25, 1.0),
                "accuracy": make_ends(0.9, 0.05)}  # fmt: skip
    return {"n": 60, "draws": draws, "accuracy": accuracy, "groups": [], "male_minus_female": None,
            **changes}  # fmt: skip


def make_group(name: str, **p_values: float | None) -> dict[str, Any]:
    found = {"bias_p_corrected": 0.9, "p_corrected": 0.9, "coverage_p_corrected": None}
    apart = {"bias_months": make_ends(float(len(name)), 0.5), "mae_months": make_ends(-1.0, 0.5),
             "coverage": make_ends(-0.08, 0.03)}  # fmt: skip
    return {"by": "site", "group": name, "difference": apart, **found, **p_values}


def test_the_summary_is_the_headline_figures_in_words() -> None:
    groups = [make_group("a", bias_p_corrected=0.01), make_group("b", bias_p_corrected=0.04),
              make_group("c", p_corrected=0.001)]  # fmt: skip
    assert summarise(make_result(groups=groups)) == (
        "This model was audited on 60 cases with a reference age. Its mean absolute error is 7.0 "
        "[6.5, 7.5] months; on average, its predictions are 1.2 months too low. The predicted "
        "stage is that of the reference in 90.0% [85.0%, 95.0%] of cases. There are no prediction "
        "intervals, so coverage cannot be assessed. Of 3 groups of cases, some differ "
        "significantly from the other cases: signed error in 2, absolute error in 1."
    )


def test_the_summary_of_one_case_without_resamples_claims_no_test() -> None:
    accuracy = make_result()["accuracy"] | {
        "bias_months": make_ends(3.0), "coverage": make_ends(1.0)
    }  # fmt: skip
    text = summarise(make_result(0, n=1, accuracy=accuracy))
    assert text.startswith("This model was audited on 1 case with")
    assert "on average, its predictions are 3.0 months too high." in text
    assert "The prediction intervals contain the reference age in 100.0% of cases." in text
    assert text.endswith(
        "No difference was tested: no permutations were asked for (--resamples 0)."
    )


def test_a_summary_without_differences_or_direction_of_the_error_says_so() -> None:
    accuracy = make_result()["accuracy"] | {"bias_months": make_ends(-0.04)}
    groups = [make_group("a"), make_group("b")]
    text = summarise(make_result(accuracy=accuracy, groups=groups))
    assert "on average, its predictions are neither too high nor too low." in text
    assert text.endswith("No group of cases differs significantly from the other cases.")


def test_differences_are_named_the_largest_first_and_not_without_end() -> None:
    groups = [make_group("x" * k, bias_p_corrected=0.01) for k in range(1, 10)]
    groups.append(make_group("north", coverage_p_corrected=0.0499, p_corrected=0.05))
    result = make_result(groups=groups)
    sexes, signed, absolute, coverage = describe_differences(result)
    assert sexes == "The sexes cannot be compared: there are no cases of both sexes."
    assert signed.startswith(
        "Signed error differs significantly from that of the other cases in 9 groups: site: "
        "xxxxxxxxx (9.0 [8.5, 9.5] months); site: xxxxxxxx (8.0"
    )
    assert signed.endswith("and 3 more, marked in the table.")
    assert absolute == (
        "No group's absolute error differs significantly from that of the other cases."
    )
    assert coverage.endswith("in 1 group: site: north (−8.0 [−11.0, −5.0] percentage points).")
    assert "site: xxx (" not in signed
    assert [name_differences(group) for group in groups[-2:]] == [["signed error"], ["coverage"]]
    result["male_minus_female"] = {"bias_months": make_ends(-19.2, 0.9)}
    assert describe_differences(result)[0] == (
        "Signed error, male minus female: −19.2 [−20.1, −18.3] months."
    )


@pytest.mark.parametrize(("resamples", "n", "why"), [
    (0, 3, "No difference was tested: no permutations"),
    (99, 0, "No difference was tested: every group holds all the cases."),
    (99, 5, "99 permutations and 5 groups the lowest corrected p is 0.050. Raise --resamples."),
    (9, 50, "the lowest corrected p is 1.000. Raise --resamples."),
    (100, 5, None),
])  # fmt: skip
def test_tests_that_can_find_nothing_are_not_taken_for_a_finding(
    resamples: int, n: int, why: str | None
) -> None:
    untested = {"bias_p_corrected": None, "p_corrected": None}
    groups = [make_group("all", **untested), *(make_group(f"{i}") for i in range(n))]
    result = make_result(resamples, groups=groups)
    found = explain_no_test(result)
    sentences = describe_differences(result)
    if why is None:
        assert found is None
        assert sum("No group's" in sentence for sentence in sentences) == 2
    else:
        assert why in str(found)
        assert sentences[1:] == [found]


def test_captions_hold_the_figures_of_their_charts(result: dict[str, Any]) -> None:
    accuracy = result["accuracy"]
    mae, bias = (format_figure(accuracy[name], digits)
                 for name, digits in (("mae_months", 2), ("bias_months", 1)))  # fmt: skip
    assert f"Mean absolute error of this model: {mae} months." in describe_skill(result)
    assert f"mean signed error {bias} months" in describe_agreement(result)
    scatter = describe_scatter(result)
    assert "of 300 cases" in scatter
    assert f"R² {format_figure(accuracy['r2'], 3)}." in scatter
    ece = format_figure(result["calibration"]["ece"], 3)
    assert describe_calibration(result).endswith(f"Expected calibration error {ece}.")


def test_the_caption_of_the_groups_speaks_of_what_is_there(
    result: dict[str, Any], tmp_path: Path
) -> None:
    text = describe_groups(result)
    for words in ("coverage of the prediction intervals", "with 95% intervals", "under 50 cases"):
        assert words in text
    make_biased().to_csv(tmp_path / "table.csv", index=False)
    text = describe_groups(audit([read_predictions(tmp_path / "table.csv")], resamples=0))
    assert "coverage" not in text
    assert "intervals" not in text
    assert "mean absolute error and signed error" in text


def make_robustness(*changes: float | None) -> dict[str, Any]:
    rows = [{"family": "blur", "level": f"{i}%", "mae_change_months": make_ends(change, 0.3)}
            for i, change in enumerate(changes)]  # fmt: skip
    return {"n": 30, "stresses": rows}


def test_the_caption_of_the_robustness_names_the_worst_and_counts_the_harmful() -> None:
    text = describe_robustness(make_robustness(0.0, 0.6, 30.0, None, -0.4))
    assert "of 30 images under each of 5 perturbations" in text
    assert "more than 0.5 months: 2." in text
    assert "The largest rise is under blur 2%: 30.0 [29.7, 30.3] months." in text
    assert name_perturbation({"family": "inversion", "level": ""}) == "inversion"


def test_the_caption_of_the_saliency_maps_compares_with_random_places() -> None:
    group = {"energy": make_ends(0.3, 0.05), "energy_shifted": make_ends(0.1, 0.01),
             "hit": make_ends(0.5, 0.1), "hit_shifted": make_ends(0.2)}  # fmt: skip
    assert describe_regions({"n": 12, "groups": [group]}) == (
        "On 12 images, 30.0% [25.0%, 35.0%] of the saliency map lies in the annotated regions, "
        "against 10.0% [9.0%, 11.0%] in the same regions at random places in the hand. The map's "
        "peak lies in a region in 50.0% [40.0%, 60.0%] of images, against 20.0% at random places."
    )
