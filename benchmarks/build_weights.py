"""Build the weights in the package, and every published figure of them, from the real images.

    python benchmarks/build_weights.py DATA --init WEIGHTS
    python benchmarks/build_weights.py DATA --measure  # only the figures, not the weights

DATA is the raw folder of the RSNA images (here: the public copy at 100x100 px), WEIGHTS the
ImageNet weights of tf_efficientnet_lite0 (docs/experiments.md says where they come from). The
recipe is configs/boneage.toml. An interrupted build continues where it stopped.

One half of the validation images chose among recipes, the other half calibrates. A quarter of the
training images calibrates too: an auxiliary (cross-fit) model, trained without them, predicts them.
The test images are predicted once, after both models are trained.
"""

import argparse
import json
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import pandas as pd
from sklearn.model_selection import StratifiedKFold
from tqdm import tqdm

from boneage.config import Paths, Recipe
from boneage.data.labels import find_images, find_labels, match_images, read_labels
from boneage.data.processed import preprocess_folder
from boneage.data.split import read_split, split_samples, split_sha256
from boneage.evaluation.evaluate import evaluate_table
from boneage.evaluation.plots import (
    plot_calibration,
    plot_confusion_matrix,
    plot_scatter,
    save_figure,
)
from boneage.files import replacing, save_text
from boneage.inference.batch import ImageRecord, predict_images, predict_raw_twice
from boneage.inference.calibration import Calibration, join_outputs
from boneage.inference.calibration_fit import fit_calibration
from boneage.inference.contract import CONTRACT_KEY
from boneage.inference.predictor import Predictor
from boneage.inference.quality import ReasonCode
from boneage.inference.registry import find_model
from boneage.phantom.cohort import write_cohort
from boneage.training.checkpoint import BEST, LAST, load_checkpoint
from boneage.training.export import export_onnx
from boneage.training.samples import choose_training, load_samples
from boneage.training.workflows import train_model

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "configs" / "boneage.toml"
RESULTS = ROOT / "docs" / "results" / "boneage.json"
IMAGES = ROOT / "docs" / "images"

TERMS = (
    "Weights trained on the radiographs of the RSNA 2017 Pediatric Bone Age Challenge, whose terms "
    "allow research and education; the weights are given for the same. Initial weights: "
    "EfficientNet-Lite0, Apache-2.0. Not a medical device."
)
DATA = (
    "11,111 of the 12,611 RSNA 2017 training radiographs, in a public copy reduced to 100×100 px "
    "by nearest-neighbour sampling; the training part of a 70/15/15 split, and synthetic images."
)
SYNTHETIC_IMAGES, SYNTHETIC_SEED = 300, 5
FOLDS = 4
"""Parts into which the training images are cut; the auxiliary model leaves out the first."""

PARITY_IMAGES = 100


def main() -> None:
    """Train if that is not done yet, then calibrate, measure, export."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--init", default="imagenet")
    parser.add_argument("--processed", type=Path, default=Path("data/processed100"))
    parser.add_argument("--output", type=Path, default=Path("output/boneage"))
    parser.add_argument("--measure", action="store_true", help="only measure the weights again")
    arguments = parser.parse_args()
    settings = tomllib.loads(RECIPE.read_text(encoding="utf-8"))
    paths = Paths(
        data=arguments.data,
        processed=arguments.processed,
        use_processed=settings.pop("use_processed"),
        output=arguments.output,
    )
    recipe = Recipe(**settings, init=arguments.init)
    if arguments.measure:
        measure_again(paths, recipe)
        return
    preprocess_folder(find_images(paths.data), paths.processed, recipe)
    train(paths, recipe)
    auxiliary = replace(paths, output=paths.output / "fold0")
    train(auxiliary, replace(recipe, split_sha256=None), write_fold(paths, recipe, 0))
    build(paths, recipe, auxiliary)


def train(paths: Paths, recipe: Recipe, split: Path | None = None) -> None:
    """Train up to the recipe's last epoch, unless that is done; no test image is predicted."""
    if not is_trained(paths, recipe):
        is_begun = (paths.output / LAST).is_file()
        train_model(paths, recipe, split=split, resume=is_begun, evaluated=("val",))


def write_fold(paths: Paths, recipe: Recipe, fold: int) -> Path:
    """Write the split of a model that leaves out a quarter of the training images, as its "val".

    It trains on the validation images in their place. The recipe selects the last epoch, so
    nothing is chosen on the images left out.
    """
    samples, _ = load_samples(replace(paths, use_processed=False), recipe)
    samples["split"] = read_split(paths.output / "split.csv", samples)
    training = choose_training(samples, recipe)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=recipe.seed)
    _, left_out = list(folds.split(training, training["stage"]))[fold]
    samples.loc[samples["split"] == "val", "split"] = "train"
    samples.loc[training.index[left_out], "split"] = "val"
    split = paths.output / f"fold{fold}.csv"
    save_text(split, samples[["image_id", "split"]].to_csv(index=False, lineterminator="\n"))
    return split


