"""The flags of `search`, each with its line of `--help`. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from karpa_tf.settings import Bounds, Count, CountOrNone, Fields, Seed, option


@dataclass(kw_only=True)
class SearchOptions(Fields):
    """The flags of `karpa-tf search`."""

    space: str = option(
        "",
        'What may differ, as "learning_rate=log:1e-4:1e-2 units=64,128", or a YAML file of such lines.',
    )
    trials: Annotated[int, Bounds(least=2)] = option(30, "Settings that are tried.")
    sampler: Literal["random", "tpe"] = option(
        "random", "How they are chosen; tpe is Optuna's (pip install 'karpa-tf[search]')."
    )
    factor: Annotated[int, Bounds(least=2)] = option(
        3, "One in so many trials is trained further, and then so many times as long."
    )
    rungs: CountOrNone = option(
        0, "Lengths at which trials are compared; 1: all are trained in full; 0: as many as make sense."
    )
    parallel: Count = option(1, "Trials that train side by side, each with its share of the cores.")
    winner_seeds: Annotated[int, Bounds(least=2)] = option(
        3, "Fresh seeds that the winner is trained again with."
    )
    search_seed: Seed = option(0, "Seed of what is tried.")
    monitor: str = option(
        "", "Figure of validation that decides. (default: the first of the recipe's charts)"
    )
    mode: Literal["auto", "min", "max"] = option(
        "auto", "Whether it should be small or large; auto: small for losses, errors and distances."
    )
