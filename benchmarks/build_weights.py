"""Build the weights in the package, and every published figure of them, from the real images.

    python benchmarks/build_weights.py DATA LARGER --init WEIGHTS --work FOLDER
    python benchmarks/build_weights.py DATA LARGER --measure  # only the figures, not the weights

With `--out FILE --docs FOLDER` model and figures go elsewhere than into the package and the docs,
as in docs/retrain.md. The training is that of train_weights.py, with the same arguments; an
interrupted build continues where it stopped. Images are predicted from their files, the larger copy
where there is one.

One half of the validation images chose among recipes, the other half calibrates: as the images are,
and in the looks of the training, from which is learned how the error grows with the distance from
the training images. The test images are predicted once, after that.
"""

import argparse
import json
import logging
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import build_appearance
import numpy as np
import onnx
import pandas as pd
import torch
from tqdm import tqdm
from train_weights import OTHERS, cut_views, parse_changes, read_recipe, train

from boneage.config import Recipe
from boneage.data.dataset import BoneAgeDataset, get_transforms
from boneage.data.labels import find_images, find_labels, match_images, read_labels
from boneage.evaluation.bootstrap import mean_estimate
from boneage.evaluation.evaluate import evaluate_table
from boneage.evaluation.plots import (
    plot_calibration,
    plot_confusion_matrix,
    plot_scatter,
    save_figure,
)
from boneage.files import replacing, save_text
from boneage.imaging.preprocess import IMAGENET_MEAN, IMAGENET_STD
from boneage.inference.batch import ImageRecord, predict_images, predict_raw_twice
from boneage.inference.calibration import Calibration, Outputs, join_outputs
from boneage.inference.calibration_fit import fit_calibration
from boneage.inference.contract import CONTRACT_KEY
from boneage.inference.familiarity import FamiliarityModel
from boneage.inference.predictor import Predictor, make_outputs
from boneage.inference.quality import ReasonCode
from boneage.inference.registry import find_model
from boneage.phantom.cohort import write_cohort
from boneage.training.checkpoint import BEST, Checkpoint, load_checkpoint
from boneage.training.embedding import Embedding
from boneage.training.export import export_onnx
from boneage.training.samples import choose_training

DOCS = Path(__file__).parent.parent / "docs"

TERMS = (
    "Weights trained on the radiographs of the RSNA 2017 Pediatric Bone Age Challenge, whose terms "
    "allow research and education; the weights are given for the same. Initial weights: "
    "EfficientNet-Lite0, Apache-2.0. Not a medical device."
)
DATA = (
    "11,111 of the 12,611 RSNA 2017 training radiographs, in a public copy reduced to 100×100 px "
    "by nearest-neighbour sampling, 1,052 of them at up to 640 px besides; the training part of a "
    "70/15/15 split, and synthetic images."
)
SYNTHETIC_IMAGES, SYNTHETIC_SEED = 300, 5
PARITY_IMAGES = 100

EMBEDDED_IMAGES = 1500
"""Training images whose features the familiarity is measured against, in the training's looks."""

LOOKS = 2
"""Looks of each calibration image."""

WARNED = 0.01
"""Proportion of images like the training images that are warned of as unlike them."""


