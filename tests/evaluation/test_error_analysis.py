import json
from math import comb
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import scipy.stats
import statsmodels.stats.multitest
import statsmodels.stats.proportion

from boneage.evaluation.error_analysis import (
    LONGEST_LIST,
    find_shared,
    half_widths,
    list_potential_label_errors,
    list_uncertain,
    list_worst,
)
from boneage.stages import STAGES, stage_from_years

PROBABILITIES = ["p_child", "p_adolescent", "p_adult"]


def make_table(errors: Any, **columns: Any) -> pd.DataFrame:
    """Cases of given errors in months, as `read_predictions` gives them."""
    n = len(errors)
    reference = np.linspace(60.0, 200.0, n)
    return pd.DataFrame(
        {"image_id": [f"c{i}" for i in range(n)],
         "sex": pd.Series((["M", "F", None] * n)[:n], dtype=object),
         "reference_years": reference / 12,
         "predicted_years": (reference + np.asarray(errors, float)) / 12,
         "reference_stage": np.array(STAGES)[stage_from_years(reference / 12)], **columns}
    )  # fmt: skip


def with_intervals(table: pd.DataFrame, half_width: Any) -> pd.DataFrame:
    """Add intervals of given half-widths in months."""
    predicted, half = table["predicted_years"], np.asarray(half_width, float) / 12
    return table.assign(predicted_low_years=predicted - half, predicted_high_years=predicted + half)


def ids(rows: list[dict[str, Any]]) -> list[str]:
    json.dumps(rows, allow_nan=False)
    return [row["image_id"] for row in rows]


def test_the_worst_come_first_and_of_equal_errors_the_first() -> None:
    rows = list_worst(make_table([1, -7, 3, 7, 0]))
    assert ids(rows) == ["c1", "c3", "c2", "c0", "c4"]
    assert rows[0] == pytest.approx(
        {"image_id": "c1", "sex": "F", "reference_months": 95.0, "predicted_months": 88.0,
         "error_months": -7.0}
    )  # fmt: skip
    assert rows[2]["sex"] is None
    assert len(list_worst(make_table(np.arange(50)))) == LONGEST_LIST


def test_the_most_uncertain_have_the_widest_intervals_whatever_their_error() -> None:
    table = with_intervals(make_table([9, 0, 1, 2]), [3, 8, 8, 20])
    rows = list_uncertain(table)
    assert ids(rows) == ["c3", "c1", "c2", "c0"]
    assert rows[0]["interval_width_months"] == pytest.approx(40)
    assert rows[0]["error_months"] == pytest.approx(2)
    assert list_uncertain(make_table([1, 2])) == []
    many = with_intervals(make_table(np.zeros(50)), np.arange(50))
    assert len(list_uncertain(many)) == LONGEST_LIST


def test_a_label_is_listed_beyond_one_and_a_half_half_widths_of_its_interval() -> None:
    table = with_intervals(make_table([14.9, 15.1, -40, 0]), [10, 10, 20, 1])
    rows = list_potential_label_errors(table)
    assert ids(rows) == ["c2", "c1"]
    assert [row["error_in_half_widths"] for row in rows] == pytest.approx([2.0, 1.51])


def test_without_intervals_a_label_is_judged_by_the_spread_of_all_errors() -> None:
    errors = [*np.tile([-1.0, 1.0], 30), 20.0]
    rows = list_potential_label_errors(make_table(errors))
    assert ids(rows) == ["c60"]
    expected = 20.0 / (scipy.stats.norm.ppf(0.95) * np.std(errors, ddof=1))
    assert rows[0]["error_in_half_widths"] == pytest.approx(expected, rel=1e-3)


def test_a_label_that_was_given_next_to_no_probability_is_listed_whatever_its_error() -> None:
    table = with_intervals(make_table([0, 0, 0]), 10.0)  # Child, Child, Adolescent
    table[PROBABILITIES] = [[0.9, 0.1, 0.0], [0.01, 0.99, 0.0], [0.5, 0.02, 0.48]]
    rows = list_potential_label_errors(table)
    assert ids(rows) == ["c1"]
    assert rows[0]["p_of_reference_stage"] == pytest.approx(0.01)


def test_at_most_twenty_potential_label_errors_are_listed_the_strongest_first() -> None:
    rows = list_potential_label_errors(with_intervals(make_table(np.arange(100, 140)), 10.0))
    assert len(ids(rows)) == LONGEST_LIST
    assert rows[0]["error_in_half_widths"] == pytest.approx(13.9)


