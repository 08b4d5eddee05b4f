"""The seed report's names and command lines, as its readers would use them in a notebook."""

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from boneage import (
    BoneAgeDataset,
    BoneAgePredictor,
    GradCAM,
    Trainer,
    gender_bias_classification,
    gender_bias_regression,
    get_transforms,
    plot_confusion_matrix,
    plot_scatter,
    split_samples,
    stage_from_years,
)
from boneage.config import Recipe, Runtime
from boneage.data.dataset import make_loader
from boneage.data.labels import find_images, find_labels, match_images, read_labels
from boneage.imaging.preprocess import Preprocessing
from boneage.training.gradcam import predicted_stage
from builders import ROOT

SCRIPTS = ("main.py", "preprocess.py", "gradcam_demo.py")
ENV = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def test_the_csv_s_columns_and_the_parts_of_the_split_are_the_report_s(raw: Path) -> None:
    table = read_labels(find_labels(raw))
    assert table["age_years"].tolist() == (table["months"] / 12.0).tolist()
    assert table["stage"].tolist() == stage_from_years(table["age_years"]).tolist()
    assert table["sex_int"].tolist() == [{"M": 1, "F": 0}[sex] for sex in table["sex"]]
    parts = split_samples(table).value_counts().to_dict()
    assert parts == {"train": 56, "val": 12, "test": 12}


def test_a_dataset_reads_the_radiographs_and_the_network_gives_an_age_and_three_logits(
    raw: Path,
) -> None:
    samples = match_images(read_labels(find_labels(raw)), find_images(raw))
    dataset = BoneAgeDataset(samples, get_transforms("train"))
    assert len(dataset) == 80
    item = dataset[0]
    assert item["age_years"].item() == pytest.approx(samples["age_years"][0])
    assert item["stage"].item() == samples["stage"][0]
    image = get_transforms("test")(np.asarray(Image.open(samples["path"].iloc[0])))
    assert item["image"].shape == image.shape == (3, 256, 256)
    age_pred, stage_logits = BoneAgePredictor("resnet18").eval()(torch.stack([image] * 2))
    assert age_pred.shape == (2,)
    assert stage_logits.shape == (2, 3)


@pytest.fixture
def trainer(samples: pd.DataFrame, recipe: Recipe, runtime: Runtime, tmp_path: Path) -> Trainer:
    raw_images = Preprocessing(image_size=48, stored_size=None, invert="auto")
    loaders = {}
    for split in ("train", "val", "test"):
        rows = samples[samples["split"] == split]
        dataset = BoneAgeDataset(rows, get_transforms(split, recipe), raw_images)
        loaders[split] = make_loader(dataset, recipe, shuffle=split == "train")
    torch.manual_seed(0)
    model = BoneAgePredictor.from_recipe(recipe)
    return Trainer(model, loaders, recipe, raw_images, tmp_path, runtime=runtime)


def test_what_the_network_predicts_goes_into_the_report_s_functions(
    trainer: Trainer, samples: pd.DataFrame, tmp_path: Path
) -> None:
    """As a notebook would: tensors of a loop over the loader, no table in between."""
    sex_int = samples.set_index("image_id")["sex_int"]
    ages_true, ages_pred, stages_true, stages_pred, genders = [], [], [], [], []
    for batch in trainer.loaders["test"]:
        age_pred, stage_logits = trainer.model.eval()(batch["image"], batch["sex"])
        ages_true.append(batch["age_years"])
        ages_pred.append(age_pred)
        stages_true.append(batch["stage"])
        stages_pred.append(stage_logits.argmax(dim=1))
        genders.extend(sex_int[batch["image_id"]])
    report = trainer.evaluate("test", resamples=0)
    by_age = gender_bias_regression(torch.cat(ages_true), torch.cat(ages_pred), genders)
    by_stage = gender_bias_classification(torch.cat(stages_true), torch.cat(stages_pred), genders)
    bias = report["gender_bias"]
    for sex in ("male", "female"):
        assert by_age[sex]["mae_years"] == pytest.approx(bias["regression"][sex]["mae_years"])
        assert by_stage[sex] == bias["classification"][sex]
    plots = tmp_path / "output" / "plots"
    scatter = plots / "scatter_pred_vs_true_test.png"
    matrix = plots / "confusion_matrix_test.png"
    plot_scatter(torch.cat(ages_true), torch.cat(ages_pred), scatter)
    plot_confusion_matrix(torch.cat(stages_true), torch.cat(stages_pred), matrix)
    for picture in (scatter, matrix):
        assert min(Image.open(picture).size) > 300