def is_trained(paths: Paths, recipe: Recipe) -> bool:
    """Whether the output folder holds the recipe's finished run.

    Raises:
        SystemExit: If it holds the run of another recipe.
    """
    if not (paths.output / "metrics_val.json").is_file():
        return False
    found = load_checkpoint(paths.output / BEST).recipe
    if replace(found, init="") != replace(recipe, init=""):  # a path, which may differ
        raise SystemExit(f"{paths.output} holds a run of another recipe; pass another --output")
    return True


def fit(networks: Sequence[tuple[Path, pd.DataFrame]]) -> tuple[Calibration, dict[str, Any]]:
    """Calibrate the first model on the predictions of each for images that it was not trained on.

    This assumes that models of one recipe make errors alike on new images.

    Args:
        networks: The exported file of each model, and its images.

    Returns:
        The calibration, and figures: the raw error of each model on its images, and the width in
        months of the constant interval with the same coverage.
    """
    outputs: list[list[Any]] = []
    figures = []
    for model, samples in networks:
        *predicted, broken = predict_raw_twice(Predictor(model, threads=1), make_images(samples))
        if broken:
            raise SystemExit(f"{len(broken)} images cannot be read, the first: {broken.popitem()}")
        outputs.append(predicted)
        error = 12.0 * (predicted[0].years - predicted[2])
        of_sex = {"all": error, "M": error[predicted[0].sex > 0], "F": error[predicted[0].sex < 0]}
        figures.append(
            {
                sex: {
                    "n": len(errors),
                    "mae_months": float(np.abs(errors).mean()),
                    "signed_error_months": float(errors.mean()),
                    "signed_error_months_se": float(errors.std() / np.sqrt(len(errors))),
                }
                for sex, errors in of_sex.items()
            }
        )
    with_sex, without_sex, years = zip(*outputs, strict=True)
    known, reference = join_outputs(with_sex), np.concatenate(years)
    own = Predictor(networks[0][0], threads=1).contract.graph_sha256
    calibration = fit_calibration(known, join_outputs(without_sex), reference, own)
    corrected, _, _ = calibration.apply(known)
    error = np.abs(corrected.years - reference)
    naive_width = float(24.0 * np.quantile(error, calibration.level))
    return calibration, {"calibrated_on": figures, "naive_width_months": naive_width}


def build(paths: Paths, recipe: Recipe, auxiliary: Paths) -> None:
    """Calibrate the run in the output folder with an auxiliary model's help, measure and export."""
    samples, _ = load_samples(replace(paths, use_processed=False), recipe)
    samples["split"] = read_split(paths.output / "split.csv", samples)
    val, test = (samples[samples["split"] == part] for part in ("val", "test"))
    calibrated_on = val.iloc[1::2]

    plain, site = paths.output / "plain.onnx", paths.output / "calibration.toml"
    trained = load_checkpoint(paths.output / BEST)
    real_images = list(test["path"].iloc[:PARITY_IMAGES])
    parity = export_onnx(trained, plain, real_images)
    left_out = samples[read_split(auxiliary.output / "split.csv", samples) == "val"]
    if (left_out["split"] != "train").any():
        raise SystemExit(
            f"{auxiliary.output} left out images of another split; pass another --output"
        )
    cross_fit = auxiliary.output / "plain.onnx"
    export_onnx(
        load_checkpoint(auxiliary.output / BEST), cross_fit, list(left_out["path"][:PARITY_IMAGES])
    )
    networks = [(plain, calibrated_on), (cross_fit, left_out)]
    calibration, calibration_figures = fit(networks)
    calibration.save(site)
    predictor = Predictor(plain, calibration=site, threads=1)

    tables, reports = measure(predictor, samples)
    ages = samples.loc[samples["split"] == "train", "age_years"]
    result = {
        "terms": TERMS,
        "data": DATA,
        "n_by_split": samples["split"].value_counts().to_dict(),
        "training_years": {"min": ages.min(), "p1": ages.quantile(0.01), "p99": ages.quantile(0.99),
                           "max": ages.max()},
        **describe_reasons(tables),
        **calibration_figures,
        "calibration": asdict(calibration),
        "provenance": predictor.contract.provenance,
        "recipe": predictor.contract.recipe,
        **reports,
        "parity": asdict(parity),
        "parameters": sum(p.numel() for p in trained.model.parameters()),
    }  # fmt: skip
    export_onnx(trained, find_model(), real_images, calibration, make_facts(reports["test"]))
    publish(result, tables["test"])


def measure_again(paths: Paths, recipe: Recipe) -> None:
    """Measure the weights in the package as they are, and write the figures into file and docs."""
    samples, _ = load_samples(replace(paths, use_processed=False), recipe)
    samples["split"] = split_samples(samples, recipe.seed)
    if split_sha256(samples["image_id"], samples["split"]) != recipe.split_sha256:
        raise SystemExit(f"{paths.data} gives another split than that of {RECIPE}")
    predictor = Predictor(threads=1)
    tables, reports = measure(predictor, samples)
    contract = replace(predictor.contract, facts=make_facts(reports["test"]))
    model = onnx.load(find_model())
    onnx.helper.set_model_props(model, {CONTRACT_KEY: contract.to_json()})
    with replacing(find_model()) as part:
        part.write_bytes(model.SerializeToString())
    before = json.loads(RESULTS.read_text(encoding="utf-8"))
    publish({**before, **describe_reasons(tables), **reports}, tables["test"])


