import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from boneage.audit.figures import SMALL_GROUP, audit
from boneage.clinical.growth import classify, look_up, sd_score
from boneage.errors import BoneAgeError
from boneage.evaluation.bootstrap import mean_estimate
from boneage.evaluation.metrics import expected_calibration_error, reliability_bins
from boneage.evaluation.prediction_table import Predictions, read_all, read_predictions
from boneage.evaluation.statistics import holm, mcnemar, wilson
from boneage.stages import stage_from_years
from builders import add_intervals, make_biased, make_plain_table


def read(folder: Path, table: pd.DataFrame, *by: str, name: str = "table") -> Predictions:
    path = folder / f"{name}.csv"
    table.to_csv(path, index=False)
    return read_predictions(path, by)


def run(folder: Path, table: pd.DataFrame, *by: str, resamples: int = 200) -> dict[str, Any]:
    """Audit a table; what comes back has been through strict JSON."""
    result = audit([read(folder, table, *by)], resamples=resamples)
    return json.loads(json.dumps(result, allow_nan=False))


def find(result: dict[str, Any], name: str) -> dict[str, Any]:
    (group,) = (group for group in result["groups"] if group["group"] == name)
    return group


def error_of(table: pd.DataFrame) -> "pd.Series[float]":
    return table["predicted_months"] - table["reference_months"]


def test_every_figure_comes_with_its_interval_and_the_same_each_time(tmp_path: Path) -> None:
    table = make_plain_table()
    result = run(tmp_path, table)
    error = error_of(table)
    accuracy = result["accuracy"]
    assert result["n"] == 400
    assert accuracy["mae_months"]["value"] == pytest.approx(error.abs().mean())
    assert accuracy["median_error_months"]["value"] == pytest.approx(error.abs().median())
    assert accuracy["bias_months"]["value"] == pytest.approx(error.mean())
    for name, ends in accuracy.items():
        assert ends["low"] < ends["value"] < ends["high"], name
    assert {"rmse_months", "icc", "loa_low_months", "loa_high_months", "qwk"} <= set(accuracy)
    assert run(tmp_path, make_plain_table()) == result


def test_groups_hold_the_figures_of_their_own_cases(tmp_path: Path) -> None:
    table = make_plain_table(site=["a", "b", "", "b"] * 100)
    result = run(tmp_path, table, "site")
    error = error_of(table)
    years = table["reference_months"] / 12
    rows = {
        "male": table["sex"] == "M",
        "6 to under 9 years": (years >= 6) & (years < 9),
        "female, 15 years and over": (table["sex"] == "F") & (years >= 15),
        "not given": table["site"] == "",
    }
    for name, mask in rows.items():
        group = find(result, name)
        assert (group["n"], group["is_small"]) == (mask.sum(), mask.sum() < SMALL_GROUP)
        inside, outside, figures = error[mask], error[~mask], group["figures"]
        assert figures["mae_months"]["value"] == pytest.approx(inside.abs().mean())
        assert figures["median_error_months"]["value"] == pytest.approx(inside.abs().median())
        apart = {"mae_months": inside.abs().mean() - outside.abs().mean(),
                 "bias_months": inside.mean() - outside.mean()}  # fmt: skip
        found = {figure: ends["value"] for figure, ends in group["difference"].items()}
        assert found == pytest.approx(apart)
        assert set(figures) == set(result["accuracy"])
    for kind in ("sex", "age", "sex and age", "site"):
        assert sum(group["n"] for group in result["groups"] if group["by"] == kind) == 400


def test_groups_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = ["site 10", "site 2", "²", "1.2.3", "none"]
    result = run(tmp_path, make_plain_table(site=names * 80), "site", resamples=0)
    found = [group["group"] for group in result["groups"] if group["by"] == "site"]
    assert found == ["none", "²", "1.2.3", "site 2", "site 10"]
    bands = [group["group"] for group in result["groups"] if group["by"] == "age"]
    assert bands == ["0 to under 6 years", "6 to under 9 years", "9 to under 12 years",
                     "12 to under 15 years", "15 years and over"]  # fmt: skip


P_VALUES = ("p", "p_corrected", "bias_p", "bias_p_corrected", "coverage_p", "coverage_p_corrected")


