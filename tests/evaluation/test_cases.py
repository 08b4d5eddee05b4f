import warnings
from typing import Any

import numpy as np
import pandas as pd
import pingouin
import pytest
import scipy.stats
import sklearn.metrics

from boneage.evaluation.cases import Cases, GroupFigures, to_months
from boneage.stages import STAGES

SEEDS = range(4)


def ages(seed: int, n: int = 43) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.uniform(5.0, 220.0, n).round(1)
    return truth, (0.9 * truth + 8 + rng.normal(0.0, 9.0, n)).round(1)


def make_cases(reference: Any, predicted: Any) -> Cases:
    """Cases of ages in months."""
    columns = {"reference_years": reference, "predicted_years": predicted}
    table = pd.DataFrame({name: np.asarray(v, float) / 12.0 for name, v in columns.items()})
    return Cases.of(table)


def figures(reference: Any, predicted: Any) -> dict[str, float]:
    """Figures of ages in months, in months."""
    cases = make_cases(reference, predicted)
    found = to_months(GroupFigures(cases, [cases.everyone], 0).of(0))
    return {
        name: np.nan if ends["value"] is None else ends["value"] for name, ends in found.items()
    }


@pytest.mark.parametrize("seed", SEEDS)
def test_errors_are_scikit_learns(seed: int) -> None:
    truth, predicted = ages(seed)
    ours = figures(truth, predicted)
    assert [ours[name] for name in ("mae_months", "rmse_months", "r2")] == pytest.approx([
        sklearn.metrics.mean_absolute_error(truth, predicted),
        sklearn.metrics.root_mean_squared_error(truth, predicted),
        sklearn.metrics.r2_score(truth, predicted),
    ], rel=1e-9)  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("n", [2, 3, 43])
def test_the_intraclass_correlation_is_pingouins(seed: int, n: int) -> None:
    truth, predicted = ages(seed, n)
    long = pd.DataFrame(
        {"case": [*range(n)] * 2, "by": ["r"] * n + ["p"] * n, "age": [*truth, *predicted]}
    )
    if n < 5:  # pingouin wants five cases; the mean squares of a two-way ANOVA are by hand
        table = np.stack([truth, predicted], axis=1)
        cases, raters = (table.mean(axis=i, keepdims=True) - table.mean() for i in (1, 0))
        rest = table - table.mean() - cases - raters
        ms_cases, ms_raters = 2 * (cases**2).sum() / (n - 1), n * (raters**2).sum()
        ms_rest = (rest**2).sum() / (n - 1)
        theirs = (ms_cases - ms_rest) / (ms_cases + ms_rest + 2 * (ms_raters - ms_rest) / n)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = pingouin.intraclass_corr(long, "case", "by", "age").set_index("Type")["ICC"]
        theirs = found.get("ICC2", found.get("ICC(A,1)"))
    assert figures(truth, predicted)["icc"] == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("turn", [1.0, -1.0], ids=["rising", "falling"])
@pytest.mark.parametrize("stretch", [0.2, 1.0, 3.0])
def test_deming_regression_is_the_principal_axis(seed: int, turn: float, stretch: float) -> None:
    truth, predicted = ages(seed)
    predicted = turn * stretch * predicted
    centred = np.stack([truth - truth.mean(), predicted - predicted.mean()], axis=1)
    x, y = np.linalg.svd(centred)[2][0]
    ours = figures(truth, predicted)
    assert ours["deming_slope"] == pytest.approx(y / x, rel=1e-9)
    intercept = predicted.mean() - y / x * truth.mean()
    assert ours["deming_intercept_months"] == pytest.approx(intercept, rel=1e-7)


def test_bland_and_altman_s_limits_are_those_by_hand() -> None:
    ours = figures([100, 110, 120, 130], [101, 113, 119, 137])  # errors 1, 3, -1, 7
    assert ours["signed_error_months"] == pytest.approx(2.5)
    assert ours["sd_months"] == pytest.approx(np.sqrt(35 / 3))
    assert ours["loa_low_months"] == pytest.approx(2.5 - 1.96 * np.sqrt(35 / 3))
    assert ours["loa_high_months"] == pytest.approx(2.5 + 1.96 * np.sqrt(35 / 3))


def test_an_error_of_exactly_the_limit_is_within_it() -> None:
    ours = figures([10.1, 20, 30, 40], [16.1, 32.01, 48, 70])  # 6, 12.01, 18, 30
    within = [ours[f"within_{months}_months"] for months in (6, 12, 18, 24)]
    assert within == [0.25, 0.25, 0.75, 0.75]


def undefined(found: dict[str, float]) -> set[str]:
    return {name for name, value in found.items() if np.isnan(value)}


def test_one_case_has_errors_and_no_spread() -> None:
    found = figures([120.3], [125.4])
    assert found["mae_months"] == pytest.approx(5.1)
    assert undefined(found) == {"r2", "icc", "sd_months", "loa_low_months", "loa_high_months",
                                "deming_slope", "deming_intercept_months"}  # fmt: skip


