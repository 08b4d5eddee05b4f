import itertools

import numpy as np
import pytest
import scipy.stats
import statsmodels.stats.contingency_tables
import statsmodels.stats.multitest
import statsmodels.stats.proportion

from boneage.evaluation.statistics import (
    holm,
    mcnemar,
    mcnemar_p_value,
    permutation_p_values,
    wilcoxon_p_value,
    wilson,
)

SEEDS = range(4)


@pytest.mark.parametrize("shift", [0.0, 0.7, -1.5])
def test_permutation_p_values_are_scipys(shift: float) -> None:
    rng = np.random.default_rng(2)
    values = rng.exponential(size=60)
    inside = np.arange(60) < 22
    values[inside] += shift
    (ours,) = permutation_p_values(values, [inside], 4000, 0)
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
    (ours,) = permutation_p_values(values, [inside], 4000, 0, studentised=True)

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
    plain = permutation_p_values(values, groups, 300, 0, studentised=True)
    moved = permutation_p_values(shift * values + 100 * shift, groups, 300, 0, studentised=True)
    assert moved == plain
    assert all(0.0 < p <= 1.0 for p in plain)


def test_groups_apart_without_any_spread_differ_in_the_studentised_test() -> None:
    inside = np.arange(6) < 3
    values = np.where(inside, 10.0, -9.2)
    (ours,) = permutation_p_values(values, [inside], 20_000, 0, studentised=True)
    assert ours == pytest.approx(0.1, abs=0.01)  # the same three, or the other three, of twenty


def test_the_permutation_p_value_of_few_cases_is_exact_whatever_their_last_bit() -> None:
    inside = np.arange(6) < 3
    (ours,) = permutation_p_values(np.array([1.3, 1.1, 1.2, 0.1, 0.2, 0.3]), [inside], 20_000, 0)
    assert ours == pytest.approx(0.1, abs=0.01)  # the largest or smallest three, of twenty choices


@pytest.mark.parametrize("studentised", [True, False])
def test_equal_errors_differ_in_no_group_whatever_their_last_bit(studentised: bool) -> None:
    groups = [np.arange(3000) % k == 0 for k in range(2, 12)]
    same = np.full(3000, 8.1)
    rounded = (np.arange(3000) / 7 + 8.1) - np.arange(3000) / 7
    for values in (same, rounded):
        assert permutation_p_values(values, groups, 5, 0, studentised=studentised) == [1.0] * 10


def test_groups_of_none_or_all_have_no_p_value_and_no_shuffles_give_none() -> None:
    size = np.arange(4.0)
    groups = [np.zeros(4, bool), np.ones(4, bool), size > 1]
    for studentised in (True, False):
        found = permutation_p_values(size, groups, 10, 0, studentised=studentised)
        assert np.isnan(found).tolist() == [True, True, False]
        assert np.isnan(permutation_p_values(size, groups, 0, 0, studentised=studentised)).all()


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
def test_two_predictions_of_the_same_cases_are_compared_as_statsmodels_does(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = rng.random(60) < 0.8, rng.random(60) < 0.6
    table = [[(a & b).sum() for b in (second, ~second)] for a in (first, ~first)]
    found = mcnemar(first, second)
    assert (found["only_first_right"], found["only_second_right"]) == (table[0][1], table[1][0])
    theirs = statsmodels.stats.contingency_tables.mcnemar(table, exact=True).pvalue
    assert found["mcnemar_p"] == pytest.approx(theirs)
    assert mcnemar(first, first)["mcnemar_p"] == 1.0


@pytest.mark.parametrize("seed", SEEDS)
def test_the_signed_rank_test_is_the_proportion_of_all_signs(seed: int) -> None:
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


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 30), (30, 30), (3, 17), (900, 1667)])
def test_wilsons_interval_is_statsmodels(k: int, n: int) -> None:
    found = wilson(k, n)
    low, high = statsmodels.stats.proportion.proportion_confint(k, n, method="wilson")
    assert found == pytest.approx({"value": k / n, "low": low, "high": high}, abs=1e-7)
    assert 0.0 <= float(found["low"] or 0) <= float(found["high"] or 0) <= 1.0


def test_a_proportion_of_nothing_is_undefined() -> None:
    assert wilson(0, 0) == {"value": None, "low": None, "high": None}
