"""`Trainer`: the training loop, evaluation of a split, best and last checkpoints."""

import ctypes
import logging
import math
import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
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
from boneage.data.dataset import BoneAgeDataset, get_transforms, make_loader
from boneage.errors import BoneAgeError, CheckpointError, ConfigError
from boneage.evaluation.evaluate import Report, evaluate_table
from boneage.evaluation.prediction_table import COLUMNS as TABLE_COLUMNS
from boneage.files import save_text
from boneage.imaging.preprocess import Preprocessing
from boneage.stages import PROBABILITIES, STAGES, stage_from_years
from boneage.training.checkpoint import describe_software, load_checkpoint, save_checkpoint
from boneage.training.model import BoneAgePredictor
from boneage.training.orientation_head import fit_orientation_head

logger = logging.getLogger(__name__)

BEST, LAST = Path("models/best_model.pt"), Path("models/last.pt")
COMPILERS = ("g++", "clang++", "cl")
LOSSES = ("loss", "age_loss", "stage_loss")

Batch = dict[str, Any]
Outputs = tuple[torch.Tensor | None, torch.Tensor | None]


def is_better(new: float, best: float) -> bool:
    """Whether a validation loss improves on the best so far: lower is better."""
    return new < best


def pick_device(name: str) -> torch.device:
    """Choose where to compute: CUDA, then an Apple GPU, then the CPU, or the one named.

    Raises:
        ConfigError: If the device named is not there.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device, is_there in available.items() if is_there)
    if not available[name]:
        there = ", ".join(device for device, is_there in available.items() if is_there)
        raise ConfigError(f"device {name} is not available here; found: {there}.")
    return torch.device(name)


def keep_freed_memory() -> bool:
    """Have glibc keep the memory of freed tensors for the next ones; no effect elsewhere.

    By default it gives large blocks back to the system, so that every step's tensors are mapped
    and their pages cleared anew, which takes as long as the arithmetic on a CPU.

    Returns:
        Whether the C library took the settings. Source: malloc.h, mallopt(3).
    """
    m_trim_threshold, m_mmap_max = -1, -4
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    return bool(mallopt(m_mmap_max, 0) and mallopt(m_trim_threshold, 2**31 - 1))


class Trainer:
    """Trains a `BoneAgePredictor` and evaluates it split by split.

    The loss is L1 on age in years plus cross-entropy on stage, minimised by Adam with clipped
    gradients. After each epoch the validation split is evaluated; the weights of the lowest total
    validation loss, or of the last epoch, are kept as `models/best_model.pt`, and the state to
    continue from as `models/last.pt`. If weights are averaged, the average is what is evaluated
    and kept.

    Args:
        model: The network; moved to the device.
        loaders: By split; `fit` needs "train" and "val".
        recipe: Settings, saved with each checkpoint.
        preprocessing: How files become input, saved with each checkpoint.
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
        if runtime.compile and not any(shutil.which(name) for name in COMPILERS):
            raise ConfigError(
                f"--compile needs a C++ compiler ({' or '.join(COMPILERS)}), and none was found. "
                "Install one, or pass --no-compile."
            )
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
        """The network that is evaluated and saved: the average, if weights are averaged."""
        return self.model if self._average is None else cast(BoneAgePredictor, self._average.module)

    def fit(self) -> list[dict[str, float]]:
        """Train up to the recipe's last epoch, then reload the best checkpoint.

        Each epoch draws its shuffling, dropout and augmentation from the seed and its own
        number, so a run that was resumed repeats exactly what an uninterrupted one would have
        done.

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
        if self.recipe.orientation_head:
            self._fit_orientation()
        return self.history

    def resume(self) -> Self:
        """Take up `models/last.pt`, so that `fit` goes on after its last whole epoch.

        Raises:
            CheckpointError: If there is nothing to resume, or it was trained with other
                settings, preprocessing or data; nothing is changed then.
        """
        path = self.output / LAST
        if not path.is_file():
            raise CheckpointError(f"{path} does not exist; there is no run to resume.")
        last = load_checkpoint(path)
        settings = {**vars(last.recipe), **vars(last.preprocessing)}
        for name, now in {**vars(self.recipe), **vars(self.preprocessing)}.items():
            then = settings[name]
            # More epochs only lengthen a run of constant steps; they reshape a cycle.
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
        self.kept_model.load_state_dict(last.model.state_dict())
        if self._average is not None:
            self._average.n_averaged.fill_(1)  # else the next update would start it anew
            self.model.load_state_dict(last.state["model"])
        self._optimizer.load_state_dict(last.state["optimizer"])
        self._scheduler.load_state_dict(last.state["scheduler"])
        self._best_loss = last.state["best_loss"]
        self.history = list(last.state["history"])
        self.provenance["init_used"] = last.provenance["init_used"]
        self._save_history()
        return self

    def evaluate(self, split: str, *, resamples: int = 2000) -> Report:
        """Predict a split once and compute every figure from that table.

        Args:
            split: A key of `loaders`; its images are not augmented and nothing is learned.
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
        table, losses = self._predict(split)
        self.tables[split] = table
        report = evaluate_table(
            table, baseline_years=self.provenance.get("train_median_years"), resamples=resamples
        )
        return {**report, "losses": losses}

    def _fit_orientation(self) -> None:
        """Fit the orientation head to the kept weights, and keep them with it."""
        training = loaded_data(self.loaders["train"])
        images = training.with_transform(get_transforms("val", self.recipe))
        share = fit_orientation_head(self.kept_model, images, self.recipe.seed)
        logger.info("orientation head: %.2f%% of the fitted images told right", 100 * share)
        facts = (self.kept_model, self.recipe, self.preprocessing, self.provenance)
        save_checkpoint(self.output / BEST, *facts)

    def _train_epoch(self, epoch: int) -> dict[str, float]:
        loader = self.loaders["train"]
        epoch_seed = hash((self.recipe.seed, epoch))
        torch.manual_seed(epoch_seed)
        loader.generator.manual_seed(epoch_seed)
        loaded_data(loader).epoch = epoch
        self.model.train()
        sums, n = torch.zeros(len(LOSSES), device=self.device), 0
        title = f"epoch {epoch}/{self.recipe.epochs}"
        with tqdm(loader, desc=title, unit="batch") as progress:
            for batch in progress:
                image, sex = self._inputs(batch)
                with self._autocast():
                    features = self._train_backbone(image)
                features = features.float()
                losses = self._losses(self.model.apply_heads(features, sex), batch)
                loss = losses[0].mean() + self._auxiliary_loss(features, batch)
                self._optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
                self._optimizer.step()
                self._scheduler.step()
                if self._average is not None:
                    self._average.update_parameters(self.model)
                sums += losses.detach().sum(dim=1)
                n += losses.shape[1]
                means = _named(sums / n)
                progress.set_postfix({name: f"{value:.3f}" for name, value in means.items()})
        if not math.isfinite(means["loss"]):
            raise BoneAgeError(
                f"the training loss is {means['loss']} in epoch {epoch}; training has diverged. "
                f"Lower --learning-rate, now {self.recipe.learning_rate:g}."
            )
        return means

    @torch.inference_mode()
    def _predict(self, split: str) -> tuple[pd.DataFrame, dict[str, float]]:
        loader = self.loaders[split]
        if split == "train":  # every image once, in order, and none varied
            images = loaded_data(loader).with_transform(get_transforms("val", self.recipe))
            loader = make_loader(images, self.recipe)
        model = self.kept_model.eval()
        parts, sums = [], torch.zeros(len(LOSSES), device=self.device)
        for batch in tqdm(loader, desc=split, unit="batch", leave=False):
            # In fp32 on every device, so that figures do not depend on how the model was trained.
            image, sex = self._inputs(batch)
            age, logits = answers = model(image, sex)
            sums += self._losses(answers, batch).sum(dim=1)
            if not all(a is None or a.isfinite().all() for a in (age, logits)):
                raise BoneAgeError(
                    f"the answer to a {split} image is not a number; training has diverged. Lower "
                    f"--learning-rate, now {self.recipe.learning_rate:g}."
                )
            parts.append(_answers(batch["image_id"], age, logits))
        answers = pd.concat(parts, ignore_index=True)
        samples = loaded_data(loader).samples
        table = samples[["image_id", "sex"]].merge(answers, on="image_id", validate="one_to_one")
        table["split"] = split
        table["reference_years"] = samples["age_years"]
        table["reference_stage"] = [STAGES[code] for code in samples["stage"]]
        return table[list(TABLE_COLUMNS)], _named(sums / len(samples))

    def _inputs(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        image = batch["image"].to(self.device, non_blocking=True, memory_format=torch.channels_last)
        return image, batch["sex"].to(self.device)

    def _auxiliary_loss(self, features: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Mean loss of what training answers besides: without the sex, and the sex itself."""
        sex = batch["sex"].to(self.device)
        loss = features.new_zeros(())
        if self.recipe.unknown_sex_weight:
            withheld = self.model.apply_heads(features, torch.zeros_like(sex))
            loss = self.recipe.unknown_sex_weight * self._losses(withheld, batch)[0].mean()
        if self.model.sex_head is not None:
            logits = self.model.sex_head(features).squeeze(1)
            # An image of unknown sex, coded 0, weighs nothing.
            of_image = nn.functional.binary_cross_entropy_with_logits(
                logits, (sex > 0).float(), weight=sex.abs()
            )
            loss = loss + self.recipe.sex_weight * of_image
        return loss

    def _losses(self, answers: Outputs, batch: Batch) -> torch.Tensor:
        """Total, age and stage loss of each image, shape (3, B); 0 for a task left out."""
        age, logits = answers
        zero = torch.zeros(len(batch["stage"]), device=self.device)
        age_loss = stage_loss = zero
        if age is not None:
            truth = batch["age_years"].to(self.device)
            age_loss = nn.functional.l1_loss(age, truth, reduction="none")
        if logits is not None:
            stage = batch["stage"].to(self.device)
            stage_loss = nn.functional.cross_entropy(logits, stage, reduction="none")
        return torch.stack([age_loss + stage_loss, age_loss, stage_loss])

    def _autocast(self) -> AbstractContextManager[None]:
        is_bf16 = self._precision == "bf16" or (
            self._precision == "auto"
            and self.device.type == "cuda"
            and torch.cuda.is_bf16_supported(including_emulation=False)
        )
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=is_bf16)

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
    # At least ten steps, so that even a toy run has both a rise and a fall.
    steps = max(10, recipe.epochs * len(loaders["train"]))
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, steps)


def loaded_data(loader: DataLoader[Batch]) -> BoneAgeDataset:
    """Give the data set behind a loader."""
    dataset = loader.dataset
    if not isinstance(dataset, BoneAgeDataset):
        raise TypeError(f"a loader holds a {type(dataset).__name__}, not a BoneAgeDataset")
    return dataset


def _named(losses: torch.Tensor) -> dict[str, float]:
    return dict(zip(LOSSES, losses.tolist(), strict=True))


def _answers(
    image_ids: list[str], age: torch.Tensor | None, logits: torch.Tensor | None
) -> pd.DataFrame:
    """One row an image: predicted age, stage and stage probabilities; NaN for a task left out."""
    part = pd.DataFrame({"image_id": image_ids})
    part["predicted_years"] = math.nan if age is None else age.cpu().double().numpy()
    part[list(PROBABILITIES)] = math.nan
    if logits is not None:
        part[list(PROBABILITIES)] = logits.softmax(dim=1).cpu().double().numpy()
        codes = logits.argmax(dim=1).cpu().numpy()
    else:
        codes = stage_from_years(part["predicted_years"])
    part["predicted_stage"] = [STAGES[code] for code in codes]
    return part


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
