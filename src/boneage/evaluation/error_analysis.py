"""The cases that go wrong: the worst, the doubtful labels, and what failures share."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from boneage.evaluation.prediction_table import INTERVAL
from boneage.evaluation.statistics import Mask, holm, wilson
from boneage.stages import PROBABILITIES

DIFFICULT = 20
"""Most cases in a list."""

WORST_SHARE = 0.1
"""Largest share of the cases, those with the largest errors, that count as failures."""

LABEL_ERROR_ABOVE = 1.5
"""Error in half-widths of the interval beyond which a label is worth a second look."""

IMPLAUSIBLE_BELOW = 0.02
"""Probability of the reference stage below which a label is worth a second look."""

_COLUMNS = ["image_id", "sex", "reference_months", "predicted_months", "error_months"]
_HALF_WIDTH_SDS = 1.645
"""Half-width of a 90% interval of normal errors, for tables without intervals."""


def find_worst(table: pd.DataFrame) -> list[dict[str, Any]]:
    """List the largest errors, largest first, as plain values."""
    rows = _with_error(table)
    worst = np.argsort(-rows["error_months"].abs().to_numpy(), kind="stable")[:DIFFICULT]
    return _plain_rows(rows.iloc[worst][_COLUMNS])


def find_uncertain(table: pd.DataFrame) -> list[dict[str, Any]]:
    """List the widest intervals, widest first; none without intervals."""
    if not _has_intervals(table):
        return []
    rows = _with_error(table).assign(interval_width_months=2.0 * half_widths(table))
    widest = np.argsort(-rows["interval_width_months"].to_numpy(), kind="stable")[:DIFFICULT]
    return _plain_rows(rows.iloc[widest][[*_COLUMNS, "interval_width_months"]])


def find_potential_label_errors(table: pd.DataFrame) -> list[dict[str, Any]]:
    """List the references that the predictions contradict most: labels to look at again.

    A case is listed if its error passes `LABEL_ERROR_ABOVE` half-widths of its own interval (of
    1.645 SD of all errors, where there are none), or if its reference stage was given a
    probability below `IMPLAUSIBLE_BELOW` (the self-confidence of Northcutt et al., JAIR 2021).
    That is evidence about a label only from a model that has not been trained on it.
    """
    rows = _with_error(table)
    rows["error_in_half_widths"] = rows["error_months"].abs() / half_widths(table)
    is_suspect = rows["error_in_half_widths"] > LABEL_ERROR_ABOVE
    columns = [*_COLUMNS, "error_in_half_widths"]
    if all(name in table for name in PROBABILITIES):
        chances = table[list(PROBABILITIES)].to_numpy(float)
        given = chances[np.arange(len(table)), table["reference_stage"].to_numpy(int)]
        rows["p_of_reference_stage"] = given
        is_suspect |= given < IMPLAUSIBLE_BELOW
        columns.append("p_of_reference_stage")
    found = rows[is_suspect].sort_values("error_in_half_widths", ascending=False, kind="stable")
    return _plain_rows(found[columns].head(DIFFICULT))


def half_widths(table: pd.DataFrame) -> pd.Series:
    """Half-width in months of each case's interval, or of one for all where there are none.

    Without intervals, errors that do not vary say nothing: their half-width is infinite.
    """
    if _has_intervals(table):
        low, high = (table[f"{end}_months"] for end in INTERVAL)
        return ((high - low) / 2.0).clip(lower=1e-6)
    errors = table["predicted_months"] - table["reference_months"]
    sd = float(errors.std()) if len(errors) > 1 else 0.0
    return pd.Series(_HALF_WIDTH_SDS * sd if sd > 1e-6 else math.inf, index=table.index)


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
        n_failed`; `failed`, the share of it that failed, with Wilson's interval; `ratio` to
        that of the other cases (None if none of those failed); `p` of Fisher's exact test, and
        `p_corrected` for the number of groups (Holm). Empty for fewer than ten cases.
    """
    from scipy.stats import fisher_exact

    n = len(table)
    n_failed = int(WORST_SHARE * n)
    if n_failed == 0:
        return []
    sizes = (table["predicted_months"] - table["reference_months"]).abs().to_numpy()
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
    return table.assign(error_months=table["predicted_months"] - table["reference_months"])


def _has_intervals(table: pd.DataFrame) -> bool:
    return all(f"{end}_months" in table for end in INTERVAL)


def _plain_rows(rows: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in rows.to_dict("records")]