def measure(
    predictor: Predictor, samples: pd.DataFrame
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """Predict the images that the model was not trained on, and synthetic ones.

    Returns:
        The tables, and the reports of the same names, without single images.
    """
    test = samples[samples["split"] == "test"]
    chosen_on = samples[samples["split"] == "val"].iloc[::2]
    median = float(samples.loc[samples["split"] == "train", "age_years"].median())
    tables = {
        "test": predict(predictor, test),
        "test_unknown_sex": predict(predictor, test, sex="unknown"),
        "test_wrong_sex": predict(predictor, test, sex="wrong"),
        "val_chosen_on": predict(predictor, chosen_on),
    }
    calibration, predictor.calibration = predictor.calibration, None
    tables["test_not_calibrated"] = predict(predictor, test)
    predictor.calibration = calibration
    reports = {
        name: evaluate_table(table.assign(split=name), baseline_years=median)
        | {"n_rejected": table.attrs["rejected"]}
        for name, table in tables.items()
    }
    with TemporaryDirectory() as folder:
        write_cohort(Path(folder), n=SYNTHETIC_IMAGES, seed=SYNTHETIC_SEED)
        synthetic = match_images(read_labels(find_labels(Path(folder))), find_images(Path(folder)))
        synthetic_table = predict(predictor, synthetic).assign(split="synthetic")
        reports["synthetic"] = evaluate_table(synthetic_table)
    for report in reports.values():
        report.pop("worst_cases")  # single images stay with the data
    return tables, reports


def make_facts(figures: dict[str, Any]) -> dict[str, Any]:
    """Give what the contract is to say besides: the data, the terms and the test figures."""
    return {
        "name": "boneage",
        "data": DATA,
        "terms": TERMS,
        "use": "Research use only, not a medical device.",
        "label_scaling": "none: the network answers years",
        "sex": "+1 male, -1 female, 0 not provided: the sex is then predicted from the image",
        "test": {
            "n": figures["n"],
            "mae_months": figures["regression"]["mae_months"],
            "mae_months_ci": figures["regression"]["mae_months_ci"],
            "stage_accuracy": figures["classification"]["accuracy"],
            "coverage": figures["intervals"]["coverage"],
        },
    }


def publish(result: dict[str, Any], test: pd.DataFrame) -> None:
    """Write the figures and their pictures for the docs."""
    save_text(RESULTS, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    for name, figure in (
        ("scatter", plot_scatter(test, result["test"])),
        ("confusion", plot_confusion_matrix(result["test"])),
        ("calibration", plot_calibration(test, result["test"])),
    ):
        save_figure(figure, IMAGES / f"boneage_{name}.png")


def make_images(samples: pd.DataFrame, sex: str | None = None) -> list[ImageRecord]:
    """Make images to predict: with their sex, without it ("unknown"), or with the "wrong" one."""
    provided: dict[str, Any] = {
        "wrong": {"M": "F", "F": "M"},
        "unknown": {"M": "unknown", "F": "unknown"},
    }
    words = provided.get(sex or "", {"M": "M", "F": "F"})
    return [
        ImageRecord(row.path, words[row.sex], row.age_years)
        for row in samples.itertuples()
    ]  # fmt: skip


def predict(predictor: Predictor, samples: pd.DataFrame, sex: str | None = None) -> pd.DataFrame:
    """Predict images; the table has their true sex, whichever was provided to the model."""
    images = make_images(samples, sex)
    predictions = tqdm(predict_images(predictor, images), total=len(images), desc=sex or "predict")
    table = pd.DataFrame([p.to_row(with_reference=True) for p in predictions])
    table = table.assign(sex=samples["sex"].to_numpy())
    is_predicted = table["predicted_years"].notna()
    table.attrs["rejected"] = int((~is_predicted).sum())
    return table[is_predicted].reset_index(drop=True)


def describe_reasons(tables: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Give the proportions of images whose sex is doubted, and whose age and stage differ."""
    contradicts = ReasonCode.SEX_CONTRADICTS_IMAGE
    return {
        "warned_sex": {
            name: proportion_with(tables[name], contradicts) for name in ("test", "test_wrong_sex")
        },
        "age_and_stage_differ": proportion_with(tables["test"], ReasonCode.STAGE_CONTRADICTS_AGE),
    }


def proportion_with(table: pd.DataFrame, code: ReasonCode) -> float:
    """Proportion of images with a reason."""
    return float(table["reason_codes"].map(lambda codes: code in codes).mean())


if __name__ == "__main__":
    main()
