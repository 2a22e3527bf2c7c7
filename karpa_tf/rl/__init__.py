"""Reinforcement learning: environments, the DQN agent, tabular control.

Importing this package imports nothing. `environment.py` and `dqn.py` need TF-Agents, and with it legacy
Keras; the rest runs on Keras 3 like all of karpa_tf.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io

from karpa_tf.errors import UserError


def has_tf_agents() -> bool:
    """Whether TF-Agents and legacy Keras are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("tf_agents", "tf_keras"))


def require_tf_agents() -> None:
    """Makes sure that TF-Agents can be imported in this process.

    TF-Agents is written for Keras 2. TensorFlow decides when it is imported which Keras `tf.keras` is, so
    this cannot be mended later, and karpa_tf does not do it behind the back of somebody else's process.

    Raises:
        UserError: TF-Agents is not installed, or TensorFlow came without TF_USE_LEGACY_KERAS=1.
    """
    if not has_tf_agents():
        raise UserError(
            "dqn is trained with tf-agents and tf-keras, which `pip install karpa-tf` brings on Python 3.11 "
            "only."
        )
    import tensorflow as tf

    if not hasattr(tf.keras, "__internal__"):
        raise UserError(
            "TF-Agents needs legacy Keras, and TensorFlow came without it into this process: set "
            "TF_USE_LEGACY_KERAS=1 in the environment before tensorflow is imported (`karpa-tf train dqn` "
            "does)."
        )
    with contextlib.redirect_stderr(io.StringIO()):
        import gym  # noqa: F401  (TF-Agents imports the abandoned gym, which says so at length)
