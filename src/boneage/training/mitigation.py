"""Ways to narrow the gap between groups, tried on the features of a trained network.

The network is frozen: only its heads are fitted again, in seconds, so that each way can be tried
with several seeds.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset
from tqdm import tqdm

from boneage.errors import ConfigError
from boneage.stages import STAGES
from boneage.training.model import BoneAgePredictor

Array = npt.NDArray[np.float64]

METHODS = (
    "nothing changed",
    "balanced sampling",
    "loss reweighting",
    "group regularisation",
    "correction by sex",
    "learned weighting",
)
"""What `fit_heads` and `correct_by_sex` do; the first is what the others are compared with."""

EPOCHS = 20
_BATCH = 256
_STEP_SIZE = 1e-3
_WEIGHT_DECAY = 0.01
_GROUP_WEIGHT = 1.0
_EXTRACTED_AT_ONCE = 16


@dataclass(frozen=True)
class Features:
    """Images as a frozen network sees them.

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
    """See images through a network, without the head; on the network's device, kept on the CPU."""
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
    """A network's own heads, copied to be fitted on."""

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
        """Answer years (n,) and stage logits (n, 3) to features (n, F) and sex (n,)."""
        return self.age(vectors, sex).squeeze(1), self.stage(vectors, sex)


def fit_heads(
    model: BoneAgePredictor, train: Features, method: str, seed: int, epochs: int = EPOCHS
) -> Heads:
    """Fit both heads further to L1 on the age and cross-entropy on the stage, in one of `METHODS`.

    - balanced sampling: every group of sex and stage is drawn equally often;
    - loss reweighting: images of rarer groups weigh more, by the inverse of the group's size,
      at most ten times the mean weight;
    - group regularisation: the variance of the groups' mean losses is added (V-REx; Krueger et
      al., ICML 2021);
    - learned weighting: the two losses by learned variances (Kendall et al., CVPR 2018);
    - "nothing changed" and "correction by sex": neither; the latter is `correct_by_sex` afterwards.

    Args:
        model: Whose heads to start from; it is left as it is.
        train: Its training images.
        method: Which.
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
    years, logits = heads(train.vectors[rows], train.sex[rows])
    age = (years - train.years[rows]).abs()
    stage = functional.cross_entropy(logits, train.stage[rows], reduction="none")
    if method == "learned weighting":
        precisions = (-heads.log_variances).exp()
        return precisions[0] * age.mean() + precisions[1] * stage.mean() + heads.log_variances.sum()
    each = age + stage
    if method == "loss reweighting":
        return (weights[rows] * each).mean()
    if method == "group regularisation":
        group = train.group[rows]
        means = torch.stack([each[group == code].mean() for code in group.unique()])
        return each.mean() + _GROUP_WEIGHT * means.var(unbiased=False)
    return each.mean()


@torch.no_grad()
def answer(heads: Heads, images: Features) -> tuple[Array, npt.NDArray[np.int64]]:
    """Answer years (n,) and stages (n,)."""
    years, logits = heads(images.vectors, images.sex)
    return years.double().numpy(), logits.argmax(dim=1).numpy()


def correct_by_sex(known: Array, answered: Array, sex: Array) -> dict[int, tuple[float, float]]:
    """Fit `known = slope * answered + intercept` for each sex, by least squares.

    Args:
        known: Reference ages of images that the heads have not seen, (n,).
        answered: Answers to them.
        sex: +1 or -1.

    Returns:
        By sex, slope and intercept.
    """
    lines = {}
    for code in (1, -1):
        slope, intercept = np.polyfit(answered[sex == code], known[sex == code], 1)
        lines[code] = (float(slope), float(intercept))
    return lines
