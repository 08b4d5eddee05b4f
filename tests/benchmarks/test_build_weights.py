"""The script that builds the weights in the package: what is trained and calibrated on what."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from boneage.config import Paths, Recipe
from boneage.data.split import read_split
from boneage.inference.batch import calibrate
from boneage.inference.predictor import Predictor
from boneage.training.export import export_onnx
from builders import load_script, make_checkpoint

build = load_script("benchmarks/build_weights.py")


@pytest.mark.filterwarnings("ignore:The least populated class")
def test_every_training_image_is_left_out_by_one_fold(
    samples: pd.DataFrame, raw: Path, recipe: Recipe, tmp_path: Path
) -> None:
    training = samples.loc[samples["split"] == "train", "image_id"]
    held_out = training.iloc[3]
    recipe = replace(recipe, hold_out=(held_out,))
    samples[["image_id", "split"]].to_csv(tmp_path / "split.csv", index=False)
    left_out: list[str] = []
    for fold in range(build.FOLDS):
        file = build.write_fold(Paths(data=raw, output=tmp_path), recipe, fold)
        parts = read_split(file, samples)
        assert set(parts[samples["split"] == "val"]) == {"train"}
        assert ((parts == "test") == (samples["split"] == "test")).all()
        left_out += list(samples.loc[parts == "val", "image_id"])
    assert sorted(left_out) == sorted(set(training) - {held_out})


def export(raw: Path, path: Path, extra_years: float = 0.0) -> Path:
    """Export a small model; its ages are `extra_years` above those of any other."""
    checkpoint = make_checkpoint(
        sex_input=True, sex_weight=0.1, tta_mirror=True, sampled_size=64, stretch_grey=True,
        stored_size=None,
    )  # fmt: skip
    assert checkpoint.model.age_head is not None
    with torch.no_grad():
        checkpoint.model.age_head.bias.add_(extra_years)
    export_onnx(checkpoint, path, [min(raw.rglob("*.png"))])
    return path


@pytest.fixture(scope="module")
def main_model(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(raw, tmp_path_factory.mktemp("main") / "model.onnx")


@pytest.fixture(scope="module")
def auxiliary(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose predictions are two years above those of `main_model`."""
    return export(raw, tmp_path_factory.mktemp("auxiliary") / "model.onnx", extra_years=2.0)


@pytest.mark.slow
def test_each_model_predicts_its_own_images_and_the_first_is_calibrated(
    samples: pd.DataFrame, main_model: Path, auxiliary: Path
) -> None:
    first, second = samples[::2], samples[1::2]
    found, figures = build.fit([(main_model, first), (auxiliary, second)])
    main, other = figures["calibrated_on"]
    assert main == build.fit([(main_model, first)])[1]["calibrated_on"][0]
    as_main = build.fit([(main_model, second)])[1]["calibrated_on"][0]
    for sex in ("all", "M", "F"):
        more = other[sex]["signed_error_months"] - as_main[sex]["signed_error_months"]
        assert more == pytest.approx(24.0, abs=0.01)
    assert found.graph_sha256 == Predictor(main_model).contract.graph_sha256
    assert found.images == main["all"]["n"] + other["all"]["n"] == len(samples)
    for sex, bias in (("M", found.bias_male_years), ("F", found.bias_female_years)):
        n = [part[sex]["n"] for part in (main, other)]
        errors = [part[sex]["signed_error_months"] for part in (main, other)]
        assert 12.0 * bias == pytest.approx((n[0] * errors[0] + n[1] * errors[1]) / sum(n))


@pytest.mark.slow
def test_the_images_may_come_in_several_parts(samples: pd.DataFrame, main_model: Path) -> None:
    found, figures = build.fit([(main_model, samples[::2]), (main_model, samples[1::2])])
    expected, _ = calibrate(Predictor(main_model), build.make_images(samples))
    assert found.bias_unknown_years == pytest.approx(expected.bias_unknown_years)
    assert found.known.quantile == pytest.approx(expected.known.quantile)
    # With so few images the spread is one constant, and so is the width.
    assert figures["naive_width_months"] == pytest.approx(24.0 * found.known.quantile, rel=0.1)


@pytest.mark.slow
def test_images_that_cannot_be_read_stop_the_build(
    samples: pd.DataFrame, main_model: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    samples["path"] = [broken, *samples["path"][1:]]
    with pytest.raises(SystemExit, match="1 images cannot be read, the first"):
        build.fit([(main_model, samples)])
