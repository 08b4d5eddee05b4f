"""Distillation: who is taught what, and which teachers are refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import make_checkpoint

from boneage.checkpoint import load_checkpoint, save_checkpoint
from boneage.config import Paths, Recipe, Runtime
from boneage.dataset import DRAWN
from boneage.distill import Teachers
from boneage.errors import BoneAgeError, CheckpointError, ConfigError
from boneage.labels import data_sha256, split_sha256
from boneage.model import BoneAgePredictor
from boneage.run import train_model

SEXED: dict[str, Any] = {"sex_input": True, "unknown_sex_weight": 0.5, "sex_weight": 0.5}
CPU = torch.device("cpu")


def make_batch() -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    batch = {
        "image_id": ["1", DRAWN + "1", "2"],
        "age_years": torch.tensor([5.0, 6.0, 7.0]),
        "stage": torch.tensor([0, 0, 1]),
    }
    return torch.rand(3, 3, 48, 48), torch.tensor([1.0, 1.0, -1.0]), batch


def make_networks(**settings: object) -> list[BoneAgePredictor]:
    networks = [make_checkpoint(**settings).model for _ in range(2)]
    for i, network in enumerate(networks):
        assert network.age_head is not None
        torch.nn.init.constant_(network.age_head.bias, 8.0 + 4.0 * i)
    return networks


def test_real_films_are_taught_the_mean_answer_and_drawn_ones_keep_their_label() -> None:
    image, sex, batch = make_batch()
    networks = make_networks(**SEXED, averaging=0.0)
    told, withheld = Teachers(networks, CPU).teach(image, sex, batch)
    with torch.no_grad():
        ages, stages, without = [], [], []
        for network in networks:
            features = network.backbone(image)
            age, logits = network.answer(features, sex)
            ages.append(age)
            stages.append(logits.softmax(dim=1))  # type: ignore[union-attr]
            without.append(network.answer(features, torch.zeros(3))[0])
    mean = (ages[0] + ages[1]) / 2  # type: ignore[operator]
    assert told["age_years"][[0, 2]] == pytest.approx(mean[[0, 2]].numpy())
    assert told["age_years"][1] == 6.0
    assert told["stage"][[0, 2]].numpy() == pytest.approx(
        ((stages[0] + stages[1]) / 2)[[0, 2]].numpy()
    )
    assert told["stage"][1].tolist() == [1.0, 0.0, 0.0]
    mean_without = (without[0] + without[1]) / 2  # type: ignore[operator]
    assert withheld["age_years"][[0, 2]] == pytest.approx(mean_without[[0, 2]].numpy())
    assert (withheld["age_years"] != told["age_years"]).tolist() == [True, False, True]
    assert withheld["p_male"][1] == 1.0
    assert 0.0 < withheld["p_male"][0] < 1.0
    assert not told["age_years"].requires_grad
    assert batch["age_years"].tolist() == [5.0, 6.0, 7.0]


def test_teachers_answer_the_view_itself_whatever_they_average_elsewhere() -> None:
    image, sex, batch = make_batch()
    plain, averaging = (
        Teachers([make_checkpoint(**SEXED, mirror_average=average).model], CPU)
        for average in (False, True)
    )
    one, other = (teachers.teach(image, sex, batch)[0] for teachers in (plain, averaging))
    assert torch.equal(one["age_years"], other["age_years"])


@pytest.mark.parametrize("tasks", ["age", "stage"])
def test_a_task_left_out_keeps_its_labels(tasks: str) -> None:
    image, sex, batch = make_batch()
    told, withheld = Teachers([make_checkpoint(tasks=tasks).model], CPU).teach(image, sex, batch)
    for taught in (told, withheld):
        assert ("p_male" in taught) is False
        assert torch.equal(taught["age_years"], batch["age_years"]) is (tasks == "stage")
        assert torch.equal(taught["stage"], batch["stage"]) is (tasks == "age")


def test_without_teachers_the_labels_stay() -> None:
    image, sex, batch = make_batch()
    assert Teachers([], CPU).teach(image, sex, batch) == (batch, batch)


@pytest.fixture
def teach(samples: pd.DataFrame, tmp_path: Path) -> Callable[..., str]:
    """Save a network that nobody trained as if it had learned the cohort's training films."""
    of_cohort = {
        "data_sha256": data_sha256(samples),
        "split_sha256": split_sha256(samples["image_id"], samples["split"]),
    }

    def save(name: str, bias: float = 100.0, **facts: Any) -> str:
        checkpoint = make_checkpoint(**SEXED)
        assert checkpoint.model.age_head is not None
        torch.nn.init.constant_(checkpoint.model.age_head.bias, bias)
        recipe = replace(checkpoint.recipe, init="/somewhere/weights.pth")
        provenance = {
            **checkpoint.provenance, **of_cohort, "init_used": "weights.pth", **facts
        }  # fmt: skip
        path = tmp_path / name
        save_checkpoint(path, checkpoint.model, recipe, checkpoint.preprocessing, provenance)
        return str(path)

    return save


