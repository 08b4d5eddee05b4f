"""Skeletal age from left-hand radiographs. Research software, not a medical device.

The names below are loaded when they are first used, so importing the package costs nothing. It
sets two things for libraries that are loaded after it: ONNX Runtime sends nothing, and OpenMP's
waiting threads sleep; see `boneage.environment`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from boneage.environment import keep_to_this_machine, let_waiting_threads_sleep

keep_to_this_machine()
let_waiting_threads_sleep()

if TYPE_CHECKING:
    from boneage.checkpoint import load_checkpoint
    from boneage.config import Paths, Recipe, Runtime
    from boneage.dataset import BoneAgeDataset, get_transforms
    from boneage.errors import BoneAgeError
    from boneage.evaluate import (
        evaluate_table,
        gender_bias_classification,
        gender_bias_regression,
    )
    from boneage.explain import GradCAM
    from boneage.labels import read_labels
    from boneage.model import BoneAgePredictor
    from boneage.plots import plot_confusion_matrix, plot_scatter
    from boneage.predict import Predictor, load
    from boneage.prediction import Prediction
    from boneage.radiograph import read_radiograph
    from boneage.run import evaluate_model, explain_model, train_model
    from boneage.split import split_samples
    from boneage.stages import STAGES, stage_from_years
    from boneage.train import Trainer

_HOMES = {
    "BoneAgeDataset": "dataset",
    "BoneAgeError": "errors",
    "BoneAgePredictor": "model",
    "GradCAM": "explain",
    "Paths": "config",
    "Prediction": "prediction",
    "Predictor": "predict",
    "Recipe": "config",
    "Runtime": "config",
    "STAGES": "stages",
    "Trainer": "train",
    "evaluate_model": "run",
    "evaluate_table": "evaluate",
    "explain_model": "run",
    "gender_bias_classification": "evaluate",
    "gender_bias_regression": "evaluate",
    "get_transforms": "dataset",
    "load": "predict",
    "load_checkpoint": "checkpoint",
    "plot_confusion_matrix": "plots",
    "plot_scatter": "plots",
    "read_labels": "labels",
    "read_radiograph": "radiograph",
    "split_samples": "split",
    "stage_from_years": "stages",
    "train_model": "run",
}

__all__ = [
    "STAGES",
    "BoneAgeDataset",
    "BoneAgeError",
    "BoneAgePredictor",
    "GradCAM",
    "Paths",
    "Prediction",
    "Predictor",
    "Recipe",
    "Runtime",
    "Trainer",
    "evaluate_model",
    "evaluate_table",
    "explain_model",
    "gender_bias_classification",
    "gender_bias_regression",
    "get_transforms",
    "load",
    "load_checkpoint",
    "plot_confusion_matrix",
    "plot_scatter",
    "read_labels",
    "read_radiograph",
    "split_samples",
    "stage_from_years",
    "train_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'boneage' has no attribute {name!r}")
    return getattr(import_module(f"boneage.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
