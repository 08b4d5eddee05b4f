"""A network and a loader of images -> the prediction table, and its figures."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from boneage.data.dataset import Batch, get_dataset
from boneage.errors import BoneAgeError
from boneage.evaluation.bootstrap import RESAMPLES
from boneage.evaluation.evaluate import Report, evaluate_table
from boneage.evaluation.prediction_table import COLUMNS
from boneage.stages import PROBABILITIES, STAGES, stage_from_years
from boneage.training.losses import Outputs, name_losses, task_losses
from boneage.training.model import BoneAgePredictor


def predict_loader(
    model: BoneAgePredictor, loader: DataLoader[Batch], device: torch.device
) -> pd.DataFrame:
    """Predict every image of a loader's data set, in fp32.

    Args:
        model: Moved to the device, and put into evaluation mode.
        loader: Gives the data set, the batch size and the number of workers. Every image is
            predicted once, in the order of the data set, even if the loader shuffles.
        device: Where to compute.

    Returns:
        The prediction table, one row an image, with the columns `COLUMNS`; `split` is the
        one in the data set's samples, and empty if they have none.

    Raises:
        BoneAgeError: If a prediction is not finite.
    """
    return make_table(get_dataset(loader).samples, predict_outputs(model, loader, device))


def predict_outputs(
    model: BoneAgePredictor, loader: DataLoader[Batch], device: torch.device
) -> Outputs:
    """Predict every image of a loader's data set, as `predict_loader` does.

    Returns:
        Ages in years (N,) and stage logits (N, 3) on the CPU; None for a task left out.

    Raises:
        BoneAgeError: If a prediction is not finite.
    """
    model = model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    in_order = DataLoader(
        loader.dataset,
        batch_size=loader.batch_size,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
    )
    parts: list[Outputs] = []
    for batch in tqdm(in_order, desc="predict", unit="batch", leave=False):
        # In fp32 on every device, so that figures do not depend on how the model was trained.
        moved = move_batch(batch, device)
        # Not around model.to: weights made in inference mode cannot have gradients later.
        with torch.inference_mode():
            parts.append(model(moved["image"], moved["sex"]))
    ages, logits = (
        None if part[0] is None else torch.cat(part).cpu() for part in zip(*parts, strict=True)
    )
    for values in (ages, logits):
        if values is not None and not values.isfinite().all():
            is_finite = values.isfinite().reshape(len(values), -1).all(dim=1)
            image_id = get_dataset(loader).samples["image_id"][int(is_finite.int().argmin())]
            raise BoneAgeError(
                f"the prediction for image {image_id} is not a finite number; training has "
                "diverged. Train again with a lower --learning-rate."
            )
    return ages, logits


def make_table(samples: pd.DataFrame, outputs: Outputs) -> pd.DataFrame:
    """Make the prediction table of images from a network's outputs for them.

    Args:
        samples: N rows, as a `BoneAgeDataset` has them.
        outputs: Ages (N,) and stage logits (N, 3). Without logits, stages follow from the ages.
    """
    ages, logits = outputs
    table = pd.DataFrame({name: samples.get(name) for name in ("image_id", "split", "sex")})
    table["reference_years"] = samples["age_years"]
    table["predicted_years"] = math.nan if ages is None else ages.double().numpy()
    table["reference_stage"] = [STAGES[code] for code in samples["stage"]]
    table[list(PROBABILITIES)] = math.nan
    if logits is not None:
        table[list(PROBABILITIES)] = logits.softmax(dim=1).double().numpy()
        codes = logits.argmax(dim=1).numpy()
    else:
        codes = stage_from_years(table["predicted_years"])
    table["predicted_stage"] = [STAGES[code] for code in codes]
    return table[list(COLUMNS)]


def evaluate_loader(
    model: BoneAgePredictor,
    loader: DataLoader[Batch],
    device: torch.device,
    split: str,
    *,
    baseline_years: float | None = None,
    resamples: int = RESAMPLES,
) -> tuple[pd.DataFrame, Report]:
    """Predict a split once and compute every figure from these predictions.

    Args:
        model: As for `predict_loader`.
        loader: As for `predict_loader`; its images should not be augmented.
        device: Where to compute.
        split: Name of the split.
        baseline_years: Constant prediction to compare with, the median age of the training images.
        resamples: Bootstrap resamples for the intervals; 0 leaves them out.

    Returns:
        The prediction table, and the report of `evaluate_table` with the mean `losses`.

    Raises:
        BoneAgeError: If a prediction is not finite.
    """
    samples = get_dataset(loader).samples
    outputs = predict_outputs(model, loader, device)
    table = make_table(samples, outputs).assign(split=split)
    report = evaluate_table(table, baseline_years=baseline_years, resamples=resamples)
    losses = task_losses(
        outputs,
        torch.tensor(samples["age_years"].to_numpy(), dtype=torch.float32),
        torch.tensor(samples["stage"].to_numpy(dtype="int64")),
    )
    return table, {**report, "losses": name_losses(losses.mean(dim=1))}


def move_batch(batch: Mapping[str, Any], device: torch.device) -> Batch:
    """Bring the tensors of a batch to the device, images in the layout that computes fastest."""
    moved = {
        name: values.to(device, non_blocking=True) if isinstance(values, torch.Tensor) else values
        for name, values in batch.items()
    }
    return {**moved, "image": moved["image"].contiguous(memory_format=torch.channels_last)}
