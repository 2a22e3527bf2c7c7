"""TF-Agents' DQN: agent, replay buffer, and the loop of collecting and training inside TensorFlow.

The only file that uses legacy Keras. TF-Agents' parts do the learning (`DqnAgent` and `DdqnAgent`, after
Mnih et al. 2015 and van Hasselt et al. 2015; `TFUniformReplayBuffer`). What is written here is what stands
between them: random numbers that are functions of counters, and so can be saved, and one `tf.function` for
many steps.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import tensorflow as tf

from karpa_tf import private
from karpa_tf.rl import require_tf_agents

require_tf_agents()

import tf_keras  # noqa: E402
from tensorflow_probability.python.distributions import Deterministic  # noqa: E402
from tf_agents.agents.dqn import dqn_agent  # noqa: E402
from tf_agents.environments import tf_environment  # noqa: E402
from tf_agents.networks import network  # noqa: E402
from tf_agents.policies import policy_saver, tf_policy  # noqa: E402
from tf_agents.replay_buffers import tf_uniform_replay_buffer  # noqa: E402
from tf_agents.specs import tensor_spec  # noqa: E402
from tf_agents.trajectories import policy_step, trajectory  # noqa: E402
from tf_agents.utils import common  # noqa: E402

from karpa_tf.rl.environment import IN_TENSORFLOW, InTensorFlow, load_environment  # noqa: E402
from karpa_tf.rl.episodes import first_action, make_flat, observation_scale, play  # noqa: E402

# Gymnasium's seeds of the episodes that choose a policy begin here; those of training lie far below, and
# those of the certificate (`karpa_tf.rl.episodes.CERTIFICATE_SEEDS`) between the two.
SELECTION_SEEDS = 2_000_000_000


class LearnerSettings(Protocol):
    """What a learner reads of a recipe's settings, which say what each means."""

    env: str
    environments: int
    initial_steps: int
    updates: int
    batch_size: int
    learning_rate: float
    clip_norm: float
    units: int
    layers: int
    double: bool
    dueling: bool
    n_step: int
    loss: Literal["mse", "huber"]
    gamma: float
    target_update_period: int
    target_update_tau: float
    buffer_size: int
    epsilon_start: float
    epsilon_end: float
    epsilon_steps: int
    seed: int


class QNetwork(network.Network):
    """Dense layers with relu, then a value an action: `karpa_tf.models.build_q_network` for TF-Agents.

    Args:
        input_tensor_spec: of an observation, float32 (size,).
        scale: what each number of an observation is divided by.
        actions: how many.
        units: width of the hidden layers.
        hidden_layers: how many.
        dueling: value and advantages apart (Wang et al. 2016, equation 9).
        seed: of the first weights.
    """

    def __init__(
        self,
        input_tensor_spec: tf.TensorSpec,
        scale: Sequence[float],
        actions: int,
        units: int,
        hidden_layers: int,
        dueling: bool = False,
        seed: int = 0,
        name: str = "QNetwork",
    ) -> None:
        super().__init__(input_tensor_spec=input_tensor_spec, state_spec=(), name=name)

        def dense(width: int, number: int, activation: str | None = None) -> tf_keras.layers.Dense:
            weights = tf_keras.initializers.VarianceScaling(
                2.0 if activation else 1.0, seed=seed * 100 + number
            )
            return tf_keras.layers.Dense(width, activation, kernel_initializer=weights)

        self._factor = np.array([1 / value for value in scale], np.float32)
        self._hidden = [dense(units, i, "relu") for i in range(hidden_layers)]
        self._advantage = dense(actions, hidden_layers)
        self._value = dense(1, hidden_layers + 1) if dueling else None

    def call(
        self, observation: Any, step_type: Any = None, network_state: Any = (), training: bool = False
    ) -> tuple[tf.Tensor, Any]:
        """Returns the values of all actions, float32 (batch, actions), and no state."""
        x = observation * self._factor
        for layer in self._hidden:
            x = layer(x)
        q_values = self._advantage(x)
        if self._value is not None:
            q_values = q_values - tf.reduce_mean(q_values, axis=-1, keepdims=True) + self._value(x)
        return q_values, network_state


