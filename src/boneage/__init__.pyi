"""The public names, loaded when they are first used; the one list of them."""

from .config import Paths as Paths, Recipe as Recipe, Runtime as Runtime
from .data.dataset import BoneAgeDataset as BoneAgeDataset, get_transforms as get_transforms
from .data.labels import read_labels as read_labels
from .data.split import split_samples as split_samples
from .errors import BoneAgeError as BoneAgeError
from .evaluation.evaluate import (
    evaluate_table as evaluate_table,
    gender_bias_classification as gender_bias_classification,
    gender_bias_regression as gender_bias_regression,
)
from .evaluation.plots import (
    plot_confusion_matrix as plot_confusion_matrix,
    plot_scatter as plot_scatter,
)
from .imaging.radiograph import Radiograph as Radiograph, read_radiograph as read_radiograph
from .inference.prediction import Prediction as Prediction
from .inference.predictor import Predictor as Predictor, load as load
from .inference.quality import Reason as Reason, ReasonCode as ReasonCode, Severity as Severity
from .stages import STAGES as STAGES, stage_from_years as stage_from_years
from .training.checkpoint import load_checkpoint as load_checkpoint
from .training.gradcam import GradCAM as GradCAM
from .training.model import BoneAgePredictor as BoneAgePredictor
from .training.train import Trainer as Trainer
from .training.workflows import (
    evaluate_model as evaluate_model,
    explain_model as explain_model,
    train_model as train_model,
)
