"""The topics of TRIPOD+AI and CLAIM: which of them a report covers, and what it lacks."""

from collections.abc import Callable, Mapping
from typing import Any

from boneage.audit.acquisition import ACQUISITION
from boneage.audit.figures import SMALL_GROUP
from boneage.audit.wording import explain_no_test

Result = Mapping[str, Any]
Verdict = tuple[str | None, str | None]
"""Section of the page that covers a topic, if any does, and what is missing there, if anything."""


def _nowhere(missing: str) -> Callable[[Result], Verdict]:
    """A topic that no report covers."""
    return lambda result: (None, missing)


def _always(section: str, missing: str | None = None) -> Callable[[Result], Verdict]:
    """A topic that every report covers."""
    return lambda result: (section, missing)


def _judge_cases(result: Result) -> Verdict:
    missing = "cases that never came into the table"
    return "cases", f"the reasons, and {missing}" if result["n_unanswered"] else missing


def _judge_uncertainty(result: Result) -> Verdict:
    if result["draws"] == 0:
        return None, "the uncertainty: no bootstrap resamples were asked for (--resamples 0)"
    if result["accuracy"]["mae_months"]["low"] is None:
        return None, "the uncertainty: one case, or errors that are all equal, give no interval"
    return "accuracy", None


def _judge_agreement(result: Result) -> Verdict:
    accuracy = result["accuracy"]
    if accuracy["loa_low_months"]["value"] is None:
        return None, "limits of agreement: one case has none"
    names = {"icc": "the intraclass correlation", "deming_slope": "the Deming line"}
    undefined = [what for name, what in names.items() if accuracy[name]["value"] is None]
    return "agreement", f"{' and '.join(undefined)}: undefined here" if undefined else None


def _judge_probabilities(result: Result) -> Verdict:
    if result["calibration"] is None:
        return None, "the table has no probabilities"
    return "calibration", "stages other than the likeliest stage of each case"


def _judge_intervals(result: Result) -> Verdict:
    if "coverage" not in result["accuracy"]:
        return None, "the table has no intervals"
    return (
        "groups",
        "the nominal coverage: the table does not say what it should be",
    )


def _judge_fairness(result: Result) -> Verdict:
    """Groups of people are the sexes and those of --by; age bands do not count."""
    groups = _find_groups_of_people(result)
    if not groups:
        return None, "cases known to be of both sexes, or other groups of people (--by)"
    has_sexes = any(group["by"] == "sex" for group in groups)
    n_small = sum(group["is_small"] for group in groups)
    missing = [
        "" if has_sexes else "cases known to be of both sexes",
        f"tests of the differences (--resamples {result['draws']})"
        if explain_no_test(result) else "",
        f"enough cases: {n_small} of {len(groups)} groups "
        f"{'has' if n_small == 1 else 'have'} under {SMALL_GROUP} cases" if n_small else "",
        f"groups by {', '.join(result['not_assessable'])}" if result["not_assessable"] else "",
    ]  # fmt: skip
    return "groups", "; ".join(filter(None, missing)) or None


def _find_groups_of_people(result: Result) -> list[Mapping[str, Any]]:
    """Find the groups of people, of kinds that have two groups or more to compare."""
    found = [
        group for group in result["groups"]
        # Acquisition characteristics describe the image, not the person.
        if group["by"] not in ("age", "sex and age", *ACQUISITION)
        and (group["by"], group["group"]) != ("sex", "unknown")
        and group["group"] != "not given"
    ]  # fmt: skip
    kinds = [group["by"] for group in found]
    return [group for group in found if kinds.count(group["by"]) > 1]


def _judge_failures(result: Result) -> Verdict:
    if not result["difficult"] and not result["shared"]:
        return None, "single cases, and what failures have in common"
    if not result["difficult"]:
        return "difficult", "the single cases, which are left out"
    if not result["shared"]:
        return (
            "difficult",
            "what failures have in common: too few cases, or errors that are all equal",
        )
    return "difficult", None


