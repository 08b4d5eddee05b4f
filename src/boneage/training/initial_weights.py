"""The network that a training run starts from, by `--init`."""

import logging
from dataclasses import replace

import torch

from boneage.config import Recipe
from boneage.errors import ConfigError
from boneage.inference.predictor import Predictor
from boneage.inference.registry import MODELS, find_model
from boneage.training.export import load_exported
from boneage.training.model import BoneAgePredictor

logger = logging.getLogger(__name__)

TAKEN_OVER = (
    "backbone", "tasks", "sex_input", "unknown_sex_weight", "sex_weight", "tta_mirror", "tta_zoom",
    "image_size", "stretch_grey", "crop", "output_stride", "age_bias",
)  # fmt: skip
"""Settings that follow from the weights of a model in the package."""


def take_over(recipe: Recipe) -> Recipe:
    """Give a recipe the backbone, input and heads of the model in the package that `init` names.

    A recipe whose `init` names no such model is returned as it is.

    Raises:
        ConfigError: If the recipe asks for other settings than the model's or the defaults.
    """
    if recipe.init not in MODELS:
        return recipe
    contract = Predictor(recipe.init, threads=1).contract
    default = Recipe()
    taken = {name: contract.recipe.get(name, getattr(default, name)) for name in TAKEN_OVER}
    for name, value in taken.items():
        asked = getattr(recipe, name)
        if asked not in (getattr(default, name), value):
            raise ConfigError(
                f"{name} is {asked}, but init {recipe.init} has {value}. Leave {name} out, or "
                "start from other weights."
            )
    logger.info(
        "init %s: %s. Its figures on images that it was trained on are too good; those are: %s",
        recipe.init,
        ", ".join(f"{name} {value}" for name, value in taken.items()),
        contract.facts.get("data", "not named in its file"),
    )
    return replace(recipe, **taken)


def build_model(recipe: Recipe, init: str, mean_age_years: float) -> BoneAgePredictor:
    """Build the network of a recipe with its initial weights.

    Args:
        recipe: Of `take_over`.
        init: As `Recipe.init`.
        mean_age_years: Of the training images; where the age head starts with `age_bias` "mean",
            unless the weights include an age head.
    """
    torch.manual_seed(recipe.seed)
    is_exported = init in MODELS
    model = BoneAgePredictor.from_recipe(recipe, init="none" if is_exported else init)
    if recipe.age_bias == "mean" and model.age_head is not None:
        torch.nn.init.constant_(model.age_head.bias, mean_age_years)
    if recipe.age_bias == "none" and model.age_head is not None:
        for name, constant in model.age_head.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.zeros_(constant).requires_grad_(False)
    if is_exported:
        load_exported(model, find_model(init))
        model.init_used = init
    return model
