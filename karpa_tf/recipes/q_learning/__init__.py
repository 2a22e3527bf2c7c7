"""`q-learning`: settings."""

from __future__ import annotations

from dataclasses import dataclass

from karpa_tf.recipe import About, PlayOptions
from karpa_tf.recipes.families.settings import TABULAR_CHARTS, TabularSettings, observation_inputs
from karpa_tf.settings import defaults_of


@dataclass(kw_only=True)
@defaults_of(__file__)
class QLearningSettings(TabularSettings):
    """Q-learning: a state is worth what its best action is."""


ABOUT = About(
    summary="Q-learning with a table on Taxi-v3",
    default_data="Taxi-v3; --env takes any Gymnasium environment of numbered states and actions",
    settings=QLearningSettings,
    inputs=observation_inputs,
    play=PlayOptions,
    steps="episodes",
    charts=TABULAR_CHARTS,
    figure="mean_return",
)
