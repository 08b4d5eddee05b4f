"""What narrows the gap between the sexes, and what it costs: docs/experiments.md, "Mitigation".

    python benchmarks/mitigation.py DATA --output RUN

DATA is the raw folder of the images, RUN the folder of a finished training. The network is frozen:
only its heads are fitted further, on the features of the training images. That takes seconds, so
each method is tried with several seeds. The correction by sex is fitted on the half of the
validation images that the package's calibration uses; all figures are of the other half. No test
image is used.
"""

import argparse
import json
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils.data import Dataset
from tqdm import tqdm

from boneage.config import Paths
from boneage.data.dataset import BoneAgeDataset, get_transforms
from boneage.errors import ConfigError
from boneage.evaluation.bootstrap import mean_estimate
from boneage.files import save_text
from boneage.stages import STAGES
from boneage.training.losses import task_losses
from boneage.training.model import BoneAgePredictor
from boneage.training.samples import choose_training, load_trained

RESULTS = Path(__file__).parent.parent / "docs" / "results" / "mitigation.json"
SEEDS = 5
RESAMPLES = 2000

Array = npt.NDArray[np.float64]

METHODS = (
    "nothing changed",
    "balanced sampling",
    "loss reweighting",
    "group regularisation",
    "correction by sex",
    "learned weighting",
)
"""What `fit_heads` and `correct_by_sex` do; the others are compared with the first."""

EPOCHS = 20
_BATCH = 256
_STEP_SIZE = 1e-3
_WEIGHT_DECAY = 0.01
_GROUP_WEIGHT = 1.0
_EXTRACTED_AT_ONCE = 16


@dataclass(frozen=True)
class Features:
    """The features that a frozen network gives for n images.

    Attributes:
        vectors: (n, F).
        sex: (n,), +1 male, -1 female.
        years: (n,), reference age.
        stage: (n,), reference stage.
    """

    vectors: torch.Tensor
    sex: torch.Tensor
    years: torch.Tensor
    stage: torch.Tensor

    @property
    def group(self) -> torch.Tensor:
        """Sex and stage as one code, (n,): the groups to be treated alike."""
        return (self.sex > 0).long() * len(STAGES) + self.stage


@torch.no_grad()
def extract_features(model: BoneAgePredictor, images: Dataset[dict[str, Any]]) -> Features:
    """Compute the features of images, on the network's device; they are returned on the CPU."""
    device = next(model.parameters()).device
    model.eval()
    n = len(images)  # type: ignore[arg-type]
    vectors, rest = [], []
    for start in tqdm(range(0, n, _EXTRACTED_AT_ONCE), desc="features", unit="batch"):
        batch = [images[i] for i in range(start, min(start + _EXTRACTED_AT_ONCE, n))]
        pixels = torch.stack([item["image"] for item in batch]).to(device)
        vectors.append(model.features(pixels.contiguous(memory_format=torch.channels_last)).cpu())
        rest += [(float(i["sex"]), float(i["age_years"]), int(i["stage"])) for i in batch]
    sex, years, stage = zip(*rest, strict=True)
    return Features(
        torch.cat(vectors), torch.tensor(sex), torch.tensor(years), torch.tensor(stage)
    )  # fmt: skip


class Heads(nn.Module):
    """Copies of a network's heads, to be fitted further."""

    def __init__(self, model: BoneAgePredictor) -> None:
        super().__init__()
        if model.age_head is None or model.stage_head is None or not model.sex_input:
            raise ConfigError("mitigation needs a model with both heads and the sex as input.")
        self.age, self.stage = deepcopy(model.age_head), deepcopy(model.stage_head)
        # Logarithms of the two losses' variances (Kendall et al., CVPR 2018).
        self.log_variances = nn.Parameter(torch.zeros(2))

    def forward(
        self, vectors: torch.Tensor, sex: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predict years (n,) and stage logits (n, 3) from features (n, F) and sex (n,)."""
        return self.age(vectors, sex).squeeze(1), self.stage(vectors, sex)


def fit_heads(
    model: BoneAgePredictor, train: Features, method: str, seed: int, epochs: int = EPOCHS
) -> Heads:
    """Fit both heads further with L1 on the age and cross-entropy on the stage, by one method.

    - balanced sampling: every group of sex and stage is sampled equally often;
    - loss reweighting: images of rarer groups weigh more, by the inverse of the group's size,
      at most ten times the mean weight;
    - group regularisation: the variance of the groups' mean losses is added (V-REx; Krueger et
      al., ICML 2021);
    - learned weighting: the two losses by learned variances (Kendall et al., CVPR 2018);
    - "nothing changed" and "correction by sex": none of these; `correct_by_sex` comes afterwards.

    Args:
        model: Gives the heads to start from; it is not changed.
        train: Its training images.
        method: One of `METHODS`.
        seed: Of the shuffling.
        epochs: Passes over the images.

    Raises:
        ConfigError: If the method is none of those, or the model lacks a head or the sex.
    """
    if method not in METHODS:
        raise ConfigError(f"method is {method!r}; expected one of {', '.join(METHODS)}.")
    torch.manual_seed(seed)
    n = len(train.years)
    weights = _inverse_sizes(train.group)
    heads = Heads(model).train()
    optimizer = torch.optim.AdamW(heads.parameters(), lr=_STEP_SIZE, weight_decay=_WEIGHT_DECAY)
    steps = epochs * -(-n // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _STEP_SIZE, total_steps=steps)
    for _ in range(epochs):
        order = (
            torch.multinomial(weights, n, replacement=True)
            if method == "balanced sampling"
            else torch.randperm(n)
        )
        for rows in order.split(_BATCH):
            optimizer.zero_grad()
            _loss(heads, train, rows, method, weights).backward()
            optimizer.step()
            schedule.step()
    return heads.eval()


def _inverse_sizes(group: torch.Tensor) -> torch.Tensor:
    """Weights (n,) of mean 1, inverse to the size of each image's group, at most 10."""
    sizes = torch.bincount(group)[group].float()
    weights = 1.0 / sizes
    return (weights / weights.mean()).clamp_max(10.0)


