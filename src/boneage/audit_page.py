"""An audit -> one self-contained HTML page, its JSON and its tables as CSV."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from boneage.audit import flatten
from boneage.audit_pictures import (
    describe_agreement,
    describe_regions,
    describe_robustness,
    describe_skill,
    format_figure,
    format_months,
    format_p,
    name_stress,
    plot_agreement,
    plot_groups,
    plot_regions,
    plot_reliability,
    plot_robustness,
    plot_skill,
)
from boneage.files import save_text
from boneage.gallery import Case

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

CHECKLIST = (
    ("TRIPOD+AI, CLAIM", "what the model is for and who would use it", None),
    ("TRIPOD+AI, CLAIM", "where the cases come from, and how they were chosen", None),
    ("TRIPOD+AI", "cases without an answer, and what was done with them", "cases"),
    ("CLAIM", "what the reference standard is, and how good it is", "accuracy"),
    ("TRIPOD+AI", "number of cases, overall and in each group", "groups"),
    ("TRIPOD+AI, CLAIM", "performance with its uncertainty", "accuracy"),
    ("CLAIM", "comparison with answers that need no model", "accuracy"),
    ("TRIPOD+AI", "agreement and calibration of what is predicted", "agreement"),
    ("CLAIM", "calibration of probabilities and intervals", "calibration"),
    ("TRIPOD+AI", "performance and fairness in groups of people", "groups"),
    ("TRIPOD+AI", "groups that the data do not show", "groups"),
    ("CLAIM", "analysis of failures", "difficult"),
    ("CLAIM", "comparison with other models or readers, paired", "comparison"),
    ("CLAIM", "what an error means for a patient", "clinical"),
    ("CLAIM", "robustness to changes of the image", "robustness"),
    ("CLAIM", "where on the image the evidence lies", "regions"),
    ("TRIPOD+AI, CLAIM", "how and on what the model was trained", None),
    ("TRIPOD+AI", "model, code and data that others can use", None),
)
"""Topics of the reporting guides in our words, and the section that answers them, if any does.

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
        gallery: Films to show among the difficult cases.

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


def make_checklist(result: Mapping[str, Any]) -> list[dict[str, str | None]]:
    """Give each topic of `CHECKLIST` with the section that answers it here, if any does."""
    is_there = {
        **{name: bool(result[name]) for name in ("comparison", "calibration", "robustness",
                                                 "regions")},
        "clinical": result["clinical"]["is_assessable"],
    }  # fmt: skip
    return [
        {
            "guide": guide,
            "topic": topic,
            "section": where if where and is_there.get(where, True) else None,
        }
        for guide, topic, where in CHECKLIST
    ]


def make_page(
    result: Mapping[str, Any],
    table: pd.DataFrame,
    gallery: Sequence[Case] = (),
    gallery_note: str = "",
) -> str:
    """Render the page: no script, no network, pictures inside."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("boneage", "pages"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "figure": format_figure,
        "p": format_p,
        "months": format_months,
        "stress": name_stress,
    }
    pictures = {
        "skill": (plot_skill(result), describe_skill(result)),
        "agreement": (plot_agreement(table, result), describe_agreement(result)),
        "groups": (plot_groups(result), "Mean absolute error of each group with its interval, "
                   "beside that of all cases; the table below holds the same figures."),
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
        pictures={name: {"data": _encode(figure), "alt": alt}
                  for name, (figure, alt) in pictures.items()},
    )  # fmt: skip


def _encode(figure: Figure) -> str:
    """Draw a chart as PNG of 256 colours, a third of the size, in base64."""
    drawn, data = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, dpi=140, format="png", facecolor="white")
    Image.open(drawn).convert("RGB").quantize().save(data, format="PNG", optimize=True)
    return base64.b64encode(data.getvalue()).decode("ascii")
