"""Errors, agreement and their intervals, in plain numpy.

A name ending in `_score` is better when higher, one ending in `_error` when lower. Every
function works along the last axis and keeps the leading ones, so that one call gives the
figure itself, and another on resampled rows gives all its bootstrap resamples.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def _errors(y_true: npt.ArrayLike, y_pred: npt.ArrayLike) -> Array:
    """Predicted - true."""
    return np.asarray(y_pred, dtype=np.float64) - np.asarray(y_true, dtype=np.float64)


def mean_absolute_error(y_true: npt.ArrayLike, y_pred: npt.ArrayLike) -> Array:
    """Mean of |predicted - true|, in the unit of the inputs.

    Example:
        >>> float(mean_absolute_error([10.0, 12.0], [11.0, 12.0]))
        0.5
    """
    return np.abs(_errors(y_true, y_pred)).mean(axis=-1)


def r2_score(y_true: npt.ArrayLike, y_pred: npt.ArrayLike) -> Array:
    """Coefficient of determination; NaN where all true values are equal.

    Example:
        >>> float(r2_score([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]))
        1.0
    """
    truth = np.asarray(y_true, dtype=np.float64)
    residual = (_errors(truth, y_pred) ** 2).sum(axis=-1)
    total = ((truth - truth.mean(axis=-1, keepdims=True)) ** 2).sum(axis=-1)
    # A rounded mean leaves a trace of variance where there is none.
    total = np.where(np.ptp(truth, axis=-1) == 0, 0.0, total)
    return 1.0 - _divide(residual, total)


def reliability_place(confidence: npt.ArrayLike, bins: int = 10) -> npt.NDArray[np.int64]:
    """Tell in which of equal bins from 0 to 1 each probability (n,) lies."""
    return np.minimum((np.asarray(confidence, float) * bins).astype(np.int64), bins - 1)


def reliability_bins(
    confidence: npt.ArrayLike, is_right: npt.ArrayLike, bins: int = 10
) -> list[dict[str, float]]:
    """Mean confidence and proportion of right predictions by equal bins of the confidence.

    Args:
        confidence: Probability (n,) of the predicted class.
        is_right: Whether the prediction was right, (n,).
        bins: Bins from 0 to 1; empty ones are left out.

    Returns:
        `n`, `confidence` and `accuracy` of each bin.
    """
    probability, right = np.asarray(confidence, float), np.asarray(is_right, float)
    place = reliability_place(probability, bins)
    return [
        {
            "n": int(rows.sum()),
            "confidence": probability[rows].mean(),
            "accuracy": right[rows].mean(),
        }
        for i in range(bins)
        if (rows := place == i).any()
    ]


def expected_calibration_error(bins: Sequence[Mapping[str, float]]) -> float:
    """Mean distance of confidence and accuracy over `reliability_bins`, weighted by their n.

    Source: Naeini et al., AAAI 2015.

    Example:
        >>> expected_calibration_error(reliability_bins([0.9, 0.9], [1, 0]))
        0.4
    """
    n = sum(row["n"] for row in bins)
    return float(sum(row["n"] * abs(row["confidence"] - row["accuracy"]) for row in bins) / n)


def confusion_matrix(y_true: npt.ArrayLike, y_pred: npt.ArrayLike, classes: int) -> Array:
    """Count cases by true class (rows) and predicted class (columns), shape (..., k, k).

    Example:
        >>> confusion_matrix([0, 0, 1], [0, 1, 1], 2).tolist()
        [[1.0, 1.0], [0.0, 1.0]]
    """
    cell = np.asarray(y_true) * classes + np.asarray(y_pred)
    counts = [(cell == i).sum(axis=-1) for i in range(classes * classes)]
    return np.stack(counts, axis=-1).reshape(*cell.shape[:-1], classes, classes).astype(float)


def accuracy_score(counts: Array) -> Array:
    """Proportion of cases on the diagonal of a confusion matrix (..., k, k)."""
    return np.trace(counts, axis1=-2, axis2=-1) / counts.sum(axis=(-2, -1))


def precision_recall_f1(counts: Array) -> tuple[Array, Array, Array]:
    """Precision, recall and F1 of each class, (..., k); 0 where nothing defines them.

    The zero is scikit-learn's `zero_division=0`; `undefined_classes` says which classes it is.
    """
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    truth, predicted = counts.sum(axis=-1), counts.sum(axis=-2)
    precision = np.nan_to_num(_divide(hits, predicted))
    recall = np.nan_to_num(_divide(hits, truth))
    return precision, recall, np.nan_to_num(_divide(2 * hits, truth + predicted))


def weighted_average(by_class: Array, counts: Array) -> Array:
    """Average a figure by class, each class weighted by its number of true cases."""
    truth = counts.sum(axis=-1)
    return (by_class * truth).sum(axis=-1) / truth.sum(axis=-1)


def quadratic_kappa_score(counts: Array) -> Array:
    """Cohen's kappa with quadratic weights; NaN where all cases are of one class.

    Source: Cohen, Psychological Bulletin 1968, 70:213.
    """
    k = counts.shape[-1]
    distance = (np.arange(k)[:, None] - np.arange(k)) ** 2
    expected = counts.sum(axis=-1)[..., :, None] * counts.sum(axis=-2)[..., None, :]
    expected = expected / counts.sum(axis=(-2, -1))[..., None, None]
    observed = (distance * counts).sum(axis=(-2, -1))
    return 1.0 - _divide(observed, (distance * expected).sum(axis=(-2, -1)))


def _divide(numerator: Array, denominator: Array) -> Array:
    """Divide, NaN where the denominator is zero."""
    undefined = np.full(np.broadcast(numerator, denominator).shape, np.nan)
    return np.divide(numerator, denominator, out=undefined, where=np.not_equal(denominator, 0))


def classification_figures(counts: Array) -> dict[str, Array]:
    """Accuracy, weighted precision, recall and F1, and quadratic kappa from (..., k, k)."""
    precision, recall, f1 = precision_recall_f1(counts)
    return {
        "accuracy": accuracy_score(counts),
        "precision_weighted": weighted_average(precision, counts),
        "recall_weighted": weighted_average(recall, counts),
        "f1_weighted": weighted_average(f1, counts),
        "qwk": quadratic_kappa_score(counts),
    }
