"""An audit -> one self-contained HTML page, its JSON and its tables as CSV."""

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from boneage.audit.charts import (
    describe_agreement,
    describe_differences,
    describe_groups,
    describe_regions,
    describe_robustness,
    describe_skill,
    explain_no_test,
    format_figure,
    format_months,
    format_p,
    name_differences,
    name_stress,
    plot_agreement,
    plot_groups,
    plot_regions,
    plot_reliability,
    plot_robustness,
    plot_skill,
)
from boneage.audit.figures import SMALL_GROUP
from boneage.audit.gallery import ACQUISITION, Case
from boneage.files import save_text

FIGURES = (
    ("mae_months", "mean absolute error, months", 2),
    ("rmse_months", "root mean squared error, months", 2),
    ("median_error_months", "median absolute error, months", 2),
    ("bias_months", "signed bias (predicted − reference), months", 2),
    ("sd_months", "standard deviation of the errors, months", 2),
    ("loa_low_months", "lower limit of agreement (Bland-Altman), months", 1),
    ("loa_high_months", "upper limit of agreement, months", 1),
    ("within_6_months", "errors within 6 months", -1),
    ("within_12_months", "errors within 12 months", -1),
    ("within_18_months", "errors within 18 months", -1),
    ("within_24_months", "errors within 24 months", -1),
    ("r2", "R²", 3),
    ("icc", "intraclass correlation ICC(2,1)", 3),
    ("deming_slope", "Deming slope", 3),
    ("deming_intercept_months", "Deming intercept, months", 1),
    ("coverage", "coverage of the prediction intervals", -1),
    ("interval_width_months", "mean width of the intervals, months", 1),
    ("accuracy", "stage accuracy", -1),
    ("precision_weighted", "stage precision, weighted", -1),
    ("recall_weighted", "stage recall, weighted", -1),
    ("f1_weighted", "stage F1, weighted", -1),
    ("qwk", "quadratic weighted kappa of the stage", 3),
    ("clinical_change", "class changed: delayed, normal, advanced", -1),
)
"""Name, label and decimals of each figure; -1 is a share, shown in percent."""

Result = Mapping[str, Any]
Answer = tuple[str | None, str | None]
"""Section of the page that answers a topic, if any does, and what is missing there, if anything."""


def _nowhere(missing: str) -> Callable[[Result], Answer]:
    """A topic that no report answers."""
    return lambda result: (None, missing)


def _always(section: str, missing: str | None = None) -> Callable[[Result], Answer]:
    """A topic that every report answers."""
    return lambda result: (section, missing)


def _judge_cases(result: Result) -> Answer:
    missing = "cases that never came into the table"
    return "cases", f"the reasons, and {missing}" if result["n_unanswered"] else missing


def _judge_uncertainty(result: Result) -> Answer:
    if result["draws"] == 0:
        return None, "the uncertainty: no bootstrap resamples were asked for (--resamples 0)"
    if result["accuracy"]["mae_months"]["low"] is None:
        return None, "the uncertainty: one case, or errors all alike, give no interval"
    return "accuracy", None


def _judge_agreement(result: Result) -> Answer:
    accuracy = result["accuracy"]
    if accuracy["loa_low_months"]["value"] is None:
        return None, "limits of agreement: one case has none"
    names = {"icc": "the intraclass correlation", "deming_slope": "the Deming line"}
    undefined = [what for name, what in names.items() if accuracy[name]["value"] is None]
    return "agreement", f"{' and '.join(undefined)}: undefined here" if undefined else None


def _judge_probabilities(result: Result) -> Answer:
    if result["calibration"] is None:
        return None, "the table has no probabilities"
    return "calibration", "stages other than the likeliest stage of each case"


def _judge_intervals(result: Result) -> Answer:
    if "coverage" not in result["accuracy"]:
        return None, "the table has no intervals"
    return "groups", "the nominal coverage: the table does not say what the intervals should hold"


