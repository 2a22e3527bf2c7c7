"""Tests that need TF-Agents and so legacy Keras: a process of their own, started by test_dqn.py.

Not named test_*: the other tests run on Keras 3 in one process, which must not collect these.
"""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_agents.agents.dqn import dqn_agent
from tf_agents.environments import tf_py_environment
from tf_agents.environments import utils as environment_utils
from tf_agents.replay_buffers import tf_uniform_replay_buffer
from tf_agents.trajectories import time_step as ts

from karpa_tf import private
from karpa_tf.errors import UserError
from karpa_tf.models import build_q_network
from karpa_tf.recipes.dqn import DqnSettings
from karpa_tf.recipes.dqn.training import explained
from karpa_tf.rl import dqn, lanes
from karpa_tf.rl.environment import (
    CartPole,
    GymnasiumEnvironment,
    LanesInTensorFlow,
    cartpole_step,
    lanes_start,
    lanes_step,
    load_environment,
)

TINY = dict(environments=4, initial_steps=64, updates=2, batch_size=16, units=8, layers=1, buffer_size=400)


# --- CartPole in TensorFlow


def test_ten_thousand_transitions_are_those_of_gymnasium() -> None:
    generator = np.random.default_rng(0)
    states = generator.uniform([-2.5, -4, -0.22, -4], [2.5, 4, 0.22, 4], [10_000, 4])
    actions = generator.integers(2, size=10_000)
    env = gymnasium.make("CartPole-v1").unwrapped
    following, ended = cartpole_step(tf.constant(states), tf.constant(actions))
    for state, action, mine, over in zip(states, actions, following.numpy(), ended.numpy(), strict=True):
        env.reset()
        env.state = state
        observation, reward, terminated, _, _ = env.step(int(action))
        np.testing.assert_allclose(mine, env.state, rtol=0, atol=1e-6)
        np.testing.assert_allclose(mine.astype(np.float32), observation, rtol=0, atol=1e-6)
        assert over == terminated and reward == 1
    assert 1000 < ended.numpy().sum() < 9000, "both kinds must be there"


def test_whole_episodes_are_those_of_gymnasium() -> None:
    env = CartPole(3, seed=5)
    env.reset()
    theirs = [gymnasium.make("CartPole-v1") for _ in range(3)]
    for index, other in enumerate(theirs):
        other.reset()
        other.unwrapped.state = env._state.numpy()[index]
    generator = np.random.default_rng(1)
    seen = np.zeros(3, bool)
    step = tf.function(env.step)
    for _ in range(60):
        before = env.current_time_step()
        actions = generator.integers(2, size=3)
        now = step(tf.constant(actions))
        for i, other in enumerate(theirs):
            if before.is_last()[i]:  # a new episode has begun, and the action was ignored
                assert now.is_first()[i] and now.reward[i] == 0 and now.discount[i] == 1
                assert (np.abs(env._state.numpy()[i]) <= 0.05).all()
                other.reset()
                other.unwrapped.state = env._state.numpy()[i]
                continue
            observation, reward, terminated, _, _ = other.step(int(actions[i]))
            np.testing.assert_allclose(now.observation[i], observation, rtol=0, atol=1e-6)
            assert now.reward[i] == reward and now.is_last()[i] == terminated
            assert now.discount[i] == (0 if terminated else 1)
            seen[i] |= terminated
    assert seen.all()


def test_a_cut_episode_is_told_apart_from_an_ended_one() -> None:
    env = CartPole(2, seed=0)
    env._elapsed.assign([499, 499])
    env._state.assign([[0, 0, 0, 0], [2.39, 5, 0, 0]])
    cut, ended = env.step(tf.constant([1, 1])).discount.numpy()
    assert env.current_time_step().is_last().numpy().all()
    assert (cut, ended) == (1, 0), "discount 0 only where the cart left the track"
    assert env.step(tf.constant([1, 1])).is_first().numpy().all()
    assert (env._elapsed.numpy() == 0).all()


# --- Lanes in TensorFlow


