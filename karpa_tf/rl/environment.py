"""Environments for TF-Agents: CartPole-v1 in TensorFlow ops, and any of Gymnasium's with discrete actions.

An agent that collects, samples and trains inside one `tf.function` needs its environment in there too;
through Python a step costs a millisecond.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from karpa_tf.lines import in_a_line
from karpa_tf.rl import require_tf_agents
from karpa_tf.rl.episodes import actions_of, make_flat

require_tf_agents()

from tf_agents.environments import py_environment, tf_environment, tf_py_environment  # noqa: E402
from tf_agents.specs import array_spec, tensor_spec  # noqa: E402
from tf_agents.trajectories import time_step as ts  # noqa: E402

# Constants of Gymnasium's CartPole-v1, after Barto, Sutton & Anderson (1983); SI units.
GRAVITY, CART_MASS, POLE_MASS, POLE_HALF_LENGTH, FORCE, SECONDS = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
MAX_POSITION, MAX_ANGLE, MAX_STEPS = 2.4, 12 * 2 * np.pi / 360, 500
START = 0.05  # an episode begins with each of the four numbers uniform in +-START


def cartpole_step(state: tf.Tensor, action: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Pushes carts to the left (0) or right (1) for 20 ms.

    Args:
        state: float64 (n, 4): position in m, velocity in m/s, angle in rad, angular velocity in rad/s. In
            float64 as in Gymnasium: an episode's 500 steps would drift apart in float32.
        action: integers (n,).

    Returns:
        The next state, and whether the pole has fallen or the cart has left the track, bool (n,).
    """
    _, velocity, angle, spin = tf.unstack(state, axis=1)
    sine, cosine = tf.sin(angle), tf.cos(angle)
    mass = CART_MASS + POLE_MASS
    moment = POLE_MASS * POLE_HALF_LENGTH
    force = tf.cast(2 * action - 1, state.dtype) * FORCE
    push = (force + moment * spin**2 * sine) / mass
    spin_rate = (GRAVITY * sine - cosine * push) / (POLE_HALF_LENGTH * (4 / 3 - POLE_MASS * cosine**2 / mass))
    acceleration = push - moment * spin_rate * cosine / mass
    change = tf.stack([velocity, acceleration, spin, spin_rate], axis=1)
    state = state + SECONDS * change  # Euler's method, as Gymnasium has it
    return state, (tf.abs(state[:, 0]) > MAX_POSITION) | (tf.abs(state[:, 2]) > MAX_ANGLE)