def main() -> None:
    """Train if that is not done yet, then calibrate, export, measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("larger", type=Path)
    parser.add_argument("--init", type=Path)
    parser.add_argument("--work", type=Path, default=Path("output/weights"))
    parser.add_argument("--out", type=Path, default=find_model())
    parser.add_argument("--docs", type=Path, default=DOCS)
    parser.add_argument("--workers", type=int, default=1, help="processes that read images")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--measure", action="store_true", help="only measure the weights again")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    changes = parse_changes(options.set)
    first, second = read_recipe("boneage-pretraining"), read_recipe("boneage", **changes)
    results = options.docs / "results" / "boneage.json"
    samples = cut_views(options.data, options.larger, options.work, second)
    if not options.measure:
        train(samples, first, options.work / "first", options.init, None, options.workers)
        start = options.work / "first" / BEST
        train(samples, second, options.work / "second", start, OTHERS, options.workers)
        trained = load_checkpoint(options.work / "second" / BEST)
        build(trained, samples, options.work, options.out, results)
        part = dict(zip(samples["image_id"], samples["split"], strict=True))
        folders = find_images(options.data), find_images(options.larger)
        found = build_appearance.build(*folders, part, options.out)
        save_text(options.docs / "results" / "appearance.json", json.dumps(found, indent=1) + "\n")
    measure(samples, options.out, results, options.docs / "images")


def build(trained: Checkpoint, samples: pd.DataFrame, work: Path, out: Path, results: Path) -> None:
    """Calibrate a network on half of the validation images, and export it."""
    recipe = trained.recipe
    calibrated_on = choose_half(samples, 1)
    parity_images = list(calibrated_on["source"].iloc[:PARITY_IMAGES])
    embedding = embed(trained, samples)
    plain = work / "plain.onnx"
    export_onnx(trained, plain, parity_images[:1], embedding=embedding)
    predictor = Predictor(plain, threads=1)
    *home, years, broken = predict_raw_twice(predictor, make_images(calibrated_on))
    logging.info("%d of %d images are rejected", len(broken), len(calibrated_on))
    looks = predict_looks(predictor, calibrated_on, recipe)
    own = predictor.contract.graph_sha256
    calibration = fit_calibration(home[0], home[1], years, own, changed=looks)
    distances = home[0].distance
    limits = FamiliarityModel.fit(distances, warn_below=WARNED)
    facts = {
        "name": "boneage",
        "data": DATA,
        "terms": TERMS,
        "use": "Research use only, not a medical device.",
        "label_scaling": "none: the network answers years",
        "sex": "+1 male, -1 female, 0 not provided: the sex is then predicted from the image",
    }
    parity = export_onnx(
        trained, out, parity_images, calibration, facts,
        embedding=embedding, familiarity=limits,
    )  # fmt: skip
    ages = samples.loc[samples["split"] == "train", "age_years"]
    result = {
        "terms": TERMS,
        "data": DATA,
        "n_by_split": samples["split"].value_counts().to_dict(),
        "n_training": len(choose_training(samples, recipe)),
        "n_larger": samples.loc[samples["is_large"], "split"].value_counts().to_dict(),
        "training_years": {"min": ages.min(), "p1": ages.quantile(0.01), "p99": ages.quantile(0.99),
                           "max": ages.max()},
        "calibrated_on": describe_errors(home[0], years),
        "looks_calibrated_on": describe_errors(looks[0], looks[2]),
        "naive_width_months": find_naive_width(calibration, home[0], years),
        "calibration": asdict(calibration),
        "parity": asdict(parity),
        "parameters": sum(p.numel() for p in trained.model.parameters()),
    }  # fmt: skip
    save_text(results, json.dumps(result, indent=1, ensure_ascii=False) + "\n")


def choose_half(samples: pd.DataFrame, half: int) -> pd.DataFrame:
    """Give one half of the validation images: 0 chooses among recipes, 1 calibrates."""
    return samples[samples["split"] == "val"].iloc[half::2]


@torch.no_grad()
def embed(trained: Checkpoint, samples: pd.DataFrame) -> Embedding:
    """Fit the embedding to training images in the looks of the training, the larger ones first."""
    training = choose_training(samples, trained.recipe)
    ordered = training.sort_values("is_large", ascending=False, kind="stable")
    transform = get_transforms("train", trained.recipe)
    data = BoneAgeDataset(ordered.iloc[:EMBEDDED_IMAGES], transform, seed=trained.recipe.seed)
    model = trained.model.eval()
    features = [
        model.features(data[i]["image"][None])
        for i in tqdm(range(len(data)), desc="embed", unit="image")
    ]
    return Embedding.fit(torch.cat(features))


def predict_looks(
    predictor: Predictor, samples: pd.DataFrame, recipe: Recipe
) -> tuple[Outputs, Outputs, Any]:
    """Predict views in the looks of the training, with the sex and without it."""
    mean, std = IMAGENET_MEAN[0], IMAGENET_STD[0]
    outputs: tuple[list[Outputs], list[Outputs]] = ([], [])
    data = BoneAgeDataset(samples, get_transforms("train", recipe), seed=recipe.seed + 1)
    for look in range(LOOKS):
        data.epoch = look
        for i, row in enumerate(tqdm(samples.itertuples(), total=len(samples), desc="looks")):
            grey = (data[i]["image"][:1] * std + mean).clamp(0.0, 1.0).numpy()
            for sex, kept in zip((row.sex, None), outputs, strict=True):
                kept.append(make_outputs(predictor.run(grey, [sex]), [sex]))
    years = np.tile(samples["age_years"].to_numpy(float), LOOKS)
    return join_outputs(outputs[0]), join_outputs(outputs[1]), years


def describe_errors(outputs: Outputs, years: Any) -> dict[str, Any]:
    """Give the errors before calibration, of all and by sex, in months."""
    error = 12.0 * (outputs.years - years)
    of_sex = {"all": error, "M": error[outputs.sex > 0], "F": error[outputs.sex < 0]}
    return {
        sex: {
            "n": len(errors),
            "mae_months": float(np.abs(errors).mean()),
            "signed_error_months": float(errors.mean()),
            "signed_error_months_se": float(errors.std() / np.sqrt(len(errors))),
        }
        for sex, errors in of_sex.items()
    }


def find_naive_width(calibration: Calibration, outputs: Outputs, years: Any) -> float:
    """Give the width in months of the constant interval with the same coverage."""
    corrected, _, _ = calibration.apply(outputs)
    error = np.abs(corrected.years - years)
    return float(24.0 * np.quantile(error, calibration.level))


def measure(samples: pd.DataFrame, path: Path, results: Path, images: Path) -> None:
    """Measure an exported model, and write the figures into its file and the docs."""
    predictor = Predictor(path, threads=1)
    tables, reports = predict_all(predictor, samples)
    test = reports["test"]
    facts = predictor.contract.facts | {
        "test": {
            "n": test["n"],
            "mae_months": test["regression"]["mae_months"],
            "mae_months_ci": test["regression"]["mae_months_ci"],
            "stage_accuracy": test["classification"]["accuracy"],
            "coverage": test["intervals"]["coverage"],
        }
    }
    model = onnx.load(path)
    contract = replace(predictor.contract, facts=facts)
    onnx.helper.set_model_props(model, {CONTRACT_KEY: contract.to_json()})
    with replacing(path) as part:
        part.write_bytes(model.SerializeToString())
    result = {
        **json.loads(results.read_text(encoding="utf-8")),
        **describe_reasons(tables),
        "sizes": compare_sizes(tables["larger"], tables["larger_reduced"]),
        "provenance": contract.provenance,
        "recipe": contract.recipe,
        **reports,
    }
    save_text(results, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    for name, figure in (
        ("scatter", plot_scatter(tables["test"], test)),
        ("confusion", plot_confusion_matrix(test)),
        ("calibration", plot_calibration(tables["test"], test)),
    ):
        save_figure(figure, images / f"boneage_{name}.png")


def predict_all(
    predictor: Predictor, samples: pd.DataFrame
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """Predict the images that the model was not trained on, and synthetic ones.

    Returns:
        The tables, and the reports of the same names, without single images. `test` are all test
        images at 100 px, `larger` those of validation and test that are there at up to 640 px, and
        `larger_reduced` the same at 100 px.
    """
    test = samples[samples["split"] == "test"].assign(source=lambda table: table["small"])
    larger = samples[samples["is_large"] & (samples["split"] != "train")]
    median = float(samples.loc[samples["split"] == "train", "age_years"].median())
    tables = {
        "test": predict(predictor, test),
        "test_unknown_sex": predict(predictor, test, sex="unknown"),
        "test_wrong_sex": predict(predictor, test, sex="wrong"),
        "val_chosen_on": predict(predictor, choose_half(samples, 0)),
        "larger": predict(predictor, larger),
        "larger_unknown_sex": predict(predictor, larger, sex="unknown"),
        "larger_reduced": predict(predictor, larger.assign(source=larger["small"])),
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
        synthetic = synthetic.rename(columns={"path": "source"})
        synthetic_table = predict(predictor, synthetic).assign(split="synthetic")
        reports["synthetic"] = evaluate_table(synthetic_table)
    for report in reports.values():
        report.pop("worst_cases")  # single images stay with the data
    return tables, reports


def make_images(samples: pd.DataFrame, sex: str | None = None) -> list[ImageRecord]:
    """Make images to predict: with their sex, without it ("unknown"), or with the "wrong" one."""
    provided: dict[str, Any] = {
        "wrong": {"M": "F", "F": "M"},
        "unknown": {"M": "unknown", "F": "unknown"},
    }
    words = provided.get(sex or "", {"M": "M", "F": "F"})
    return [
        ImageRecord(row.source, words[row.sex], row.age_years)
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
    """Give the proportions of images that are warned of, and whose age and stage differ."""
    contradicts = ReasonCode.SEX_CONTRADICTS_IMAGE
    return {
        "warned_sex": {
            name: proportion_with(tables[name], contradicts) for name in ("test", "test_wrong_sex")
        },
        "warned_unlike": {
            name: proportion_with(tables[name], ReasonCode.UNLIKE_TRAINING)
            for name in ("test", "larger")
        },
        "age_and_stage_differ": proportion_with(tables["test"], ReasonCode.STAGE_CONTRADICTS_AGE),
    }


def proportion_with(table: pd.DataFrame, code: ReasonCode) -> float:
    """Proportion of images with a reason."""
    return float(table["reason_codes"].map(lambda codes: code in codes).mean())


def compare_sizes(larger: pd.DataFrame, reduced: pd.DataFrame) -> dict[str, Any]:
    """Compare the predictions of the same images at up to 640 px and at 100 px, in months."""
    both = larger.merge(reduced, on="image_id", suffixes=("", "_reduced"))
    apart = 12.0 * (both["predicted_years"] - both["predicted_years_reduced"])
    resamples = 2000
    return {
        "n": len(both),
        "difference_months": mean_estimate(apart, resamples),
        "absolute_difference_months": mean_estimate(apart.abs(), resamples),
    }


if __name__ == "__main__":
    main()