@pytest.mark.parametrize("n", [3, 7, 1000])
def test_constant_predictions_agree_by_nothing_whatever_their_last_bit(n: int) -> None:
    truth = ages(0, n)[0]
    found = figures(truth, np.full(n, 120.1))
    assert undefined(found) == set()
    assert (found["icc"], found["deming_slope"]) == (0.0, 0.0)
    assert found["deming_intercept_months"] == pytest.approx(120.1)


@pytest.mark.parametrize("n", [3, 7, 1000])
def test_constant_references_leave_r2_and_slope_undefined(n: int) -> None:
    found = figures(np.full(n, 120.1), ages(0, n)[0])
    assert undefined(found) == {"r2", "deming_slope", "deming_intercept_months"}
    assert undefined(figures(np.full(n, 0.1), np.full(n, 0.1))) >= {"r2", "icc", "deming_slope"}


def test_perfect_predictions_are_perfect() -> None:
    truth = ages(0, 1000)[0]
    found = figures(truth, truth)
    assert (found["mae_months"], found["rmse_months"], found["sd_months"]) == (0.0, 0.0, 0.0)
    assert (found["r2"], found["icc"], found["deming_slope"]) == (1.0, 1.0, 1.0)
    assert found["deming_intercept_months"] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("classes", [(0, 1, 2), (0, 1), (2,)])
def test_stages_are_scikit_learns(seed: int, classes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(seed)
    truth, predicted = rng.integers(0, 3, 40), rng.choice(classes, 40)
    names = np.array(STAGES)
    table = pd.DataFrame({"reference_stage": names[truth], "predicted_stage": names[predicted]})
    cases = Cases.of(table)
    ours = cases.figures(cases.columns.sum(axis=0))
    assert ours["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(truth, predicted))
    theirs = sklearn.metrics.precision_recall_fscore_support(
        truth, predicted, average="weighted", zero_division=0
    )
    weighted = ("precision_weighted", "recall_weighted", "f1_weighted")
    assert [float(ours[name]) for name in weighted] == pytest.approx(theirs[:3])
    kappa = sklearn.metrics.cohen_kappa_score(truth, predicted, weights="quadratic")
    assert ours["qwk"] == pytest.approx(kappa)


@pytest.mark.parametrize("name", ["mae_years", "signed_error_years", "icc", "loa_high_years"])
def test_intervals_are_scipys_percentile_bootstrap(name: str) -> None:
    cases = make_cases(*ages(1, 80))
    ours = GroupFigures(cases, [cases.everyone], 9000).of(0)[name]

    def statistic(rows: np.ndarray, axis: int) -> np.ndarray:
        assert axis == -1
        return cases.figures(cases.columns[rows.astype(int)].sum(axis=-2))[name]

    found = scipy.stats.bootstrap(
        (np.arange(80),), statistic, method="percentile", n_resamples=9000, batch=1000,
        rng=np.random.default_rng(5), vectorized=True,
    )  # fmt: skip
    low, high = found.confidence_interval
    assert ours["low"] is not None
    assert ours["high"] is not None
    assert ours["low"] == pytest.approx(low, abs=0.06 * (high - low))
    assert ours["high"] == pytest.approx(high, abs=0.06 * (high - low))


def test_a_group_has_the_figures_of_its_own_cases() -> None:
    reference, predicted = ages(2, 60)
    cases = make_cases(reference, predicted)
    # The cases' own order, by which masks are given.
    order = np.lexsort((predicted, reference))
    first = np.arange(60) < 20
    groups = GroupFigures(cases, [cases.everyone, first, ~first, ~cases.everyone], 50)
    alone = figures(reference[order][first], predicted[order][first])
    found = to_months(groups.of(1))
    assert {name: found[name]["value"] for name in alone} == pytest.approx(alone)
    assert found["median_error_months"]["value"] == pytest.approx(
        np.median(np.abs(predicted - reference)[order][first])
    )
    others = groups.difference(1, None, ["mae_years"])["mae_years"]
    apart = groups.difference(1, 2, ["mae_years"])["mae_years"]
    assert apart == pytest.approx(others)
    values = [groups.of(i)["mae_years"]["value"] or 0.0 for i in (1, 2)]
    assert apart["value"] == pytest.approx(values[0] - values[1])
    assert all(ends["value"] is None for ends in groups.of(3).values())


def test_a_reference_on_either_end_of_its_interval_is_covered() -> None:
    table = pd.DataFrame(
        {"reference_years": [1.0, 2.0, 0.99, 2.01], "predicted_years": 1.5,
         "predicted_low_years": 1.0, "predicted_high_years": 2.0}
    )  # fmt: skip
    cases = Cases.of(table)
    found = GroupFigures(cases, [cases.everyone], 0).of(0)
    assert found["coverage"]["value"] == 0.5
    assert found["interval_width_years"]["value"] == 1.0
