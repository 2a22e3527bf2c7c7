"""`sarsa`: settings."""

from __future__ import annotations

from dataclasses import dataclass

from karpa_tf.recipe import About, PlayOptions
from karpa_tf.recipes.families.settings import TABULAR_CHARTS, TabularSettings, observation_inputs
from karpa_tf.settings import defaults_of


@dataclass(kw_only=True)
@defaults_of(__file__)
class SarsaSettings(TabularSettings):
    """SARSA: a state is worth what the action taken there is."""


ABOUT = About(
    summary="SARSA with a table on Taxi-v3",
    default_data="Taxi-v3; --env takes any Gymnasium environment of numbered states and actions",
    settings=SarsaSettings,
    inputs=observation_inputs,
    play=PlayOptions,
    steps="episodes",
    charts=TABULAR_CHARTS,
    figure="mean_return",
)