def test_transitions_of_lanes_are_those_in_numpy() -> None:
    generator = np.random.default_rng(0)
    count = 5_000
    draws = generator.random([count, 10])
    states = lanes_start(tf.constant(draws)).numpy()
    np.testing.assert_allclose(states, [lanes.start(row) for row in draws], rtol=0, atol=1e-12)
    # Cars on the edge, turned, beside others, and far from them.
    states[:, :3] = generator.uniform([-5.2, -1.1, 5], [5.2, 1.1, 20], [count, 3])
    states[:, 4:7] = generator.uniform(-16, 131, [count, 3])
    actions, draws = generator.integers(5, size=count), generator.random([count, 2, 3])
    following, rewards, ended = (
        x.numpy() for x in lanes_step(tf.constant(states), tf.constant(actions), tf.constant(draws))
    )
    expected = [lanes.drive(*row) for row in zip(states, actions.tolist(), draws, strict=True)]
    np.testing.assert_allclose(following, [row[0] for row in expected], rtol=0, atol=1e-9)
    np.testing.assert_allclose(rewards, [row[1] for row in expected], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(ended, [row[2] for row in expected])
    assert 500 < ended.sum() < 4_500, "both kinds must be there"
    seen = LanesInTensorFlow.observe(tf.constant(states)).numpy()
    np.testing.assert_allclose(seen, [lanes.observe(state) for state in states], rtol=1e-6, atol=1e-6)


def test_an_evaluation_of_lanes_plays_what_its_steps_say() -> None:
    env = LanesInTensorFlow(2, seed=1)

    def left(observation):
        return tf.ones(tf.shape(observation)[:1], tf.int64)

    returns, lengths = (x.numpy() for x in env.play(left, 6, tf.constant([3, 4], tf.int64)))
    for number, state in enumerate(LanesInTensorFlow.start(6, tf.constant([3, 4], tf.int64)).numpy()):
        total, steps, over = 0.0, 0, False
        while not over:  # it leaves the road before another car is drawn anew
            state, reward, over = lanes.drive(state, 1, np.zeros([2, 3]))
            total, steps = total + reward, steps + 1
        assert (steps, pytest.approx(total, abs=1e-5)) == (lengths[number], returns[number])
    assert (lengths < 40).all() and len(set(lengths.tolist())) > 1
    cut = env.play(left, 6, tf.constant([3, 4], tf.int64), max_steps=3)[1].numpy()
    assert (cut == 3).all()


def test_a_learner_drives_in_tensorflow_and_goes_on_to_the_bit() -> None:
    def make():
        return dqn.Learner(DqnSettings(env="karpa_tf/Lanes-v0", **TINY))

    def final(learner) -> list[np.ndarray]:
        learner.run(80)
        return [v.numpy() for v in learner.variables]

    learner, other = make(), make()
    assert isinstance(learner.environment, LanesInTensorFlow) and learner.actions == 5
    assert learner.scale == lanes.SCALE
    figures = learner.run(300)
    assert figures["episodes"] > 0 and figures["length"] < 100
    for variable, value in zip(other.variables, learner.variables, strict=True):
        variable.assign(value)
    for mine, theirs in zip(final(learner), final(other), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    returns, lengths = learner.evaluate(5, 3)
    assert (returns < lengths).all() and (lengths > 1).all()


@pytest.mark.parametrize(("name", "size", "actions"), [("Acrobot-v1", 6, 3), ("MountainCar-v0", 2, 3)])
def test_any_environment_of_gymnasium_stands_behind_tf_agents(name, size, actions) -> None:
    env = load_environment(name, 2, seed=7)
    assert isinstance(env, tf_py_environment.TFPyEnvironment)
    assert env.observation_spec().shape == (size,) and env.action_spec().maximum + 1 == actions
    first = env.reset()
    other = gymnasium.make(name)
    np.testing.assert_allclose(first.observation[0], other.reset(seed=7)[0], rtol=1e-6)
    now = env.step(tf.constant([2, 0]))
    observation, reward, *_ = other.step(2)
    np.testing.assert_allclose(now.observation[0], observation, rtol=1e-6)
    assert now.reward[0] == reward and not now.is_last().numpy().any()


def test_an_environment_that_is_cut_off_starts_again() -> None:
    env = GymnasiumEnvironment("MountainCar-v0", 1, seed=0)
    env.reset()
    for _ in range(200):
        now = env.step(np.array([1]))
    assert now.is_last()[0] and now.discount[0] == 1, "200 steps are MountainCar's limit, not an end"
    assert env.step(np.array([1])).is_first()[0]


def test_the_wrapper_passes_tf_agents_own_check() -> None:
    environment_utils.validate_py_environment(GymnasiumEnvironment("Acrobot-v1", 1), episodes=1)


# --- The agent


@pytest.mark.parametrize("dueling", [False, True])
def test_the_keras_3_twin_computes_the_same(dueling) -> None:
    learner = dqn.Learner(DqnSettings(**TINY, dueling=dueling))
    model = build_q_network(learner.scale, 2, units=8, hidden_layers=1, dueling=dueling)
    model.set_weights(learner.get_weights())
    observations = np.random.default_rng(0).normal(size=[32, 4]).astype(np.float32)
    q_values = learner.q_network(tf.constant(observations))[0].numpy()
    np.testing.assert_allclose(model(observations), q_values, atol=1e-6)
    policy = learner.agent.policy.action(ts.restart(tf.constant(observations), 32))
    np.testing.assert_array_equal(policy.action, q_values.argmax(axis=1))


def test_it_is_tf_agents_that_learns() -> None:
    learner = dqn.Learner(DqnSettings(**TINY, double=True))
    assert type(learner.agent) is dqn_agent.DdqnAgent
    assert type(dqn.Learner(DqnSettings(**TINY, double=False)).agent) is dqn_agent.DqnAgent
    assert isinstance(learner.buffer, tf_uniform_replay_buffer.TFUniformReplayBuffer)


def test_the_buffer_draws_windows_of_one_environment_in_order() -> None:
    spec = tf.TensorSpec([], tf.int64, "frame")
    buffer = dqn.ReplayBuffer(spec, batch_size=3, max_length=10, seed=0)
    for step in range(14):  # past its end, where the oldest frames are written over
        buffer.add_batch(tf.constant([step, 100 + step, 200 + step], tf.int64))
    drawn = np.concatenate([buffer.get_next(64, 3)[0].numpy() for _ in range(20)])
    assert (np.diff(drawn, axis=1) == 1).all()
    firsts, counts = np.unique(drawn[:, 0], return_counts=True)
    assert set(firsts) == {base + i for base in (0, 100, 200) for i in range(4, 12)}
    assert counts.min() > counts.mean() / 2, "each window is drawn about as often"
    again = dqn.ReplayBuffer(spec, batch_size=3, max_length=10, seed=0)
    for mine, other in zip(again.variables(), buffer.variables(), strict=True):
        mine.assign(other)
    np.testing.assert_array_equal(again.get_next(64, 3)[0], buffer.get_next(64, 3)[0])


def test_collecting_counts_steps_episodes_and_returns() -> None:
    learner = dqn.Learner(DqnSettings(**{**TINY, "initial_steps": 10**6, "buffer_size": 4000}))
    figures = [learner.run(400) for _ in range(4)]
    frames = learner.buffer.gather_all()
    kinds, nexts = frames.step_type.numpy(), frames.next_step_type.numpy()
    assert learner.environment_steps.numpy() == (kinds != 2).sum(), "an episode's turn is no step"
    assert sum(f["episodes"] for f in figures) == (nexts == 2).sum()
    rewards = frames.reward.numpy()
    ended = [np.flatnonzero(row == 2) for row in nexts]
    returns = [rewards[i, : row[-1] + 1].sum() for i, row in enumerate(ended)]
    assert sum(f["return"] * f["episodes"] for f in figures if "return" in f) == pytest.approx(sum(returns))
    assert all(f["length"] == f["return"] for f in figures if "return" in f)  # a reward of 1 a step
    assert learner.gradient_steps.numpy() == 0 and all(f["epsilon"] == 1 for f in figures)


def test_epsilon_falls_to_its_end() -> None:
    learner = dqn.Learner(DqnSettings(**TINY, epsilon_start=0.9, epsilon_end=0.1, epsilon_steps=100))
    for steps, epsilon in ((0, 1.0), (63, 1.0), (64, 0.9), (114, 0.5), (164, 0.1), (5000, 0.1)):
        learner.environment_steps.assign(steps)
        assert float(learner.epsilon()) == pytest.approx(epsilon)


def test_it_trains_and_copies_the_network_when_it_should() -> None:
    learner = dqn.Learner(DqnSettings(**TINY, target_update_period=4))
    target = learner.target_network
    before = [v.numpy() for v in target.variables]
    learner.run(63)
    for a, b in zip(before, target.variables, strict=True):
        np.testing.assert_array_equal(a, b)
    figures = learner.run(8)
    assert figures["loss"] > 0 and learner.gradient_steps.numpy() == 4
    for a, b in zip(learner.get_weights(), target.variables, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for a, b in zip(before, learner.get_weights(), strict=True))


@pytest.mark.parametrize("settings", [{}, {"n_step": 3, "dueling": True, "loss": "huber"}])
def test_who_restores_the_variables_goes_on_to_the_bit(settings) -> None:
    def final(learner) -> list[np.ndarray]:
        learner.run(120)
        return [v.numpy() for v in learner.variables]

    learner = dqn.Learner(DqnSettings(**TINY, **settings))
    learner.run(200)
    saved = [v.numpy() for v in learner.variables]
    other = dqn.Learner(DqnSettings(**TINY, **settings))
    for variable, value in zip(other.variables, saved, strict=True):
        variable.assign(value)
    for mine, theirs in zip(final(learner), final(other), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(learner.evaluate(5, 3)[0], other.evaluate(5, 3)[0])


def test_seeds_differ_and_agree() -> None:
    def weights(seed: int) -> np.ndarray:
        learner = dqn.Learner(DqnSettings(**TINY, seed=seed))
        learner.run(100)
        return learner.get_weights()[0]

    np.testing.assert_array_equal(weights(1), weights(1))
    assert (weights(1) != weights(2)).any()


def test_windows_over_a_cut_do_not_count() -> None:
    learner = dqn.Learner(DqnSettings(**TINY, n_step=2))
    learner.run(100)
    experience, _ = learner.buffer.get_next(6, 3)
    kinds = tf.constant([[1, 1, 1], [1, 2, 0], [1, 2, 0], [2, 0, 1], [1, 1, 2], [0, 1, 1]])
    #                                  cut        ended
    discount = tf.constant([[1.0, 1, 1], [1, 1, 1], [0, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 1]])
    experience = experience._replace(step_type=kinds, discount=discount)
    np.testing.assert_array_equal(dqn.within_an_episode(experience), [1, 0, 1, 1, 1, 1])
    single = learner.buffer.get_next(6, 2)[0]
    assert dqn.within_an_episode(single) is None


def test_a_greedy_evaluation_is_that_of_gymnasium() -> None:
    """The policy "push towards where the pole leans" plays in both, from the same first states."""
    from karpa_tf.rl.environment import cartpole_start

    def lean(observation):
        return tf.cast(observation[:, 2] > 0, tf.int64)

    seed = tf.constant([3, 4], tf.int64)
    mine, lengths = (x.numpy() for x in CartPole().play(lean, 10, seed))
    np.testing.assert_array_equal(mine, lengths)
    states = cartpole_start(10, seed).numpy()
    env = gymnasium.make("CartPole-v1")
    for state, expected in zip(states, mine, strict=True):
        env.reset()
        env.unwrapped.state = state
        observation, total, over = state.astype(np.float32), 0.0, False
        while not over:
            observation, reward, terminated, truncated, _ = env.step(int(observation[2] > 0))
            total, over = total + reward, terminated or truncated
        assert total == expected
    assert len(set(mine.tolist())) > 1


class Unwell(gymnasium.Env):
    """Its second observation is not a number."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,))
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.array([0.5, np.nan], np.float32), 0.0, False, False, {}


def test_an_observation_that_is_not_a_number_is_an_error() -> None:
    gymnasium.register("Unwell-v0", Unwell)
    environment = GymnasiumEnvironment("Unwell-v0")
    environment.reset()
    with pytest.raises(ValueError, match=r"an observation that is not a number, \[0.5, nan\]"):
        environment.step(np.array([0], np.int32))


class Endless(Unwell):
    """Nothing ends it."""

    def step(self, action):
        return np.zeros(2, np.float32), 0.0, False, False, {}


def test_an_environment_that_never_ends_says_so_through_tensorflow(monkeypatch) -> None:
    gymnasium.register("Endless-v0", Endless)
    monkeypatch.setattr("karpa_tf.rl.episodes._LONGEST", 20)
    learner = dqn.Learner(DqnSettings(**TINY, env="Endless-v0"))
    with pytest.raises(tf.errors.OpError) as caught:
        learner.run(200)
    error = explained(caught.value, "Endless-v0", 0)
    assert isinstance(error, UserError)
    said = (
        "--env: an episode of Endless-v0 has not ended within 20 steps, and it has no time limit; give it one"
    )
    assert str(error).startswith(said) and "\n" not in str(error)


# --- Private parts (`karpa_tf.private`)


def test_the_slots_of_a_legacy_optimizer_are_made_before_its_first_step() -> None:
    optimizer = tf_keras.optimizers.legacy.Adam()
    variable = tf.Variable([1.0])
    assert not optimizer.variables()
    private.create_optimizer_variables(optimizer, [variable])
    made = [v.ref() for v in optimizer.variables()]
    optimizer.apply_gradients([(tf.constant([1.0]), variable)])
    assert made == [v.ref() for v in optimizer.variables()] and len(made) == 3  # the step, two moments


def test_the_counter_of_the_target_network_counts_updates() -> None:
    learner = dqn.Learner(DqnSettings(**TINY, target_update_period=3))
    learner.run(80)
    assert private.target_update_counter(learner.agent).numpy() == learner.gradient_steps.numpy() > 0
