"""The cases that go wrong: the largest errors, potential label errors, and what failures share.

Every table here is a checked prediction table, ages in years. Lists for JSON give them in months.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from boneage.evaluation.bootstrap import Mask
from boneage.evaluation.prediction_table import INTERVAL, has_intervals, has_probabilities
from boneage.evaluation.statistics import holm, wilson
from boneage.stages import PROBABILITIES, STAGES

LONGEST_LIST = 20
"""Most cases in a list."""

WORST_PROPORTION = 0.1
"""Largest proportion of the cases, those with the largest errors, that count as failures."""

LABEL_ERROR_ABOVE = 1.5
"""Error in half-widths of the interval beyond which a label is worth a second look."""

IMPLAUSIBLE_BELOW = 0.02
"""Probability of the reference stage below which a label is worth a second look."""

_COLUMNS = ["image_id", "sex", "reference_years", "predicted_years", "error_years"]
_HALF_WIDTH_SDS = 1.645
"""Half-width of a 90% interval of normal errors, for tables without intervals."""


def find_worst(table: pd.DataFrame, n: int = LONGEST_LIST) -> pd.DataFrame:
    """Give the n largest errors, largest first, with `error_years`."""
    rows = _with_error(table)
    return rows.iloc[np.argsort(-rows["error_years"].abs().to_numpy(), kind="stable")[:n]]


def list_worst(table: pd.DataFrame) -> list[dict[str, Any]]:
    """List the largest errors, largest first, in months."""
    return _in_months(find_worst(table)[_COLUMNS])


def list_uncertain(table: pd.DataFrame) -> list[dict[str, Any]]:
    """List the widest intervals, widest first, in months; none without intervals."""
    if not has_intervals(table):
        return []
    rows = _with_error(table).assign(interval_width_years=2.0 * half_widths(table))
    widest = np.argsort(-rows["interval_width_years"].to_numpy(), kind="stable")[:LONGEST_LIST]
    return _in_months(rows.iloc[widest][[*_COLUMNS, "interval_width_years"]])


def list_potential_label_errors(table: pd.DataFrame) -> list[dict[str, Any]]:
    """List the references that the predictions contradict most: labels to look at again.

    A case is listed if its error passes `LABEL_ERROR_ABOVE` half-widths of its own interval (of
    1.645 SD of all errors, where there are none), or if its reference stage was given a
    probability below `IMPLAUSIBLE_BELOW` (the self-confidence of Northcutt et al., JAIR 2021).
    That is evidence about a label only from a model that has not been trained on it.
    """
    rows = _with_error(table)
    rows["error_in_half_widths"] = rows["error_years"].abs() / half_widths(table)
    is_listed = rows["error_in_half_widths"] > LABEL_ERROR_ABOVE
    columns = [*_COLUMNS, "error_in_half_widths"]
    if has_probabilities(table):
        probabilities = table[list(PROBABILITIES)].to_numpy(float)
        codes = [STAGES.index(stage) for stage in table["reference_stage"]]
        rows["p_of_reference_stage"] = probabilities[np.arange(len(table)), codes]
        is_listed |= rows["p_of_reference_stage"] < IMPLAUSIBLE_BELOW
        columns.append("p_of_reference_stage")
    found = rows[is_listed].sort_values("error_in_half_widths", ascending=False, kind="stable")
    return _in_months(found[columns].head(LONGEST_LIST))


def half_widths(table: pd.DataFrame) -> pd.Series:
    """Half-width in years of each case's interval, or of one for all where there are none.

    Without intervals, errors that do not vary say nothing: their half-width is infinite.
    """
    if has_intervals(table):
        low, high = (table[name] for name in INTERVAL)
        return ((high - low) / 2.0).clip(lower=1e-7)
    errors = table["predicted_years"] - table["reference_years"]
    sd = float(errors.std()) if len(errors) > 1 else 0.0
    return pd.Series(_HALF_WIDTH_SDS * sd if sd > 1e-7 else math.inf, index=table.index)


def find_shared(
    table: pd.DataFrame, names: Sequence[tuple[str, str]], masks: Sequence[Mask]
) -> list[dict[str, Any]]:
    """Tell which groups are overrepresented among the failures.

    Errors as large as the first that no longer counts are no failures either: which of them
    would count is a matter of the rows' order.

    Args:
        table: The cases.
        names: Kind and name of each group.
        masks: Its members.

    Returns:
        The groups with at least one failure, those that fail most often first: `by, group, n,
        n_failed`; `failed`, the proportion of it that failed, with Wilson's interval; `ratio` to
        that of the other cases (None if none of those failed); `p` of Fisher's exact test, and
        `p_corrected` for the number of groups (Holm). Empty for fewer than ten cases.
    """
    from scipy.stats import fisher_exact

    n = len(table)
    n_failed = int(WORST_PROPORTION * n)
    if n_failed == 0:
        return []
    sizes = (table["predicted_years"] - table["reference_years"]).abs().to_numpy()
    failed = sizes > np.sort(sizes)[n - n_failed - 1] + 1e-9  # more than sums round
    rows: list[dict[str, Any]] = []
    for (by, group), mask in zip(names, masks, strict=True):
        inside, outside = int((failed & mask).sum()), int((failed & ~mask).sum())
        members, others = int(mask.sum()), int((~mask).sum())
        if inside == 0 or others == 0:
            continue
        counts = [[inside, members - inside], [outside, others - outside]]
        rows.append(
            {
                "by": by,
                "group": group,
                "n": members,
                "n_failed": inside,
                "failed": wilson(inside, members),
                "ratio": None if outside == 0 else (inside / members) / (outside / others),
                "p": float(fisher_exact(counts).pvalue),
            }
        )
    corrected = holm([row["p"] for row in rows])
    rows = [{**row, "p_corrected": p} for row, p in zip(rows, corrected, strict=True)]
    return sorted(rows, key=lambda row: row["failed"]["value"], reverse=True)


def _with_error(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(error_years=table["predicted_years"] - table["reference_years"])


def _in_months(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Give rows as plain values, those in years in months under names that say so."""
    renamed = {
        str(name).replace("_years", "_months"): 12.0 * rows[name]
        if str(name).endswith("_years")
        else rows[name]
        for name in rows
    }
    return [
        {str(name): value for name, value in row.items()}
        for row in pd.DataFrame(renamed).to_dict("records")
    ]
