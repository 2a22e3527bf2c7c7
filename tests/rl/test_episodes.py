"""Gymnasium's episodes: making environments, playing, filming."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest

from karpa_tf.errors import UserError
from karpa_tf.rl import episodes


def test_a_wrong_environment_is_one_sentence() -> None:
    with pytest.raises(UserError, match='no environment "CartPol-v1"; did you mean "CartPole-v1"'):
        episodes.make("CartPol-v1")
    with pytest.raises(UserError, match="has no discrete actions"):
        episodes.make_flat("Pendulum-v1")
    with pytest.raises(UserError, match="the states of CartPole-v1 are not numbers from 0"):
        episodes.make_tabular("CartPole-v1")


def test_playing_in_step_is_playing_one_by_one() -> None:
    def lean(observations: np.ndarray) -> np.ndarray:
        return (observations[:, 2] > 0).astype(int)

    seeds = range(130)  # more than go in step
    returns, lengths = episodes.play(lambda: episodes.make_flat("CartPole-v1"), lean, seeds)
    np.testing.assert_array_equal(returns, lengths)
    env = gymnasium.make("CartPole-v1")
    for seed in (0, 1, 99, 100, 129):
        observation, _ = env.reset(seed=seed)
        total, over = 0.0, False
        while not over:
            action = lean(np.asarray(observation)[None])[0]
            observation, reward, terminated, truncated, _ = env.step(int(action))
            total, over = total + float(reward), terminated or truncated
        assert returns[seed] == total


def test_seeds_that_judge_are_none_of_those_that_train() -> None:
    from karpa_tf.configs import DqnConfig

    with pytest.raises(UserError, match="seed must be at least 0 and below 1000000"):
        DqnConfig(seed=1_000_000)
    # GymnasiumEnvironment gets 1000 * seed + its index.
    assert episodes.CERTIFICATE_SEEDS[0] > 1000 * 999_999 + 999
    assert len(episodes.CERTIFICATE_SEEDS) == 100


def test_numbers_of_states_become_vectors_for_dqn() -> None:
    env = episodes.make_flat("FrozenLake-v1")
    observation, _ = env.reset(seed=0)
    assert observation.tolist() == [1] + [0] * 15
    assert episodes.observation_scale("FrozenLake-v1") == [1.0] * 16
    assert episodes.observation_scale("MountainCar-v0") == pytest.approx([1.2, 0.07])


def test_a_film_is_of_the_episode_that_was_played() -> None:
    calls = []

    def policy(observations: np.ndarray) -> np.ndarray:
        calls.append(observations[0])
        return np.ones(1, int)

    pictures = episodes.film("CartPole-v1", policy, seed=3, frames=5)
    assert len(pictures) == 5 and all(p.shape == (400, 600, 3) for p in pictures)
    assert (pictures[0] != pictures[-1]).any()
    assert len(calls) < 15, "pushing to one side alone soon fails"
    sheet = episodes.strip(pictures, columns=4, width=200)
    assert sheet.shape == (2 * 135, 4 * 202, 3)
    assert (sheet[0] == 160).all(), "a frame"
    np.testing.assert_allclose(sheet[1, 1], pictures[0][:3, :3].mean(axis=(0, 1)), atol=0.5)
