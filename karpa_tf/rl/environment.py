"""Environments for TF-Agents: CartPole-v1 and Lanes in TensorFlow ops, others of Gymnasium's through Python.

An agent that collects, samples and trains inside one `tf.function` needs its environment in there too;
through Python a step costs a millisecond.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from karpa_tf.lines import in_a_line
from karpa_tf.rl import lanes, require_tf_agents
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


def lanes_start(draws: tf.Tensor) -> tf.Tensor:
    """Returns first states, float64 (n, 10), of `draws`, float64 (n, 10), as `karpa_tf.rl.lanes.start`."""
    middle = tf.gather(tf.constant(lanes.LANES), tf.cast(3 * draws[:, 0], tf.int32))
    own = [middle + draws[:, 1] - 0.5, 0.1 * draws[:, 2] - 0.05]
    own += [tf.fill(tf.shape(middle), tf.constant(12.0, tf.float64)), 2 * np.pi * draws[:, 3]]
    return tf.concat([tf.stack(own, axis=1), *lanes.another(draws[:, 4:7], draws[:, 7:10])], axis=1)


def lanes_step(
    state: tf.Tensor, action: tf.Tensor, draws: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Drives for 0.4 s: `karpa_tf.rl.lanes.drive`, many at a time.

    Args:
        state: float64 (n, 10).
        action: integers (n,).
        draws: float64 (n, 2, 3).

    Returns:
        The next states; the rewards, float32 (n,); which cars have crashed, bool (n,).
    """
    side, angle, speed, phase = tf.unstack(state[:, :4], axis=1)
    gaps, others = state[:, 4:7], state[:, 7:10]
    along = speed * tf.cos(angle)
    steering = lanes.STEERING * tf.gather(tf.constant(lanes.STEER), action)
    pedal = lanes.ACCELERATION * tf.gather(tf.constant(lanes.PEDAL), action)
    own = [
        side + lanes.SECONDS * speed * tf.sin(angle),
        angle + lanes.SECONDS * speed * (steering - lanes.BEND * tf.sin(phase)),
        tf.clip_by_value(speed + lanes.SECONDS * pedal, lanes.SLOWEST, lanes.FASTEST),
        tf.math.floormod(phase + lanes.SECONDS * along * 2 * np.pi / lanes.WAVE, 2 * np.pi),
    ]
    gaps = gaps + lanes.SECONDS * (others - along[:, None])
    new = (gaps < lanes.BEHIND) | (gaps > lanes.FAR)
    far, speeds = lanes.another(draws[:, 0], draws[:, 1])
    gaps, others = tf.where(new, far, gaps), tf.where(new, speeds, others)
    off = tf.abs(own[0][:, None] - lanes.LANES)
    crashed = tf.reduce_any((tf.abs(gaps) < lanes.CAR_LENGTH) & (off < lanes.CAR_WIDTH), axis=1)
    crashed |= (tf.abs(own[0]) > lanes.EDGE) | (tf.abs(own[1]) > lanes.TURNED)
    reward = along / lanes.FASTEST - 0.3 * (tf.reduce_min(off, axis=1) / (lanes.LANE / 2)) ** 2
    reward = tf.where(crashed, tf.zeros_like(reward), reward)
    return tf.concat([tf.stack(own, axis=1), gaps, others], axis=1), tf.cast(reward, tf.float32), crashed


