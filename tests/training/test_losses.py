import math
from typing import Any

import pytest
import torch

from boneage.config import Recipe
from boneage.training.losses import auxiliary_loss, name_losses, sex_loss, task_losses
from boneage.training.model import BoneAgePredictor

AGES = torch.tensor([10.0, 2.0])
STAGES = torch.tensor([1, 0])
LOGITS = torch.tensor([[0.0, 0.0, 0.0], [3.0, 1.0, 0.0]])


def test_each_image_has_the_error_of_its_age_the_loss_of_its_stage_and_their_sum() -> None:
    total, age, stage = task_losses((torch.tensor([11.5, 2.0]), LOGITS), AGES, STAGES)
    assert age.tolist() == [1.5, 0.0]
    assert stage.tolist() == pytest.approx(
        [math.log(3.0), math.log(math.exp(3.0) + math.exp(1.0) + 1.0) - 3.0]
    )
    torch.testing.assert_close(total, age + stage)


@pytest.mark.parametrize(("outputs", "idle"), [((AGES + 1, None), 2), ((None, LOGITS), 1)])
def test_a_task_left_out_has_no_loss(outputs: Any, idle: int) -> None:
    losses = task_losses(outputs, AGES, STAGES)
    assert losses[idle].tolist() == [0.0, 0.0]
    torch.testing.assert_close(losses[0], losses[3 - idle])


def test_losses_are_named_in_their_order() -> None:
    assert name_losses(torch.tensor([3.0, 1.0, 2.0])) == {
        "loss": 3.0, "age_loss": 1.0, "stage_loss": 2.0
    }  # fmt: skip


def test_the_sex_is_learned_from_images_of_known_sex_alone() -> None:
    logits = torch.tensor([0.3, 5.0, -0.2, 9.0])
    loss = sex_loss(logits, torch.tensor([1.0, 0.0, -1.0, 0.0]))
    expected = (math.log1p(math.exp(-0.3)) + math.log1p(math.exp(-0.2))) / 4
    assert loss.item() == pytest.approx(expected)


def make_batch(sex: list[float]) -> dict[str, torch.Tensor]:
    return {"sex": torch.tensor(sex), "age_years": AGES, "stage": STAGES}


def test_nothing_is_added_to_the_loss_unless_asked() -> None:
    recipe = Recipe(image_size=32)
    model = BoneAgePredictor.from_recipe(recipe)
    assert auxiliary_loss(model, torch.randn(2, 512), make_batch([1.0, -1.0]), recipe).item() == 0


def test_the_loss_without_the_sex_is_that_of_images_of_unknown_sex() -> None:
    recipe = Recipe(image_size=32, sex_input=True, unknown_sex_weight=0.5)
    torch.manual_seed(0)
    model = BoneAgePredictor.from_recipe(recipe)
    for name, parameter in model.named_parameters():
        if "sex_" in name:
            torch.nn.init.normal_(parameter)
    features = torch.randn(2, 512)
    unknown = task_losses(model.apply_heads(features, torch.zeros(2)), AGES, STAGES)[0].mean()
    for sex in ([1.0, -1.0], [-1.0, -1.0]):
        loss = auxiliary_loss(model, features, make_batch(sex), recipe)
        torch.testing.assert_close(loss, 0.5 * unknown)


def test_the_sex_head_s_loss_has_the_weight_asked_for() -> None:
    recipe = Recipe(image_size=32, sex_weight=0.25)
    model = BoneAgePredictor.from_recipe(recipe)
    assert model.sex_head is not None
    features, batch = torch.randn(2, 512), make_batch([1.0, 0.0])
    expected = 0.25 * sex_loss(model.sex_head(features).squeeze(1), batch["sex"])
    torch.testing.assert_close(auxiliary_loss(model, features, batch, recipe), expected)
