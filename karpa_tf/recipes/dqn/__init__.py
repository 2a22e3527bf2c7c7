"""`dqn`: settings and options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from karpa_tf.errors import UserError
from karpa_tf.recipe import About, ExportOptions, PlayOptions
from karpa_tf.recipes.families.settings import EnvironmentSeed, observation_inputs
from karpa_tf.settings import (
    Count,
    CountOrNone,
    NonNegative,
    Positive,
    RunSettings,
    UnitInterval,
    defaults_of,
    option,
)


@dataclass(kw_only=True)
@defaults_of(__file__)
class DqnSettings(RunSettings):
    """Deep Q-learning in an environment with discrete actions."""

    seed: EnvironmentSeed = option(0, "Seed of the weights, masks, dropout and order of the examples.")
    env: str = option(
        "CartPole-v1",
        "Gymnasium's id of an environment with discrete actions, and its settings behind it: "
        "'karpa_tf/City-v0 size=5'.",
    )
    environment_steps: Count = option(50_000, "Steps of the environments to learn from, at most.")
    target_return: float = option(
        500.0, "Stop once a policy reaches this return in each of 1,000 fresh episodes."
    )
    environments: Count = option(8, "How many environments are stepped side by side.")
    initial_steps: Count = option(1_000, "Environment steps taken at random before training begins.")
    updates: Count = option(8, "Gradient steps after each step of all the environments.")
    batch_size: Count = option(64, "Transitions in a gradient step.")
    learning_rate: Positive = option(3e-3, "Adam's learning rate.")
    clip_norm: NonNegative = option(10.0, "Largest norm of each variable's gradient; 0 leaves it as it is.")
    units: Count = option(64, "Units of each hidden layer.")
    layers: CountOrNone = option(2, "Hidden layers.")
    double: bool = option(True, "Choose the next action by the network itself, not by its older copy.")
    dueling: bool = option(False, "Learn the value of a state and the advantages of actions apart.")
    n_step: Count = option(1, "Rewards summed up before the target network's estimate takes over.")
    loss: Literal["mse", "huber"] = option("mse", "How a TD error counts: squared, or linear beyond 1.")
    gamma: UnitInterval = option(0.99, "Discount of a step.")
    target_update_period: Count = option(100, "Gradient steps between updates of the target network.")
    target_update_tau: UnitInterval = option(1.0, "Share of the new weights in such an update.")
    buffer_size: int = option(50_000, "Steps that the replay buffer holds.")
    epsilon_start: UnitInterval = option(1.0, "Share of random actions when training begins.")
    epsilon_end: UnitInterval = option(0.04, "Share of random actions in the end.")
    epsilon_steps: CountOrNone = option(5_000, "Environment steps in which it falls.")
    judge_every: Count = option(200, "Environment steps between two evaluations of the greedy policy.")
    judge_episodes: Count = option(20, "Episodes of an evaluation; promising policies play 100 more.")
    init: str = option("", "A run whose best weights to start from.")

    length: ClassVar[str] = "environment_steps"

    def __post_init__(self) -> None:
        """Raises a UserError for a value that makes no sense."""
        super().__post_init__()
        held = self.environments * (self.n_step + 2)
        if self.buffer_size < held or self.initial_steps < held:
            raise UserError(
                f"buffer_size and initial_steps must be at least {held}, environments times (n_step + 2). "
                f"Received: {self.buffer_size} and {self.initial_steps}."
            )


@dataclass(kw_only=True)
class DqnExportOptions(ExportOptions):
    """In which forms a policy is written."""

    policy_saver: bool = option(
        True, "Write dqn-policy as well, in the form of TF-Agents' PolicySaver, where that is installed."
    )


ABOUT = About(
    summary="TF-Agents DQN on CartPole-v1, its loop inside TensorFlow",
    default_data="CartPole-v1; --env takes any Gymnasium environment with discrete actions",
    settings=DqnSettings,
    inputs=observation_inputs,
    export=DqnExportOptions,
    legacy_keras=True,
    play=PlayOptions,
    steps="environment steps",
    charts={
        "return": ["episode/return"],
        "length of an episode": ["episode/length"],
        "loss": ["batch/loss"],
        "value of the best action": ["q"],
        "epsilon": ["epsilon"],
    },
    figure="mean_return",
)