def test_grad_cam_explains_the_stage_by_default() -> None:
    torch.manual_seed(0)
    model = BoneAgePredictor("resnet18")
    image = torch.rand(2, 3, 256, 256)
    with GradCAM(model) as cam:
        heat = cam(image)
    assert heat.shape == (2, 8, 8)
    with GradCAM(model, 256) as cam:
        np.testing.assert_array_equal(heat, cam(image, torch.zeros(2), predicted_stage))


def script(*arguments: str, python: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *python, *arguments]
    return subprocess.run(command, cwd=ROOT, env=ENV, capture_output=True, text=True, check=False)


def says_in_one_line(result: subprocess.CompletedProcess[str], *words: str) -> bool:
    (line,) = result.stderr.splitlines()
    return (result.returncode, result.stdout) == (1, "") and all(word in line for word in words)


def scripted(before: str, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script after some Python that changes the interpreter."""
    code = (
        f"import runpy, sys; {before}; sys.argv = {[name, *arguments]!r}; "
        f"runpy.run_path({name!r}, run_name='__main__')"
    )
    return script("-c", code)


REMEDY = ("make .venv/.installed", ". .venv/bin/activate", "pip install '.[train]'")


@pytest.mark.parametrize("arguments", [(), ("--help",), ("--mode", "evaluate")])
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_without_the_package_says_in_one_line_what_to_do(
    name: str, arguments: tuple[str, ...]
) -> None:
    result = script(name, *arguments, python=("-S", "-E"))
    assert says_in_one_line(result, "boneage is not installed for ", *REMEDY)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_names_what_the_command_line_itself_lacks(name: str) -> None:
    result = scripted("sys.modules['cyclopts'] = None", name)
    assert says_in_one_line(result, "cyclopts is not installed for ", *REMEDY)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("main.py", ("--mode", "evaluate")), ("main.py", ("--mode=train",)), ("gradcam_demo.py", ())],
)
def test_a_script_whose_command_lacks_a_package_says_which(
    name: str, arguments: tuple[str, ...], raw: Path, tmp_path: Path
) -> None:
    folders = ("--data", str(raw), "--output", str(tmp_path))
    result = scripted("sys.modules['torch'] = None", name, *arguments, *folders)
    assert result.returncode == 1
    assert result.stderr == (
        "boneage: torch is not installed; this command needs pip install '.[train]'.\n"
    )


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_on_an_older_python_says_which_it_needs(name: str) -> None:
    ast.parse((ROOT / name).read_text(), feature_version=(3, 8))
    result = scripted("sys.version_info = (3, 8, 18, 'final', 0)", name)
    needs = "is Python 3.8; boneage needs 3.11 or newer"
    assert says_in_one_line(result, needs, "make .venv/.installed PYTHON=python3.11")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_s_annotations_are_not_evaluated_by_an_older_python(name: str) -> None:
    """`list[str]` parses on Python 3.8 but fails there when a function is defined with it."""
    tree = ast.parse((ROOT / name).read_text())
    annotations: list[Any] = [
        node.annotation for node in ast.walk(tree) if isinstance(node, ast.arg | ast.AnnAssign)
    ]
    annotations += [node.returns for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    for annotation in annotations:
        assert isinstance(annotation, ast.Name | ast.Constant | None)


def test_the_scripts_run_where_the_package_is_installed() -> None:
    for name in SCRIPTS:
        result = script(name, "--help")
        assert result.returncode == 0, result.stderr
    assert "usage: python main.py --mode train|evaluate" in script("main.py").stderr
