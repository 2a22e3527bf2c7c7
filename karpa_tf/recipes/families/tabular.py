"""Control with a table of values, from a small environment to a served policy: q-learning and sarsa.

They differ in one line of `karpa_tf/rl/tabular.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import gymnasium
import keras
import numpy as np
import tensorflow as tf

from karpa_tf.errors import UserError, writing
from karpa_tf.export.signature import Signature
from karpa_tf.recipe import Exported, ExportOptions, PredictOptions
from karpa_tf.recipes.families import common
from karpa_tf.recipes.families.environments import EnvironmentRecipe
from karpa_tf.recipes.families.settings import TabularSettings
from karpa_tf.reports.model_card import metrics_table, settings_list
from karpa_tf.rl.episodes import Policy, actions_of, make_tabular
from karpa_tf.rl.tabular import optimal_values, play_and_learn
from karpa_tf.training.loop import Stage
from karpa_tf.training.run import Run
from karpa_tf.training.run_folder import RunFolder
from karpa_tf.training.step import Step


class TabularRecipe(EnvironmentRecipe[TabularSettings]):
    """Q-learning or SARSA, as `on_policy` says."""

    seeds = range(1_000_000_000, 1_000_001_000)
    # Whether it learns from the action that is taken next, or from the best one.
    on_policy: ClassVar[bool]

    def make_env(self, config: TabularSettings, **options: Any) -> gymnasium.Env:
        if config.env.startswith("FrozenLake"):
            options["is_slippery"] = config.slippery
        return make_tabular(config.env, **options)

    def first_action(self, folder: RunFolder) -> int:
        return 0

    # --- Train

    def train(self, run: Run[TabularSettings]) -> dict[str, float]:
        """Trains into a run folder and returns the final figures.

        Every random number is a function of the seed and the episode, those of the environment too: a run
        that was stopped goes on to the same table.
        """
        config, folder = run.settings, run.folder
        with contextlib.closing(self.make_env(config)) as env:
            step = EpisodesStep(config, env, self.on_policy)
            run.begin()
            states, actions = step.values.shape
            run.say(f"{config.env}: {states} states, {actions} actions; run {folder.path}")
            run.fit(
                Stage(step, length=config.episodes),
                callbacks=[KeepTable(folder, step)],
                shown=("return", "epsilon"),
                unit="episodes",
                period="episode",
                lines_every=20,
                tags={
                    "return": "episode/return",
                    "length": "episode/length",
                    "epsilon": "epsilon",
                    "learning_rate": "learning_rate",
                },
                rates={"environment_steps": "speed/environment_steps_per_second"},
                every=1,
                weights=lambda: {"q_values": np.array(step.table)},
            )
        return run.finish(lambda: self.evaluate(folder, self.about.evaluate()))

    # --- Evaluate, predict, export

    def baselines(self, config: TabularSettings) -> Mapping[str, Policy]:
        """A random policy and, where the environment says how it works, the best one that there is."""
        with contextlib.closing(self.make_env(config)) as env:
            actions, _ = actions_of(env)
            best = optimal_values(env)
        generator = np.random.default_rng(0)
        policies: dict[str, Policy] = {"random": lambda states: generator.integers(actions, size=len(states))}
        if best is not None:
            policies["optimal"] = lambda states: best[states].argmax(axis=1)
        return policies

    def signature(self, folder: RunFolder, options: PredictOptions) -> Signature:
        """Returns the greedy policy of a run, as `predict` calls it and `export` writes it."""
        table = tf.Variable(read_table(folder), trainable=False)
        states = int(table.shape[0])

        def act(observation: tf.Tensor) -> dict[str, tf.Tensor]:
            q_values = tf.gather(table, observation)
            return {"action": tf.argmax(q_values, axis=-1), "q_values": q_values}

        def check(number: int, row: Mapping[str, Any]) -> None:
            value = row["observation"]
            if isinstance(value, str) and value.strip().isdecimal():
                value = int(value)  # from a .csv
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < states:
                raise UserError(
                    f"Observation {number} must be a state, a whole number from 0 to {states - 1}. "
                    f"Received: {str(row['observation'])[:80]}."
                )

        inputs = {"observation": tf.TensorSpec([None], tf.int64)}
        return Signature(act, inputs, resources=[table], check=check)

    def export(self, folder: RunFolder, options: ExportOptions) -> Exported:
        metrics = common.learned_or_refuse(folder, "mean_return", "random", options.force)
        config = folder.read_config()
        card = f"""# {folder.recipe}