class OwnActions(tf_policy.TFPolicy):
    """A policy whose actions are numbered as the environment numbers them; inside TF-Agents they begin at 0.

    Args:
        policy: with actions from 0.
        first: the environment's first action.
    """

    def __init__(self, policy: tf_policy.TFPolicy, first: int) -> None:
        spec = policy.action_spec
        own = tensor_spec.BoundedTensorSpec(
            spec.shape, spec.dtype, spec.minimum + first, spec.maximum + first, spec.name
        )
        super().__init__(policy.time_step_spec, own, policy.policy_state_spec, policy.info_spec)
        self._policy, self._first = policy, first

    def _variables(self) -> Any:
        return self._policy.variables()

    def _action(self, time_step: Any, policy_state: Any, seed: Any) -> Any:
        step = self._policy.action(time_step, policy_state, seed)
        return step._replace(action=step.action + self._first)

    def _distribution(self, time_step: Any, policy_state: Any) -> Any:
        step = self._policy.distribution(time_step, policy_state)
        return step._replace(action=Deterministic(step.action.mode() + self._first))


class ReplayBuffer(tf_uniform_replay_buffer.TFUniformReplayBuffer):
    """TF-Agents' uniform buffer, drawing with random numbers that are a function of (seed, draws so far).

    The parent draws with TensorFlow's stateful generator, whose state cannot be saved: no run could go on as
    if it had never been stopped. It also locks its counter, which a single loop does not need.
    """

    def __init__(self, data_spec: Any, batch_size: int, max_length: int, seed: int) -> None:
        super().__init__(data_spec, batch_size, max_length)
        self._seed = seed
        self._draws = tf.Variable(0, dtype=tf.int64, trainable=False, name="replay/draws")

    def variables(self) -> list[tf.Variable]:
        """All that there is to save and restore."""
        return [*super().variables(), self._draws]

    def _increment_last_id(self, increment: int = 1) -> tf.Tensor:
        return self._last_id.assign_add(increment).read_value()

    def _get_last_id(self) -> tf.Tensor:
        return self._last_id.read_value()

    def _get_next(
        self, sample_batch_size: Any = None, num_steps: Any = None, time_stacked: bool = True
    ) -> tuple[Any, Any]:
        """Draws windows of consecutive frames, the tensors (sample_batch_size, num_steps, ...)."""
        last = self._get_last_id()
        first = tf.maximum(tf.constant(0, tf.int64), last + 1 - self._max_length)
        seed = tf.stack([tf.constant(self._seed, tf.int64), self._draws.assign_add(1)])
        draws = tf.random.stateless_uniform([2, sample_batch_size], seed, dtype=tf.float64)
        windows = tf.cast(last - first + 2 - num_steps, tf.float64)
        ids = first + tf.cast(draws[0] * windows, tf.int64)
        block = tf.cast(draws[1] * self._batch_size, tf.int64)
        rows = (ids[:, None] + tf.range(num_steps, dtype=tf.int64)) % self._max_length
        rows += block[:, None] * self._max_length
        return self._data_table.read(rows), tf_uniform_replay_buffer.BufferInfo(ids=rows, probabilities=())


