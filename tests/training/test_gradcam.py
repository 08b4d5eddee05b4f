from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from boneage.errors import ConfigError
from boneage.imaging.preprocess import TestTimeAugmentation
from boneage.training.gradcam import GradCAM, Outputs, predicted_age, predicted_stage
from boneage.training.model import BoneAgePredictor

SEX = torch.ones(1)


def count_hooks(model: nn.Module) -> int:
    return sum(
        len(m._forward_hooks) + len(m._backward_hooks) + len(m._forward_pre_hooks)
        for m in model.modules()
    )


@pytest.fixture
def model() -> BoneAgePredictor:
    torch.manual_seed(0)
    return BoneAgePredictor(image_size=96)


class Brightness(nn.Module):
    """A backbone whose features are the mean brightness of the image, and of its negative."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 2, 8, stride=8, bias=False)
        self.pool = nn.AdaptiveAvgPool2d(1)
        with torch.no_grad():
            self.convolution.weight[0] = 1.0
            self.convolution.weight[1] = -1.0

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.pool(self.convolution(image)).flatten(1)


@pytest.fixture
def bright_is_old(model: BoneAgePredictor) -> BoneAgePredictor:
    """A model that predicts an older age, and Adult, the brighter the image is."""
    model.backbone = Brightness()
    model.age_head, model.stage_head = nn.Linear(2, 1), nn.Linear(2, 3)
    with torch.no_grad():
        model.age_head.weight.copy_(torch.tensor([[1.0, 0.0]]))
        model.stage_head.weight.copy_(torch.tensor([[0.0, 1.0], [0.0, 0.0], [1.0, 0.0]]))
        model.stage_head.bias.zero_()
    return model


@pytest.mark.parametrize("target", [predicted_age, predicted_stage])
def test_the_map_is_hot_where_the_evidence_is_and_zero_without_any(
    bright_is_old: BoneAgePredictor, target: Any
) -> None:
    radiograph = torch.zeros(1, 3, 96, 96)
    radiograph[:, :, 8:16, 72:80] = 1.0
    with GradCAM(bright_is_old, 96) as cam:
        (heat,) = cam(radiograph, SEX, target)
        nothing = cam(-torch.ones(1, 3, 96, 96), SEX, predicted_age)
    assert heat.shape == (12, 12)
    assert np.unravel_index(heat.argmax(), heat.shape) == (1, 9)
    assert heat.sum() == pytest.approx(1.0)
    assert not nothing.any()


def test_maps_run_from_zero_to_one_image_by_image_and_differ_by_head(
    model: BoneAgePredictor,
) -> None:
    images = torch.rand(3, 3, 96, 96) * torch.tensor([0.1, 1.0, 10.0]).reshape(3, 1, 1, 1)
    with GradCAM(model, 96) as cam:
        heat, by_age = (cam(images, torch.ones(3), t) for t in (predicted_stage, predicted_age))
    assert heat.shape == (3, 3, 3)
    assert heat.min() >= 0
    for one in heat:
        assert one.max() in (0.0, pytest.approx(1.0))
    assert not np.allclose(heat, by_age)


def test_the_map_of_a_model_that_averages_mirror_images_is_that_of_both() -> None:
    torch.manual_seed(0)
    model = BoneAgePredictor(image_size=96, tta=TestTimeAugmentation(mirror=True))
    image = torch.rand(1, 3, 96, 96)
    with GradCAM(model, 96) as cam:
        straight, mirrored = (cam(each, SEX, predicted_age) for each in (image, image.flip(3)))
    np.testing.assert_allclose(straight, mirrored[:, :, ::-1], atol=1e-5)


def test_hooks_are_removed_on_leaving_even_after_an_error(model: BoneAgePredictor) -> None:
    def broken(outputs: Outputs) -> torch.Tensor:
        raise RuntimeError("target failed")

    before = count_hooks(model)
    with GradCAM(model, 96) as cam:
        assert count_hooks(model) == before + 1
        cam(torch.rand(1, 3, 96, 96), SEX, predicted_age)
    assert count_hooks(model) == before
    with pytest.raises(RuntimeError, match="target failed"), GradCAM(model, 96) as cam:
        cam(torch.rand(1, 3, 96, 96), SEX, broken)
    assert count_hooks(model) == before


def tensors() -> Iterator[torch.Tensor]:
    import gc

    gc.collect()
    for item in gc.get_objects():
        if type(item) is torch.Tensor:
            yield item


def test_memory_does_not_grow_from_image_to_image(model: BoneAgePredictor) -> None:
    counts = []
    with GradCAM(model, 96) as cam:
        for _ in range(4):
            cam(torch.rand(1, 3, 96, 96), SEX, predicted_age)
            counts.append(sum(1 for _ in tensors()))
    assert counts[1] == counts[-1]


def test_the_model_s_outputs_and_gradients_are_left_as_they_were(model: BoneAgePredictor) -> None:
    radiograph = torch.rand(1, 3, 96, 96)
    before = model.eval()(radiograph)[0]
    with GradCAM(model, 96) as cam:
        cam(radiograph, SEX, predicted_age)
        inside = model(radiograph)[0]
    torch.testing.assert_close(inside, before, rtol=0, atol=0)
    assert all(p.grad is None for p in model.parameters())


def test_a_map_can_be_drawn_under_inference_settings(model: BoneAgePredictor) -> None:
    model.requires_grad_(False)
    with torch.no_grad(), GradCAM(model, 96) as cam:
        assert cam(torch.rand(1, 3, 96, 96), SEX, predicted_stage).shape == (1, 3, 3)


@pytest.mark.parametrize(("tasks", "target"), [("stage", predicted_age), ("age", predicted_stage)])
def test_a_head_that_was_not_trained_cannot_be_explained(tasks: str, target: object) -> None:
    model = BoneAgePredictor(tasks=tasks, image_size=64)
    with GradCAM(model, 64) as cam, pytest.raises(ConfigError, match="head to explain"):
        cam(torch.rand(1, 3, 64, 64), SEX, target)  # type: ignore[arg-type]


def test_a_backbone_without_a_feature_map_and_a_map_outside_the_with_statement_are_refused(
    model: BoneAgePredictor,
) -> None:
    with pytest.raises(RuntimeError, match="with statement"):
        GradCAM(model, 96)(torch.rand(1, 3, 96, 96), SEX, predicted_age)
    model.backbone = nn.Sequential(nn.Flatten(), nn.Linear(3 * 96 * 96, 4))
    with pytest.raises(ConfigError, match="no convolutional feature map"):
        GradCAM(model, 96)
    # A map of patches before a transformer is not taken for its features.
    with pytest.raises(ConfigError, match="no convolutional feature map"):
        GradCAM(BoneAgePredictor("vit_b_16", image_size=32), 32)


def test_a_transformer_that_ends_in_a_map_can_be_explained() -> None:
    model = BoneAgePredictor("swin_t", image_size=64)
    with GradCAM(model, 64) as cam:
        assert cam(torch.rand(1, 3, 64, 64), SEX, predicted_age).shape == (1, 2, 2)
