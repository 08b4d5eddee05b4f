"""Grad-CAM: which parts of an image support a prediction."""

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from boneage.config import Recipe
from boneage.errors import ConfigError
from boneage.training.model import BoneAgePredictor

Outputs = tuple[torch.Tensor | None, torch.Tensor | None]
Target = Callable[[Outputs], torch.Tensor]


def predicted_age(outputs: Outputs) -> torch.Tensor:
    """Target: the predicted age, one number an image."""
    age, _ = outputs
    if age is None:
        raise ConfigError("this model has no age head to explain; explain the stage head.")
    return age


def predicted_stage(outputs: Outputs) -> torch.Tensor:
    """Target: the logit of the predicted stage, one number an image."""
    _, logits = outputs
    if logits is None:
        raise ConfigError("this model has no stage head to explain; explain the age head.")
    return logits.max(dim=1).values


class GradCAM:
    """Class activation maps weighted by gradients, for either head.

    A context manager: the one hook it sets on the model is removed on leaving, whatever happens.
    The gradient is taken with respect to the feature map alone, so the model's own gradients
    are left as they were.

    Args:
        model: Put into evaluation mode.
        image_size: Side of the model's input in pixels.

    Raises:
        ConfigError: If the backbone has no convolutional feature map.

    Source: Selvaraju et al., ICCV 2017, doi 10.1109/ICCV.2017.74.

    Example:
        with GradCAM(model, 256) as cam:
            heatmap = cam(image, sex, predicted_age)
    """

    def __init__(self, model: BoneAgePredictor, image_size: int = Recipe.image_size) -> None:
        self._model = model.eval()
        self._layer = last_feature_map(model.backbone, image_size)
        self._features: torch.Tensor | None = None
        self._hook: Any = None

    def __enter__(self) -> Self:
        self._hook = self._layer.register_forward_hook(self._keep)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hook.remove()
        self._features = None

    def _keep(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        # The next layer may work in place (ReLU); a copy keeps the map as it was.
        self._features = output if output.requires_grad else output.detach().requires_grad_()
        return self._features.clone()

    def __call__(
        self,
        image: torch.Tensor,
        sex: torch.Tensor | None = None,
        target: Target = predicted_stage,
    ) -> npt.NDArray[np.float32]:
        """Compute a saliency map of a target.

        Args:
            image: (B, 3, S, S), normalised.
            sex: (B,), in {+1 male, -1 female, 0 unknown}; needed only by a model with `sex_input`.
            target: Takes the model's outputs, gives one number an image; `predicted_age` or the
                seed report's `predicted_stage`.

        Returns:
            (B, h, w) on the grid of the feature map, each map from 0 to 1; all zero where no
            place supports the target.
        """
        with torch.no_grad():
            resolved = self._model.resolve_sex(self._model.features(image), sex)
        evidence = [
            view.restore(self._weigh(view.image, resolved, target))
            for view in self._model.views(image)
        ]
        maps = torch.stack(evidence).mean(dim=0).relu()
        tops = maps.amax(dim=(1, 2), keepdim=True)
        heat = torch.where(tops > 0, maps / tops.clamp_min(torch.finfo(maps.dtype).tiny), 0.0)
        return heat.float().cpu().numpy()

    def _weigh(self, image: torch.Tensor, sex: torch.Tensor | None, target: Target) -> torch.Tensor:
        """Sum the feature map over its channels, weighted by their mean gradients: (B, h, w)."""
        with torch.enable_grad():
            outputs = self._model.apply_heads(self._model.backbone(image), sex)
            if self._features is None:
                raise RuntimeError("use GradCAM in a with statement")
            (gradients,) = torch.autograd.grad(target(outputs).sum(), self._features)
        weights = gradients.mean(dim=(2, 3), keepdim=True)
        evidence = (weights * self._features.detach()).sum(dim=1)
        self._features = None
        return evidence


def last_feature_map(backbone: nn.Module, image_size: int) -> nn.Module:
    """Find the module that gives the last (B, C, h, w) map larger than one cell.

    Raises:
        ConfigError: If the backbone has none.
    """
    found: list[tuple[nn.Module, torch.Size]] = []
    features = 0

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal features
        if not isinstance(output, torch.Tensor):
            return
        features = output.shape[-1]
        if output.ndim == 3:  # tokens: the prediction is not made from a map before them
            found.clear()
        if output.ndim == 4 and min(output.shape[2:]) > 1:
            found.append((module, output.shape))

    hooks = [module.register_forward_hook(note) for module in backbone.modules()]
    parameter = next(backbone.parameters())
    try:
        with torch.no_grad():
            backbone(parameter.new_zeros(1, 3, image_size, image_size))
    finally:
        for hook in hooks:
            hook.remove()
    # Channels last, as in some transformers, would be read the wrong way round.
    if not found or (found[-1][1][3] == features != found[-1][1][1]):
        raise ConfigError("this backbone has no convolutional feature map for Grad-CAM to weigh.")
    return found[-1][0]