@pytest.mark.parametrize("errors", [[5.0], [3.1] * 30, [0.0] * 30, [0.1 + 0.2, 0.3] * 15])
def test_errors_that_do_not_vary_list_no_label(errors: list[float]) -> None:
    table = make_table(errors)
    assert np.isinf(half_widths(table)).all()
    assert list_potential_label_errors(table) == []
    table[PROBABILITIES] = [1.0, 0.0, 0.0]
    for row in list_potential_label_errors(table):  # by their probability then, and never with NaN
        assert row["error_in_half_widths"] == row["p_of_reference_stage"] == 0.0
    assert len(ids(list_potential_label_errors(table))) == min(
        LONGEST_LIST, (table["reference_stage"] != "Child").sum()
    )


def test_an_interval_of_no_width_is_no_division_by_zero() -> None:
    rows = list_potential_label_errors(with_intervals(make_table([0.0, 1.0]), 0.0))
    assert ids(rows) == ["c1"]


def make_groups(n: int, **members: Any) -> tuple[list[tuple[str, str]], list[Any]]:
    names = [("kind", name) for name in members]
    return names, [np.isin(np.arange(n), list(rows)) for rows in members.values()]


def test_groups_with_more_failures_than_the_others_are_found_by_hand() -> None:
    errors = np.zeros(40)
    errors[[0, 1, 2, 20]] = [50, -40, 30, 20]  # the largest tenth
    names, masks = make_groups(40, few=range(10), rest=range(10, 40), half=range(20))
    rows = find_shared(make_table(errors), names, masks)
    assert [(row["by"], row["group"], row["n"], row["n_failed"]) for row in rows] == [
        ("kind", "few", 10, 3), ("kind", "half", 20, 3), ("kind", "rest", 30, 1)
    ]  # fmt: skip
    few, half, _ = rows
    low, high = statsmodels.stats.proportion.proportion_confint(3, 10, method="wilson")
    assert few["failed"] == pytest.approx({"value": 0.3, "low": low, "high": high})
    assert few["ratio"] == pytest.approx(0.3 / (1 / 30))
    assert half["ratio"] == pytest.approx(3.0)
    # Draws of 10 from 40 with 4 failures: 3 or 4 of them, the probabilities that are as small.
    probability = [comb(4, k) * comb(36, 10 - k) / comb(40, 10) for k in range(5)]
    assert few["p"] == pytest.approx(
        sum(c for c in probability if c <= probability[3] * (1 + 1e-9))
    )
    holm = statsmodels.stats.multitest.multipletests([row["p"] for row in rows], method="holm")[1]
    assert [row["p_corrected"] for row in rows] == pytest.approx(holm.tolist())
    json.dumps(rows, allow_nan=False)


def test_p_values_of_shared_groups_are_scipys_exact_test() -> None:
    rng = np.random.default_rng(0)
    table = make_table(rng.normal(size=200))
    masks = [rng.random(200) < proportion for proportion in (0.1, 0.4, 0.8)]
    rows = find_shared(table, [("kind", str(i)) for i in range(3)], masks)
    sizes = (table["predicted_years"] - table["reference_years"]).abs()
    failed = (sizes.rank(ascending=False) <= 20).to_numpy()
    for row in rows:
        mask = masks[int(row["group"])]
        counts = [[(failed & mask).sum(), (~failed & mask).sum()],
                  [(failed & ~mask).sum(), (~failed & ~mask).sum()]]  # fmt: skip
        assert row["p"] == pytest.approx(scipy.stats.fisher_exact(counts).pvalue)


def test_a_group_that_holds_every_failure_has_no_ratio_and_one_that_is_all_no_row() -> None:
    errors = np.zeros(20)
    errors[:2] = 30.0
    names, masks = make_groups(20, first=range(5), others=range(5, 20), all=range(20))
    (row,) = find_shared(make_table(errors), names, masks)
    assert row["group"] == "first"
    assert row["ratio"] is None


@pytest.mark.parametrize("errors", [np.full(40, 3.0), np.zeros(40), 3.0 + 1e-12 * np.arange(40)])
def test_errors_that_are_all_alike_are_no_failures(errors: npt.NDArray[np.float64]) -> None:
    names, masks = make_groups(40, first=range(4), others=range(4, 40))
    assert find_shared(make_table(errors), names, masks) == []


def test_ties_at_the_limit_do_not_depend_on_the_order_of_the_rows() -> None:
    errors = np.array([50.0, 50.0, *[10.0] * 10, *[0.0] * 28])
    names, masks = make_groups(40, first=range(10), others=range(10, 40))
    (row,) = find_shared(make_table(errors), names, masks)
    assert (row["group"], row["n_failed"]) == ("first", 2)


def test_fewer_than_ten_cases_have_no_tenth() -> None:
    errors = np.arange(10.0)
    names, masks = make_groups(10, last=[8, 9], others=range(8))
    (row,) = find_shared(make_table(errors), names, masks)
    assert (row["group"], row["n_failed"]) == ("last", 1)
    names, masks = make_groups(9, last=[8], others=range(8))
    assert find_shared(make_table(errors[:9]), names, masks) == []
