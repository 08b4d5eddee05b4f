"""The losses that training minimises, as functions of predictions and references."""

from collections.abc import Mapping

import torch
from torch.nn import functional

from boneage.config import Recipe
from boneage.training.model import BoneAgePredictor

LOSSES = ("loss", "age_loss", "stage_loss")
"""Names of the rows of `task_losses`."""

Outputs = tuple[torch.Tensor | None, torch.Tensor | None]
"""What a network gives: ages in years (B,) and stage logits (B, 3); None for a task left out."""


def task_losses(outputs: Outputs, age_years: torch.Tensor, stage: torch.Tensor) -> torch.Tensor:
    """Compute the losses of each image: L1 on the age in years, cross-entropy on the stage.

    Args:
        outputs: Of B images.
        age_years: (B,), reference ages.
        stage: (B,), reference stages, as codes.

    Returns:
        (3, B): the sum, the age loss, the stage loss; 0 for a task left out.
    """
    ages, logits = outputs
    age_loss = stage_loss = torch.zeros_like(age_years)
    if ages is not None:
        age_loss = functional.l1_loss(ages, age_years, reduction="none")
    if logits is not None:
        stage_loss = functional.cross_entropy(logits, stage, reduction="none")
    return torch.stack([age_loss + stage_loss, age_loss, stage_loss])


def sex_loss(logits: torch.Tensor, sex: torch.Tensor) -> torch.Tensor:
    """Compute the mean loss of the head that predicts the sex: binary cross-entropy.

    Args:
        logits: (B,), of being male.
        sex: (B,), +1 male, -1 female; an image of unknown sex, 0, adds nothing to the sum.
    """
    return functional.binary_cross_entropy_with_logits(logits, (sex > 0).float(), weight=sex.abs())


def auxiliary_loss(
    model: BoneAgePredictor,
    features: torch.Tensor,
    batch: Mapping[str, torch.Tensor],
    recipe: Recipe,
) -> torch.Tensor:
    """Compute the weighted mean loss of what is trained besides the predictions with the sex.

    That is the predictions without the sex, by `unknown_sex_weight`, and the sex head's, by
    `sex_weight`.

    Args:
        model: The network.
        features: (B, F), of its backbone.
        batch: `sex`, `age_years` and `stage`, each (B,), on the device of the features.
        recipe: Gives the weights.
    """
    loss = features.new_zeros(())
    if recipe.unknown_sex_weight:
        without_sex = model.apply_heads(features, torch.zeros_like(batch["sex"]))
        losses = task_losses(without_sex, batch["age_years"], batch["stage"])
        loss = loss + recipe.unknown_sex_weight * losses[0].mean()
    if model.sex_head is not None:
        logits = model.sex_head(features).squeeze(1)
        loss = loss + recipe.sex_weight * sex_loss(logits, batch["sex"])
    return loss


def name_losses(losses: torch.Tensor) -> dict[str, float]:
    """Give three losses their names in `LOSSES`."""
    return dict(zip(LOSSES, losses.tolist(), strict=True))
