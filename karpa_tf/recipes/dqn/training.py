"""How DQN trains: environment steps with gradient steps between them, and the choice of the best policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from karpa_tf.errors import UserError, writing
from karpa_tf.training.loop import Diverged
from karpa_tf.training.run_folder import RunFolder, write_json
from karpa_tf.training.step import Step

from . import DqnSettings
from .policy import build_model

if TYPE_CHECKING:  # importing it needs legacy Keras
    from karpa_tf.rl.dqn import Learner

# Episodes of the second and the third evaluation: the second says which policy is the best, the third whether
# there can be a better one.
MORE_EPISODES, LAST_EPISODES = 100, 1_000


class DqnStep(Step):
    """Some environment steps, with the gradient steps between them: the clock is the environment's."""

    def __init__(self, config: DqnSettings, learner: Learner) -> None:
        super().__init__()
        self.config = config
        self.learner = learner
        self.episodes = 0

    @property
    def variables(self) -> Sequence[Any]:
        return self.learner.variables

    def get_state(self) -> dict[str, Any]:
        return {"episodes": self.episodes}

    def set_state(self, state: dict[str, Any]) -> None:
        self.episodes = state["episodes"]

    def __call__(self, batch: Any, stop: bool = False) -> Mapping[str, float]:
        """Collects and trains until the next evaluation of the policy; see `Learner.run`."""
        config = self.config
        steps = int(self.learner.environment_steps.numpy())
        try:
            figures = self.learner.run(min(config.judge_every, config.environment_steps - steps))
        except tf.errors.OpError as error:
            raise explained(error, config.env, steps) from error
        self.advance = int(self.learner.environment_steps.numpy()) - steps
        self.episodes += int(figures["episodes"])
        gradient_steps = int(self.learner.gradient_steps.numpy())
        return {**figures, "episodes": self.episodes, "gradient_steps": gradient_steps}


def explained(error: tf.errors.OpError, env: str, steps: int) -> Exception:
    """Returns what is to be raised instead of an error of TensorFlow's, or the error itself."""
    if "inf or nan" in error.message.lower():  # TF-Agents' own check of the loss
        return Diverged(
            f"The loss is not a number after {steps} environment steps: training stopped; try a smaller "
            "learning_rate."
        )
    if "Traceback (most recent call last)" in error.message:  # the environment runs in Python
        # What it raised stands in the line before.
        said = error.message.split("Traceback (most recent call last)")[0].rstrip().splitlines()[-1]
        if "UserError: " in said:
            return UserError(said.partition("UserError: ")[2])
        return UserError(f"--env: {env} failed after {steps} environment steps: {said[:200].rstrip('. ')}.")
    return error


class BestPolicy(keras.callbacks.Callback):
    """Evaluates the greedy policy as training goes, and keeps the weights of the best one.

    DQN forgets: the last policy is often not the best, and may be a bad one. A policy plays `judge_episodes`
    first; if none was better there, 100 more, whose mean decides. One that reached `target_return` in all of
    them plays 1,000; if it does so again it is perfect, and training may stop. All are episodes that
    training does not see, and their steps are counted.
    """

    def __init__(self, folder: RunFolder, training: DqnStep) -> None:
        super().__init__()
        self.folder = folder
        self.training = training
        self.learner = training.learner
        self.config = training.config
        self.mean: float | None = None
        self.step = 0
        self.number = 0
        self.judged_steps = 0
        self.perfect = False
        self._played = 0
        self._weights: list[np.ndarray] | None = None
        self._network: keras.Model | None = None

    def evaluate(self) -> dict[str, float]:
        """Evaluates the present weights and returns the mean return of the first episodes."""
        self.number += 1
        first = self._play(self.config.judge_episodes)
        if self.mean is not None and first.mean() < self.mean:
            return {"greedy_return": float(first.mean())}
        returns = self._play(MORE_EPISODES)
        if min(first.min(), returns.min()) >= self.config.target_return:
            returns = np.concatenate([returns, self._play(LAST_EPISODES)])
            self.perfect = bool(returns.min() >= self.config.target_return)
        mean = float(returns.mean())
        if self.mean is None or mean > self.mean or self.perfect:
            self.mean, self.step = mean, int(self.learner.environment_steps.numpy())
            self._weights = self.learner.get_weights()
        return {"greedy_return": float(first.mean())}

    def _play(self, count: int) -> np.ndarray:
        self._played += 1
        returns, lengths = self.learner.evaluate(count, self._played)
        self.judged_steps += int(lengths.sum())
        return returns

    def get_state(self) -> dict[str, Any]:
        self.write()
        return {
            "mean": self.mean,
            "step": self.step,
            "number": self.number,
            "judged_steps": self.judged_steps,
            "perfect": self.perfect,
            "_played": self._played,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self.training.stop_training = self.perfect

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        self.write()

    def write(self) -> None:
        """Writes the best weights, if there are new ones, and what choosing them cost."""
        weights = self._weights
        if self.mean is None:  # stopped before the first evaluation: what there is, is the best there is
            weights = self.learner.get_weights()
        with writing(self.folder.path):
            if weights is not None:
                if self._network is None:
                    self._network = build_model(self.config, self.learner.scale, self.learner.actions)
                self._network.set_weights(weights)
                temporary = self.folder.best_weights.with_name(f".tmp-{self.folder.best_weights.name}")
                self._network.save_weights(temporary)
                temporary.replace(self.folder.best_weights)
                self._weights = None
            facts = {
                "observation_scale": self.learner.scale,
                "actions": self.learner.actions,
                "first_action": self.learner.first_action,
                "environment_steps": int(self.learner.environment_steps.numpy()),
                "selection_environment_steps": self.judged_steps,
            }
            write_json(self.folder.assets / "policy.json", facts)
