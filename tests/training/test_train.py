import itertools
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

import boneage.training.train
from boneage.config import Recipe, Runtime
from boneage.data.dataset import BoneAgeDataset, get_transforms, make_loader
from boneage.errors import BoneAgeError, CheckpointError, ConfigError
from boneage.evaluation.evaluate import evaluate_table
from boneage.evaluation.prediction_table import COLUMNS as TABLE_COLUMNS
from boneage.imaging.preprocess import Preprocessing
from boneage.stages import PROBABILITIES, STAGES
from boneage.training.checkpoint import load_checkpoint
from boneage.training.model import BoneAgePredictor
from boneage.training.train import Trainer

PREPROCESSING = Preprocessing(image_size=48, stored_size=64, invert="auto")
Make = Callable[..., Trainer]


@pytest.fixture
def recipe(recipe: Recipe) -> Recipe:
    """A recipe with a backbone of a few thousand weights, whose checkpoints are small."""
    return replace(recipe, backbone="timm:test_resnet")


@pytest.fixture
def samples(samples: pd.DataFrame, processed: Path) -> pd.DataFrame:
    """The processed images, which are read faster than the raw ones."""
    paths = [processed / f"{image_id}.png" for image_id in samples["image_id"]]
    return samples.assign(path=pd.Series(paths, index=samples.index, dtype=object))


@pytest.fixture
def make_trainer(samples: pd.DataFrame, recipe: Recipe, runtime: Runtime, tmp_path: Path) -> Make:
    def make(recipe: Recipe = recipe, **options: Any) -> Trainer:
        loaders = {}
        for split in ("train", "val", "test"):
            data = BoneAgeDataset(samples[samples["split"] == split], get_transforms(split, recipe))
            loaders[split] = make_loader(data, recipe, shuffle=split == "train")
        torch.manual_seed(recipe.seed)
        model = BoneAgePredictor.from_recipe(recipe)
        everything: dict[str, Any] = {"runtime": runtime, "output": tmp_path / "output", **options}
        return Trainer(model, loaders, recipe, PREPROCESSING, **everything)

    return make


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(path).model.state_dict()


def assert_same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=0, msg=name)


def test_the_checkpoint_of_the_first_lowest_validation_loss_is_kept_with_its_provenance(
    make_trainer: Make, recipe: Recipe
) -> None:
    trainer = make_trainer(replace(recipe, epochs=5), provenance={"split_sha256": "cd"})
    planned, evaluate = iter([3.0, 1.0, 2.0, 1.0, 1.5]), trainer.evaluate

    def scripted(split: str, **options: Any) -> dict[str, Any]:
        report = evaluate(split, **options)
        return {**report, "losses": {**report["losses"], "loss": next(planned)}}

    trainer.evaluate = scripted  # type: ignore[method-assign]
    trainer.fit()
    best = load_checkpoint(trainer.output / "models" / "best_model.pt")
    assert_same_weights(trainer.model.state_dict(), best.model.state_dict())
    known = {"epoch": 2, "val_loss": 1.0, "split_sha256": "cd", "seed": 0, "device": "cpu",
             "init_used": "none"}  # fmt: skip
    assert known.items() <= best.provenance.items()
    assert {"boneage", "torch", "commit", "val_mae_years"} <= best.provenance.keys()


@pytest.mark.slow
def test_training_lowers_the_loss(make_trainer: Make, recipe: Recipe) -> None:
    history = make_trainer(replace(recipe, backbone="resnet18", epochs=5)).fit()
    assert history[-1]["train_loss"] < 0.6 * history[0]["train_loss"]
    assert history[-1]["train_age_loss"] < 0.6 * history[0]["train_age_loss"]


@pytest.mark.parametrize(("tasks", "idle"), [("age", "stage_loss"), ("stage", "age_loss")])
def test_one_task_can_be_trained_alone(
    make_trainer: Make, recipe: Recipe, tasks: str, idle: str
) -> None:
    trainer = make_trainer(replace(recipe, tasks=tasks, epochs=1))  # type: ignore[arg-type]
    (row,) = trainer.fit()
    assert row[f"train_{idle}"] == 0
    report = trainer.evaluate("val", resamples=0)
    assert ("regression" in report) is (tasks == "age")
    assert trainer.tables["val"]["p_child"].isna().all() == (tasks == "age")
    key = "direct_accuracy" if tasks == "age" else "threshold_accuracy"
    assert report["approaches"][key] is None


