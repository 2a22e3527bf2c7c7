"""What a run of DQN has learned, in Keras 3."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from karpa_tf.errors import UserError
from karpa_tf.models import build_q_network
from karpa_tf.recipes.families import common
from karpa_tf.rl.episodes import first_action, make_flat
from karpa_tf.training.run_folder import RunFolder, open_run

from . import DqnSettings


def build_model(config: DqnSettings, scale: Sequence[float], actions: int) -> keras.Model:
    return build_q_network(
        scale, actions, units=config.units, hidden_layers=config.layers, dueling=config.dueling
    )


def open_model(folder: RunFolder) -> tuple[DqnSettings, keras.Model]:
    """Returns the settings of a run and its best q-network, in Keras 3."""
    config = folder.open_config(DqnSettings)
    with common.reading_weights(folder):
        facts = read_facts(folder)
        model = build_model(config, facts["observation_scale"], facts["actions"])
        model.load_weights(folder.best_weights)
    return config, model


def read_facts(folder: RunFolder) -> dict[str, Any]:
    """Returns what the best weights were written with: counts of steps, sizes, the first action's number."""
    facts = folder.read_json("assets/policy.json")
    if "first_action" not in facts:  # a run of before that was written
        facts["first_action"] = first_action(folder.read_config()["env"])
    return facts


def weights_of(run: str, config: DqnSettings) -> list[np.ndarray]:
    """Returns the best weights of another run, for `--init`."""
    other, model = open_model(open_run(run))
    sizes = [(c.env, c.units, c.layers, c.dueling) for c in (config, other)]
    if sizes[0] != sizes[1]:
        raise UserError(
            f"--init: {run} has (env, units, layers, dueling) {sizes[1]}; give this run the same. "
            f"Received: {sizes[0]}."
        )
    return model.get_weights()


def first_observations(config: DqnSettings) -> list[list[float]]:
    """Returns the first observations of a few episodes."""
    with contextlib.closing(make_flat(config.env)) as env:
        return [np.asarray(env.reset(seed=seed)[0], float).tolist() for seed in range(4)]
