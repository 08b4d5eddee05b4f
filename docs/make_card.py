"""Write docs/model_card.md from docs/results/boneage.json, so that no figure in it can drift."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
CARD = FOLDER / "model_card.md"
MONTHS = 12.0
HARMFUL_MONTHS, SIGNIFICANT = 0.5, 0.05
LEAST_COVERAGE = 0.85


def make_card() -> str:
    """Give the card's text."""
    results = json.loads((FOLDER / "results" / "boneage.json").read_text(encoding="utf-8"))
    sampling = json.loads((FOLDER / "results" / "sampling.json").read_text(encoding="utf-8"))
    audit = json.loads((FOLDER / "results" / "audit.json").read_text(encoding="utf-8"))
    test = results["test"]
    calibration, ages = results["calibration"], results["training_years"]
    widths = test["intervals"]
    warned = results["warned_sex"]
    counts = results["n_by_split"]
    recipe = results["recipe"]
    n_train = results["provenance"]["n_by_split"]["train"]
    return TEMPLATE.format(
        data=results["data"],
        terms=results["terms"],
        parity=f"{results['parity']['months']:.2g}",
        parity_n=results["parity"]["n"],
        sha=results["provenance"]["graph_sha256"],
        split_sha=results["provenance"]["split_sha256"],
        backbone=recipe["backbone"].removeprefix("timm:"),
        parameters=results["parameters"] / 1e6,
        size=recipe["image_size"],
        zoom=recipe["tta_zoom"],
        epochs=recipe["epochs"],
        n_synthetic=recipe["synthetic_images"],
        n_train=n_train,
        n_held_out=len(recipe["hold_out"]),
        n_not_trained=counts["train"] - n_train,
        n_val=counts["val"],
        n_test=counts["test"],
        n_calibrated=calibration["images"],
        n_calibrated_own=results["calibrated_on"][0]["all"]["n"],
        n_calibrated_left_out=results["calibrated_on"][1]["all"]["n"],
        youngest=MONTHS * ages["min"],
        oldest=MONTHS * ages["max"],
        p1=ages["p1"],
        p99=ages["p99"],
        headline=headline(results),
        raw_threshold=percent(
            *figure(results["test_not_calibrated"], "threshold_accuracy", "approaches")
        ),
        differ=results["age_and_stage_differ"],
        by_sex=by_sex(test),
        by_age=by_age(test),
        intervals=intervals(test),
        coverage=percent(widths["coverage"], widths["coverage_ci"]),
        width=number(widths["mean_width_months"], widths["mean_width_months_ci"]),
        naive=f"{results['naive_width_months']:.1f}",
        narrowest=f"{widths['narrowest_tenth_months']:.1f}",
        widest=f"{widths['widest_tenth_months']:.1f}",
        ece=f"{test['stage_calibration']['ece']:.3f}",
        unknown_mae=number(*figure(results["test_unknown_sex"], "mae_months")),
        unknown_coverage=f"{results['test_unknown_sex']['intervals']['coverage']:.1%}",
        unknown_width=f"{results['test_unknown_sex']['intervals']['mean_width_months']:.1f}",
        wrong_mae=f"{results['test_wrong_sex']['regression']['mae_months']:.1f}",
        warned_right=f"{warned['test']:.1%}",
        warned_wrong=f"{warned['test_wrong_sex']:.1%}",
        adults=adults(test),
        beyond=beyond(test),
        synthetic_mae=f"{results['synthetic']['regression']['mae_months']:.1f}",
        synthetic_n=results["synthetic"]["n"],
        sampled_n=sampling["both"]["n"],
        sets_apart=f"{sampling['both']['two_disjoint_sets_apart']:.1f}",
        singles_apart=f"{sampling['both']['two_single_phases_apart']:.1f}",
        harmful=HARMFUL_MONTHS,
        significant=SIGNIFICANT,
        n_changes=len(audit["robustness"]["stresses"]),
        corrected=corrected(audit),
        changes=changes(audit),
        worse_groups=worse_groups(audit),
        least_coverage=LEAST_COVERAGE,
        biased_groups=biased_groups(audit),
        uncovered=uncovered(audit),
        minus_middle=minus_middle(sampling),
        n_originals=sampling["original"]["n"],
        n_enhanced=sampling["enhanced"]["n"],
    )