@pytest.fixture
def teachers(teach: Callable[..., str]) -> tuple[str, str]:
    """Two networks, of which one answers some 40 years more."""
    return teach("one.pt"), teach("other.pt", 140.0)


def test_a_run_starts_from_the_first_teacher_and_learns_their_mean(
    paths: Paths,
    recipe: Recipe,
    runtime: Runtime,
    teachers: tuple[str, str],
    teach: Callable[..., str],
) -> None:
    taught = replace(
        recipe, **SEXED, init="auto", teachers=teachers, epochs=1, learning_rate=1e-9,
        drawn_films=8,
    )  # fmt: skip
    reports = train_model(paths, taught, runtime)
    # Labels are 1 to 19 years: had they been learned, the loss would be some 90.
    first_loss = load_checkpoint(paths.output / "models/last.pt").state["history"][0]
    assert 15.0 < first_loss["train_age_loss"] < 40.0
    assert 80.0 < reports["val"]["regression"]["mae_years"] < 110.0
    provenance = load_checkpoint(paths.output / "models/best_model.pt").provenance
    assert provenance["init_used"] == "first teacher"
    assert [teacher["epoch"] for teacher in provenance["teachers"]] == [3, 3]
    assert provenance["teachers"][0]["recipe"]["init"] == "weights.pth"
    train_model(paths, replace(taught, epochs=2), runtime, resume=True)
    last = load_checkpoint(paths.output / "models/last.pt")
    assert last.recipe.teachers == teachers
    assert last.published_recipe["teachers"] == ["one.pt", "other.pt"]
    teach("other.pt", 141.0)
    with pytest.raises(CheckpointError, match=r"other data \(teachers_sha256 differs\)"):
        train_model(paths, replace(taught, epochs=3), runtime, resume=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 64}, "one.pt was trained with image_size 48, this run has 64"),
        ({"sex_input": False, "unknown_sex_weight": 0.0}, "one.pt was trained with sex_input True"),
        ({"stretch_grey": True}, "one.pt was trained with stretch_grey False, this run has True"),
        ({"seed": 1}, "one.pt was trained with split_sha256 '.*', this run has"),
        ({"hold_out": ("900003",)}, "one.pt was trained with hold_out"),
        ({"tasks": "age"}, "one.pt was trained with tasks 'age,stage'"),
        ({"backbone": "resnet34"}, "is another network"),
        ({"sex_weight": 0.0}, "is another network"),
        ({"init": "none"}, "init is none, but training starts from the first of the teachers"),
    ],
)
def test_teachers_that_do_not_fit_are_refused(
    paths: Paths,
    recipe: Recipe,
    runtime: Runtime,
    teachers: tuple[str, str],
    settings: dict[str, Any],
    message: str,
) -> None:
    asked = replace(recipe, **{**SEXED, "init": "auto", "teachers": teachers, **settings})
    with pytest.raises((CheckpointError, ConfigError), match=message):
        train_model(paths, asked, runtime)
    assert not paths.output.exists()


def test_a_missing_teacher_is_named(paths: Paths, recipe: Recipe, runtime: Runtime) -> None:
    with pytest.raises(BoneAgeError, match=r"nobody\.pt does not exist"):
        train_model(paths, replace(recipe, init="auto", teachers=("nobody.pt",)), runtime)


def test_a_teacher_of_other_films_is_refused(
    paths: Paths, recipe: Recipe, runtime: Runtime, teach: Callable[..., str]
) -> None:
    other = teach("other.pt", data_sha256="of other films")
    taught = replace(recipe, **SEXED, init="auto", teachers=(other,))
    with pytest.raises(CheckpointError, match="data_sha256 'of other films', this run has"):
        train_model(paths, taught, runtime)
