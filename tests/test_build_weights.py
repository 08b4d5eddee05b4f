"""The script that builds the weights in the package: who learns from what, who calibrates."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from conftest import load_script

from boneage.batch import calibrate
from boneage.config import Paths, Recipe
from boneage.predict import Predictor
from boneage.split import read_split

build = load_script("benchmarks/build_weights.py")


@pytest.mark.filterwarnings("ignore:The least populated class")
def test_every_training_film_is_left_out_by_one_fold(
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


def test_answers_of_several_networks_calibrate_as_those_of_one(
    samples: pd.DataFrame, exported: Path
) -> None:
    parts = [(exported, samples[::2]), (exported, samples[1::2])]
    found, figures = build.fit(parts)
    expected, _ = calibrate(Predictor(exported), build.make_films(samples))
    assert found.films == expected.films == len(samples)
    assert found.graph_sha256 == expected.graph_sha256
    for name in ("bias_male_years", "bias_female_years", "bias_unknown_years"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name))
    assert found.known.quantile == pytest.approx(expected.known.quantile)
    # With so few films the spread is one constant, and so is the width.
    assert figures["naive_width_months"] == pytest.approx(24.0 * found.known.quantile, rel=0.1)
    both, own = figures["calibrated_on"], build.fit([(exported, samples)])[1]["calibrated_on"]
    assert [part["all"]["n"] for part in both] == [40, 40]
    means = [part["all"]["signed_error_months"] for part in both]
    assert sum(means) / 2 == pytest.approx(own[0]["all"]["signed_error_months"])


def test_films_that_cannot_be_read_stop_the_build(
    samples: pd.DataFrame, exported: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no film")
    samples["path"] = [broken, *samples["path"][1:]]
    with pytest.raises(SystemExit, match="1 films cannot be read, the first"):
        build.fit([(exported, samples)])