def figure(
    report: dict[str, Any], name: str, part: str = "regression"
) -> tuple[float, list[float]]:
    """A figure and its interval."""
    return report[part][name], report[part][f"{name}_ci"]


def number(value: float, interval: list[float], digits: int = 2, sign: str = "") -> str:
    """Format a figure with its interval."""
    low, high = (f"{end:{sign}.{digits}f}" for end in interval)
    return f"{value:{sign}.{digits}f} [{low}, {high}]".replace("-", "−")


def percent(value: float, interval: list[float]) -> str:
    """Format a proportion with its interval."""
    return f"{value:.1%} [{interval[0]:.1%}, {interval[1]:.1%}]"


def minus_middle(sampling: dict[str, Any]) -> str:
    """Mean difference between full-size images and their middle sample, by kind of image."""
    kinds = (
        ("both", "of these images"),
        ("original", "originals alone"),
        ("synthetic", "synthetic images of full size"),
    )
    return ", ".join(
        f"{sampling[kind]['minus_middle']:+.1f} ± {sampling[kind]['minus_middle_se']:.1f} months on "
        f"{sampling[kind]['n']} {name}"
        for kind, name in kinds
    ).replace("-", "−")


def headline(results: dict[str, Any]) -> str:
    """The table of figures: test, and the validation half that recipes were chosen on."""
    reports = (results["test"], results["val_chosen_on"])
    lines = [
        f"| figure | test, n = {reports[0]['n']} | validation half for choices, n = {reports[1]['n']} |",
        "|---|---|---|",
    ]
    rows: list[tuple[str, str, str, bool]] = [
        ("MAE, months", "regression", "mae_months", False),
        ("RMSE, months", "regression", "rmse_months", False),
        ("signed error, months", "regression", "signed_error_months", False),
        ("R²", "regression", "r2", False),
        ("within 6 months", "regression", "within_6_months", True),
        ("within 12 months", "regression", "within_12_months", True),
        ("within 24 months", "regression", "within_24_months", True),
        ("stage accuracy, direct", "approaches", "direct_accuracy", True),
        ("stage accuracy, threshold on the age", "approaches", "threshold_accuracy", True),
        ("precision, weighted", "classification", "precision_weighted", True),
        ("recall, weighted", "classification", "recall_weighted", True),
        ("F1, weighted", "classification", "f1_weighted", True),
        ("quadratic weighted kappa", "classification", "qwk", False),
    ]
    for label, part, name, is_proportion in rows:
        cells = []
        for report in reports:
            value, interval = figure(report, name, part)
            digits = 3 if name in ("r2", "qwk") else 2
            cells.append(
                percent(value, interval) if is_proportion else number(value, interval, digits)
            )
        lines.append(f"| {label} | {' | '.join(cells)} |")
    constant = reports[0]["baseline"]
    lines.append(
        f"| MAE of always predicting the training median | {constant['mae_months']:.2f} | |"
    )
    return "\n".join(lines)


def by_sex(test: dict[str, Any]) -> str:
    """Figures by sex."""
    lines = ["| sex | n | MAE | signed error | stage accuracy |", "|---|---|---|---|---|"]
    for sex in ("male", "female"):
        age = test["gender_bias"]["regression"][sex]
        stage = test["gender_bias"]["classification"][sex]
        lines.append(
            f"| {sex} | {age['n']} | {number(age['mae_months'], age['mae_months_ci'])} | "
            f"{number(age['signed_error_months'], age['signed_error_months_ci'], sign='+')} | "
            f"{percent(stage['accuracy'], stage['accuracy_ci'])} |"
        )
    return "\n".join(lines)


def by_age(test: dict[str, Any]) -> str:
    """Figures by age."""
    lines = ["| reference age | n | MAE | signed error |", "|---|---|---|---|"]
    lines += [
        f"| {row['group']} | {row['n']} | {number(row['mae_months'], row['mae_months_ci'], 1)} | "
        f"{number(row['signed_error_months'], row['signed_error_months_ci'], 1, '+')} |"
        for row in test["by_age"]
    ]
    return "\n".join(lines)