def test_evaluation_averages_over_images_not_over_batches(
    make_trainer: Make, recipe: Recipe
) -> None:
    # 12 images in batches of 7 and 5: the mean of batch means would weigh them wrongly.
    trainer = make_trainer(replace(recipe, batch_size=7))
    report = trainer.evaluate("val", resamples=0)
    table = trainer.tables["val"]
    assert len(table) % 7
    error = (table["predicted_years"] - table["reference_years"]).abs()
    assert report["losses"]["age_loss"] == pytest.approx(error.mean(), rel=1e-5)
    assert report["regression"]["mae_years"] == pytest.approx(error.mean())
    stages = table["reference_stage"].map(STAGES.index).to_numpy()
    likelihood = table[list(PROBABILITIES)].to_numpy()[np.arange(len(table)), stages]
    assert report["losses"]["stage_loss"] == pytest.approx(-np.log(likelihood).mean(), rel=1e-4)


def test_the_training_images_are_evaluated_once_each_as_they_are(
    make_trainer: Make, recipe: Recipe
) -> None:
    # 56 images in batches of 11 leave one over, which shuffled training leaves out.
    trainer = make_trainer(replace(recipe, batch_size=11, rotation=45.0))
    first = trainer.evaluate("train", resamples=0)
    assert len(trainer.tables["train"]) == first["n"] == 56
    assert trainer.tables["train"]["image_id"].is_unique
    assert trainer.evaluate("train", resamples=0) == first