def test_opposite_biases_of_one_size_are_found_though_absolute_errors_are_alike(
    tmp_path: Path,
) -> None:
    table = make_biased()
    result = run(tmp_path, table, resamples=2000)
    error = error_of(table).groupby(table["sex"]).mean()
    for name in ("male", "female"):
        group = find(result, name)
        assert group["p_corrected"] > 0.05
        assert abs(group["difference"]["mae_months"]["value"]) < 2
        assert group["bias_p"] < 0.001
        assert group["bias_p"] < group["bias_p_corrected"] < 0.05
        # Without intervals there is no test of their coverage.
        assert group["coverage_p"] is group["coverage_p_corrected"] is None
        assert set(group["difference"]) == {"mae_months", "bias_months"}
        assert "coverage" not in group["figures"]
    apart = result["male_minus_female"]["bias_months"]
    assert apart["value"] == pytest.approx(error["M"] - error["F"])
    assert -22 < apart["low"] < apart["value"] < apart["high"] < -17
    # Both sexes known, the others of one are the other: the same draws, the same interval.
    assert apart == pytest.approx(find(result, "male")["difference"]["bias_months"])
    assert set(result["male_minus_female"]) == {"mae_months", "bias_months"}


def test_coverage_that_differs_between_the_sexes_is_found_though_errors_do_not(
    tmp_path: Path,
) -> None:
    table = make_biased(girls=0.0, boys=0.0)
    proportion = np.where(table["sex"] == "F", 0.75, 0.95)
    covered = np.random.default_rng(7).random(len(table)) < proportion
    result = run(tmp_path, add_intervals(table, covered), resamples=2000)
    proportions = pd.Series(covered).groupby(table["sex"]).mean()
    for name, sign in (("male", 1), ("female", -1)):
        group = find(result, name)
        assert group["p_corrected"] > 0.05
        assert group["bias_p_corrected"] > 0.05
        assert group["coverage_p"] < group["coverage_p_corrected"] < 0.05
        apart = group["difference"]["coverage"]
        assert apart["value"] == pytest.approx(sign * (proportions["M"] - proportions["F"]))
        assert min(sign * apart["low"], sign * apart["high"]) > 0
    assert result["male_minus_female"]["coverage"]["value"] == pytest.approx(
        proportions["M"] - proportions["F"]
    )


def test_a_small_group_whose_errors_only_spread_more_is_not_called_biased(tmp_path: Path) -> None:
    found = []
    for seed in range(8):
        table = make_biased(girls=0.0, boys=0.0).assign(site=["a"] * 15 + ["b"] * 385)
        error = np.random.default_rng(seed).normal(0.0, np.where(table["site"] == "a", 20.0, 5.0))
        table["predicted_months"] = (table["reference_months"] + error).clip(1).round(2)
        found.append(find(run(tmp_path, table, "site", resamples=99), "a")["bias_p"])
    assert sum(p < 0.05 for p in found) <= 1


def test_sexes_among_unknown_ones_are_compared_with_each_other(tmp_path: Path) -> None:
    table = make_biased()
    table.loc[:99, "sex"] = ""
    table.loc[:99, "predicted_months"] += 40.0
    result = run(tmp_path, table)
    error = error_of(table).groupby(table["sex"]).mean()
    apart = result["male_minus_female"]["bias_months"]["value"]
    assert apart == pytest.approx(error["M"] - error["F"])
    assert find(result, "male")["difference"]["bias_months"]["value"] < apart - 5


def test_a_group_that_is_worse_is_found_and_one_by_chance_is_not(tmp_path: Path) -> None:
    lots = np.random.default_rng(5).choice(["a", "b"], 400)
    result = run(tmp_path, make_plain_table(lot=lots), "lot", resamples=2000)
    girls, lot = find(result, "female"), find(result, "a")
    assert girls["difference"]["mae_months"]["low"] > 3
    assert girls["p"] < 0.001
    assert girls["p"] < girls["p_corrected"] < 0.05
    assert lot["p_corrected"] > 0.05
    assert lot["difference"]["mae_months"]["low"] < 0 < lot["difference"]["mae_months"]["high"]


def test_one_case_alone_or_among_many_has_errors_but_no_interval_and_no_p_value(
    tmp_path: Path,
) -> None:
    result = run(tmp_path, make_plain_table(1))
    accuracy = result["accuracy"]
    assert result["n"] == 1
    assert accuracy["mae_months"]["value"] > 0
    assert accuracy["mae_months"]["low"] is None
    assert accuracy["icc"] == {"value": None, "low": None, "high": None}
    for group in result["groups"]:
        assert group["is_small"]
        assert {group[name] for name in P_VALUES} == {None}
        assert {ends["value"] for ends in group["difference"].values()} == {None}
    assert result["male_minus_female"] is None
    result = run(tmp_path, make_plain_table(site=["x"] + ["y"] * 399), "site")
    alone = find(result, "x")["figures"]
    assert alone["mae_months"]["value"] is not None
    assert {ends["low"] for ends in alone.values()} == {None}
    assert find(result, "y")["figures"]["mae_months"]["low"] is not None


