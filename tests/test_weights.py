"""The model in the package: whole, described by its contract, quick, and as good as published."""

import json
import resource
import subprocess
import sys
import tomllib
from dataclasses import fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

import boneage
from boneage.config import Paths, Recipe, Runtime
from boneage.data.labels import find_images, find_labels, match_images, read_labels
from boneage.errors import ConfigError
from boneage.inference.batch import ImageRecord, predict_images
from boneage.inference.contract import OUTPUTS
from boneage.inference.predictor import Predictor
from boneage.inference.registry import find_model
from boneage.phantom.cohort import write_cohort
from boneage.training.initial_weights import take_over
from boneage.training.workflows import train_model
from builders import ROOT, save_dicom

DOCS = ROOT / "docs"
RESULTS = json.loads((DOCS / "results" / "boneage.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return boneage.load()


@pytest.fixture(scope="module")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic image of the usual size of a radiograph."""
    folder = tmp_path_factory.mktemp("full")
    write_cohort(folder / "synthetic", n=12, seed=7, workers=1)
    image = sorted(find_images(folder / "synthetic").values())[0]
    path = folder / "image.png"
    Image.open(image).convert("L").resize((1514, 2044), Image.Resampling.BICUBIC).save(path)
    return path


def test_the_file_is_small_and_its_own_fingerprint_holds(predictor: Predictor) -> None:
    assert find_model().stat().st_size < 20e6
    model = onnx.load(find_model())
    del model.metadata_props[:]
    fingerprint = sha256(model.SerializeToString(deterministic=True)).hexdigest()
    assert predictor.contract.graph_sha256 == fingerprint


def test_the_contract_says_what_a_user_must_know(predictor: Predictor) -> None:
    contract = predictor.contract
    assert contract.sex_input
    assert contract.outputs == OUTPUTS
    assert contract.calibration is not None
    assert contract.calibration.graph_sha256 == contract.graph_sha256
    assert "research and education" in contract.facts["terms"]
    assert "RSNA" in contract.facts["data"]
    assert contract.facts["test"]["n"] == RESULTS["test"]["n"]
    assert contract.preprocessing.crop == "hand"
    assert contract.familiarity is not None
    assert contract.appearance is not None
    assert contract.provenance["data_sha256"]
    assert contract.recipe["seed"] == 0


def test_the_published_figures_are_those_of_this_file(predictor: Predictor) -> None:
    assert RESULTS["provenance"]["graph_sha256"] == predictor.contract.graph_sha256
    stated = predictor.contract.facts["test"]
    assert stated["mae_months"] == RESULTS["test"]["regression"]["mae_months"]


@pytest.mark.parametrize("name", ["audit", "regions"])
def test_every_published_measurement_is_of_this_file(predictor: Predictor, name: str) -> None:
    measured = json.loads((DOCS / "results" / f"{name}.json").read_text(encoding="utf-8"))
    assert measured["graph_sha256"] == predictor.contract.graph_sha256


def test_the_recipe_in_the_repository_is_that_of_this_file(predictor: Predictor) -> None:
    settings = tomllib.loads((ROOT / "configs" / "boneage.toml").read_text(encoding="utf-8"))
    trained_with = Recipe(**{**predictor.contract.recipe, "init": "auto"})
    for_paths = {field.name for field in fields(Paths)}
    assert trained_with == Recipe(**{k: v for k, v in settings.items() if k not in for_paths})


def test_no_image_of_the_published_figures_is_named() -> None:
    assert "image_id" not in json.dumps(RESULTS)


@pytest.mark.slow
def test_synthetic_images_are_predicted_well(predictor: Predictor, tmp_path: Path) -> None:
    write_cohort(tmp_path, n=60, seed=11, workers=2)
    images = match_images(read_labels(find_labels(tmp_path)), find_images(tmp_path))
    predictions = [
        predictor.predict(path, sex)
        for path, sex in zip(images["path"], images["sex"], strict=True)
    ]
    years = np.array([p.predicted_years for p in predictions], dtype=float)
    reference = images["age_years"].to_numpy(float)
    claimed = RESULTS["synthetic"]["regression"]["mae_months"]
    assert np.abs(years - reference).mean() * 12 < 1.3 * claimed
    covered = [
        p.predicted_low_years <= age <= p.predicted_high_years
        for p, age in zip(predictions, reference, strict=True)
    ]
    assert np.mean(covered) > 0.9


def test_a_full_size_image_and_its_reduction_are_predicted_alike(
    predictor: Predictor, full_size: Path, tmp_path: Path
) -> None:
    reduced = tmp_path / "reduced.png"
    Image.open(full_size).resize((100, 100), Image.Resampling.NEAREST).save(reduced)
    whole, small = (predictor.predict(path, "F").predicted_years for path in (full_size, reduced))
    assert abs(whole - small) < 0.5  # type: ignore[operator]


def test_an_image_alone_on_all_cores_and_among_others_on_one_has_one_prediction(
    full_size: Path,
) -> None:
    alone = Predictor().predict(full_size, "F")
    images = [ImageRecord(full_size, sex) for sex in ("M", "F", "unknown")]
    _, among, _ = predict_images(Predictor(threads=1), images, 2)
    assert among.predicted_years == pytest.approx(alone.predicted_years, abs=1e-4)
    assert among.predicted_low_years == pytest.approx(alone.predicted_low_years, abs=1e-4)
    assert among.p_child == pytest.approx(alone.p_child, abs=1e-4)


@pytest.fixture(scope="module")
def largest(full_size: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That image as large as RSNA's largest, in DICOM with 12 bits and a window."""
    grey = np.asarray(Image.open(full_size).resize((2460, 2970))).astype(np.uint16) * 16
    tags: dict[str, Any] = {
        "BitsStored": 12,
        "HighBit": 11,
        "WindowCenter": 2048,
        "WindowWidth": 4096,
    }
    return save_dicom(tmp_path_factory.mktemp("largest") / "image.dcm", grey, **tags)


@pytest.mark.performance
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads Linux's memory figures")
@pytest.mark.parametrize("name", ["full_size", "largest"])
def test_one_full_size_image_is_predicted_at_once_and_in_little_memory(
    name: str, request: pytest.FixtureRequest
) -> None:
    image = request.getfixturevalue(name)
    code = (
        "import sys; from pathlib import Path; "
        "sys.modules['torch'] = sys.modules['pandas'] = None; "
        "from boneage.cli.app import main; "
        f"status = main(['predict', {str(image)!r}, '--sex', 'F']); "
        "print(Path('/proc/self/status').read_text()); sys.exit(status)"
    )
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        printed = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        ).stdout
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    peak = next(line for line in printed.splitlines() if line.startswith("VmHWM"))
    assert int(peak.split()[1]) < 400_000  # kB
    # Of the processor, since other tests run beside this one; twice the promise, for slow ones.
    assert min(seconds) < 2.0


@pytest.mark.slow
def test_training_goes_on_from_the_package_s_weights(
    raw: Path, tmp_path: Path, predictor: Predictor
) -> None:
    recipe = Recipe(init="boneage", epochs=1, batch_size=16, learning_rate=1e-6)
    paths = Paths(data=raw, output=tmp_path / "output")
    reports = train_model(paths, recipe, Runtime(device="cpu", workers=0))
    images = find_images(raw)
    table = (tmp_path / "output/predictions_test.csv").read_text().splitlines()
    assert reports["test"]["n"] == len(table) - 1
    image_id, _, sex, _, years, *_ = table[1].split(",")
    preprocessing = replace(predictor.contract.preprocessing, crop="none")
    image = preprocessing.to_array(preprocessing.read(images[image_id]))
    (raw_years,) = predictor.run(image[None], [sex])["age_years"]
    assert float(years) == pytest.approx(raw_years, abs=0.5)


def test_another_network_cannot_start_from_the_package_s_weights() -> None:
    assert take_over(Recipe(init="boneage")).backbone == "timm:tf_efficientnet_lite0"
    with pytest.raises(ConfigError, match="backbone is resnet50, but init boneage has timm:"):
        take_over(replace(Recipe(init="boneage"), backbone="resnet50"))


def test_the_published_figures_are_worth_a_place_in_the_package() -> None:
    test, without_sex = RESULTS["test"], RESULTS["test_unknown_sex"]
    age, by_sex = test["regression"], test["gender_bias"]["regression"]
    assert age["mae_months"] < 8.5
    assert without_sex["regression"]["mae_months"] - age["mae_months"] < 2.5
    assert min(test["approaches"][f"{way}_accuracy"] for way in ("direct", "threshold")) > 0.89
    assert all(abs(by_sex[sex]["signed_error_months"]) < 1.5 for sex in ("male", "female"))
    assert abs(by_sex["male"]["mae_months"] - by_sex["female"]["mae_months"]) < 1.5
    # The targets are 0.5 month for the signed error and 88 to 92% for the coverage
    # (docs/experiments.md). The intervals must reach inside.
    low, high = age["signed_error_months_ci"]
    assert low < 0.5
    assert high > -0.5
    widths = test["intervals"]
    low, high = widths["coverage_ci"]
    assert low < 0.92
    assert high > 0.88
    groups = [*widths["by_sex_and_stage"], *widths["by_width"]]
    assert all(group["coverage"] > 0.85 for group in groups if group["n"] >= 50)
    assert widths["widest_tenth_months"] > 1.3 * widths["narrowest_tenth_months"]
