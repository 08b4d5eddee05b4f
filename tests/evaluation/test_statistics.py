import doctest
import itertools
import warnings
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pingouin
import pytest
import scipy.stats
import sklearn.metrics
import statsmodels.stats.contingency_tables
import statsmodels.stats.multitest
import statsmodels.stats.proportion

import boneage.evaluation.statistics
from boneage.evaluation.statistics import (
    age_columns,
    age_figures,
    bootstrap_groups,
    holm,
    mcnemar,
    mcnemar_p_value,
    paired_mean,
    permutation_p_values,
    resample,
    stage_columns,
    stage_figures,
    weighted_median,
    wilcoxon_p_value,
    wilson,
    with_intervals,
)

SEEDS = range(4)


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    """Undefined figures are values here, never warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        yield


def ages(seed: int, n: int = 43) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.uniform(5.0, 220.0, n).round(1)
    return truth, (0.9 * truth + 8 + rng.normal(0.0, 9.0, n)).round(1)


def figures(truth: object, answer: object) -> dict[str, float]:
    sums = age_columns(truth, answer).sum(axis=0)  # type: ignore[arg-type]
    return {name: float(value) for name, value in age_figures(sums).items()}


@pytest.mark.parametrize("seed", SEEDS)
def test_errors_are_scikit_learns(seed: int) -> None:
    truth, answer = ages(seed)
    ours = figures(truth, answer)
    theirs = {
        "mae_months": sklearn.metrics.mean_absolute_error(truth, answer),
        "rmse_months": sklearn.metrics.root_mean_squared_error(truth, answer),
        "r2": sklearn.metrics.r2_score(truth, answer),
    }
    assert {name: ours[name] for name in theirs} == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("n", [2, 3, 43])
def test_the_intraclass_correlation_is_pingouins(seed: int, n: int) -> None:
    truth, answer = ages(seed, n)
    long = pd.DataFrame(
        {"case": [*range(n)] * 2, "by": ["r"] * n + ["p"] * n, "age": [*truth, *answer]}
    )
    if n < 5:  # pingouin wants five cases; the mean squares of a two-way ANOVA are by hand
        table = np.stack([truth, answer], axis=1)
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
    assert figures(truth, answer)["icc"] == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("turn", [1.0, -1.0], ids=["rising", "falling"])
@pytest.mark.parametrize("stretch", [0.2, 1.0, 3.0])
def test_deming_regression_is_the_principal_axis(seed: int, turn: float, stretch: float) -> None:
    truth, answer = ages(seed)
    answer = turn * stretch * answer
    centred = np.stack([truth - truth.mean(), answer - answer.mean()], axis=1)
    x, y = np.linalg.svd(centred)[2][0]
    ours = figures(truth, answer)
    assert ours["deming_slope"] == pytest.approx(y / x, rel=1e-9)
    intercept = answer.mean() - y / x * truth.mean()
    assert ours["deming_intercept_months"] == pytest.approx(intercept, rel=1e-7)


def test_bland_and_altman_s_limits_are_those_by_hand() -> None:
    ours = figures([100, 110, 120, 130], [101, 113, 119, 137])  # errors 1, 3, -1, 7
    assert ours["bias_months"] == 2.5
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


def test_no_case_has_no_figure() -> None:
    found = age_figures(np.zeros(age_columns([1.0], [1.0]).shape[1]))
    assert all(np.isnan(value) for value in found.values())
    assert all(np.isnan(value) for value in stage_figures(np.zeros(9)).values())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("answers", [(0, 1, 2), (0, 1), (2,)])
def test_stages_are_scikit_learns(seed: int, answers: tuple[int, ...]) -> None:
    rng = np.random.default_rng(seed)
    truth, answer = rng.integers(0, 3, 40), rng.choice(answers, 40)
    ours = stage_figures(stage_columns(truth, answer).sum(axis=0))
    assert ours["accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(truth, answer))
    theirs = sklearn.metrics.precision_recall_fscore_support(
        truth, answer, average="weighted", zero_division=0
    )
    names = ("precision_weighted", "recall_weighted", "f1_weighted")
    assert [float(ours[name]) for name in names] == pytest.approx(theirs[:3])
    kappa = sklearn.metrics.cohen_kappa_score(truth, answer, weights="quadratic")
    assert ours["qwk"] == pytest.approx(kappa)


def test_resampling_draws_as_many_cases_as_there_are_and_the_same_each_time() -> None:
    weights = np.concatenate([*resample(17, 250, seed=3)])
    assert weights.shape == (250, 17)
    assert (weights.sum(axis=1) == 17).all()
    assert weights.var() == pytest.approx(1 - 1 / 17, rel=0.1)  # a multinomial's
    np.testing.assert_array_equal(weights, np.concatenate([*resample(17, 250, seed=3)]))
    assert not np.array_equal(weights, np.concatenate([*resample(17, 250, seed=4)]))
    assert [*resample(17, 0)] == []


@pytest.mark.parametrize("name", ["mae_months", "bias_months", "icc", "loa_high_months"])
def test_intervals_are_scipys_percentile_bootstrap(name: str) -> None:
    truth, answer = ages(1, 80)
    columns = age_columns(truth, answer)
    weights = np.concatenate([*resample(80, 9000)])
    ours = with_intervals(age_figures(columns.sum(axis=0)), age_figures(weights @ columns))[name]

    def statistic(rows: np.ndarray, axis: int) -> np.ndarray:
        assert axis == -1
        return age_figures(columns[rows.astype(int)].sum(axis=-2))[name]

    found = scipy.stats.bootstrap(
        (np.arange(80),), statistic, method="percentile", n_resamples=9000, batch=1000,
        rng=np.random.default_rng(5), vectorized=True,
    )  # fmt: skip
    low, high = found.confidence_interval
    assert ours["low"] is not None
    assert ours["high"] is not None
    assert ours["low"] == pytest.approx(low, abs=0.06 * (high - low))
    assert ours["high"] == pytest.approx(high, abs=0.06 * (high - low))


def test_an_undefined_figure_and_draws_that_are_all_the_same_have_no_interval() -> None:
    nan = np.array(np.nan)
    resamples = {"a": np.array([1.0, 2.0]), "b": np.full(9, 0.1), "c": np.array([np.nan, 1, 1, 3])}
    found = with_intervals({"a": nan, "b": np.array(0.1), "c": np.array(1.0)}, resamples, level=1.0)
    assert found["a"] == {"value": None, "low": None, "high": None}
    assert found["b"] == {"value": 0.1, "low": None, "high": None}
    assert found["c"] == {"value": 1.0, "low": 1.0, "high": 3.0}


@pytest.mark.parametrize("seed", SEEDS)
def test_the_weighted_median_is_numpys_of_repeated_values(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values, weights = rng.normal(size=11), rng.integers(0, 4, (50, 11))
    expected = [np.median(np.repeat(values, row)) for row in weights]
    np.testing.assert_allclose(weighted_median(values, weights.astype(np.float32)), expected)


def test_the_median_of_nothing_is_undefined() -> None:
    assert np.isnan(weighted_median(np.array([1.0, 2.0]), np.zeros((1, 2)))).all()


@pytest.mark.parametrize("shift", [0.0, 0.7, -1.5])
def test_permutation_p_values_are_scipys(shift: float) -> None:
    rng = np.random.default_rng(2)
    values = rng.exponential(size=60)
    inside = np.arange(60) < 22
    values[inside] += shift
    (ours,) = permutation_p_values(values, [inside], 4000)
    theirs = scipy.stats.permutation_test(
        (values[inside], values[~inside]), lambda a, b: abs(a.mean() - b.mean()),
        alternative="greater", n_resamples=4000, rng=np.random.default_rng(9),
    ).pvalue  # fmt: skip
    assert ours == pytest.approx(theirs, abs=0.03)


@pytest.mark.parametrize("shift", [0.0, 0.7, -1.5])
def test_studentised_permutation_p_values_are_scipys_of_welchs_t(shift: float) -> None:
    rng = np.random.default_rng(2)
    inside = np.arange(60) < 22
    values = rng.normal(np.where(inside, shift, 0.0), np.where(inside, 2.0, 1.0))
    (ours,) = permutation_p_values(values, [inside], 4000, studentised=True)

    def welch(a: np.ndarray, b: np.ndarray) -> float:
        return abs(float(scipy.stats.ttest_ind(a, b, equal_var=False).statistic))

    theirs = scipy.stats.permutation_test(
        (values[inside], values[~inside]), welch, vectorized=False,
        alternative="greater", n_resamples=2000, rng=np.random.default_rng(9),
    ).pvalue  # fmt: skip
    assert ours == pytest.approx(theirs, abs=0.03)


@pytest.mark.parametrize("studentised", [True, False])
def test_only_the_studentised_test_holds_its_level_for_a_small_group_that_spreads_more(
    studentised: bool,
) -> None:
    inside = np.arange(300) < 15
    found = []
    for seed in range(200):
        values = np.random.default_rng(seed).normal(0.0, np.where(inside, 14.0, 6.0))
        found += permutation_p_values(values, [inside], 199, seed, studentised=studentised)
    false_alarms = np.mean(np.array(found) < 0.05)
    if studentised:
        assert false_alarms < 0.11
    else:  # what the plain difference of means would make of it
        assert false_alarms > 0.2


@pytest.mark.parametrize("shift", [1e-3, 10.0, 1e4])
def test_the_studentised_test_has_no_unit_and_no_origin(shift: float) -> None:
    rng = np.random.default_rng(4)
    values = rng.normal(size=80) + 0.4 * (np.arange(80) < 30)
    groups = [np.arange(80) < 30, np.arange(80) == 7, np.arange(80) % 2 == 0]
    plain = permutation_p_values(values, groups, 300, studentised=True)
    moved = permutation_p_values(shift * values + 100 * shift, groups, 300, studentised=True)
    assert moved == plain
    assert all(0.0 < p <= 1.0 for p in plain)


def test_groups_apart_without_any_spread_differ_in_the_studentised_test() -> None:
    inside = np.arange(6) < 3
    values = np.where(inside, 10.0, -9.2)
    (ours,) = permutation_p_values(values, [inside], 20_000, studentised=True)
    assert ours == pytest.approx(0.1, abs=0.01)  # the same three, or the other three, of twenty


def test_the_permutation_p_value_of_few_cases_is_the_exact_share_whatever_their_last_bit() -> None:
    inside = np.arange(6) < 3
    (ours,) = permutation_p_values(np.array([1.3, 1.1, 1.2, 0.1, 0.2, 0.3]), [inside], 20_000)
    assert ours == pytest.approx(0.1, abs=0.01)  # the largest or smallest three, of twenty choices


@pytest.mark.parametrize("studentised", [True, False])
def test_equal_errors_differ_in_no_group_whatever_their_last_bit(studentised: bool) -> None:
    groups = [np.arange(3000) % k == 0 for k in range(2, 12)]
    same = np.full(3000, 8.1)
    rounded = (np.arange(3000) / 7 + 8.1) - np.arange(3000) / 7
    for values in (same, rounded):
        assert permutation_p_values(values, groups, 5, studentised=studentised) == [1.0] * 10


def test_groups_of_none_or_all_have_no_p_value_and_no_shuffles_give_none() -> None:
    size = np.arange(4.0)
    groups = [np.zeros(4, bool), np.ones(4, bool), size > 1]
    for studentised in (True, False):
        found = permutation_p_values(size, groups, 10, studentised=studentised)
        assert np.isnan(found).tolist() == [True, True, False]
        assert np.isnan(permutation_p_values(size, groups, 0, studentised=studentised)).all()


def test_the_bootstrap_of_groups_sums_each_groups_own_cases() -> None:
    cases = np.stack([np.ones(30), np.arange(30.0)], axis=1)
    masks = [np.ones(30, bool), np.arange(30) < 10]
    sums, drawn, medians = bootstrap_groups(cases, masks, 150, np.arange(30.0))
    assert sums.tolist() == [[30, 435], [10, 45]]
    assert (drawn.shape, medians.shape) == ((2, 150, 2), (2, 150))
    weights = np.concatenate([*resample(30, 150)])
    np.testing.assert_allclose(drawn[1], weights[:, :10] @ cases[:10])
    np.testing.assert_array_equal(medians[0], weighted_median(np.arange(30.0), weights))


@pytest.mark.parametrize("seed", SEEDS)
def test_holms_correction_is_statsmodels(seed: int) -> None:
    p_values = np.random.default_rng(seed).beta(0.3, 2.0, 12)
    theirs = statsmodels.stats.multitest.multipletests(p_values, method="holm")[1]
    assert holm(p_values.tolist()) == pytest.approx(theirs.tolist())


def test_an_unknown_p_value_stays_so_and_does_not_count() -> None:
    found = holm([float("nan"), 0.02, 0.9])
    assert np.isnan(found[0])
    assert found[1:] == [0.04, 0.9]


@pytest.mark.parametrize("counts", [(0, 0), (0, 1), (3, 3), (2, 11), (11, 2), (40, 61)])
def test_mcnemars_test_is_statsmodels(counts: tuple[int, int]) -> None:
    table = [[7, counts[0]], [counts[1], 9]]
    theirs = statsmodels.stats.contingency_tables.mcnemar(table, exact=True).pvalue
    assert mcnemar_p_value(*counts) == pytest.approx(theirs)


@pytest.mark.parametrize("seed", SEEDS)
def test_two_that_answered_the_same_cases_are_compared_as_statsmodels_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = rng.random(60) < 0.8, rng.random(60) < 0.6
    table = [[(a & b).sum() for b in (second, ~second)] for a in (first, ~first)]
    found = mcnemar(first, second)
    assert (found["only_first_right"], found["only_second_right"]) == (table[0][1], table[1][0])
    theirs = statsmodels.stats.contingency_tables.mcnemar(table, exact=True).pvalue
    assert found["mcnemar_p"] == pytest.approx(theirs)
    assert mcnemar(first, first)["mcnemar_p"] == 1.0


@pytest.mark.parametrize("seed", SEEDS)
def test_the_signed_rank_test_is_the_share_of_all_signs(seed: int) -> None:
    difference = np.random.default_rng(seed).normal(0.6, 1.0, 9)
    ranks = scipy.stats.rankdata(np.abs(difference))
    middle = ranks.sum() / 2
    signs = np.array([*itertools.product([0, 1], repeat=9)])
    apart = np.abs(signs @ ranks - middle)
    expected = (apart >= abs(ranks[difference > 0].sum() - middle)).mean()
    assert wilcoxon_p_value(difference) == pytest.approx(expected)
    assert wilcoxon_p_value(difference) == scipy.stats.wilcoxon(difference).pvalue


def test_movements_that_are_rounding_are_none() -> None:
    difference = np.array([0.9, -0.4, 0.7, 1.4])
    rounding = np.array([1e-5, -1e-9, 0.0])
    padded = np.concatenate([difference, rounding])
    assert wilcoxon_p_value(padded, 1e-3) == wilcoxon_p_value(difference) < 1.0
    assert wilcoxon_p_value(rounding, 1e-3) == 1.0
    assert wilcoxon_p_value(1e-6 * difference) == wilcoxon_p_value(difference)
    assert wilcoxon_p_value(np.empty(0)) == wilcoxon_p_value(np.array([3.0])) == 1.0


def test_the_interval_of_a_paired_mean_is_scipys_percentile_bootstrap() -> None:
    difference = np.random.default_rng(3).exponential(2.0, 70)
    found = paired_mean(difference, 9000)
    low, high = scipy.stats.bootstrap(
        (difference,), np.mean, method="percentile", rng=np.random.default_rng(8)
    ).confidence_interval
    assert found["value"] == pytest.approx(difference.mean())
    assert found["low"] == pytest.approx(low, abs=0.04 * (high - low))
    assert found["high"] == pytest.approx(high, abs=0.04 * (high - low))


def test_a_paired_mean_of_no_case_or_one_or_without_draws_has_no_interval() -> None:
    nothing = {"value": None, "low": None, "high": None}
    assert paired_mean(np.empty(0), 9) == paired_mean(np.empty(0), 0) == nothing
    assert paired_mean(np.array([2.5]), 9) == nothing | {"value": 2.5}
    assert paired_mean(np.array([2.0, 3.0]), 0) == nothing | {"value": 2.5}


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 30), (30, 30), (3, 17), (900, 1667)])
def test_wilsons_interval_is_statsmodels(k: int, n: int) -> None:
    found = wilson(k, n)
    low, high = statsmodels.stats.proportion.proportion_confint(k, n, method="wilson")
    assert found == pytest.approx({"value": k / n, "low": low, "high": high}, abs=1e-7)
    assert 0.0 <= float(found["low"] or 0) <= float(found["high"] or 0) <= 1.0


def test_a_share_of_nothing_is_undefined() -> None:
    assert wilson(0, 0) == {"value": None, "low": None, "high": None}


def test_the_examples_in_the_docstrings_hold() -> None:
    found = doctest.testmod(boneage.evaluation.statistics)
    assert found.attempted > 1
    assert found.failed == 0