def intervals(test: dict[str, Any]) -> str:
    """Coverage by group."""
    lines = ["| group | n | coverage | mean width, months |", "|---|---|---|---|"]
    for row in test["intervals"]["by_sex_and_stage"]:
        sex = {"M": "male", "F": "female"}[row["sex"]]
        lines.append(f"| {sex}, {row['stage']} | {row['n']} | "
                     f"{percent(row['coverage'], row['coverage_ci'])} | "
                     f"{row['mean_width_months']:.1f} |")  # fmt: skip
    for row in test["intervals"]["by_width"]:
        lines.append(f"| {row['group']} by width | {row['n']} | "
                     f"{percent(row['coverage'], row['coverage_ci'])} | "
                     f"{row['mean_width_months']:.1f} |")  # fmt: skip
    return "\n".join(lines)


def adults(test: dict[str, Any]) -> str:
    """How many adults are found."""
    row = test["classification"]["confusion_matrix"][2]
    return f"{row[2]} of {sum(row)}"


def beyond(test: dict[str, Any]) -> str:
    """How many images are more than two years off."""
    n = round(test["n"] * (1.0 - test["regression"]["within_24_months"]))
    return f"{n} of {test['n']}"


def corrected(audit: dict[str, Any]) -> str:
    """How many rotated and inverted images are detected, and how the MAE changes."""
    ways = [
        (f"rotated by {level}", find_stress(audit, "rotation", level))
        for level in ("90°", "180°", "270°")
    ]
    ways.append(("inverted", find_stress(audit, "inversion", "")))
    return ", ".join(
        f"{name} {stress['warned']['value']:.1%} ({change_of(stress)})" for name, stress in ways
    )


def changes(audit: dict[str, Any]) -> str:
    """Every perturbation that raises the MAE by `HARMFUL_MONTHS` or more, the largest first."""
    costly = [
        stress for stress in audit["robustness"]["stresses"]
        if stress["family"] != "sex" and stress["mae_change_months"]["value"] >= HARMFUL_MONTHS
    ]  # fmt: skip
    costly.sort(key=lambda stress: -stress["mae_change_months"]["value"])
    return ", ".join(
        f"{stress['family']} {stress['level']} {change_of(stress)}" for stress in costly
    )


def find_stress(audit: dict[str, Any], family: str, level: str) -> dict[str, Any]:
    """One perturbation of the audit."""
    return next(
        stress for stress in audit["robustness"]["stresses"]
        if (stress["family"], stress["level"]) == (family, level)
    )  # fmt: skip


def change_of(stress: dict[str, Any]) -> str:
    """Format the change of the MAE under a perturbation."""
    return f"{stress['mae_change_months']['value']:+.1f}".replace("-", "−")


def worse_groups(audit: dict[str, Any]) -> str:
    """Groups with a larger MAE than the other cases, after correction for their number."""
    lines = ["| group | n | MAE | difference from the others | coverage |", "|---|---|---|---|---|"]
    for row in audit["groups"]:
        apart, figures = row["difference"]["mae_months"], row["figures"]
        if apart["value"] is None or apart["value"] <= 0 or row["p_corrected"] >= SIGNIFICANT:
            continue
        lines.append(
            f"| {row['by']}: {row['group']} | {row['n']} | {ends(figures['mae_months'], number)} | "
            f"{ends(apart, number)} | {ends(figures['coverage'], percent)} |"
        )
    return "\n".join(lines)


def biased_groups(audit: dict[str, Any]) -> str:
    """Groups whose signed error differs from that of the other cases, the largest first."""
    found = [row for row in audit["groups"] if (row["bias_p_corrected"] or 0.0) < SIGNIFICANT]
    found.sort(key=lambda row: -abs(row["difference"]["bias_months"]["value"]))
    lines = ["| group | n | difference of the signed error |", "|---|---|---|"]
    lines += [
        f"| {row['by']}: {row['group']} | {row['n']} | "
        f"{ends(row['difference']['bias_months'], signed)} |"
        for row in found
    ]
    return "\n".join(lines)


def signed(value: float, interval: list[float]) -> str:
    """Format a difference with its interval and sign."""
    return number(value, interval, 1, "+")