def _judge_comparison(result: Result) -> Verdict:
    if not result["comparison"]:
        return None, "a second table, of another model or reader"
    missing = [
        "intervals of the differences (--resamples 0)" if result["draws"] == 0 else "",
        "correction for the number of comparisons" if len(result["comparison"]) > 1 else "",
    ]
    return "comparison", "; ".join(filter(None, missing)) or None


def _judge_clinical(result: Result) -> Verdict:
    clinical = result["clinical"]
    if not clinical["is_assessable"]:
        return None, clinical["why"]
    missing = "anything but the class delayed, normal or advanced"
    outside = clinical["n_outside_the_tables"]
    if outside:
        missing += f"; {outside} cases outside the reference tables, or without sex or "
        missing += "chronological age"
    return "clinical", missing


def _judge_robustness(result: Result) -> Verdict:
    if not result["robustness"]:
        return None, "predictions for changed images (--images with --stress)"
    return "robustness", None


def _judge_regions(result: Result) -> Verdict:
    if not result["regions"]:
        return None, "regions annotated on the images (--images with --regions)"
    return "regions", None


CHECKLIST: tuple[tuple[str, str, Callable[[Result], Verdict]], ...] = (
    ("TRIPOD+AI, CLAIM", "what the model is for and who would use it",
     _nowhere("a table of predictions does not show it")),
    ("TRIPOD+AI, CLAIM", "where the cases come from, and how they were chosen",
     _nowhere("a table of predictions does not show it")),
    ("TRIPOD+AI", "cases without a prediction, and what was done with them", _judge_cases),
    ("CLAIM", "what the reference standard is, and how good it is",
     _nowhere("who read the images, how and how often; the page only quotes a noise floor from "
              "the literature")),
    ("TRIPOD+AI", "number of cases, overall and in each group", _always("groups")),
    ("TRIPOD+AI, CLAIM", "performance with its uncertainty", _judge_uncertainty),
    ("CLAIM", "comparison with predictions that need no model", _always("accuracy")),
    ("TRIPOD+AI", "agreement and calibration of what is predicted", _judge_agreement),
    ("CLAIM", "calibration of probabilities", _judge_probabilities),
    ("CLAIM", "calibration of intervals", _judge_intervals),
    ("TRIPOD+AI", "performance and fairness in groups of people", _judge_fairness),
    ("TRIPOD+AI", "groups that the data do not show",
     _always("groups", "groups other than by race or ethnicity, scanner or site, diagnosis")),
    ("CLAIM", "analysis of failures", _judge_failures),
    ("CLAIM", "comparison with other models or readers, paired", _judge_comparison),
    ("CLAIM", "what an error means for a patient", _judge_clinical),
    ("CLAIM", "robustness to changes of the image", _judge_robustness),
    ("CLAIM", "where on the image the evidence lies", _judge_regions),
    ("TRIPOD+AI, CLAIM", "how and on what the model was trained",
     _nowhere("a table of predictions does not show it")),
    ("TRIPOD+AI", "model, code and data that others can use",
     _nowhere("a table of predictions does not show it")),
)  # fmt: skip
"""Topics of the reporting guides in our words, and how far a report covers each.

Source: Collins et al., BMJ 2024 (TRIPOD+AI); Tejani et al., Radiology AI 2024 (CLAIM).
"""


def make_checklist(result: Result) -> list[dict[str, str | None]]:
    """Say of each topic of `CHECKLIST` whether this report covers it, and what is missing.

    Args:
        result: Of `audit`.

    Returns:
        A row a topic: `guide`; `topic`; `section` of the page that covers it, None if none
        does; `missing`, what it would take to cover the topic fully, None if nothing.
    """
    rows: list[dict[str, str | None]] = []
    for guide, topic, judge in CHECKLIST:
        section, missing = judge(result)
        rows.append({"guide": guide, "topic": topic, "section": section, "missing": missing})
    return rows