@pytest.mark.parametrize("sex", ["M", ""])
def test_one_sex_or_none_is_no_comparison(tmp_path: Path, sex: str) -> None:
    result = run(tmp_path, make_plain_table(60, sex=sex))
    group = find(result, "male" if sex else "unknown")
    assert group["n"] == 60
    assert {group[name] for name in P_VALUES} == {None}
    nothing = {"value": None, "low": None, "high": None}
    assert group["difference"] == {"mae_months": nothing, "bias_months": nothing}
    assert result["male_minus_female"] is None
    by_sex, constant = result["baselines"].values()
    assert by_sex == pytest.approx(constant)


def test_where_no_group_differs_no_p_value_corrected_for_their_number_is_small(
    tmp_path: Path,
) -> None:
    table = make_biased(girls=0.0, boys=0.0).assign(Site_Name="a", ethnicity="b")
    covered = np.random.default_rng(8).random(len(table)) < 0.9
    result = run(tmp_path, add_intervals(table, covered), resamples=2000)
    for name in ("p", "bias_p", "coverage_p"):
        p_values = [group[name] for group in result["groups"]]
        corrected = [group[f"{name}_corrected"] for group in result["groups"]]
        assert corrected == holm(p_values)
        assert 0.05 < min(corrected) <= max(corrected) <= 1.0, name
    apart = result["male_minus_female"]["bias_months"]
    assert apart["low"] < 0 < apart["high"]
    gaps = ["race or ethnicity", "scanner or site", "diagnosis"]
    assert result["not_assessable"] == gaps
    found = run(tmp_path, table, "Site_Name", "ethnicity", resamples=0)
    assert found["not_assessable"] == ["diagnosis"]


