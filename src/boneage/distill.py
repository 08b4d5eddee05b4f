"""Distillation: the mean answer of trained networks in the place of the labels.

A label is one reader's; what several networks have made of all of them is less noisy. A network
taught their mean answer to the very view that it sees comes near the accuracy of all of them at
the cost of one (Hinton et al., arXiv 1503.02531; Beyer et al., CVPR 2022, arXiv 2106.05237).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import nn

from boneage.checkpoint import Checkpoint, load_checkpoint
from boneage.config import Recipe
from boneage.dataset import DRAWN, Batch
from boneage.errors import CheckpointError, ConfigError
from boneage.model import BoneAgePredictor
from boneage.preprocess import Preprocessing
from boneage.stages import STAGES

SHARED = ("tasks", "sex_input", "image_size", "hold_out")
"""Settings that teachers and learner must have in common."""


class Teachers:
    """Trained networks whose mean answer is learned.

    Args:
        networks: Kept in evaluation mode; none leave the labels as they are.
        device: Where they answer.
    """

    def __init__(self, networks: Sequence[BoneAgePredictor], device: torch.device) -> None:
        self._networks: list[BoneAgePredictor] = [
            network.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            for network in networks
        ]

    @torch.no_grad()
    def teach(self, image: torch.Tensor, sex: torch.Tensor, batch: Batch) -> tuple[Batch, Batch]:
        """Put the teachers' answers in the place of a batch's labels.

        Drawn films keep theirs, which are exact.

        Args:
            image: (B, 3, S, S), the view that the learner sees.
            sex: (B,).
            batch: Of a `BoneAgeDataset`.

        Returns:
            The batch to learn with the sex told, and that to learn without it: `age_years` (B,),
            `stage` (B, 3) as probabilities, and `p_male` (B,) of the teachers that tell the sex.
        """
        if not self._networks:
            return batch, batch
        features = [network.backbone(image) for network in self._networks]
        keeps = torch.tensor([image_id.startswith(DRAWN) for image_id in batch["image_id"]])
        keeps = keeps.to(image.device)
        told, withheld = (
            {**batch, **self._labels(features, told_sex, batch, keeps)}
            for told_sex in (sex, torch.zeros_like(sex))
        )
        chances = [
            network.sex_head(f).squeeze(1).sigmoid()
            for network, f in zip(self._networks, features, strict=True)
            if network.sex_head is not None
        ]
        if chances:
            p_male = torch.stack(chances).mean(dim=0)
            withheld["p_male"] = torch.where(keeps, (sex > 0).float(), p_male)
        return told, withheld

    def _labels(
        self, features: list[torch.Tensor], sex: torch.Tensor, batch: Batch, keeps: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        answers = [
            network.answer(f, sex) for network, f in zip(self._networks, features, strict=True)
        ]
        labels = {}
        ages = [age for age, _ in answers if age is not None]
        if ages:
            own = batch["age_years"].to(sex.device)
            labels["age_years"] = torch.where(keeps, own, torch.stack(ages).mean(dim=0))
        stages = [logits.softmax(dim=1) for _, logits in answers if logits is not None]
        if stages:
            own = nn.functional.one_hot(batch["stage"], len(STAGES)).float().to(sex.device)
            labels["stage"] = torch.where(keeps[:, None], own, torch.stack(stages).mean(dim=0))
        return labels


def load_teachers(
    recipe: Recipe, preprocessing: Preprocessing, provenance: Mapping[str, Any]
) -> list[Checkpoint]:
    """Load a recipe's teachers.

    Args:
        recipe: What is to be trained.
        preprocessing: How its films become input.
        provenance: Its `data_sha256` and `split_sha256`. Teachers of another split may have
            learned films that are to be tested, and would give them away.

    Raises:
        CheckpointError: If a teacher is missing, damaged, answers other films or questions than
            the recipe's, or has learned from other films.
    """
    teachers = [load_checkpoint(Path(name)) for name in recipe.teachers]
    ours = _comparable(recipe, preprocessing, provenance)
    for name, teacher in zip(recipe.teachers, teachers, strict=True):
        theirs = _comparable(teacher.recipe, teacher.preprocessing, teacher.provenance)
        for key, value in theirs.items():
            if value != ours[key]:
                raise CheckpointError(
                    f"teacher {name} was trained with {key} {value!r}, this run has {ours[key]!r}. "
                    "Give both the same, or choose another teacher."
                )
    return teachers


def _comparable(
    recipe: Recipe, preprocessing: Preprocessing, provenance: Mapping[str, Any]
) -> dict[str, Any]:
    return (
        {name: getattr(recipe, name) for name in SHARED}
        | asdict(preprocessing)
        | {name: provenance.get(name) for name in ("data_sha256", "split_sha256")}
    )


def describe_teachers(recipe: Recipe, teachers: Sequence[Checkpoint]) -> dict[str, Any]:
    """Give what a learner's provenance says of its teachers."""
    return {
        "teachers_sha256": [
            sha256(Path(name).read_bytes()).hexdigest() for name in recipe.teachers
        ],
        "teachers": [
            {**teacher.provenance, "recipe": teacher.published_recipe} for teacher in teachers
        ],
    }


def start_from(recipe: Recipe, teacher: Checkpoint) -> BoneAgePredictor:
    """Build a recipe's network with a teacher's weights.

    Raises:
        CheckpointError: If the teacher is a network of another build.
        ConfigError: If the recipe asks for other initial weights.
    """
    if recipe.init != "auto":
        raise ConfigError(
            f"init is {recipe.init}, but training starts from the first of the teachers. Leave "
            "init or the teachers out."
        )
    model = BoneAgePredictor.from_recipe(recipe)
    try:
        model.load_state_dict(teacher.model.state_dict())
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise CheckpointError(
            f"the first teacher, whose weights are to be started from, is another network: {reason}"
        ) from None
    model.init_used = "first teacher"
    return model
