"""Figures of a classifier: metrics, a row of numbers a class, baselines. Arrays in, numbers out."""

from __future__ import annotations

import functools
import re
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

_BINS = 15
# A probability of zero would make the loss infinite.
_SMALLEST = 1e-12
# Inverse of logistic regression's L2 penalty. Vectors of length 1 are classified alike by 10 to 100, and
# with 100 the probabilities are about right.
_LOGISTIC_C = 100.0
# Images that a baseline learns from: more change little and take long.
_LEARNED_FROM = 10_000


# --- Figures --------------------------------------------------------------------------------------


def classification_metrics(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Evaluates predicted probabilities.

    Args:
        labels: int (n,): the true classes.
        probabilities: float32 (n, classes); the prediction is the class of the largest.

    Returns:
        `accuracy`; `macro_f1`, the mean over the classes that occur among the labels or the predictions;
        `ece`, the expected calibration error with 15 bins of equal width (Guo et al. 2017, On Calibration
        of Modern Neural Networks); `loss`, the mean negative log likelihood in nats.

    Raises:
        ValueError: no rows, rows that do not pair up, or a label that is none of the classes.
    """
    labels, probabilities = checked(labels, probabilities)
    predictions = probabilities.argmax(axis=1)
    likelihood = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return {
        "accuracy": float((predictions == labels).mean()),
        "macro_f1": _macro_f1(labels, predictions),
        "ece": _calibration_error(predictions == labels, probabilities.max(axis=1)),
        "loss": float(-np.log(np.maximum(likelihood, _SMALLEST)).mean()),
    }


def checked(
    labels: np.ndarray, probabilities: np.ndarray, names: Sequence[str] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns both as arrays, the probabilities as float32; what does not fit together is a ValueError."""
    labels, probabilities = np.asarray(labels), np.asarray(probabilities, np.float32)
    if probabilities.ndim != 2 or labels.shape != probabilities.shape[:1] or not len(labels):
        raise ValueError(
            "Labels (n,) and probabilities (n, classes) are needed, n at least 1. "
            f"Received: labels{labels.shape}, probabilities{probabilities.shape}."
        )
    if labels.min() < 0 or labels.max() >= probabilities.shape[1]:
        raise ValueError(
            f"Labels must lie between 0 and {probabilities.shape[1] - 1}. "
            f"Received: {labels.min()} to {labels.max()}."
        )
    if names is not None and len(names) != probabilities.shape[1]:
        raise ValueError(f"{probabilities.shape[1]} names are needed. Received: {len(names)}.")
    return labels, probabilities


def _macro_f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, average="macro", zero_division=0))


def _calibration_error(right: np.ndarray, confidence: np.ndarray) -> float:
    # Bins are open on the left and closed on the right, as in the paper. In float32 like the confidence,
    # or 0.6 would lie above 9/15.
    edges = np.linspace(0, 1, _BINS + 1).astype(np.float32)
    place = np.digitize(confidence, edges[1:-1], right=True)
    # |accuracy - confidence| of a bin by its share of the rows: the counts cancel.
    gaps = np.bincount(place, right - confidence.astype(np.float64), minlength=_BINS)
    return float(np.abs(gaps).sum() / len(right))


def class_table(labels: np.ndarray, probabilities: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """Evaluates every class on its own.

    Args:
        labels: int (n,): the true classes.
        probabilities: float32 (n, classes).
        names: of the classes.

    Returns:
        A row a class: `label`, `precision`, `recall`, `f1`, `support` (its rows). What is undefined, such
        as the recall of a class without rows, is 0.
    """
    from sklearn.metrics import precision_recall_fscore_support

    labels, probabilities = checked(labels, probabilities, names)
    columns = precision_recall_fscore_support(
        labels, probabilities.argmax(axis=1), labels=np.arange(len(names)), zero_division=0
    )
    return [
        {"label": name, "precision": float(p), "recall": float(r), "f1": float(f1), "support": int(support)}
        for name, p, r, f1, support in zip(names, *columns, strict=True)
    ]


def confusion(
    labels: np.ndarray | Sequence[int], predictions: np.ndarray | Sequence[int], classes: int
) -> np.ndarray:
    """Counts int64 (classes, classes): a row for the true class, a column for the predicted one."""
    from sklearn.metrics import confusion_matrix

    with warnings.catch_warnings():
        # That there is but one class; it asks for `labels`, which it has.
        warnings.simplefilter("ignore", UserWarning)
        return confusion_matrix(labels, predictions, labels=np.arange(classes))


def most_confident_errors(labels: np.ndarray, probabilities: np.ndarray, most: int) -> np.ndarray:
    """Returns the places int64 of the wrong predictions, the surest first, `most` at most."""
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    return wrong[np.argsort(-probabilities.max(axis=1)[wrong], kind="stable")][:most]


# --- Probabilities, and a classifier of vectors ---------------------------------------------------


def softmax(logits: np.ndarray) -> np.ndarray:
    """Returns probabilities float32 (n, classes) of logits (n, classes)."""
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)


