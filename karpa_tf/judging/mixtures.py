"""What is fitted to a mixture of classifiers on held-out rows. Arrays in, figures out."""

from __future__ import annotations

import numpy as np

# A probability of zero would make the loss infinite.
_SMALLEST = 1e-12


def mixture_weights(probabilities: np.ndarray, labels: np.ndarray, rounds: int = 100) -> np.ndarray:
    """Returns the weights under which the labels are the most probable, by expectation maximization.

    From equal ones, each round makes the weight of a member its mean share of the probability that the
    mixture gives to a row's label; the likelihood rises with each (Dempster et al. 1977).

    Args:
        probabilities: float (members, n, classes).
        labels: int (n,), the true classes.
        rounds: how many.

    Returns:
        float64 (members,), adding up to 1.
    """
    given = probabilities[:, np.arange(len(labels)), labels].astype(np.float64) + _SMALLEST
    weights = np.full(len(given), 1 / len(given))
    for _ in range(rounds):
        shares = weights[:, None] * given
        weights = (shares / shares.sum(axis=0)).mean(axis=1)
    return weights


def best_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the temperature under which the labels are the most probable (Guo et al. 2017).

    https://arxiv.org/abs/1706.04599, section 4.2: the logits are divided by it. Of an ensemble they are the
    logarithms of the mean probabilities (Rahaman & Thiery 2021, https://arxiv.org/abs/2007.08792). A share of
    1 / (n + 2) of each label is spread over all classes, as in Platt 1999: rows without an error would have
    all probabilities be 1.

    Args:
        logits: float (n, classes).
        labels: int (n,), the true classes.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    logits = logits.astype(np.float64)
    spread = 1 / (len(labels) + 2)

    def loss(exponent: float) -> float:
        scaled = log_softmax(logits / np.exp(exponent), axis=1)
        return float((spread - 1) * scaled[np.arange(len(labels)), labels].mean() - spread * scaled.mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 3), method="bounded").x))