def uncovered(audit: dict[str, Any]) -> str:
    """Groups of enough images whose intervals hold too few of the references."""
    found = [
        f"{row['by']}: {row['group']} {ends(row['figures']['coverage'], percent)} (n = {row['n']})"
        for row in audit["groups"]
        if not row["is_small"] and row["figures"]["coverage"]["value"] < LEAST_COVERAGE
    ]
    return "; ".join(found) or "none"


def ends(figure: dict[str, Any], write: Callable[[float, list[float]], str]) -> str:
    """Format a figure of the audit with its interval."""
    return write(figure["value"], [figure["low"], figure["high"]])


TEMPLATE = """\
# Model card: what are the weights in the package good for, and what not?

**Research use only. Not a medical device, not cleared by any authority, not for decisions about a
child.**

Generated by `make docs` from [results/boneage.json](results/boneage.json),
[results/sampling.json](results/sampling.json) and [results/audit.json](results/audit.json). Errors in
months; error = prediction − reference; 95% bootstrap intervals (2,000 resamples) in brackets. Terms:
[glossary.md](glossary.md).

## Limits

1. **Trained on 100×100-px images**, reduced by nearest-neighbour sampling without keeping proportions.
   Fine bone detail is lost.
2. **Only what is not a whole hand is rejected.** Images without a hand, with several hands, or with the
   wrist or fingers cut off get no age. Disease, fractures, casts and other views are not recognised.
3. **Predictions regress to the mean.** Young children are predicted some months too old, the oldest too
   young (table [below](#by-sex-and-age)). The model is meant for {p1:.1f} to {p99:.1f} years, where 98% of the
   training images lie.
4. **Adults are not recognised.** {adults} test images of adults are predicted as Adult.
5. **Some groups are predicted worse** than the other test images. These have a larger MAE (p < {significant}
   after Holm's correction for the number of groups):

{worse_groups}

"1 of 3, flattest" is the third of the test images with the lowest contrast. A frame is a border of one grey
value that takes more than a tenth of the image.

6. **The 90% intervals contain fewer than {least_coverage:.0%} of the references** in these groups: {uncovered}.
7. **A wrong sex is rarely noticed.** The MAE is then {wrong_mae}. {warned_wrong} of such images get a warning,
   and {warned_right} of the images with the right sex.
8. **Large errors occur.** The error of {beyond} test images is more than two years.
9. **Some changes of a 100-px image harm.** These raise the MAE by {harmful} or more:
   {changes}.
   Compression and noise of a full-size image harm far less ([results](results.md#robustness)).

## Use

**Intended**: research on skeletal age, teaching, a first reading to compare others with, a starting
point for training on your own images (`boneage train --init boneage`).

**Out of scope**: clinical decisions; age assessment of unaccompanied minors or of anyone whose
chronological age is in question; hands with dysplasia, fracture, cast or metal; any image that does not
show exactly one hand, palm down.

## The model

| | |
|---|---|
| network | {backbone}, {parameters:.1f} million weights, {size} px |
| heads | linear layers, with weights that depend on the sex |
| test-time augmentation | average over the image reduced and magnified by {zoom:.0%}, and the mirror images of both |
| output | age; stage (Child below 12 years, Adolescent from 12 to 18, Adult above) with probabilities; 90% prediction interval; predicted sex; saliency map |
| weights | moving average of the weights after the last of {epochs} epochs |
| file | ONNX, sha256 of the network `{sha}`; its predictions differ from those of the trained network by at most {parity} month on {parity_n} real images |

## Training data and their faults

{data}

| part | images |
|---|---|
| training | {n_train}, and {n_synthetic} synthetic images |
| validation | {n_val} |
| test | {n_test} |
| left out of training to test full-size images | {n_held_out}, of which {n_not_trained} belong to the training part |

The sha256 of the split is `{split_sha}`.

- One clinical reading per image: even a perfect model would have an MAE of 5.6 to 5.8 months against it.
- Digit preference: about 85% of the labels are exactly a plate age of the Greulich-Pyle atlas.
- The training images have ages from {youngest:.0f} to {oldest:.0f} months. Only 21 of all 12,611 RSNA images are
  above 18 years, all of them male, so the stage Adult cannot be learned or tested.
- No race, patient id, chronological age or diagnosis: bias by race cannot be assessed, and images of one
  child may be in two parts of the split.
- The images come from two hospitals in the United States (Halabi et al., Radiology 2019).

## Accuracy

{headline}

"Validation half for choices": the half of the validation images on which recipes were compared. "Direct":
the stage that the stage head predicts.

The references are single readings. Do not compare with figures on the official RSNA test set, whose
reference is the mean of six readers.

Age and stage are given as each head predicts them. On {differ:.1%} of the test images they contradict
each other, and a reason says so. Without calibration, the stage accuracy by thresholds on the age is
{raw_threshold}.

**Did the test images influence the model?** Yes, a little. Two earlier networks of the package had been
measured on them, which led to two changes of the recipe (rotation before enlarging, a stronger sex head).
This network first predicted them with a calibration on {n_calibrated_own} images. Its signed error and coverage
were just beyond their targets, so it was calibrated on more images and predicted them again. For signed
error and coverage the test images are therefore no longer unseen
([experiments](experiments.md#more-images-for-calibration)).

**On which images was it calibrated?** Bias, intervals and probabilities were fitted to {n_calibrated} images: one half of
validation ({n_calibrated_own} images; recipes were compared on the other half) and a quarter of the training part
({n_calibrated_left_out} images). An auxiliary model predicted this quarter; it was trained without it, and with the
validation images instead. The validation images were also used to choose the number of epochs (with an earlier
network) and to compare this network with the one before.

![Predicted against reference age of the test images](images/boneage_scatter.png)
![Confusion matrix of the stages of the test images](images/boneage_confusion.png)

## By sex and age

{by_sex}

{by_age}

Groups whose signed error differs from that of the other test images (p < {significant} after Holm's
correction); each value is that difference:

{biased_groups}

More groups: the [audit](audit_boneage.html).

## The interval

For 90 of 100 images like these, the interval contains the age that one clinical reader reports. It is not a
confidence interval of a true skeletal age. It is a conformal interval. Its width depends on the age, the sex,
how uncertain the stage is, and how little the image looks like the sex entered.

On test the coverage is {coverage} and the mean width {width} months. Intervals of
constant width with the same level would be {naive} months wide. The narrowest tenth of the intervals is
{narrowest} months wide on average, the widest tenth {widest}.

{intervals}

This is not valid for images of another hospital, mix of ages or exposure: refit with `boneage calibrate` on
labelled images of your own. The stage probability differs from the proportion of right predictions by {ece}
on average (expected calibration error).

![Stage probabilities against the proportion of right predictions, and half widths of the intervals by age](images/boneage_calibration.png)

## Without the sex

The MAE on test is {unknown_mae}. The coverage is {unknown_coverage}, with a mean width of {unknown_width} months.

## Full-size and other images

- A larger image is reduced to 100 px in eight ways (samples), and the predictions are averaged. This was tested
  on {sampled_n} full-size images that no training has seen: {n_originals} originals and {n_enhanced} with background removed and
  contrast raised. The mean predictions of two disjoint sets of eight samples differ by {sets_apart} months on
  average, those of two single samples by {singles_apart}.
- The middle sample of a full-size image is like a training image. Prediction for the full-size image minus
  that for its middle sample (mean ± standard error): {minus_middle}.
- Rotated and inverted images are corrected, with a warning. Proportion of the test images that are detected,
  and change of the MAE in months: {corrected}.
- Synthetic images are predicted with an MAE of {synthetic_mae} (n = {synthetic_n}, drawn with another seed than those in
  training). That says nothing about real images.
- All {n_changes} perturbations: the [audit](audit_boneage.html).

## Terms

{terms}

## Retrain at full size

Run `boneage download`. Then train with a copy of [configs/boneage.toml](../configs/boneage.toml), here
`mine.toml`: remove `sampled_size` and `split_sha256`, and set `image_size` as large as your machine allows
(the winner of the RSNA challenge reached 4.3 months on its test set at 500 px; Halabi et al.,
Radiology 2019):

```bash
boneage preprocess --config mine.toml --data data/rsna --processed data/mine
boneage train      --config mine.toml --data data/rsna --processed data/mine --init imagenet --output mine
```

Continue with [from a run to a calibrated model](train.md#from-a-run-to-a-calibrated-model).
[CONTRIBUTING](../CONTRIBUTING.md) says how the weights in the package are replaced.
"""


if __name__ == "__main__":
    CARD.write_text(make_card(), encoding="utf-8")