The greedy policy of a table of values, learned in {config["env"]}.

- in: `observation` int64 [n], numbers of states
- out: `action` int64 [n]; `q_values` float32 [n, actions], the expected discounted returns

Over {metrics["episodes"]} episodes (seeds {metrics["facts"]["seeds"]}), not discounted:

{metrics_table(metrics, self.shown(metrics), "policy")}

{settings_list(config)}
"""
        examples = [{"observation": state} for state in range(min(4, len(read_table(folder))))]
        signature = self.signature(folder, self.about.predict())
        return common.export(folder, options, signature, examples=examples, model_card=card)


class EpisodesStep(Step):
    """The episodes up to the next point of the learning curve: the clock is theirs.

    Attributes:
        values: the table as a checkpoint holds it, float64 (states, actions).
        table: the same in lists, which Python changes faster.
    """

    def __init__(self, config: TabularSettings, env: gymnasium.Env, on_policy: bool) -> None:
        super().__init__()
        self.config = config
        self.env = env
        self.on_policy = on_policy
        assert isinstance(env.observation_space, gymnasium.spaces.Discrete)
        shape = [int(env.observation_space.n), actions_of(env)[0]]
        start = tf.fill(shape, tf.constant(config.initial_value, tf.float64))
        self.values = tf.Variable(start, name="q_values")
        self.table: list[list[float]] = self.values.numpy().tolist()
        self.episode = 0
        self.environment_steps = 0

    @property
    def variables(self) -> Sequence[Any]:
        return [self.values]

    def get_state(self) -> dict[str, Any]:
        self.values.assign(self.table)
        return {"episode": self.episode, "environment_steps": self.environment_steps}

    def set_state(self, state: dict[str, Any]) -> None:
        self.episode, self.environment_steps = state["episode"], state["environment_steps"]
        self.table = self.values.numpy().tolist()

    def __call__(self, batch: Any, stop: bool = False) -> Mapping[str, float]:
        """Plays and learns; returns the means of the episodes."""
        config = self.config
        self.advance = min(config.log_every, config.episodes - self.episode)
        played = []
        for episode in range(self.episode, self.episode + self.advance):
            epsilon, learning_rate = schedule(config, episode)
            try:
                totals = play_and_learn(
                    self.env,
                    self.table,
                    np.random.default_rng([config.seed, episode]),
                    epsilon=epsilon,
                    learning_rate=learning_rate,
                    gamma=config.gamma,
                    on_policy=self.on_policy,
                )
            except UserError:
                raise
            except Exception as error:  # whatever an environment raises
                raise UserError(
                    f"--env: {config.env} failed in episode {episode}: {type(error).__name__}: "
                    f"{' '.join(str(error).split())[:200].rstrip('. ')}."
                ) from error
            played.append(totals)
        self.episode += self.advance
        self.environment_steps += sum(steps for _, steps in played)
        return {
            "return": float(np.mean([total for total, _ in played])),
            "length": float(np.mean([steps for _, steps in played])),
            "epsilon": epsilon,
            "learning_rate": learning_rate,
            "environment_steps": self.environment_steps,
        }


class KeepTable(keras.callbacks.Callback):
    """Writes the table into the run folder, with each checkpoint and at the end."""

    def __init__(self, folder: RunFolder, step: EpisodesStep) -> None:
        super().__init__()
        self.folder = folder
        self.step = step

    def get_state(self) -> dict[str, Any]:
        write_table(self.folder, np.array(self.step.table))
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        pass

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        write_table(self.folder, np.array(self.step.table))


def schedule(config: TabularSettings, episode: int) -> tuple[float, float]:
    """Returns epsilon and the learning rate of an episode."""
    done = min(episode / (0.9 * config.episodes), 1.0)
    epsilon = config.epsilon_start + (config.epsilon_end - config.epsilon_start) * done
    done = episode / config.episodes
    return epsilon, config.learning_rate + (config.learning_rate_end - config.learning_rate) * done


def write_table(folder: RunFolder, table: np.ndarray) -> None:
    """Writes the table, float32 (states, actions), whole or not at all."""
    path = folder.assets / "q_values.npy"
    temporary = folder.assets / ".tmp-q_values.npy"
    with writing(path):
        np.save(temporary, table.astype(np.float32))
        temporary.replace(path)


def read_table(folder: RunFolder) -> np.ndarray:
    try:
        return np.load(folder.assets / "q_values.npy")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{folder.assets / 'q_values.npy'} cannot be read ({error}); go on with `"
            f"{folder.resume_command}`, or train again."
        ) from None