class InTensorFlow(tf_environment.TFEnvironment):
    """An environment of Gymnasium's, many at a time, in TensorFlow ops.

    Each has episodes of its own: the step after an episode's last one starts the next and ignores the
    action, as TF-Agents wants it. The discount is 0 where an episode ended, and 1 where it was only cut at
    `max_steps`. States are float64 as in Gymnasium: an episode's steps would drift apart in float32.

    Args:
        batch_size: how many.
        seed: of the random numbers; they are a function of (seed, number of the step).
    """

    name: ClassVar[str]
    max_steps: ClassVar[int]
    width: ClassVar[int]
    """Numbers of a state."""
    actions: ClassVar[int]
    high: ClassVar[np.ndarray]
    """Bounds of an observation, float32 (size,)."""

    def __init__(self, batch_size: int = 1, seed: int = 0) -> None:
        observation = tensor_spec.BoundedTensorSpec(
            self.high.shape, tf.float32, -self.high, self.high, "observation"
        )
        action = tensor_spec.BoundedTensorSpec([], tf.int64, 0, self.actions - 1, "action")
        super().__init__(ts.time_step_spec(observation), action, batch_size)
        self._seed = seed

        def variable(name: str, dtype: tf.DType, shape: list[int]) -> tf.Variable:
            return tf.Variable(tf.zeros(shape, dtype), trainable=False, name=f"{self.name}/{name}")

        self._state = variable("state", tf.float64, [batch_size, self.width])
        self._elapsed = variable("elapsed", tf.int32, [batch_size])
        self._step_type = variable("step_type", tf.int32, [batch_size])
        self._reward = variable("reward", tf.float32, [batch_size])
        self._discount = variable("discount", tf.float32, [batch_size])
        self._draws = variable("draws", tf.int64, [])
        self.reset()

    def __repr__(self) -> str:
        return in_a_line(type(self).__name__, {"batch_size": self.batch_size})

    @staticmethod
    @abstractmethod
    def start(count: int | tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Returns the first states of `count` episodes, float64 (count, width); `seed` is int64 (2,)."""

    @staticmethod
    @abstractmethod
    def advance(
        state: tf.Tensor, action: tf.Tensor, seed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns the next states, the rewards, float32 (n,), and which episodes have ended, bool (n,)."""

    @staticmethod
    @abstractmethod
    def observe(state: tf.Tensor) -> tf.Tensor:
        """Returns the observations of states, float32 (n, size)."""

    @property
    def variables(self) -> list[tf.Variable]:
        """All that there is to save and restore."""
        return [self._state, self._elapsed, self._step_type, self._reward, self._discount, self._draws]

    def play(
        self,
        policy: Callable[[tf.Tensor], tf.Tensor],
        count: int,
        seed: tf.Tensor,
        max_steps: int | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Plays one episode each from `count` first states, beside those that are under way.

        Args:
            policy: observations, float32 (count, size), to actions, integers (count,).
            count: how many episodes.
            seed: of their random numbers, int64 (2,).
            max_steps: where an episode is cut, if not at its own limit.

        Returns:
            The sums of rewards, and the lengths in steps, float32 (count,) both.
        """
        limit = max_steps or self.max_steps
        ones = tf.ones([count])

        def step(i: tf.Tensor, state: tf.Tensor, going: tf.Tensor, sums: tf.Tensor) -> Any:
            # The steps of an evaluation count downwards: none has the seed of its first states.
            now = tf.stack([seed[0], -1 - 1_000 * seed[1] - tf.cast(i, tf.int64)])
            state, reward, ended = self.advance(state, policy(self.observe(state)), now)
            sums += tf.cast(going, tf.float32) * tf.stack([reward, ones])
            return i + 1, state, going & ~ended, sums

        begin = (0, self.start(count, seed), tf.fill([count], True), tf.zeros([2, count]))
        sums = tf.while_loop(lambda i, _, going, __: (i < limit) & tf.reduce_any(going), step, begin)[3]
        return sums[0], sums[1]

    def _current_time_step(self) -> ts.TimeStep:
        return ts.TimeStep(
            step_type=tf.identity(self._step_type),
            reward=tf.identity(self._reward),
            discount=tf.identity(self._discount),
            observation=self.observe(self._state),
        )

    def _next_seed(self) -> tf.Tensor:
        return tf.stack([tf.constant(self._seed, tf.int64), self._draws.assign_add(1)])

    def _reset(self) -> ts.TimeStep:
        self._state.assign(self.start(self.batch_size, self._next_seed()))
        self._elapsed.assign(tf.zeros_like(self._elapsed))
        self._step_type.assign(tf.fill([self.batch_size], ts.StepType.FIRST))
        self._reward.assign(tf.zeros_like(self._reward))
        self._discount.assign(tf.ones_like(self._discount))
        return self._current_time_step()

    def _step(self, action: tf.Tensor) -> ts.TimeStep:
        over, seed = self._step_type == ts.StepType.LAST, self._next_seed()
        state, reward, ended = self.advance(self._state, action, seed)
        state = tf.where(over[:, None], self.start(self.batch_size, seed), state)
        elapsed = tf.where(over, 0, self._elapsed + 1)
        ended &= ~over
        last = ended | (elapsed >= self.max_steps)
        step_type = tf.where(last, ts.StepType.LAST, ts.StepType.MID)
        self._state.assign(state)
        self._elapsed.assign(elapsed)
        self._step_type.assign(tf.where(over, ts.StepType.FIRST, step_type))
        self._reward.assign(tf.where(over, 0.0, reward))
        self._discount.assign(tf.cast(~ended, tf.float32))
        return self._current_time_step()


class CartPole(InTensorFlow):
    """Gymnasium's CartPole-v1."""

    name, max_steps, width, actions = "cartpole", MAX_STEPS, 4, 2
    high = np.array([2 * MAX_POSITION, np.inf, 2 * MAX_ANGLE, np.inf], np.float32)

    start = staticmethod(cartpole_start)

    @staticmethod
    def advance(
        state: tf.Tensor, action: tf.Tensor, seed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        state, fallen = cartpole_step(state, action)
        return state, tf.ones(tf.shape(fallen)), fallen

    @staticmethod
    def observe(state: tf.Tensor) -> tf.Tensor:
        return tf.cast(state, tf.float32)


class LanesInTensorFlow(InTensorFlow):
    """`karpa_tf/Lanes-v0`."""

    name, max_steps, width, actions = "lanes", lanes.MAX_STEPS, 10, len(lanes.STEER)
    high = lanes.HIGH

    @staticmethod
    def start(count: int | tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        return lanes_start(LanesInTensorFlow._draws_of(count, seed)[:, :10])

    @staticmethod
    def advance(
        state: tf.Tensor, action: tf.Tensor, seed: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        count = tf.shape(state)[0]
        draws = LanesInTensorFlow._draws_of(count, seed)[:, 10:]
        return lanes_step(state, action, tf.reshape(draws, [count, 2, 3]))

    @staticmethod
    def _draws_of(count: int | tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Returns ten numbers of a first state and six of a step, float64 (count, 16)."""
        return tf.random.stateless_uniform([count, 16], seed, dtype=tf.float64)

    @staticmethod
    def observe(state: tf.Tensor) -> tf.Tensor:
        side, speed, phase = state[:, 0:1], state[:, 2:3], state[:, 3:4]
        off = side - lanes.LANE * tf.clip_by_value(tf.round(side / lanes.LANE), -1, 1)
        seen = [off, state[:, :3], tf.sin(phase), tf.cos(phase), state[:, 4:7], state[:, 7:10] - speed]
        return tf.cast(tf.concat(seen, axis=1), tf.float32)


# By Gymnasium's id.
IN_TENSORFLOW: dict[str, type[InTensorFlow]] = {
    "CartPole-v1": CartPole,
    "karpa_tf/Lanes-v0": LanesInTensorFlow,
}


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
    """Returns a batch of environments for TF-Agents: those of `IN_TENSORFLOW`, any other through Python."""
    if name in IN_TENSORFLOW:
        return IN_TENSORFLOW[name](batch_size, seed)
    return tf_py_environment.TFPyEnvironment(GymnasiumEnvironment(name, batch_size, seed))