class Learner:
    """An agent, its environments and its memory; `run` lets it collect and train.

    Everything that changes is in `variables`, and every random number is a function of the seed and of a
    counter among them: who restores the variables goes on where they were saved, to the bit.

    Args:
        config: the recipe's settings.
    """

    def __init__(self, config: LearnerSettings) -> None:
        self.config = config
        self.environment: tf_environment.TFEnvironment = load_environment(
            config.env,
            config.environments,
            4 * config.seed if config.env in IN_TENSORFLOW else 1000 * config.seed,
        )
        # Four streams of random numbers: first states, draws from the buffer, exploration, evaluation.
        observation, action = self.environment.observation_spec(), self.environment.action_spec()
        self.actions = int(action.maximum) + 1
        self.first_action = first_action(config.env)
        self.scale = observation_scale(config.env)
        # tf.Variables of the optimizer that are one fused op a variable: a step is hundreds of small ops.
        self.optimizer = tf_keras.optimizers.legacy.Adam(config.learning_rate)
        self.gradient_steps = _counter("gradient_steps")
        self.q_network, self.target_network = (
            QNetwork(
                observation,
                self.scale,
                self.actions,
                config.units,
                config.layers,
                config.dueling,
                config.seed,
                name,
            )
            for name in ("QNetwork", "TargetQNetwork")
        )
        self.agent = (dqn_agent.DdqnAgent if config.double else dqn_agent.DqnAgent)(
            self.environment.time_step_spec(),
            action,
            self.q_network,
            self.optimizer,
            n_step_update=config.n_step,
            target_q_network=self.target_network,
            target_update_tau=config.target_update_tau,
            target_update_period=config.target_update_period,
            td_errors_loss_fn={
                "mse": common.element_wise_squared_loss,
                "huber": common.element_wise_huber_loss,
            }[config.loss],
            gamma=config.gamma,
            gradient_clipping=config.clip_norm or None,
            train_step_counter=self.gradient_steps,
        )
        self.agent.initialize()
        private.create_optimizer_variables(self.optimizer, self.q_network.trainable_variables)
        length = config.buffer_size // config.environments
        self.buffer = ReplayBuffer(
            self.agent.collect_data_spec, config.environments, length, 4 * config.seed + 1
        )

        self.environment_steps = _counter("environment_steps")
        self._collections = _counter("collections")
        self._return = tf.Variable(tf.zeros([config.environments]), trainable=False, name="return")
        self._length = tf.Variable(tf.zeros([config.environments]), trainable=False, name="length")
        self._run = tf.function(self._iterations, autograph=False)
        self._evaluate = tf.function(self._play, autograph=False, reduce_retracing=True)

    @property
    def variables(self) -> list[tf.Variable]:
        """All that there is to save and restore.

        An environment of Gymnasium's cannot be saved: after a resume it begins a new episode.
        """
        environment = self.environment.variables if isinstance(self.environment, InTensorFlow) else []
        return [
            *self.q_network.variables,
            *self.target_network.variables,
            *self.optimizer.variables(),
            self.gradient_steps,
            private.target_update_counter(self.agent),
            *self.buffer.variables(),
            *environment,
            self.environment_steps,
            self._collections,
            self._return,
            self._length,
        ]

    def get_weights(self) -> list[np.ndarray]:
        """Returns the q-network's weights, in the order of `build_q_network`'s."""
        return [variable.numpy() for variable in self.q_network.variables]

    def set_weights(self, weights: Sequence[np.ndarray]) -> None:
        """Puts weights into the q-network and its older copy."""
        for variable, value in zip(self.q_network.variables, weights, strict=True):
            variable.assign(value)
        self.agent.initialize()

    def run(self, steps: int) -> dict[str, float]:
        """Collects at least so many environment steps, training as it goes, in one call of TensorFlow.

        Returns:
            `episodes` that ended, their mean `return` and `length` (left out if none has), `q`, the mean
            value of the best action where the policy came by, `loss` (left out while there is no training)
            and `epsilon`.
        """
        iterations = -(-steps // self.config.environments)
        with _quiet():
            sums = self._run(tf.constant(iterations))
        episodes, returns, lengths, q, loss, updates = sums.numpy().tolist()
        figures = {
            "episodes": episodes,
            "q": q / iterations,
            "epsilon": float(self.epsilon()),
        }
        if episodes:
            figures |= {"return": returns / episodes, "length": lengths / episodes}
        if updates:
            figures["loss"] = loss / updates
        return figures

    def epsilon(self) -> tf.Tensor:
        """Returns the share of random actions: all while the buffer is filled, then falling linearly."""
        config, steps = self.config, self.environment_steps
        done = tf.cast(steps - config.initial_steps, tf.float32) / max(config.epsilon_steps, 1)
        falling = config.epsilon_start + (config.epsilon_end - config.epsilon_start) * tf.clip_by_value(
            done, 0, 1
        )
        return tf.where(steps < config.initial_steps, 1.0, falling)

    def evaluate(self, count: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Plays greedy episodes that training never sees; returns their returns and lengths, (count,) each.

        Args:
            count: how many.
            number: of the evaluation; each has first states of its own.
        """
        if isinstance(self.environment, InTensorFlow):
            returns, lengths = self._evaluate(
                tf.constant([4 * self.config.seed + 3, number], tf.int64), count
            )
            return returns.numpy(), lengths.numpy()
        first = SELECTION_SEEDS + number * 10_000
        return play(lambda: make_flat(self.config.env), self._greedy, range(first, first + count))[:2]

    def graph(self) -> Any:
        """Returns the q-network as a TensorFlow graph, to be looked at."""
        function = tf.function(lambda observation: self.q_network(observation)[0], autograph=False)
        return function.get_concrete_function(tf.TensorSpec([None, len(self.scale)], tf.float32)).graph

    def _play(self, seed: tf.Tensor, count: int) -> tuple[tf.Tensor, tf.Tensor]:
        assert isinstance(self.environment, InTensorFlow)
        return self.environment.play(lambda x: tf.argmax(self.q_network(x)[0], axis=-1), count, seed)

    def _greedy(self, observations: np.ndarray) -> np.ndarray:
        return self.q_network(tf.constant(observations))[0].numpy().argmax(axis=-1)

    def save_policy(self, path: str | Path) -> None:
        """Writes the greedy policy in the form of TF-Agents' PolicySaver: a time step in, an action out."""
        with _quiet():
            policy = self.agent.policy
            if self.first_action:
                policy = OwnActions(policy, self.first_action)
            policy_saver.PolicySaver(policy, train_step=self.gradient_steps).save(str(path))

    # --- Inside TensorFlow

    def _iterations(self, count: tf.Tensor) -> tf.Tensor:
        def iterate(i: tf.Tensor, sums: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            collected = self._collect()
            filled = self.environment_steps >= self.config.initial_steps
            updates = tf.where(filled, self.config.updates, 0)
            _, loss = tf.while_loop(
                lambda j, _: j < updates, lambda j, loss: (j + 1, loss + self._train()), (0, 0.0)
            )
            return i + 1, sums + tf.stack([*collected, loss, tf.cast(updates, tf.float32)])

        return tf.while_loop(lambda i, _: i < count, iterate, (0, tf.zeros([6])))[1]

    def _collect(self) -> list[tf.Tensor]:
        """One step of each environment, epsilon-greedy, into the buffer."""
        now = self.environment.current_time_step()
        q_values, _ = self.q_network(now.observation)
        seed = tf.stack([tf.constant(4 * self.config.seed + 2, tf.int64), self._collections.assign_add(1)])
        draws = tf.random.stateless_uniform([2, self.config.environments], seed)
        action = tf.where(
            draws[0] < self.epsilon(),
            tf.cast(draws[1] * self.actions, tf.int64),
            tf.argmax(q_values, axis=-1),
        )
        after = self.environment.step(action)
        self.buffer.add_batch(trajectory.from_transition(now, policy_step.PolicyStep(action), after))
        # The step from an episode's end to the next one's beginning is none of the environment's.
        moved = tf.cast(~now.is_last(), tf.float32)
        self.environment_steps.assign_add(tf.cast(tf.reduce_sum(moved), tf.int64))
        returns = self._return.assign((self._return + after.reward) * moved)
        lengths = self._length.assign((self._length + 1) * moved)
        ended = tf.cast(after.is_last(), tf.float32)
        return [
            tf.reduce_sum(ended),
            tf.reduce_sum(ended * returns),
            tf.reduce_sum(ended * lengths),
            tf.reduce_mean(tf.reduce_max(q_values, axis=-1)),
        ]

    def _train(self) -> tf.Tensor:
        """One gradient step; returns its loss."""
        experience, _ = self.buffer.get_next(self.config.batch_size, self.config.n_step + 1)
        return self.agent.train(experience, weights=within_an_episode(experience)).loss


def within_an_episode(experience: trajectory.Trajectory) -> tf.Tensor | None:
    """Returns 0 for windows that run over a cut into another episode, else 1: float32 (batch,).

    Behind an episode that has ended the discount is 0, and what follows does not count. Behind one that was
    only cut off it is 1, and TF-Agents would add the next episode's rewards to this one's. The window that
    begins with an episode's last frame is masked by TF-Agents itself. None where a window is a single step.
    """
    inner = experience.step_type[:, 1:-1]
    if inner.shape[1] == 0:
        return None
    cut = tf.equal(inner, 2) & (experience.discount[:, :-2] > 0)
    return tf.cast(~tf.reduce_any(cut, axis=1), tf.float32)


def _counter(name: str) -> tf.Variable:
    return tf.Variable(0, dtype=tf.int64, trainable=False, name=name)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps back the warnings that TF-Agents makes TensorFlow give about TF-Agents itself."""
    loggers = [tf.get_logger(), logging.getLogger("absl")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