def _loss(
    heads: Heads, train: Features, rows: torch.Tensor, method: str, weights: torch.Tensor
) -> torch.Tensor:
    outputs = heads(train.vectors[rows], train.sex[rows])
    each, age, stage = task_losses(outputs, train.years[rows], train.stage[rows])
    if method == "learned weighting":
        precisions = (-heads.log_variances).exp()
        return precisions[0] * age.mean() + precisions[1] * stage.mean() + heads.log_variances.sum()
    if method == "loss reweighting":
        return (weights[rows] * each).mean()
    if method == "group regularisation":
        group = train.group[rows]
        means = torch.stack([each[group == code].mean() for code in group.unique()])
        return each.mean() + _GROUP_WEIGHT * means.var(unbiased=False)
    return each.mean()


@torch.no_grad()
def predict(heads: Heads, images: Features) -> tuple[Array, npt.NDArray[np.int64]]:
    """Predict years (n,) and stages (n,)."""
    years, logits = heads(images.vectors, images.sex)
    return years.double().numpy(), logits.argmax(dim=1).numpy()


def correct_by_sex(
    reference: Array, predicted: Array, sex: Array
) -> dict[int, tuple[float, float]]:
    """Fit `reference = slope * predicted + intercept` for each sex, by least squares.

    Args:
        reference: Reference ages of images that the heads were not fitted on, (n,).
        predicted: Predicted ages, (n,).
        sex: +1 male or -1 female, (n,).

    Returns:
        By sex, slope and intercept.
    """
    lines = {}
    for code in (1, -1):
        slope, intercept = np.polyfit(predicted[sex == code], reference[sex == code], 1)
        lines[code] = (float(slope), float(intercept))
    return lines


def main() -> None:
    """Fit the heads by every method with every seed, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--output", type=Path, default=Path("output/boneage"))
    arguments = parser.parse_args()
    paths = Paths(data=arguments.data, output=arguments.output)
    trained, samples = load_trained(paths, None)
    recipe = trained.recipe
    val = samples[samples["split"] == "val"]
    parts = [
        choose_training(samples, recipe),
        val.iloc[1::2],
        val.iloc[::2],
    ]
    transform = get_transforms("val", recipe)
    model = trained.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    train, fitted, judged = (
        extract_features(model, BoneAgeDataset(part, transform, trained.preprocessing))
        for part in parts
    )
    truth, sex = judged.years.numpy() * 12.0, judged.sex.numpy()
    stage = judged.stage.numpy()
    errors: dict[str, list[Any]] = {method: [] for method in METHODS}
    hits: dict[str, list[Any]] = {method: [] for method in METHODS}
    for seed in range(SEEDS):
        for method in METHODS:
            heads = fit_heads(model, train, method, seed)
            years, stages = predict(heads, judged)
            if method == "correction by sex":
                lines = correct_by_sex(
                    fitted.years.numpy(), predict(heads, fitted)[0], fitted.sex.numpy()
                )
                slopes, intercepts = np.array([lines[int(s)] for s in sex]).T
                years = slopes * years + intercepts
            errors[method].append(12.0 * years - truth)
            hits[method].append(stages == stage)
        print(f"seed {seed} done", flush=True)
    result = {
        "n": len(truth), "n_train": len(train.years), "seeds": SEEDS,
        "methods": [compare(m, errors, hits, sex) for m in METHODS],
    }  # fmt: skip
    save_text(RESULTS, json.dumps(result, indent=1) + "\n")
    for row in result["methods"]:
        print(row)


def compare(
    method: str, errors: dict[str, list[Any]], hits: dict[str, list[Any]], sex: Any
) -> dict[str, Any]:
    """Give one method's figures, means over the seeds, and its changes, paired by image."""
    error, before = np.array(errors[method]), np.array(errors[METHODS[0]])  # (seeds, images)
    size, base = np.abs(error), np.abs(before)
    male = sex > 0

    def gap(sizes: Any) -> Any:
        return sizes[..., ~male].mean(axis=-1) - sizes[..., male].mean(axis=-1)

    # An image's contribution to the gap, so that the gap is a mean over images as well.
    weight = np.where(male, -len(sex) / male.sum(), len(sex) / (~male).sum())
    return {
        "method": method,
        "mae_months": float(size.mean()),
        "mae_sd_over_seeds": float(size.mean(axis=1).std(ddof=1)),
        "gap_months": float(gap(size).mean()),
        "gap_sd_over_seeds": float(gap(size).std(ddof=1)),
        "bias_male_months": float(error[:, male].mean()),
        "bias_female_months": float(error[:, ~male].mean()),
        "stage_accuracy": float(np.mean(hits[method])),
        "mae_change_months": mean_estimate((size - base).mean(axis=0), RESAMPLES),
        "gap_change_months": mean_estimate((weight * (size - base)).mean(axis=0), RESAMPLES),
        "accuracy_change": mean_estimate(
            np.mean(hits[method], axis=0) - np.mean(hits[METHODS[0]], axis=0), RESAMPLES
        ),
    }


if __name__ == "__main__":
    main()
