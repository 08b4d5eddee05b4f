"""The age map in training: what lies outside the hand should add nothing to the age."""

from collections.abc import Mapping

import torch
from torch import nn

from boneage.errors import ConfigError
from boneage.training.gradcam import last_feature_map
from boneage.training.model import BoneAgePredictor


@torch.inference_mode()
def find_averaged_map(model: BoneAgePredictor, size: int) -> nn.Module | None:
    """Find the layer whose map has the features as its means; None if there is no such layer.

    The network is run for it in evaluation mode, so that nothing of it changes.
    """
    backbone, was_training = model.backbone, model.training
    backbone.eval()
    maps: list[torch.Tensor] = []
    try:
        layer = last_feature_map(backbone, size)
        hook = layer.register_forward_hook(lambda m, inputs, output: maps.append(output.clone()))
        noise = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
        features = backbone(noise.to(next(backbone.parameters()).device))
        hook.remove()
    except ConfigError:
        return None
    finally:
        backbone.train(was_training)
    means = maps[0].mean(dim=(2, 3))
    is_mean = means.shape == features.shape and torch.allclose(means, features, 1e-4, 1e-5)
    return layer if is_mean else None


class OutlineLoss:
    """Measures how much of the age map lies outside the hand, for the batch last seen.

    Args:
        model: The network, which is watched from now on.
        image_size: Side of its input in pixels.

    Raises:
        ConfigError: If the network has no age map.
    """

    def __init__(self, model: BoneAgePredictor, image_size: int) -> None:
        layer = find_averaged_map(model, image_size)
        if layer is None or model.age_head is None:
            raise ConfigError(
                "outline_weight needs a network whose age is a mean over cells of the image; "
                "choose another backbone, or leave outline_weight out."
            )
        self._model = model
        self._cells: torch.Tensor | None = None
        layer.register_forward_hook(self._note)

    def _note(self, module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        self._cells = output if self._model.training else None

    def __call__(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Give the mean proportion of the map, by amount, in cells that hold nothing of the hand.

        Args:
            batch: `outline` (B, 1, S, S) and `sex` (B,), of the batch that the network saw last.
        """
        if self._cells is None:
            raise RuntimeError("the network has seen no batch in training")
        cells, self._cells = self._cells.float(), None
        amount = self._model.map_age(cells, batch["sex"]).abs()
        hand = nn.functional.adaptive_max_pool2d(batch["outline"], list(amount.shape[1:]))[:, 0]
        outside = (amount * (hand < 0.5)).sum(dim=(1, 2))
        return (outside / amount.sum(dim=(1, 2)).clamp_min(1e-6)).mean()
