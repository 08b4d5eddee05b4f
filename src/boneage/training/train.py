"""`Trainer`: the training loop, evaluation of a split, best and last checkpoints."""

import logging
import math
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, cast

import pandas as pd
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from tqdm import tqdm

from boneage.config import Recipe, Runtime
from boneage.data.dataset import Batch, get_dataset, get_transforms, make_loader
from boneage.errors import BoneAgeError, CheckpointError
from boneage.evaluation.evaluate import Report
from boneage.files import save_text
from boneage.imaging.preprocess import Preprocessing
from boneage.training.age_map import OutlineLoss
from boneage.training.checkpoint import (
    BEST,
    LAST,
    Checkpoint,
    describe_software,
    load_checkpoint,
    save_checkpoint,
)
from boneage.training.device import autocast, keep_freed_memory, pick_device, require_compiler
from boneage.training.losses import LOSSES, auxiliary_loss, name_losses, task_losses
from boneage.training.model import BoneAgePredictor
from boneage.training.predict import evaluate_loader, move_batch

logger = logging.getLogger(__name__)


def is_better(new: float, best: float) -> bool:
    """Whether a validation loss improves on the best so far: lower is better."""
    return new < best


class Trainer:
    """Trains a `BoneAgePredictor` and evaluates it split by split.

    The loss is L1 on the age in years plus cross-entropy on the stage, minimised by Adam with
    clipped gradients. After each epoch the validation split is evaluated. The weights of the lowest
    validation loss, or of the last epoch, are saved as `models/best_model.pt`, and the state to
    continue from as `models/last.pt`. With `ema_decay`, the moving average of the weights is what
    is evaluated and saved.

    Args:
        model: The network; moved to the device.
        loaders: By split; `fit` needs "train" and "val".
        recipe: Settings, saved with each checkpoint.
        preprocessing: How an image becomes the network's input, saved with each checkpoint.
        output: Folder for `models/` and `history.csv`.
        runtime: Device and precision.
        provenance: Facts about data and split to save with each checkpoint; `train_median_years`
            among them is the baseline of the reports.
        tensorboard: Whether to write the history to `output/tensorboard` too.

    Raises:
        ConfigError: If the device is not there, or compiling is asked for without a compiler.

    Attributes:
        tables: The prediction table of each split's last evaluation.
        history: One row an epoch so far.
        provenance: Facts about software, data, split and, once trained, the best epoch.
    """

    def __init__(
        self,
        model: BoneAgePredictor,
        loaders: Mapping[str, DataLoader[Batch]],
        recipe: Recipe,
        preprocessing: Preprocessing,
        output: Path,
        *,
        runtime: Runtime = Runtime(),
        provenance: Mapping[str, Any] | None = None,
        tensorboard: bool = False,
    ) -> None:
        self.device = pick_device(runtime.device)
        if runtime.compile:
            require_compiler()
        self.model = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.loaders = loaders
        self.recipe = recipe
        self.preprocessing = preprocessing
        self.output = output
        self.tables: dict[str, pd.DataFrame] = {}
        self.history: list[dict[str, float]] = []
        self._precision = runtime.precision
        self._tensorboard = tensorboard
        # Only the backbone: it is nearly all of the work, and evaluation has batches of any size.
        self._train_backbone = torch.compile(model.backbone) if runtime.compile else model.backbone
        self._outline_loss = (
            OutlineLoss(self.model, recipe.image_size) if recipe.outline_weight else None
        )
        self._average = _make_average(self.model, recipe.ema_decay)
        optimizer = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer]
        self._optimizer = optimizer(
            model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        self._scheduler = _make_scheduler(self._optimizer, recipe, loaders)
        self._best_loss = math.inf
        self.provenance = {
            **describe_software(),
            "device": str(self.device),
            "seed": recipe.seed,
            "init_used": model.init_used,
            **(provenance or {}),
        }

    @property
    def kept_model(self) -> BoneAgePredictor:
        """The network that is evaluated and saved: with `ema_decay`, the average."""
        return self.model if self._average is None else cast(BoneAgePredictor, self._average.module)

    def fit(self) -> list[dict[str, float]]:
        """Train up to the recipe's last epoch, then reload the best checkpoint.

        Each epoch seeds its shuffling, dropout and augmentation by the run's seed and its own
        number, so a resumed run repeats exactly what an uninterrupted one does.

        Returns:
            One row an epoch, as in `history.csv`.

        Raises:
            BoneAgeError: If the loss stops being a number.
        """
        if self.device.type == "cpu":
            keep_freed_memory()
        for epoch in range(len(self.history) + 1, self.recipe.epochs + 1):
            started = time.monotonic()
            row: dict[str, float] = {"epoch": epoch}
            row |= {f"train_{name}": v for name, v in self._train_epoch(epoch).items()}
            report = self.evaluate("val", resamples=0)
            row |= {f"val_{name}": v for name, v in report["losses"].items()}
            row["val_mae_years"] = report.get("regression", {}).get("mae_years", math.nan)
            row["val_accuracy"] = report["classification"]["accuracy"]
            row["seconds"] = round(time.monotonic() - started, 2)
            self.history.append(row)
            self._save_epoch(row)
            logger.info(_describe_epoch(row, report))
        best = load_checkpoint(self.output / BEST)
        self.kept_model.load_state_dict(best.model.state_dict())
        self.provenance = best.provenance
        return self.history

    def resume(self) -> Self:
        """Load `models/last.pt`, so that `fit` continues after its last whole epoch.

        Raises:
            CheckpointError: If there is nothing to resume, or it was trained with other
                settings, preprocessing or data; nothing is changed then.
        """
        path = self.output / LAST
        if not path.is_file():
            raise CheckpointError(f"{path} does not exist; there is no run to resume.")
        last = load_checkpoint(path)
        self._require_same_run(last, path)
        self.kept_model.load_state_dict(last.model.state_dict())
        if self._average is not None:
            self._average.n_averaged.fill_(1)  # at 0, the next update would start the average anew
            self.model.load_state_dict(last.state["model"])
        self._optimizer.load_state_dict(last.state["optimizer"])
        self._scheduler.load_state_dict(last.state["scheduler"])
        self._best_loss = last.state["best_loss"]
        self.history = list(last.state["history"])
        self.provenance["init_used"] = last.provenance["init_used"]
        self._save_history()
        return self

    def _require_same_run(self, last: Checkpoint, path: Path) -> None:
        """Check that a checkpoint has the settings, preprocessing and data of this run.

        Raises:
            CheckpointError: If it has others.
        """
        settings = {**vars(last.recipe), **vars(last.preprocessing)}
        for name, now in {**vars(self.recipe), **vars(self.preprocessing)}.items():
            then = settings[name]
            # With a constant step size, more epochs only lengthen a run; a cycle changes shape.
            may_differ = name == "epochs" and self.recipe.schedule == "constant"
            if then != now and not may_differ:
                raise CheckpointError(
                    f"{path} was trained with {name} {then!r}, this run has {now!r}. Resume with "
                    "the same settings, or start afresh without --resume."
                )
        for name in ("data_sha256", "split_sha256"):
            if last.provenance.get(name) != self.provenance.get(name):
                raise CheckpointError(
                    f"{path} was trained on other data ({name} differs). Resume with the same "
                    "images, labels and split, or start afresh without --resume."
                )

    def evaluate(self, split: str, *, resamples: int = 2000) -> Report:
        """Predict a split once and compute every figure from these predictions.

        Args:
            split: A key of `loaders`. Its images are not augmented, and the model is not trained.
            resamples: Bootstrap resamples for the intervals; 0 leaves them out.

        Returns:
            The report of `evaluate_table`, with `losses`: `mae_years`, `rmse_years` and `r2` in
            `regression`; `accuracy`, `f1_weighted` and `qwk` in `classification`.

        Raises:
            BoneAgeError: If there is no such split, or a prediction is not finite.
        """
        if split not in self.loaders:
            expected = ", ".join(self.loaders)
            raise BoneAgeError(f"split is {split!r}; expected one of {expected}.")
        loader = self.loaders[split]
        if split == "train":
            images = get_dataset(loader).with_transform(get_transforms("val", self.recipe))
            loader = make_loader(images, self.recipe)
        self.tables[split], report = evaluate_loader(
            self.kept_model,
            loader,
            self.device,
            split,
            baseline_years=self.provenance.get("train_median_years"),
            resamples=resamples,
        )
        return report

    def _train_epoch(self, epoch: int) -> dict[str, float]:
        """Train on every batch once; give the mean losses over the images."""
        loader = self.loaders["train"]
        epoch_seed = hash((self.recipe.seed, epoch))
        torch.manual_seed(epoch_seed)
        loader.generator.manual_seed(epoch_seed)
        get_dataset(loader).epoch = epoch
        self.model.train()
        sums, n = torch.zeros(len(LOSSES), device=self.device), 0
        title = f"epoch {epoch}/{self.recipe.epochs}"
        with tqdm(loader, desc=title, unit="batch") as progress:
            for batch in progress:
                losses = self._train_batch(move_batch(batch, self.device))
                sums += losses.sum(dim=1)
                n += losses.shape[1]
                means = name_losses(sums / n)
                progress.set_postfix({name: f"{value:.3f}" for name, value in means.items()})
        if not math.isfinite(means["loss"]):
            raise BoneAgeError(
                f"the training loss is {means['loss']} in epoch {epoch}; training has diverged. "
                f"Lower --learning-rate, now {self.recipe.learning_rate:g}."
            )
        return means

    def _train_batch(self, batch: Batch) -> torch.Tensor:
        """Take one step; give the losses of the images, (3, B), as `task_losses` does."""
        with autocast(self.device, self._precision):
            features = self._train_backbone(batch["image"])
        features = features.float()
        outputs = self.model.apply_heads(features, batch["sex"])
        losses = task_losses(outputs, batch["age_years"], batch["stage"])
        loss = losses[0].mean() + auxiliary_loss(self.model, features, batch, self.recipe)
        if self._outline_loss is not None:
            loss = loss + self.recipe.outline_weight * self._outline_loss(batch)
        self._optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        self._optimizer.step()
        self._scheduler.step()
        if self._average is not None:
            self._average.update_parameters(self.model)
        return losses.detach()

    def _save_epoch(self, row: Mapping[str, float]) -> None:
        self.provenance |= {"epoch": row["epoch"], "saved": datetime.now(UTC).isoformat()}
        self.provenance |= {k: v for k, v in row.items() if k.startswith("val_")}
        facts = (self.kept_model, self.recipe, self.preprocessing, self.provenance)
        is_best = is_better(row["val_loss"], self._best_loss)
        if is_best:
            self._best_loss = row["val_loss"]
        if is_best or self.recipe.checkpoint_selection == "last":
            save_checkpoint(self.output / BEST, *facts)
        state = {
            "optimizer": self._optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
            "best_loss": self._best_loss,
            "history": self.history,
            "model": {} if self._average is None else self.model.state_dict(),
        }
        save_checkpoint(self.output / LAST, *facts, state)
        self._save_history()
        if self._tensorboard:
            self._log_tensorboard(row)

    def _save_history(self) -> None:
        history = pd.DataFrame(self.history)
        save_text(self.output / "history.csv", history.to_csv(index=False, lineterminator="\n"))

    def _log_tensorboard(self, row: Mapping[str, float]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(self.output / "tensorboard")) as writer:
            for name, value in row.items():
                writer.add_scalar(name, value, int(row["epoch"]))


def _make_average(model: BoneAgePredictor, decay: float) -> AveragedModel | None:
    if decay == 0:
        return None
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    return average.requires_grad_(False)


def _make_scheduler(
    optimizer: torch.optim.Optimizer, recipe: Recipe, loaders: Mapping[str, DataLoader[Batch]]
) -> torch.optim.lr_scheduler.LRScheduler:
    if recipe.schedule == "constant" or "train" not in loaders:
        return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    # At least ten steps, so that even a very short run has both a rise and a fall.
    steps = max(10, recipe.epochs * len(loaders["train"]))
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, steps)


def _describe_epoch(row: Mapping[str, float], report: Report) -> str:
    text = f"epoch {row['epoch']:.0f}: val loss {row['val_loss']:.3f}"
    by_sex = report["gender_bias"]
    if "regression" in by_sex:
        text += f", MAE {12 * row['val_mae_years']:.1f} months"
        text += _sexes(by_sex["regression"], "mae_months", ".1f")
    text += f", stage accuracy {row['val_accuracy']:.3f}"
    return text + _sexes(by_sex["classification"], "accuracy", ".3f")


def _sexes(figures: Report, name: str, style: str) -> str:
    parts = [f"{s} {figures[s][name]:{style}}" for s in ("male", "female") if figures[s]["n"]]
    return f" ({', '.join(parts)})"