def test_evaluating_a_split_gives_the_figures_of_its_table_and_prints_and_changes_nothing(
    make_trainer: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make_trainer()
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    report = trainer.evaluate("test", resamples=20)
    assert capsys.readouterr().out == ""
    table = trainer.tables["test"]
    assert list(table.columns) == list(TABLE_COLUMNS)
    assert report["n"] == len(table) == 12
    expected = evaluate_table(table, resamples=20)
    assert expected.items() <= report.items()
    assert trainer.evaluate("test", resamples=20) == report
    assert_same_weights(trainer.model.state_dict(), before)


@pytest.mark.parametrize("split", ["validation", "Test", "", None])
def test_evaluating_a_split_that_is_not_loaded_names_those_that_are(
    make_trainer: Make, split: str
) -> None:
    trainer = make_trainer()
    for loaded in ("train, val, test", "test"):
        trainer.loaders = {name: trainer.loaders[name] for name in loaded.split(", ")}
        with pytest.raises(BoneAgeError) as refused:
            trainer.evaluate(split, resamples=0)
        assert str(refused.value) == f"split is {split!r}; expected one of {loaded}."


class Interrupted(Exception):
    pass


AVERAGED: dict[str, Any] = {"ema_decay": 0.6, "checkpoint_selection": "last", "optimizer": "adamw"}


@contextmanager
def before_each_step(note: Callable[..., None]) -> Iterator[None]:
    """Call a function with the optimizer before each of its steps."""
    hook = register_optimizer_step_pre_hook(note)
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.parametrize("settings", [{}, {"schedule": "one-cycle"}, AVERAGED], ids=str)
def test_a_resumed_run_ends_as_an_uninterrupted_one_to_the_bit(
    make_trainer: Make, recipe: Recipe, tmp_path: Path, settings: dict[str, Any]
) -> None:
    recipe = replace(recipe, epochs=3, **settings)
    whole = make_trainer(recipe, output=tmp_path / "whole")
    whole.fit()
    cut = make_trainer(recipe, output=tmp_path / "parts")
    steps = itertools.count(1)

    def interrupt(optimizer: Optimizer, *_: Any) -> None:
        if next(steps) == len(cut.loaders["train"]) + 2:  # in the second epoch
            raise Interrupted

    with before_each_step(interrupt), pytest.raises(Interrupted):
        cut.fit()
    parts = make_trainer(recipe, output=tmp_path / "parts")
    parts.resume().fit()
    for name in ("models/best_model.pt", "models/last.pt"):
        assert_same_weights(weights(tmp_path / "whole" / name), weights(tmp_path / "parts" / name))
    one, other = (pd.DataFrame(t.history).drop(columns="seconds") for t in (whole, parts))
    pd.testing.assert_frame_equal(one, other, check_exact=True)


@pytest.mark.slow
def test_a_run_killed_in_mid_epoch_loses_only_that_epoch(
    raw: Path, processed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    command = [
        sys.executable, "-m", "boneage", "train", "--data", str(raw), "--output", str(output),
        "--processed", str(processed), "--use-processed", "--backbone", "timm:test_resnet",
        "--image-size", "48", "--init", "none", "--batch-size", "8", "--workers", "0",
        "--device", "cpu", "--learning-rate", "1e-3",
    ]  # fmt: skip
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    killed = subprocess.Popen([*command, "--epochs", "5000"], stderr=subprocess.PIPE, env=env)
    try:
        history = output / "history.csv"
        deadline = time.monotonic() + 120
        while not (history.exists() and len(history.read_text().splitlines()) > 2):
            assert killed.poll() is None, killed.stderr and killed.stderr.read().decode()[-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
    done = len(load_checkpoint(output / "models/last.pt").state["history"])
    assert done >= 2
    subprocess.run(
        [*command, "--epochs", str(done + 1), "--resume"],
        check=True, capture_output=True, env=env,
    )  # fmt: skip
    epochs = pd.read_csv(history)["epoch"]
    assert list(epochs) == list(range(1, done + 2))
    assert (output / "metrics_test.json").is_file()


def test_resuming_nothing_or_with_other_settings_data_or_images_is_refused(
    make_trainer: Make, recipe: Recipe
) -> None:
    with pytest.raises(CheckpointError, match="there is no run to resume"):
        make_trainer().resume()
    make_trainer(replace(recipe, epochs=1), provenance={"data_sha256": "a"}).fit()
    with pytest.raises(CheckpointError, match=r"batch_size 16, this run has 8"):
        make_trainer(replace(recipe, batch_size=8), provenance={"data_sha256": "a"}).resume()
    with pytest.raises(CheckpointError, match="other data"):
        make_trainer(provenance={"data_sha256": "b"}).resume()
    trainer = make_trainer(provenance={"data_sha256": "a"})
    trainer.preprocessing = replace(PREPROCESSING, stored_size=512)
    with pytest.raises(CheckpointError, match="stored_size 64, this run has 512"):
        trainer.resume()


def test_one_cycle_raises_the_step_to_its_highest_then_lowers_it_and_cannot_be_lengthened(
    make_trainer: Make, recipe: Recipe
) -> None:
    recipe = replace(recipe, schedule="one-cycle", epochs=4)
    sizes: list[float] = []
    with before_each_step(lambda optimizer, *_: sizes.append(optimizer.param_groups[0]["lr"])):
        make_trainer(recipe).fit()
    top = int(np.argmax(sizes))
    assert 0 < top < len(sizes) - 1
    assert sizes[top] == pytest.approx(recipe.learning_rate, rel=0.05)
    assert sizes == [*sorted(sizes[: top + 1]), *sorted(sizes[top + 1 :], reverse=True)]
    assert sizes[-1] < 0.01 * recipe.learning_rate
    with pytest.raises(CheckpointError, match="epochs 4, this run has 5"):
        make_trainer(replace(recipe, epochs=5)).resume()


@pytest.mark.parametrize("tasks", ["age", "stage", "age,stage"])
def test_a_prediction_that_is_not_finite_stops_with_the_remedy(
    make_trainer: Make, recipe: Recipe, tasks: Any
) -> None:
    trainer = make_trainer(replace(recipe, tasks=tasks))
    with torch.no_grad():
        next(trainer.model.parameters()).fill_(math.nan)
    with pytest.raises(BoneAgeError, match=r"image 9\d+ is not a finite number.*learning-rate"):
        trainer.evaluate("val", resamples=0)


def test_compiling_without_a_compiler_is_refused(
    make_trainer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler .* pass --no-compile"):
        make_trainer(runtime=Runtime(device="cpu", workers=0, compile=True))


def test_a_diverging_run_stops_with_the_remedy(make_trainer: Make, recipe: Recipe) -> None:
    with pytest.raises(BoneAgeError, match=r"diverged.*--learning-rate"):
        make_trainer(replace(recipe, learning_rate=1e30, clip_norm=1e30)).fit()


def test_gradients_are_clipped_to_the_norm(make_trainer: Make, recipe: Recipe) -> None:
    norms = []
    trainer = make_trainer(replace(recipe, clip_norm=0.01, epochs=1))

    def note(*_: Any) -> None:
        gradients = [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
        norms.append(torch.cat(gradients).norm().item())

    with before_each_step(note):
        trainer.fit()
    assert norms
    assert max(norms) <= 0.01 * 1.001


def test_the_history_is_written_as_csv_and_when_asked_for_tensorboard_and_its_losses_add_up(
    make_trainer: Make,
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = make_trainer(tensorboard=True)
    history = trainer.fit()
    for row in history:
        for split in ("train", "val"):
            total = row[f"{split}_age_loss"] + row[f"{split}_stage_loss"]
            assert row[f"{split}_loss"] == pytest.approx(total, rel=1e-5)
    rows = pd.read_csv(trainer.output / "history.csv")
    assert rows["epoch"].tolist() == [1, 2]
    val_losses = [row["val_loss"] for row in history]
    assert rows["val_loss"].tolist() == pytest.approx(val_losses)
    events = EventAccumulator(str(trainer.output / "tensorboard"))
    events.Reload()
    assert [event.value for event in events.Scalars("val_loss")] == pytest.approx(val_losses)
    # A run cut off before its history was written gets it on resuming.
    (trainer.output / "history.csv").unlink()
    make_trainer().resume().fit()
    pd.testing.assert_frame_equal(pd.read_csv(trainer.output / "history.csv"), rows)


def test_bf16_trains_nearly_as_fp32_and_is_evaluated_as_it(
    make_trainer: Make, recipe: Recipe
) -> None:
    recipe = replace(recipe, epochs=1)
    exact = make_trainer(recipe)
    rounded = make_trainer(recipe, runtime=Runtime(device="cpu", precision="bf16"))
    assert rounded.evaluate("val", resamples=0) == exact.evaluate("val", resamples=0)
    losses = [trainer.fit()[0]["train_loss"] for trainer in (exact, rounded)]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert losses[1] != losses[0]


def test_the_average_of_the_weights_is_what_is_evaluated_and_kept(
    make_trainer: Make, recipe: Recipe
) -> None:
    decay = 0.6
    trainer = make_trainer(replace(recipe, ema_decay=decay, checkpoint_selection="last"))
    steps: list[torch.Tensor] = []
    bias = trainer.model.age_head.bias
    hook = register_optimizer_step_post_hook(lambda *_: steps.append(bias.detach().clone()))
    try:
        trainer.fit()
    finally:
        hook.remove()
    average = steps[0]
    for value in steps[1:]:
        average = decay * average + (1 - decay) * value
    kept = weights(trainer.output / "models/best_model.pt")
    torch.testing.assert_close(kept["age_head.bias"], average)
    assert not torch.equal(kept["age_head.bias"], bias)
    trainer.evaluate("val", resamples=0)
    again = make_trainer(recipe)
    again.model.load_state_dict(kept)
    again.evaluate("val", resamples=0)
    pd.testing.assert_frame_equal(again.tables["val"], trainer.tables["val"])


def test_the_last_epoch_is_kept_when_asked(
    make_trainer: Make, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(replace(recipe, epochs=3, checkpoint_selection="last"))
    monkeypatch.setattr(boneage.training.train, "is_better", lambda new, best: False)
    trainer.fit()
    models = trainer.output / "models"
    assert_same_weights(weights(models / "best_model.pt"), weights(models / "last.pt"))
    assert load_checkpoint(models / "best_model.pt").provenance["epoch"] == 3


def test_predictions_without_the_sex_are_learned_only_when_asked(
    make_trainer: Make, recipe: Recipe
) -> None:
    for weight in (0.0, 0.5):
        settings = {"sex_input": True, "unknown_sex_weight": weight, "epochs": 1}
        trainer = make_trainer(replace(recipe, **settings))  # type: ignore[arg-type]
        trainer.fit()
        assert bool(trainer.model.age_head.unknown_weight.abs().sum() > 0) == (weight > 0)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_backbone_trains_as_a_plain_one(make_trainer: Make, recipe: Recipe) -> None:
    recipe = replace(recipe, backbone="timm:test_efficientnet", epochs=1)
    plain, compiled = (
        make_trainer(recipe, runtime=Runtime(device="cpu", workers=0, compile=is_compiled))
        for is_compiled in (False, True)
    )
    losses = [trainer.fit()[0]["train_loss"] for trainer in (plain, compiled)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert list(compiled.model.state_dict()) == list(plain.model.state_dict())
