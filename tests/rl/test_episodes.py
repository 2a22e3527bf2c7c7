"""Gymnasium's episodes: making environments, playing, filming."""

from __future__ import annotations

import functools

import gymnasium
import numpy as np
import pytest

from karpa_tf.errors import UserError
from karpa_tf.rl import episodes
from tests.rl.modules import MODULE


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
    returns, lengths, _ = episodes.play(lambda: episodes.make_flat("CartPole-v1"), lean, seeds)
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


def test_seeds_that_evaluate_are_none_of_those_that_train() -> None:
    from karpa_tf.recipes.dqn import DqnSettings

    with pytest.raises(UserError, match="seed must be at least 0 and below 1000000"):
        DqnSettings(seed=1_000_000)
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

    make_env = functools.partial(episodes.make_flat, "CartPole-v1")
    pictures = episodes.film("CartPole-v1", make_env, policy, seed=3, frames=5)
    assert len(pictures) == 5 and all(p.shape == (400, 600, 3) for p in pictures)
    assert (pictures[0] != pictures[-1]).any()
    assert len(calls) < 15, "pushing to one side alone soon fails"
    sheet = episodes.strip(pictures, columns=4, width=200)
    assert sheet.shape == (2 * 135, 4 * 202, 3)
    assert (sheet[0] == 160).all(), "a frame"
    np.testing.assert_allclose(sheet[1, 1], pictures[0][:3, :3].mean(axis=(0, 1)), atol=0.5)


# --- Environments of the user's own


@pytest.fixture
def own_line(tmp_path, monkeypatch) -> None:
    (tmp_path / "own_line.py").write_text(MODULE)
    (tmp_path / "own_broken.py").write_text("import no_such_module_anywhere\n")
    (tmp_path / "own_odd.py").write_text("import\n")
    monkeypatch.syspath_prepend(tmp_path)


def test_an_environment_of_a_module(own_line) -> None:
    assert episodes.actions_of(episodes.make_flat("own_line:Line-v0")) == (3, 0)
    assert episodes.actions_of(episodes.make_flat("own_line:LineBelow-v0")) == (3, -1)
    assert episodes.first_action("own_line:LineBelow-v0") == -1


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "no_such_module:Line-v0",
            'the module "no_such_module" of no_such_module:Line-v0 cannot be imported',
        ),
        ("own_broken:Line-v0", "cannot be imported (No module named 'no_such_module_anywhere'); install it"),
        ("own_odd:Line-v0", "cannot be imported (SyntaxError: "),
        ("own_line:Lime-v0", 'The module own_line has no environment "Lime-v0"; did you mean "Line-v0"?'),
        ("own_line:LineBroken-v0", "own_line:LineBroken-v0 cannot be made: RuntimeError: no motor."),
    ],
)
def test_a_module_or_an_environment_that_fails_is_named(name, said, own_line) -> None:
    with pytest.raises(UserError) as caught:
        episodes.make(name)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("LineBlind-v0", 'it has no render mode "rgb_array"'),
        ("Line-v0", "TypeError"),
        ("LineList-v0", r"TypeError: render\(\) gives list"),
        ("LineFlat-v0", r"TypeError: render\(\) gives ndarray of \(4, 4\)"),
    ],
)
def test_what_cannot_be_drawn_says_why(name, why, own_line) -> None:
    with pytest.raises(episodes.CannotBeDrawn, match=f"own_line:{name} cannot be drawn .{why}"):
        make_env = functools.partial(episodes.make_flat, f"own_line:{name}")
        episodes.film(f"own_line:{name}", make_env, lambda observations: np.full(1, 2), seed=0)
