"""Which settings make a difference: a random forest's answer."""

from __future__ import annotations

from collections.abc import Sequence

# Trials below which a forest says nothing.
_FEWEST = 8


def importances(points: Sequence[Sequence[float]], values: Sequence[float | None]) -> list[float]:
    """Returns what share of the differences each setting makes, as a random forest sees it.

    The forest is fitted to the trials, and a setting's importance is how much worse it fits when that column
    is shuffled (Breiman 2001, section 10), as a share of all such losses.

    Args:
        points: (trials, settings), as numbers.
        values: the figure of each trial.

    Returns:
        A share a setting, that sum to 1; empty where there are too few trials, or no differences.
    """
    if len(points) < _FEWEST or len(set(values)) < 2:
        return []
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    forest = RandomForestRegressor(200, min_samples_leaf=2, random_state=0).fit(points, values)
    losses = permutation_importance(forest, points, values, n_repeats=20, random_state=0).importances_mean
    losses = losses.clip(min=0.0)
    total = float(losses.sum())
    return [float(loss) / total for loss in losses] if total > 0 else []
