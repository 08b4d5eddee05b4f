import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from boneage.config import ImageSettings, Paths, Recipe, Runtime
from boneage.data.dataset import BoneAgeDataset
from boneage.data.labels import find_images
from boneage.data.processed import preprocess_folder
from boneage.data.split import split_sha256
from boneage.errors import BoneAgeError, CheckpointError
from boneage.evaluation.evaluate import evaluate_table
from boneage.evaluation.prediction_table import load_table
from boneage.imaging.preprocess import Preprocessing
from boneage.inference.hand_view import make_reader
from boneage.inference.predictor import Predictor
from boneage.phantom.cohort import write_cohort
from boneage.training import workflows
from boneage.training.checkpoint import load_checkpoint
from boneage.training.export import Parity
from boneage.training.workflows import evaluate_model, explain_model, export_model, train_model
from builders import TINY

TABLE = [
    "image_id", "split", "sex", "reference_years", "predicted_years",
    "reference_stage", "predicted_stage", "p_child", "p_adolescent", "p_adult",
]  # fmt: skip


SMALL = "timm:test_resnet"
"""A backbone of a few thousand weights."""


@pytest.fixture
def recipe(recipe: Recipe) -> Recipe:
    return replace(recipe, backbone=SMALL)


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the plots, which take longer than all the rest of a run."""
    for name in ("save_report_plots", "save_worst_cases", "save_learning_curves"):
        monkeypatch.setattr(workflows, name, lambda *arguments: None)


pytestmark = pytest.mark.usefixtures("no_plots")


Trained = tuple[Paths, dict[str, bytes]]


@pytest.fixture(scope="module")
def trained(raw: Path, processed: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """One finished run, and the bytes of its small files."""
    output = tmp_path_factory.mktemp("trained") / "output"
    paths = Paths(data=raw, processed=processed, use_processed=True, output=output)
    train_model(paths, Recipe(**TINY, backbone=SMALL), Runtime(device="cpu", workers=0))  # type: ignore[arg-type]
    return paths, {p.name: p.read_bytes() for p in output.iterdir() if p.is_file()}


@pytest.fixture
def output(trained: Trained) -> Path:
    return trained[0].output


@pytest.fixture
def mine(trained: Trained, tmp_path: Path) -> Paths:
    """A copy of the finished run to work on."""
    output = shutil.copytree(trained[0].output, tmp_path / "mine")
    return replace(trained[0], output=Path(output))


def test_a_run_writes_every_file_under_its_name(output: Path) -> None:
    found = {str(p.relative_to(output)) for p in output.rglob("*") if p.is_file()}
    expected = {"split.csv", "history.csv", "models/best_model.pt", "models/last.pt"}
    for split in ("val", "test"):
        expected |= {
            f"predictions_{split}.csv", f"metrics_{split}.json",
            f"plots/scatter_pred_vs_true_{split}.png", f"plots/confusion_matrix_{split}.png",
            f"plots/error_by_age_{split}.png", f"plots/worst_cases_{split}.png",
            f"plots/calibration_{split}.png",
        }  # fmt: skip
    assert found == expected | {"plots/learning_curves.png"}


def test_the_prediction_table_has_one_row_a_held_out_image_with_its_label(
    output: Path, raw: Path
) -> None:
    split = pd.read_csv(output / "split.csv", dtype=str)
    labels = pd.read_csv(raw / "boneage-training-dataset.csv").set_index("id")
    assert split["split"].value_counts().to_dict() == {"train": 56, "val": 12, "test": 12}
    for part in ("val", "test"):
        table = pd.read_csv(output / f"predictions_{part}.csv")
        assert list(table.columns) == TABLE
        ids = table["image_id"].astype(str).tolist()
        assert ids == split.loc[split["split"] == part, "image_id"].tolist()
        assert set(table["predicted_stage"]) <= {"Child", "Adolescent", "Adult"}
        sums = table[["p_child", "p_adolescent", "p_adult"]].sum(axis=1)
        np.testing.assert_allclose(sums, 1.0, atol=1e-6)
        known = labels.loc[table["image_id"]]
        np.testing.assert_allclose(table["reference_years"], known["boneage"] / 12)
        assert list(table["sex"] == "M") == list(known["male"])


def test_the_metrics_follow_from_the_written_table_and_name_their_model_and_its_split(
    output: Path,
) -> None:
    metrics = json.loads((output / "metrics_test.json").read_text())
    expected = evaluate_table(load_table(output / "predictions_test.csv"))
    assert {name: metrics[name] for name in expected} == expected
    facts = load_checkpoint(output / "models/best_model.pt").provenance
    assert metrics["provenance"] == facts
    assert {"data_sha256", "boneage", "device", "epoch"} <= facts.keys()
    split = pd.read_csv(output / "split.csv", dtype=str)
    assert facts["split_sha256"] == split_sha256(split["image_id"], split["split"])
    assert facts["n_by_split"] == {"train": 56, "val": 12, "test": 12}


def test_evaluating_again_gives_the_same_files(
    trained: Trained, mine: Paths, runtime: Runtime
) -> None:
    evaluate_model(mine, runtime)
    for name, content in trained[1].items():
        assert (mine.output / name).read_bytes() == content, name


def test_evaluating_and_explaining_build_no_optimizer(
    mine: Paths, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **settings: Any) -> None:
        raise AssertionError("an optimizer was built")

    monkeypatch.setattr(torch.optim.Optimizer, "__init__", refuse)
    (mine.output / "predictions_test.csv").unlink()  # so that the images are predicted anew
    assert len(explain_model(mine, runtime, cases=1)) == 1
    assert set(evaluate_model(mine, runtime)) == {"val", "test"}


def test_raw_and_processed_images_are_evaluated_alike(mine: Paths, runtime: Runtime) -> None:
    evaluate_model(mine, runtime)
    stored = pd.read_csv(mine.output / "predictions_test.csv")
    evaluate_model(replace(mine, use_processed=False), runtime)
    pd.testing.assert_frame_equal(pd.read_csv(mine.output / "predictions_test.csv"), stored)


def test_processed_images_of_another_size_are_refused(
    mine: Paths, runtime: Runtime, tmp_path: Path
) -> None:
    other = tmp_path / "processed"
    preprocess_folder(find_images(mine.data), other, ImageSettings(image_size=32), workers=1)
    with pytest.raises(CheckpointError, match=r"32-px images.*preprocess --image-size 64"):
        evaluate_model(replace(mine, processed=other), runtime)


def test_a_changed_or_missing_split_is_refused(mine: Paths, runtime: Runtime) -> None:
    file = mine.output / "split.csv"
    split = pd.read_csv(file, dtype=str)
    split["split"] = split["split"].map({"train": "test", "test": "train", "val": "val"})
    split.to_csv(file, index=False)
    with pytest.raises(CheckpointError, match="is not the split"):
        evaluate_model(mine, runtime)
    file.unlink()
    with pytest.raises(CheckpointError, match="cannot be distinguished from training images"):
        evaluate_model(mine, runtime)


def test_an_unexpected_split_stops_the_training_before_it_starts(
    paths: Paths, recipe: Recipe, runtime: Runtime
) -> None:
    with pytest.raises(BoneAgeError, match="the recipe expects abc"):
        train_model(paths, replace(recipe, split_sha256="abc"), runtime)
    assert not paths.output.exists()


def test_a_new_run_keeps_the_earlier_one(
    mine: Paths, recipe: Recipe, runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    before = (mine.output / "models/best_model.pt").read_bytes()
    with caplog.at_level(logging.WARNING):
        train_model(mine, replace(recipe, epochs=1), runtime)
    (kept,) = (mine.output / "previous").iterdir()
    assert (kept / "models/best_model.pt").read_bytes() == before
    assert (kept / "metrics_test.json").is_file()
    assert "was moved to" in caplog.text


def test_resuming_a_finished_run_with_more_epochs_goes_on(mine: Paths, runtime: Runtime) -> None:
    recipe = load_checkpoint(mine.output / "models/last.pt").recipe
    train_model(mine, replace(recipe, epochs=3), runtime, resume=True)
    assert list(pd.read_csv(mine.output / "history.csv")["epoch"]) == [1, 2, 3]
    assert not (mine.output / "previous").exists()


def test_a_refused_resume_leaves_the_run_as_it_was(mine: Paths, runtime: Runtime) -> None:
    before = {p: p.read_bytes() for p in mine.output.rglob("*") if p.is_file()}
    recipe = load_checkpoint(mine.output / "models/last.pt").recipe
    with pytest.raises(CheckpointError, match="seed 0, this run has 1"):
        train_model(mine, replace(recipe, seed=1), runtime, resume=True)
    assert {p: p.read_bytes() for p in mine.output.rglob("*") if p.is_file()} == before
    evaluate_model(mine, runtime)


def test_processed_images_of_other_raw_ones_are_refused(
    mine: Paths, recipe: Recipe, runtime: Runtime, tmp_path: Path
) -> None:
    data = tmp_path / "raw"
    write_cohort(data, n=80, seed=2, height=96, workers=1)  # the same ids, other hands
    with pytest.raises(BoneAgeError, match=r"80 of 80 images .* made from other files.*preprocess"):
        train_model(replace(mine, data=data), recipe, runtime)


def test_changed_labels_of_held_out_images_are_refused(
    mine: Paths, runtime: Runtime, tmp_path: Path
) -> None:
    labels = pd.read_csv(mine.data / "boneage-training-dataset.csv")
    split = pd.read_csv(mine.output / "split.csv")
    image = split.loc[split["split"] == "test", "image_id"].iloc[0]
    labels.loc[labels["id"] == image, "boneage"] += 1
    labels.to_csv(tmp_path / "changed.csv", index=False)
    with pytest.raises(
        CheckpointError, match="ages or sexes of the val and test images have changed"
    ):
        evaluate_model(replace(mine, labels=tmp_path / "changed.csv"), runtime)


def test_held_out_images_that_are_missing_are_said(
    mine: Paths, runtime: Runtime, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = tmp_path / "raw"
    shutil.copytree(mine.data, data)
    split = pd.read_csv(mine.output / "split.csv", dtype=str)
    find_images(data)[split.loc[split["split"] == "test", "image_id"].iloc[0]].unlink()
    with caplog.at_level(logging.WARNING):
        reports = evaluate_model(replace(mine, data=data, use_processed=False), runtime)
    assert reports["test"]["n"] == 11
    assert "only 11 of the 12 test images are here" in caplog.text


def test_other_people_s_images_cannot_be_evaluated_as_the_test_split(
    mine: Paths, runtime: Runtime, tmp_path: Path
) -> None:
    data = tmp_path / "other"
    data.mkdir()
    Image.fromarray(np.eye(64, dtype=np.uint8) * 200).save(data / "x1.png")
    (data / "labels.csv").write_text("id,boneage,sex\nx1,100,M\n")
    with pytest.raises(CheckpointError, match="none of the val images"):
        evaluate_model(replace(mine, data=data, use_processed=False), runtime)


def test_a_patient_stays_in_one_part(
    raw: Path, recipe: Recipe, runtime: Runtime, tmp_path: Path
) -> None:
    labels = pd.read_csv(raw / "boneage-training-dataset.csv")
    labels["patient"] = [f"p{i // 2}" for i in range(len(labels))]
    file = tmp_path / "labels.csv"
    labels.to_csv(file, index=False)
    paths = Paths(data=raw, labels=file, output=tmp_path / "output")
    train_model(paths, replace(recipe, epochs=1, group_column="patient"), runtime)
    split = pd.read_csv(paths.output / "split.csv").merge(labels, left_on="image_id", right_on="id")
    assert split.groupby("patient")["split"].agg(set).map(len).max() == 1


def test_a_split_of_one_s_own_is_trained_on(
    samples: pd.DataFrame, raw: Path, recipe: Recipe, runtime: Runtime, tmp_path: Path
) -> None:
    parts = np.resize(["train", "train", "val", "test"], len(samples))
    own = samples[["image_id"]].assign(split=parts)
    own[::-1].to_csv(tmp_path / "own.csv", index=False)
    paths = Paths(data=raw, output=tmp_path / "output")
    train_model(paths, replace(recipe, epochs=1), runtime, split=tmp_path / "own.csv")
    pd.testing.assert_frame_equal(pd.read_csv(paths.output / "split.csv", dtype=str), own)
    facts = load_checkpoint(paths.output / "models" / "best_model.pt").provenance
    assert facts["n_by_split"] == {"train": 40, "val": 20, "test": 20}
    predicted = load_table(paths.output / "predictions_test.csv")["image_id"]
    assert list(predicted) == list(own.loc[own["split"] == "test", "image_id"])
    with pytest.raises(CheckpointError, match="Resume with the same images, labels and split"):
        train_model(paths, replace(recipe, epochs=2), runtime, resume=True)
    again = replace(recipe, epochs=2)
    train_model(paths, again, runtime, split=tmp_path / "own.csv", resume=True)
    assert len(pd.read_csv(paths.output / "history.csv")) == 2


def test_the_age_head_can_start_at_the_mean_age(
    paths: Paths, recipe: Recipe, runtime: Runtime
) -> None:
    still = replace(recipe, epochs=1, learning_rate=1e-12, age_bias="mean")
    reports = train_model(paths, still, runtime)
    assert reports["test"]["regression"]["mae_years"] < 6
    far = train_model(paths, replace(still, age_bias="zero"), runtime)
    assert far["test"]["regression"]["mae_years"] > 8


@pytest.mark.parametrize("head", ["stage", "age"])
def test_explain_draws_images_predicted_right_and_wrong(
    mine: Paths, runtime: Runtime, head: str
) -> None:
    (mine.output / "plots/gradcam_example_9.png").write_bytes(b"of an earlier call")
    written = explain_model(mine, runtime, head=head, cases=4)  # type: ignore[arg-type]
    assert [p.name for p in written] == [f"gradcam_example_{i}.png" for i in range(1, 5)]
    assert sorted(mine.output.glob("plots/gradcam_example_*.png")) == written
    for path in written:
        assert np.asarray(Image.open(path)).std() > 10


def test_an_exported_run_predicts_what_its_own_tables_say(mine: Paths, tmp_path: Path) -> None:
    radiographs = find_images(mine.data)
    few = tmp_path / "few"
    few.mkdir()
    for image in list(radiographs.values())[:3]:
        shutil.copy(image, few)
    assert export_model(mine, tmp_path / "model.onnx", images=few).n == 3
    predictor = Predictor(tmp_path / "model.onnx")
    table = load_table(mine.output / "predictions_test.csv")
    for row in table.itertuples():
        prediction = predictor.predict(radiographs[str(row.image_id)])
        assert prediction.predicted_years == pytest.approx(row.predicted_years, abs=1e-4)
        assert prediction.predicted_stage == row.predicted_stage


def test_an_export_is_checked_on_synthetic_images_by_default(
    mine: Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def count(trained: Any, out: Path, paths: list[Path], calibration: Any) -> Parity:
        assert out == tmp_path / "model.onnx"
        sizes = {Image.open(path).height for path in paths}
        return Parity(len(paths), months=0.0, probability=float(sizes == {256}))

    monkeypatch.setattr(workflows, "export_onnx", count)
    monkeypatch.setattr(workflows, "PARITY_IMAGES", 3)
    assert export_model(mine, tmp_path / "model.onnx") == Parity(3, 0.0, 1.0)


def test_the_test_images_can_be_left_unseen(mine: Paths, recipe: Recipe, runtime: Runtime) -> None:
    reports = train_model(mine, replace(recipe, epochs=1), runtime, evaluated=("val",))
    assert list(reports) == ["val"]
    assert (mine.output / "metrics_val.json").is_file()
    assert not (mine.output / "metrics_test.json").exists()


def test_images_held_out_are_in_no_training(mine: Paths, recipe: Recipe, runtime: Runtime) -> None:
    split = pd.read_csv(mine.output / "split.csv", dtype=str).set_index("image_id")["split"]
    in_training, in_test = (split.index[split == part][0] for part in ("train", "test"))
    held_out = replace(recipe, epochs=1, hold_out=(in_training, in_test))
    seen: list[str] = []
    reading = BoneAgeDataset.__getitem__

    def note(self: BoneAgeDataset, index: int) -> dict[str, Any]:
        item = reading(self, index)
        seen.append(item["image_id"])
        return item

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BoneAgeDataset, "__getitem__", note)
        train_model(mine, held_out, runtime)
    assert in_training not in seen
    assert in_test in seen  # it is still there to be measured
    checkpoint = load_checkpoint(mine.output / "models/best_model.pt")
    assert checkpoint.provenance["n_by_split"]["train"] == 55
    assert checkpoint.recipe.hold_out == (in_training, in_test)
    evaluate_model(mine, runtime)
    with pytest.raises(BoneAgeError, match="hold_out names 77777, which no image has as its id"):
        train_model(mine, replace(recipe, hold_out=("77777",)), runtime)


@pytest.mark.parametrize("use_processed", [True, False])
def test_synthetic_images_join_the_training_and_nothing_else(
    mine: Paths, recipe: Recipe, runtime: Runtime, use_processed: bool
) -> None:
    paths = replace(mine, use_processed=use_processed)
    reports = train_model(paths, replace(recipe, epochs=1, synthetic_images=16), runtime)
    assert len(find_images(mine.output / "synthetic" / "raw")) == 16
    assert [reports[part]["n"] for part in ("val", "test")] == [12, 12]
    split = pd.read_csv(mine.output / "split.csv", dtype=str)
    assert len(split) == 80
    assert not split["image_id"].str.startswith("synthetic").any()
    # A second run uses the same images and moves the first run aside.
    train_model(paths, replace(recipe, epochs=1, synthetic_images=16), runtime)


def test_views_of_hands_are_the_same_raw_processed_and_served(
    mine: Paths, recipe: Recipe, runtime: Runtime, tmp_path: Path
) -> None:
    views = replace(recipe, epochs=1, crop="hand", stretch_grey=True)
    radiographs = find_images(mine.data)
    reader = make_reader(Preprocessing.of_processed(views))
    with pytest.raises(BoneAgeError, match=r"was made with --crop none, this run has hand\. Run"):
        train_model(mine, views, runtime)
    preprocess_folder(radiographs, tmp_path / "views", views, workers=1, reader=reader)
    processed = replace(mine, processed=tmp_path / "views")
    train_model(processed, views, runtime)
    tables = []
    for paths in (processed, replace(mine, use_processed=False)):
        evaluate_model(paths, runtime)
        tables.append(load_table(mine.output / "predictions_test.csv"))
    pd.testing.assert_frame_equal(tables[0], tables[1])
    export_model(mine, tmp_path / "model.onnx")
    predictor = Predictor(tmp_path / "model.onnx", threads=1)
    assert predictor.contract.preprocessing.crop == "hand"
    for row in tables[0].itertuples():
        served = predictor.predict(radiographs[str(row.image_id)], force=True)
        assert served.predicted_years == pytest.approx(row.predicted_years, abs=1e-4)
    assert all(path.is_file() for path in explain_model(processed, runtime, cases=1))


def test_explaining_no_image_is_refused(mine: Paths, runtime: Runtime) -> None:
    with pytest.raises(BoneAgeError, match="cases is 0"):
        explain_model(mine, runtime, cases=0)


def test_processed_images_can_be_used_without_the_raw_ones(
    mine: Paths, runtime: Runtime, tmp_path: Path
) -> None:
    data = tmp_path / "labels only"
    data.mkdir()
    shutil.copy(mine.data / "boneage-training-dataset.csv", data)
    reports = evaluate_model(replace(mine, data=data), runtime)
    assert reports["test"]["n"] == 12