def _judge_fairness(result: Result) -> Answer:
    """Groups of people are the sexes and those of --by; age bands alone are none."""
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
    """Groups of people, of kinds that hold two or more to compare."""
    found = [
        group for group in result["groups"]
        # How an image was taken is not who is on it.
        if group["by"] not in ("age", "sex and age", *ACQUISITION)
        and (group["by"], group["group"]) != ("sex", "unknown")
        and group["group"] != "not given"
    ]  # fmt: skip
    kinds = [group["by"] for group in found]
    return [group for group in found if kinds.count(group["by"]) > 1]


def _judge_failures(result: Result) -> Answer:
    if not result["difficult"] and not result["shared"]:
        return None, "single cases, and what failures have in common"
    if not result["difficult"]:
        return "difficult", "the single cases, which are left out"
    if not result["shared"]:
        return "difficult", "what failures have in common: too few cases, or errors all alike"
    return "difficult", None


def _judge_comparison(result: Result) -> Answer:
    if not result["comparison"]:
        return None, "a second table, of another model or reader"
    missing = [
        "intervals of the differences (--resamples 0)" if result["draws"] == 0 else "",
        "correction for the number of comparisons" if len(result["comparison"]) > 1 else "",
    ]
    return "comparison", "; ".join(filter(None, missing)) or None


def _judge_clinical(result: Result) -> Answer:
    clinical = result["clinical"]
    if not clinical["is_assessable"]:
        return None, clinical["why"]
    missing = "anything but the class delayed, normal or advanced"
    outside = clinical["n_outside_the_tables"]
    if outside:
        missing += f"; {outside} cases outside the reference tables, or without sex or "
        missing += "chronological age"
    return "clinical", missing


def _judge_robustness(result: Result) -> Answer:
    if not result["robustness"]:
        return None, "predictions for changed images (--images with --stress)"
    return "robustness", None


def _judge_regions(result: Result) -> Answer:
    if not result["regions"]:
        return None, "regions drawn on the images (--images with --regions)"
    return "regions", None


CHECKLIST: tuple[tuple[str, str, Callable[[Result], Answer]], ...] = (
    ("TRIPOD+AI, CLAIM", "what the model is for and who would use it",
     _nowhere("a table of predictions does not tell it")),
    ("TRIPOD+AI, CLAIM", "where the cases come from, and how they were chosen",
     _nowhere("a table of predictions does not tell it")),
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
     _nowhere("a table of predictions does not tell it")),
    ("TRIPOD+AI", "model, code and data that others can use",
     _nowhere("a table of predictions does not tell it")),
)  # fmt: skip
"""Topics of the reporting guides in our words, and what tells how far a report answers each.

Source: Collins et al., BMJ 2024 (TRIPOD+AI); Tejani et al., Radiology AI 2024 (CLAIM).
"""


def save_audit(
    out: Path, result: Mapping[str, Any], table: pd.DataFrame, gallery: Sequence[Case] = ()
) -> Path:
    """Write `report.html`, `audit.json`, and each of the tables in them as CSV.

    Args:
        out: Folder; made if missing.
        result: Of `audit`.
        table: The audited cases, for the pictures.
        gallery: Images to show among the difficult cases.

    Returns:
        The page.
    """
    whole = {**result, "checklist": make_checklist(result)}
    save_text(out / "audit.json", json.dumps(whole, indent=1, allow_nan=False) + "\n")
    tables = {
        "accuracy": [{"figure": name, **ends} for name, ends in result["accuracy"].items()],
        "baselines": [{"figure": name, **ends} for name, ends in result["baselines"].items()],
        "stages": _name_cells(result["stages"], "names"),
        "approaches": [result["approaches"]] if result["approaches"] else [],
        "calibration": (result["calibration"] or {}).get("bins", []),
        "clinical": _name_cells(result["clinical"], "classes"),
        "checklist": whole["checklist"],
        "groups": result["groups"],
        "comparison": result["comparison"],
        "robustness": (result["robustness"] or {}).get("stresses", []),
        "regions": (result["regions"] or {}).get("groups", []),
        **{name: result[name] for name in ("difficult", "uncertain", "suspects", "shared")},
    }
    for name, rows in tables.items():
        path = out / f"{name}.csv"
        path.unlink(missing_ok=True)  # of an earlier audit, which this one replaces
        if rows:
            text = pd.DataFrame(map(flatten, rows)).to_csv(index=False, lineterminator="\n")
            save_text(path, text)
    page = out / "report.html"
    save_text(page, make_page(result, table, gallery))
    return page