def cartpole_start(count: int | tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Returns the first states of `count` episodes, float64 (count, 4), a function of `seed`, int64 (2,)."""
    return tf.random.stateless_uniform([count, 4], seed, -START, START, tf.float64)


def cartpole_returns(
    policy: Callable[[tf.Tensor], tf.Tensor], count: int, seed: tf.Tensor, max_steps: int = MAX_STEPS
) -> tf.Tensor:
    """Plays one episode each from `count` first states and returns the sums of rewards, float32 (count,).

    Args:
        policy: observations, float32 (count, 4), to actions, integers (count,).
        count: how many episodes.
        seed: of the first states, int64 (2,).
        max_steps: where an episode is cut.
    """

    def play(step: tf.Tensor, state: tf.Tensor, standing: tf.Tensor, returns: tf.Tensor) -> Any:
        state, fallen = cartpole_step(state, policy(tf.cast(state, tf.float32)))
        return step + 1, state, standing & ~fallen, returns + tf.cast(standing, tf.float32)

    def going(step: tf.Tensor, state: tf.Tensor, standing: tf.Tensor, returns: tf.Tensor) -> tf.Tensor:
        return (step < max_steps) & tf.reduce_any(standing)

    start = (0, cartpole_start(count, seed), tf.fill([count], True), tf.zeros([count]))
    return tf.while_loop(going, play, start)[3]


class CartPole(tf_environment.TFEnvironment):
    """Gymnasium's CartPole-v1, many at a time, in TensorFlow ops.

    Each has episodes of its own: the step after an episode's last one starts the next and ignores the
    action, as TF-Agents wants it. The discount is 0 where the pole fell or the cart left the track, and 1
    where the episode was only cut at 500 steps.

    Args:
        batch_size: how many.
        seed: of the first states; they are a function of (seed, number of the step).
    """

    def __init__(self, batch_size: int = 1, seed: int = 0) -> None:
        high = np.array([2 * MAX_POSITION, np.inf, 2 * MAX_ANGLE, np.inf], np.float32)
        observation = tensor_spec.BoundedTensorSpec([4], tf.float32, -high, high, "observation")
        action = tensor_spec.BoundedTensorSpec([], tf.int64, 0, 1, "action")
        super().__init__(ts.time_step_spec(observation), action, batch_size)
        self._seed = seed

        def variable(name: str, dtype: tf.DType, shape: list[int]) -> tf.Variable:
            return tf.Variable(tf.zeros(shape, dtype), trainable=False, name=f"cartpole/{name}")

        self._state = variable("state", tf.float64, [batch_size, 4])
        self._elapsed = variable("elapsed", tf.int32, [batch_size])
        self._step_type = variable("step_type", tf.int32, [batch_size])
        self._reward = variable("reward", tf.float32, [batch_size])
        self._discount = variable("discount", tf.float32, [batch_size])
        self._draws = variable("draws", tf.int64, [])
        self.reset()

    def __repr__(self) -> str:
        return in_a_line("CartPole", {"batch_size": self.batch_size})

    @property
    def variables(self) -> list[tf.Variable]:
        """All that there is to save and restore."""
        return [self._state, self._elapsed, self._step_type, self._reward, self._discount, self._draws]

    def _starts(self) -> tf.Tensor:
        draw = self._draws.assign_add(1)
        return cartpole_start(self.batch_size, tf.stack([tf.constant(self._seed, tf.int64), draw]))

    def _current_time_step(self) -> ts.TimeStep:
        return ts.TimeStep(
            step_type=tf.identity(self._step_type),
            reward=tf.identity(self._reward),
            discount=tf.identity(self._discount),
            observation=tf.cast(self._state, tf.float32),
        )

    def _reset(self) -> ts.TimeStep:
        self._state.assign(self._starts())
        self._elapsed.assign(tf.zeros_like(self._elapsed))
        self._step_type.assign(tf.fill([self.batch_size], ts.StepType.FIRST))
        self._reward.assign(tf.zeros_like(self._reward))
        self._discount.assign(tf.ones_like(self._discount))
        return self._current_time_step()

    def _step(self, action: tf.Tensor) -> ts.TimeStep:
        over = self._step_type == ts.StepType.LAST
        state, fallen = cartpole_step(self._state, action)
        state = tf.where(over[:, None], self._starts(), state)
        elapsed = tf.where(over, 0, self._elapsed + 1)
        fallen &= ~over
        ended = fallen | (elapsed >= MAX_STEPS)
        step_type = tf.where(ended, ts.StepType.LAST, ts.StepType.MID)
        self._state.assign(state)
        self._elapsed.assign(elapsed)
        self._step_type.assign(tf.where(over, ts.StepType.FIRST, step_type))
        self._reward.assign(tf.cast(~over, tf.float32))
        self._discount.assign(tf.cast(~fallen, tf.float32))
        return self._current_time_step()


class GymnasiumEnvironment(py_environment.PyEnvironment):
    """Environments of Gymnasium with discrete actions, behind TF-Agents, which itself supports only gym.

    Args:
        name: the environment's id, e.g. `Acrobot-v1`.
        batch_size: how many, stepped one after the other.
        seed: the first reset's; environment i gets `seed + i`.

    Raises:
        UserError: no such environment, or its actions are not discrete.
    """

    def __init__(self, name: str, batch_size: int = 1, seed: int = 0) -> None:
        super().__init__(handle_auto_reset=False)
        self._envs = [make_flat(name) for _ in range(batch_size)]
        self._seeds: list[int | None] = [seed + index for index in range(batch_size)]
        space = self._envs[0].observation_space
        actions, self._start = actions_of(self._envs[0])
        assert space.shape is not None
        self._observation_spec = array_spec.ArraySpec(space.shape, np.float32, "observation")
        self._action_spec = array_spec.BoundedArraySpec((), np.int64, 0, actions - 1, "action")
        self._last: np.ndarray = np.zeros(batch_size, bool)
        self._name = name

    def __repr__(self) -> str:
        return in_a_line("GymnasiumEnvironment", {"name": self._name, "batch_size": self.batch_size})

    @property
    def batched(self) -> bool:
        return True

    @property
    def batch_size(self) -> int:
        return len(self._envs)

    def observation_spec(self) -> Any:
        return self._observation_spec

    def action_spec(self) -> Any:
        return self._action_spec

    def _first(self, index: int) -> np.ndarray:
        observation, _ = self._envs[index].reset(seed=self._seeds[index])
        self._seeds[index] = None  # from here on the environment's own generator goes on
        return _observed(observation)

    def _reset(self) -> ts.TimeStep:
        self._last[:] = False
        return ts.restart(np.stack([self._first(i) for i in range(self.batch_size)]), self.batch_size)

    def _step(self, action: np.ndarray) -> ts.TimeStep:
        count = self.batch_size
        observations, kinds = [], np.full(count, ts.StepType.MID, np.int32)
        rewards, discounts = np.zeros(count, np.float32), np.ones(count, np.float32)
        for index, env in enumerate(self._envs):
            if self._last[index]:
                observations.append(self._first(index))
                kinds[index] = ts.StepType.FIRST
                self._last[index] = False
                continue
            observation, reward, terminated, truncated, _ = env.step(self._start + int(action[index]))
            observations.append(_observed(observation))
            rewards[index] = reward
            discounts[index] = not terminated
            if terminated or truncated:
                kinds[index] = ts.StepType.LAST
                self._last[index] = True
        return ts.TimeStep(kinds, rewards, discounts, np.stack(observations))

    def close(self) -> None:
        for env in self._envs:
            env.close()


def _observed(observation: Any) -> np.ndarray:
    """Returns an observation in float32; raises a ValueError if it is not a number."""
    result = np.asarray(observation, np.float32)
    if np.isnan(result).any():
        raise ValueError(f"it gave an observation that is not a number, {result.tolist()}")
    return result


def load_environment(name: str, batch_size: int = 1, seed: int = 0) -> tf_environment.TFEnvironment:
    """Returns a batch of environments for TF-Agents: CartPole-v1 in TensorFlow, any other through Python."""
    if name == "CartPole-v1":
        return CartPole(batch_size, seed)
    return tf_py_environment.TFPyEnvironment(GymnasiumEnvironment(name, batch_size, seed))