def logistic_regression(
    vectors: np.ndarray, labels: np.ndarray, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Fits logistic regression with an L2 penalty; the same rows always give the same.

    Args:
        vectors: float32 (n, width), of length 1.
        labels: int (n,), at least one row of each class.
        classes: number of them.

    Returns:
        The kernel float32 (width, classes) and the bias float32 (classes,) of its logits.
    """
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        # With fewer than two rows a class it asks whether this is a regression.
        warnings.filterwarnings("ignore", "The number of unique classes")
        fitted = LogisticRegression(C=_LOGISTIC_C, max_iter=1000).fit(vectors.astype(np.float64), labels)
    kernel, bias = fitted.coef_.T, fitted.intercept_
    if classes == 2:  # there it has the difference of the two logits
        kernel, bias = np.concatenate([-kernel, kernel], axis=1) / 2, np.concatenate([-bias, bias]) / 2
    return kernel.astype(np.float32), bias.astype(np.float32)


def equal_frequencies(logits: np.ndarray, rounds: int = 30) -> np.ndarray:
    """Returns a bias float32 (classes,) with which all classes are equally probable over all rows.

    Args:
        logits: float32 (n, classes), of rows whose classes are not known.
        rounds: each lowers the classes that are too probable by the logarithm of how much they are.
    """
    bias = np.zeros(logits.shape[1], np.float32)
    for _ in range(rounds):
        bias -= np.log(np.maximum(softmax(logits + bias).mean(axis=0) * len(bias), _SMALLEST))
    return bias


# --- The baseline ---------------------------------------------------------------------------------

# Scripts written without spaces: kana, Han, and Thai, Lao, Burmese, Khmer.
_SPACELESS = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_SPACELESS += "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"


@functools.cache
def _word_finder() -> Callable[[str], list[str]]:
    # For `re` a vowel sign of e.g. Hindi ends the word.
    marks = "".join(map(chr, filter(lambda c: unicodedata.category(chr(c))[0] == "M", range(0x300, 0x20000))))
    marks = re.escape(marks)
    return re.compile(rf"(?=\w)[{_SPACELESS}][{marks}]*|(?:[^\W{_SPACELESS}]|[{marks}])+").findall


def _normalize(text: str) -> str:
    return unicodedata.normalize("NFKC", text).lower()


def svm_baseline(
    train_texts: Sequence[str],
    train_labels: Sequence[Any] | np.ndarray,
    texts: Sequence[str],
    labels: Sequence[Any] | np.ndarray,
    seed: int = 0,
) -> dict[str, float]:
    """Evaluates a linear support vector machine on TF-IDF of words and pairs of words.

    In scripts without spaces a word is a character. If no training text has a word, or all have the same
    label, the most frequent label is predicted.

    Args:
        train_texts: what it learns from.
        train_labels: a label each, numbers or names.
        texts: what it is evaluated on.
        labels: a label each, of the same kind.
        seed: of the solver.

    Returns:
        `accuracy` and `macro_f1`, as `classification_metrics` has them.
    """
    from sklearn.dummy import DummyClassifier
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.svm import LinearSVC

    find = _word_finder()
    known, truth = np.asarray(train_labels), np.asarray(labels)
    if len(np.unique(known)) > 1 and any(find(_normalize(text)) for text in train_texts):
        features = TfidfVectorizer(
            preprocessor=_normalize, tokenizer=find, token_pattern=None, ngram_range=(1, 2), sublinear_tf=True
        )
        with warnings.catch_warnings():
            # With fewer than two rows a class it asks whether this is a regression.
            warnings.filterwarnings("ignore", "The number of unique classes")
            classifier = LinearSVC(random_state=seed).fit(features.fit_transform(train_texts), known)
        predictions = classifier.predict(features.transform(texts))
    else:
        predictions = (
            DummyClassifier().fit(np.zeros([len(known), 1]), known).predict(np.zeros([len(truth), 1]))
        )
    return {"accuracy": float((predictions == truth).mean()), "macro_f1": _macro_f1(truth, predictions)}


def pixel_baselines(
    train_pixels: np.ndarray, train_labels: np.ndarray, pixels: np.ndarray, labels: np.ndarray
) -> dict[str, dict[str, float]]:
    """Evaluates two classifiers that look at pixels one by one: the nearest class mean, and ridge regression.

    Args:
        train_pixels: uint8 (n, height, width, channels); regression learns from 10,000 of them at most.
        train_labels: int (n,).
        pixels: uint8 (m, height, width, channels), what they are evaluated on.
        labels: int (m,).

    Returns:
        `accuracy` and `macro_f1` by the classifier's name.
    """
    from sklearn.linear_model import RidgeClassifier
    from sklearn.neighbors import NearestCentroid

    def rows(of: np.ndarray) -> np.ndarray:
        return of.reshape(len(of), -1).astype(np.float32) / 255

    every = max(1, len(train_pixels) // _LEARNED_FROM)
    known, truth = rows(train_pixels[::every]), train_labels[::every]
    result = {}
    for name, classifier in (
        ("linear", RidgeClassifier(alpha=0.01 * len(known))),
        ("nearest mean", NearestCentroid()),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pixels that are always black have no variance
            predictions = classifier.fit(known, truth).predict(rows(pixels))
        accuracy = float((predictions == labels).mean())
        result[name] = {"accuracy": accuracy, "macro_f1": _macro_f1(labels, predictions)}
    return result


def most_frequent_baseline(train_labels: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Evaluates the guess that everything is of the most frequent class."""
    return {"accuracy": float((labels == np.bincount(train_labels).argmax()).mean())}
