"""Answers to changed images -> what each change costs."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from boneage.audit.stress import CLEAN
from boneage.clinical.growth import classify_both
from boneage.errors import BoneAgeError
from boneage.evaluation.statistics import holm, mcnemar, paired_mean, wilcoxon_p_value, wilson
from boneage.stages import STAGES, stage_from_years

_ROUNDING_MONTHS = 1e-3  # smaller movements are the arithmetic's, not the image's


def summarise_stress(
    table: pd.DataFrame,
    *,
    resamples: int,
    chronological_months: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Compare each stress with the clean answers to the same images.

    Args:
        table: Of `stress_images`.
        resamples: Bootstrap resamples of the intervals; 0 leaves them out.
        chronological_months: By image id, for the share of clinically significant errors.

    Returns:
        One row a stress, in order: `family, level, n, n_unanswered`; `mae_months`,
        `mae_change_months` (paired) and `moved_months` (mean size of the answer's movement) with
        intervals; `wilcoxon_p` of the sizes of the errors and `p_corrected` (Holm over all
        stresses); `stage_changed`, the share of images whose stage becomes another, and
        `mcnemar_p` of its being right; `warned`, the share of answers with a warning; `clinical`,
        the share whose class the error changes, clean and stressed, with its `mcnemar_p`, or None.

    Raises:
        BoneAgeError: If no image was answered.
    """
    clean = table[table["family"] == CLEAN]
    if clean["predicted_months"].isna().all():
        raise BoneAgeError("the model answered none of the images; there is nothing to stress.")
    rows = []
    for (family, level), stressed in table.groupby(["family", "level"], sort=False):
        if family == CLEAN:
            continue
        both = clean.merge(stressed, on="path", suffixes=("", "_stressed"))
        is_answered = both["predicted_months"].notna() & both["predicted_months_stressed"].notna()
        rows.append(
            {
                "family": family,
                "level": level,
                "n": int(is_answered.sum()),
                "n_unanswered": int((~is_answered).sum()),
                **_compare(both[is_answered], resamples, chronological_months or {}),
            }
        )
    corrected = holm([row["wilcoxon_p"] for row in rows])
    return [{**row, "p_corrected": p} for row, p in zip(rows, corrected, strict=True)]


def _compare(
    both: pd.DataFrame, resamples: int, chronological_months: Mapping[str, float]
) -> dict[str, Any]:
    reference = both["reference_months"]
    answers = [both["predicted_months"], both["predicted_months_stressed"]]
    sizes = [(answer - reference).abs().to_numpy(float) for answer in answers]
    moved = (answers[1] - answers[0]).abs().to_numpy(float)
    stages = [both["predicted_stage"].to_numpy(), both["predicted_stage_stressed"].to_numpy()]
    truth = np.array(STAGES)[stage_from_years(reference.to_numpy(float) / 12.0)]
    return {
        "mae_months": paired_mean(sizes[1], resamples),
        "mae_change_months": paired_mean(sizes[1] - sizes[0], resamples),
        "moved_months": paired_mean(moved, resamples),
        "wilcoxon_p": wilcoxon_p_value(sizes[1] - sizes[0], _ROUNDING_MONTHS),
        "stage_changed": wilson(int((stages[0] != stages[1]).sum()), len(both)),
        "mcnemar_p": mcnemar(stages[0] == truth, stages[1] == truth)["mcnemar_p"],
        "warned": wilson(int((both["status_stressed"] == "warn").sum()), len(both)),
        "clinical": _compare_classes(both, chronological_months),
    }


def _compare_classes(
    both: pd.DataFrame, chronological_months: Mapping[str, float]
) -> dict[str, Any] | None:
    ages = both["image_id"].map(chronological_months).astype(float)
    changed = []
    for suffix in ("", "_stressed"):
        cases = both[["sex", "reference_months"]].assign(
            predicted_months=both[f"predicted_months{suffix}"], chronological_months=ages
        )
        reader, model = classify_both(cases) or (np.empty(0, str), np.empty(0, str))
        known = reader != ""
        changed.append((reader != model)[known])
    n = len(changed[0])
    if n == 0:
        return None
    return {
        "n": n,
        "clean": wilson(int(changed[0].sum()), n),
        "stressed": wilson(int(changed[1].sum()), n),
        "mcnemar_p": mcnemar(~changed[0], ~changed[1])["mcnemar_p"],
    }
