"""Which settings a trial gets: drawn at random, or by Optuna's tree-structured Parzen estimator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from karpa_tf.errors import UserError
from karpa_tf.search.space import Dimension

# Draws after which a new point is given up, where nearly all are taken.
_DRAWS = 10_000


def random_point(
    space: Sequence[Dimension], seed: int, trial: int, taken: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Draws the settings of a trial, by its seed and number alone, other than those that are taken.

    Args:
        space: to choose from.
        seed: of the search.
        trial: its number.
        taken: settings of earlier trials.

    Returns:
        Values by setting.
    """
    rng = np.random.default_rng([seed, trial])
    for _ in range(_DRAWS):
        point = {dimension.name: dimension.at(rng.random()) for dimension in space}
        if point not in taken:
            break
    return point


def tpe_point(
    space: Sequence[Dimension],
    seed: int,
    trial: int,
    known: Sequence[tuple[Mapping[str, Any], float]],
    *,
    lower: bool,
) -> dict[str, Any]:
    """Asks Optuna's TPE (Bergstra et al. 2011) for the settings of a trial.

    The study is made anew each time, so that the answer depends on what is known alone.

    Args:
        space: to choose from.
        seed: of the search.
        trial: its number.
        known: the settings and figures of trials that have ended.
        lower: whether small figures are the better ones.

    Returns:
        Values by setting.

    Raises:
        UserError: Optuna is not installed.
    """
    try:
        import optuna
    except ModuleNotFoundError:
        raise UserError(
            "--sampler tpe needs Optuna: pip install 'karpa-tf[search]'; --sampler random needs nothing."
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions: dict[str, Any] = {}
    for dimension in space:
        if dimension.values:
            # Of an index: a category must be a plain number or text, and a setting's value need not be.
            distributions[dimension.name] = optuna.distributions.CategoricalDistribution(
                range(len(dimension.values))
            )
        elif dimension.whole:
            distributions[dimension.name] = optuna.distributions.IntDistribution(
                int(dimension.low), int(dimension.high), log=dimension.log
            )
        else:
            distributions[dimension.name] = optuna.distributions.FloatDistribution(
                dimension.low, dimension.high, log=dimension.log
            )

    def coded(dimension: Dimension, value: Any) -> Any:
        return dimension.values.index(value) if dimension.values else value

    # The seed is one number there.
    number = int(np.random.SeedSequence([seed, trial]).generate_state(1)[0])
    study = optuna.create_study(
        direction="minimize" if lower else "maximize",
        sampler=optuna.samplers.TPESampler(seed=number),
    )
    for settings, value in known:
        params = {dimension.name: coded(dimension, settings[dimension.name]) for dimension in space}
        study.add_trial(
            optuna.trial.create_trial(params=params, distributions=distributions, value=float(value))
        )
    asked = study.ask(distributions).params
    return {
        dimension.name: dimension.values[asked[dimension.name]]
        if dimension.values
        else float(f"{asked[dimension.name]:.6g}")
        if not dimension.whole
        else asked[dimension.name]
        for dimension in space
    }