def test_constant_predictions_or_references_have_no_agreement(tmp_path: Path) -> None:
    accuracy = run(tmp_path, make_plain_table(predicted_months=120.1))["accuracy"]
    assert accuracy["icc"]["value"] == accuracy["deming_slope"]["value"] == 0.0
    assert accuracy["r2"]["value"] < 0
    assert accuracy["qwk"]["value"] == pytest.approx(0.0)
    table = make_plain_table(60, reference_months=100.0, predicted_months=101.0)
    result = run(tmp_path, table)
    assert result["stages"]["confusion_matrix"] == [[60, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert result["accuracy"]["qwk"]["value"] is None
    assert result["accuracy"]["accuracy"] == {"value": 1.0, "low": None, "high": None}


def test_without_draws_there_are_neither_intervals_nor_p_values(tmp_path: Path) -> None:
    result = run(tmp_path, make_plain_table(), resamples=0)
    assert {ends["low"] for ends in result["accuracy"].values()} == {None}
    assert {group[name] for group in result["groups"] for name in P_VALUES} == {None}
    apart = result["male_minus_female"]["bias_months"]
    assert apart["value"] is not None
    assert apart["low"] is apart["high"] is None


def test_intervals_are_judged_by_coverage_and_width(tmp_path: Path) -> None:
    table = make_plain_table(4)
    table["predicted_low_months"] = table["reference_months"] - [1, 1, 1, -1]
    table["predicted_high_months"] = table["reference_months"] + [2, 2, 0, 3]
    accuracy = run(tmp_path, table)["accuracy"]
    assert accuracy["coverage"]["value"] == 0.75
    assert accuracy["interval_width_months"]["value"] == pytest.approx(9 / 4)


def test_probabilities_are_judged_by_the_stage_that_they_favour(tmp_path: Path) -> None:
    table = make_plain_table(
        4, reference_months=100.0, predicted_months=101.0, predicted_stage="Child"
    )
    table = table.assign(p_child=[0.7, 0.7, 0.7, 0.3], p_adolescent=[0.3, 0.3, 0.3, 0.7], p_adult=0)
    result = run(tmp_path, table)
    (only,) = result["calibration"]["bins"]
    assert (only["n"], only["confidence"]) == (4, pytest.approx(0.7))
    assert only["accuracy"] == pytest.approx(wilson(3, 4))
    assert result["calibration"]["ece"]["value"] == pytest.approx(0.05)
    assert run(tmp_path, make_plain_table(4))["calibration"] is None


def test_the_calibration_error_has_the_interval_of_its_own_resampling(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    table = make_plain_table(predicted_stage="Child")
    p = rng.uniform(0.4, 1.0, len(table)).round(3)
    table = table.assign(p_child=p, p_adolescent=1 - p, p_adult=0.0)
    found = run(tmp_path, table)["calibration"]["ece"]
    probabilities = np.stack([p, 1 - p], axis=1)
    is_right = probabilities.argmax(axis=1) == (table["reference_months"] >= 144)
    resamples = []
    for _ in range(1000):
        rows = rng.integers(0, len(table), len(table))
        bins = reliability_bins(probabilities.max(axis=1)[rows], is_right[rows])
        resamples.append(expected_calibration_error(bins))
    assert [found["low"], found["high"]] == pytest.approx(
        np.quantile(resamples, [0.025, 0.975]), abs=0.01
    )


def test_stages_of_the_model_are_compared_with_thresholds_on_its_age(tmp_path: Path) -> None:
    table = make_plain_table(3, predicted_stage=["Child", "Adolescent", "Adult"])
    table = table.assign(reference_months=[100, 150, 200], predicted_months=[101, 140, 201])
    found = run(tmp_path, table)["approaches"]
    for way in ("direct", "threshold"):
        assert found[f"{way}_accuracy"]["value"] == pytest.approx(2 / 3)
    counts = [found[name] for name in ("only_first_right", "only_second_right", "mcnemar_p")]
    assert counts == [1, 1, 1.0]
    assert run(tmp_path, make_plain_table())["approaches"] is None


def test_the_clinical_meaning_is_the_proportion_of_classes_that_change(tmp_path: Path) -> None:
    table = make_plain_table()
    noise = np.random.default_rng(1).normal(0, 15, 400)
    table["chronological_age_years"] = ((table["reference_months"] + noise) / 12).clip(0.1)
    result = run(tmp_path, table)
    at = look_up(12 * table["chronological_age_years"], table["sex"].to_numpy(dtype=object))
    reader, model = (classify(sd_score(table[f"{name}_months"], at))
                     for name in ("reference", "predicted"))  # fmt: skip
    known = reader != ""
    k, n = int((reader != model).sum()), int(known.sum())
    found = result["clinical"]
    assert 0 < k < n < 400
    assert (found["n"], found["n_outside_the_tables"]) == (n, 400 - n)
    assert found["changed"] == pytest.approx(wilson(k, n))
    assert result["accuracy"]["clinical_change"] == found["changed"]
    assert np.sum(found["confusion_matrix"]) == n
    assert n - np.trace(found["confusion_matrix"]) == k
    proportion = (reader != model)[known & (table["sex"] == "F")].mean()
    girls = find(result, "female")["figures"]
    assert girls["clinical_change"]["value"] == pytest.approx(proportion)


def test_the_clinical_meaning_is_not_assessable_without_its_columns(tmp_path: Path) -> None:
    assert run(tmp_path, make_plain_table(), resamples=0)["clinical"] == {
        "is_assessable": False, "why": "the table has no chronological age"
    }  # fmt: skip
    result = run(tmp_path, make_plain_table(sex="", chronological_age_years=9.0), resamples=0)
    assert "no case has a sex and a chronological age" in result["clinical"]["why"]
    assert result["accuracy"]["clinical_change"]["value"] is None


def test_baselines_need_no_image(tmp_path: Path) -> None:
    table = make_plain_table()
    reference = table["reference_months"]
    found = run(tmp_path, table, resamples=0)["baselines"]
    constant = (reference - reference.median()).abs().mean()
    by_sex = reference - reference.groupby(table["sex"]).transform("median")
    assert found["constant_median_mae_months"]["value"] == pytest.approx(constant)
    assert found["sex_median_mae_months"]["value"] == pytest.approx(by_sex.abs().mean())


def compare(folder: Path, *tables: pd.DataFrame, resamples: int = 2000) -> list[dict[str, Any]]:
    paths = [folder / str(i) / "model.csv" for i in range(len(tables))]
    for path, table in zip(paths, tables, strict=True):
        path.parent.mkdir(parents=True)
        table.to_csv(path, index=False)
    return audit(read_all(paths), resamples=resamples)["comparison"]


def test_tables_are_compared_in_pairs_on_the_cases_that_both_predict(tmp_path: Path) -> None:
    first = make_plain_table()
    noise = np.random.default_rng(3).normal(0, 20, 400)
    predicted = (first["reference_months"] + noise).clip(1, 240)
    second = first.assign(predicted_months=predicted).iloc[::-1][:300]
    (found,) = compare(tmp_path, first, second)
    both = first.loc[second.index]
    a, b = error_of(both).abs(), error_of(second).abs()
    assert (found["first"], found["second"]) == ("0/model.csv", "1/model.csv")
    assert found["n"] == 300
    assert found["mae_months"]["first"]["value"] == pytest.approx(a.mean())
    assert found["mae_months"]["second"]["value"] == pytest.approx(b.mean())
    ends = found["mae_difference_months"]
    assert ends["value"] == pytest.approx(a.mean() - b.mean())
    assert ends == pytest.approx(mean_estimate((a - b).to_numpy(), 2000), abs=0.1)
    is_right = [
        (stage_from_years(table["predicted_months"] / 12)
         == stage_from_years(table["reference_months"] / 12))
        for table in (both, second)
    ]  # fmt: skip
    expected = mcnemar(*is_right)
    assert {name: found[name] for name in expected} == expected


def test_each_further_table_is_compared_with_the_first(tmp_path: Path) -> None:
    found = compare(
        tmp_path, make_plain_table(), make_plain_table(), make_plain_table(), resamples=9
    )
    assert [(row["first"], row["second"]) for row in found] == [
        ("0/model.csv", "1/model.csv"), ("0/model.csv", "2/model.csv")
    ]  # fmt: skip
    assert found[0]["mae_difference_months"] == {"value": 0.0, "low": None, "high": None}
    assert found[0]["mcnemar_p"] == 1.0


def test_tables_of_other_cases_or_references_cannot_be_compared(tmp_path: Path) -> None:
    table = make_plain_table(5)
    strangers = table.assign(image_id=table["image_id"] + 100)
    other = table.assign(reference_months=table["reference_months"] + [0, 0, 3, 0, 0])
    for name, second, message in (
        ("ids", strangers, "share no image_id to compare on"),
        ("references", other, "have different references for 2"),
    ):
        with pytest.raises(BoneAgeError, match=message):
            compare(tmp_path / name, table, second)


def test_difficult_cases_are_looked_at_from_four_sides(tmp_path: Path) -> None:
    table = make_plain_table(site=["a", "b", "c", "d"] * 100)
    table.loc[:9, "predicted_months"] = table["reference_months"].head(10) + 60.0
    table["site"] = np.where(np.arange(400) < 10, "bad", table["site"])
    table["predicted_low_months"] = table["predicted_months"] - 20
    table["predicted_high_months"] = table["predicted_months"] + np.arange(400) / 10
    result = run(tmp_path, table, "site", resamples=0)
    assert {int(row["image_id"]) for row in result["difficult"][:10]} == set(range(10))
    assert len(result["difficult"]) == 20
    assert [int(row["image_id"]) for row in result["uncertain"]] == [*range(399, 379, -1)]
    assert {int(row["image_id"]) for row in result["suspects"]} >= set(range(10))
    worst = result["shared"][0]
    assert (worst["by"], worst["group"], worst["n_failed"]) == ("site", "bad", 10)
    assert worst["p_corrected"] < 1e-6
    assert {"sex", "age", "sex and age", "site"} >= {row["by"] for row in result["shared"]}
    assert result["robustness"] is result["regions"] is None


@pytest.mark.parametrize("n", [1, 30])
def test_errors_that_do_not_vary_leave_the_audit_without_infinities(tmp_path: Path, n: int) -> None:
    table = make_plain_table(n).assign(p_child=0.0, p_adolescent=0.0, p_adult=1.0)
    table["predicted_months"] = table["reference_months"] = np.arange(60.0, 60.0 + n)
    result = run(tmp_path, table, resamples=9)
    assert len(result["suspects"]) == min(n, 20)
    assert result["suspects"][0]["error_in_half_widths"] == 0.0
    assert result["shared"] == []


@pytest.mark.performance
def test_twelve_thousand_cases_take_seconds(tmp_path: Path) -> None:
    predictions = read(tmp_path, make_plain_table(12_611))
    started = time.process_time()
    audit([predictions], resamples=2000)
    assert time.process_time() - started < 40  # on all cores together
