"""`dqn`: TF-Agents' DQN on CartPole-v1, from an environment to a served policy.

    karpa-tf train dqn                       10 to 20 seconds on two cores
    karpa-tf train dqn --env Acrobot-v1      any Gymnasium environment with discrete actions

What it reaches stands in the header of each YAML file beside this one. Training needs TF-Agents and legacy
Keras (`karpa_tf.rl.dqn`); evaluating, predicting and serving what was learned need neither.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import tensorflow as tf

from karpa_tf.errors import UserError
from karpa_tf.export.savedmodel import publish
from karpa_tf.export.signature import Signature
from karpa_tf.recipe import EvaluateOptions, Evaluation, Exported, PredictOptions
from karpa_tf.recipes.families import common
from karpa_tf.recipes.families.environments import EnvironmentRecipe
from karpa_tf.reports.classification import event_writer, write_image
from karpa_tf.reports.model_card import metrics_table, settings_list
from karpa_tf.rl import has_tf_agents
from karpa_tf.rl.episodes import (
    CERTIFICATE_SEEDS,
    CannotBeDrawn,
    Policy,
    film,
    make_flat,
    observation_scale,
    random_policy,
    strip,
)
from karpa_tf.training.loop import Stage
from karpa_tf.training.run import Run
from karpa_tf.training.run_folder import RunFolder

from . import ABOUT, DqnExportOptions, DqnSettings
from .policy import first_observations, open_model, read_facts, weights_of
from .policy_saver import write_policy_warmup
from .training import LAST_EPISODES, BestPolicy, DqnStep

# A line of progress and a histogram of the weights every so many evaluations.
_EVERY = 10


class Dqn(EnvironmentRecipe[DqnSettings]):
    """Deep Q-learning."""

    about = ABOUT
    seeds = CERTIFICATE_SEEDS

    def make_env(self, config: DqnSettings, **options: Any) -> gymnasium.Env:
        return make_flat(config.env, **options)

    def first_action(self, folder: RunFolder) -> int:
        return read_facts(folder)["first_action"]

    # --- Train

    def train(self, run: Run[DqnSettings]) -> dict[str, float]:
        """Trains into a run folder and returns the final figures, those of the best policy's certificate."""
        from karpa_tf.rl.dqn import Learner

        config, folder = run.settings, run.folder
        run.begin()
        learner = Learner(config)
        if config.init:
            learner.set_weights(weights_of(config.init, config))
        step = DqnStep(config, learner)
        best = BestPolicy(folder, step)
        run.say(f"{config.env}: {config.environments} side by side; run {folder.path}")
        run.fit(
            Stage(
                step,
                length=config.environment_steps,
                validation=best.evaluate,
                stop_if_diverged=False,  # a TD error may rise
            ),
            callbacks=[best],
            shown=("episodes", "return", "greedy_return", "epsilon"),
            unit="environment steps",
            period="step",
            lines_every=_EVERY,
            tags={
                "return": "episode/return",
                "greedy_return": "episode/return",  # of the validation, on the same chart
                "length": "episode/length",
                "loss": "batch/loss",
                "q": "q",
                "epsilon": "epsilon",
            },
            rates={"gradient_steps": "speed/gradient_steps_per_second"},
            every=1,
            graph=learner.graph,
            weights=lambda: {f"weights/{v.name.split(':')[0]}": v for v in learner.q_network.variables},
            weights_every=_EVERY,
        )
        if best.perfect and run.steps < config.environment_steps:
            run.say(
                f"Stopped early, after {run.steps:,} of {config.environment_steps:,} environment steps: the "
                f"policy reached a return of {config.target_return:g} in each of {LAST_EPISODES:,} fresh "
                "episodes."
            )
        try:
            make_env = functools.partial(self.make_env, config)
            pictures = strip(film(config.env, make_env, self.policy(folder), self.seeds[0]))
            with event_writer(folder.path / "validation"):
                write_image(run.steps, "filmstrip", pictures)
        except CannotBeDrawn as error:
            run.say(f"No film of an episode: {error}")
        gradient_steps = int(learner.gradient_steps.numpy())
        return run.finish(
            lambda: self.evaluate(folder, self.about.evaluate()),
            best_step=best.step,
            gradient_steps=gradient_steps,
        )

    # --- Evaluate and predict

    def baselines(self, config: DqnSettings) -> Mapping[str, Policy]:
        return {"random": random_policy(config.env)}

    def evaluate(self, folder: RunFolder, options: EvaluateOptions, step: int | None = None) -> Evaluation:
        """Plays 100 greedy episodes in Gymnasium's own environment; a random policy plays the same ones."""
        evaluation = super().evaluate(folder, options, step)
        facts = read_facts(folder)
        for name in ("environment_steps", "selection_environment_steps"):
            evaluation.metrics[name] = facts[name]
        return evaluation

    def signature(self, folder: RunFolder, options: PredictOptions) -> Signature:
        """Returns the greedy policy of a run, as `predict` calls it and `export` writes it."""
        config, model = open_model(folder)
        size = model.input_shape[-1]
        first = self.first_action(folder)

        def act(observation: tf.Tensor) -> dict[str, tf.Tensor]:
            q_values = model(observation, training=False)
            return {"action": tf.argmax(q_values, axis=-1) + first, "q_values": q_values}

        def check(number: int, row: Mapping[str, Any]) -> None:
            try:
                value = np.array(row["observation"], np.float32)
            except (TypeError, ValueError):
                value = np.array(np.nan)
            if value.shape != (size,) or not np.isfinite(value).all():
                raise UserError(
                    f"Observation {number} must be {size} numbers, as {config.env} gives them. "
                    f"Received: {str(row['observation'])[:80]}."
                )

        inputs = {"observation": tf.TensorSpec([None, size], tf.float32)}
        return Signature(act, inputs, variables=model.variables, check=check)

    # --- Export

    def export(self, folder: RunFolder, options: DqnExportOptions) -> Exported:
        """Writes the next version of `savedmodels/dqn`; and of `dqn-policy`, where TF-Agents is installed.

        That is the same policy in the form of TF-Agents' PolicySaver, for those who feed it time steps.
        """
        metrics = common.learned_or_refuse(folder, "mean_return", "random", options.force)
        config, model = open_model(folder)
        if with_agents := options.policy_saver and has_tf_agents():
            from karpa_tf.rl.dqn import Learner
        rows = first_observations(config)
        examples = [{"observation": row} for row in rows]
        signature = self.signature(folder, self.about.predict())
        card = self.model_card(folder, metrics)
        exported = common.export(folder, options, signature, examples=examples, model_card=card)
        if not with_agents:
            if options.policy_saver:
                exported.lines.append(
                    "dqn-policy, the form of TF-Agents' PolicySaver, is left out: tf-agents is not installed."
                )
            return exported
        learner = Learner(config)
        learner.set_weights(model.get_weights())
        name = f"{folder.recipe}-policy"

        def write(path: Path) -> None:
            learner.save_policy(path)
            write_policy_warmup(path, name, np.array(rows, np.float32))

        exported.more["policy_saver"] = str(publish(write, options.to, name))
        return exported

    def model_card(self, folder: RunFolder, metrics: Mapping[str, Any]) -> str:
        config = folder.read_config()
        scale = ", ".join(f"{value:g}" for value in observation_scale(config["env"]))
        return f"""# {folder.recipe}

The greedy policy of a DQN trained in {config["env"]}.

- in: `observation` float32 [n, size], as the environment gives it (it is divided by {scale} inside)
- out: `action` int64 [n], as the environment numbers them; `q_values` float32 [n, actions], the expected
  discounted returns

Over {metrics["episodes"]} episodes of Gymnasium's {config["env"]} (seeds {metrics["facts"]["seeds"]}), not
discounted:

{metrics_table(metrics, self.shown(metrics), "policy")}

Training took {metrics["environment_steps"]:,} environment steps, choosing the policy
{metrics["selection_environment_steps"]:,}.

{settings_list(config)}
"""