def _name_cells(result: Mapping[str, Any], names: str) -> list[dict[str, Any]]:
    """Give a confusion matrix, if there is one, a row a reference, a column a prediction."""
    rows = result.get("confusion_matrix", [])
    return [
        {"reference": name, **dict(zip(result[names], row, strict=True))}
        for name, row in zip(result.get(names, []), rows, strict=True)
    ]


def flatten(row: Mapping[str, Any]) -> dict[str, Any]:
    """Give a row of a result as the columns of a CSV.

    A figure becomes `mae_months`, `mae_months_low`, `mae_months_high`; what lies in `figures` is
    named by itself, what lies elsewhere by the way there, as in `difference_mae_months`.

    Example:
        >>> flatten({"n": 3, "clinical": {"clean": {"value": 0.5, "low": None, "high": None}}})
        {'n': 3, 'clinical_clean': 0.5, 'clinical_clean_low': None, 'clinical_clean_high': None}
    """
    columns: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            before = "" if name == "figures" else name
            for inner, held in flatten(value).items():
                columns["_".join(w for w in (before, "" if inner == "value" else inner) if w)] = (
                    held
                )
        else:
            columns[name] = value
    return columns


def make_checklist(result: Result) -> list[dict[str, str | None]]:
    """Tell of each topic of `CHECKLIST` whether this report answers it, and how far.

    Args:
        result: Of `audit`.

    Returns:
        A row a topic: `guide`; `topic`; `section` of the page that answers it, None if none
        does; `missing`, what a full answer would need besides, None if nothing.
    """
    rows: list[dict[str, str | None]] = []
    for guide, topic, judge in CHECKLIST:
        section, missing = judge(result)
        rows.append({"guide": guide, "topic": topic, "section": section, "missing": missing})
    return rows


def make_page(
    result: Mapping[str, Any],
    table: pd.DataFrame,
    gallery: Sequence[Case] = (),
    gallery_note: str = "",
) -> str:
    """Render the page: no script, no network, pictures inside."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("boneage.audit", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "figure": format_figure,
        "p": format_p,
        "months": format_months,
        "stress": name_stress,
        "differences": name_differences,
    }
    pictures = {
        "skill": (plot_skill(result), describe_skill(result)),
        "agreement": (plot_agreement(table, result), describe_agreement(result)),
        "groups": (plot_groups(result), describe_groups(result)),
    }  # fmt: skip
    if result["calibration"] is not None:
        ece = format_figure(result["calibration"]["ece"], 3)
        pictures["calibration"] = (
            plot_reliability(result),
            f"Share of right stages by their probability; expected calibration error {ece}.",
        )
    if result["robustness"] is not None:
        robustness = result["robustness"]
        pictures["robustness"] = (plot_robustness(robustness), describe_robustness(robustness))
    if result["regions"] is not None:
        regions = result["regions"]
        pictures["regions"] = (plot_regions(regions), describe_regions(regions))
    return environment.get_template("audit.html").render(
        result=result,
        gallery=gallery,
        gallery_note=gallery_note,
        figures=[row for row in FIGURES if row[0] in result["accuracy"]],
        checklist=make_checklist(result),
        differences=describe_differences(result),
        pictures={name: {"data": _encode(figure), "alt": alt}
                  for name, (figure, alt) in pictures.items()},
    )  # fmt: skip


def _encode(figure: Figure) -> str:
    """Draw a chart as PNG of 256 colours, a third of the size, in base64."""
    drawn, data = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, dpi=140, format="png", facecolor="white")
    Image.open(drawn).convert("RGB").quantize().save(data, format="PNG", optimize=True)
    return base64.b64encode(data.getvalue()).decode("ascii")
