"""The city and the lanes: what they are, what they say of wrong settings, and what is learned in them."""

from __future__ import annotations

import functools
import json
import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import karpa_tf.rl.routes  # noqa: F401  (registers both)
from karpa_tf.errors import UserError
from karpa_tf.rl import episodes, lanes
from karpa_tf.rl.city import City
from karpa_tf.rl.tabular import optimal_values
from tests.conftest import own_process

SMALL = "karpa_tf/City-v0 size=5 seed=3 closed=0.2"


@pytest.mark.parametrize("name", ["karpa_tf/City-v0", "karpa_tf/Lanes-v0"])
def test_gymnasium_makes_and_accepts_them(name: str) -> None:
    env = gymnasium.make(name, render_mode="rgb_array")
    check_env(env.unwrapped, skip_render_check=True)
    env.reset(seed=0)
    picture = np.asarray(env.render())
    for action in (2, 1):
        env.step(action)
    assert picture.dtype == np.uint8 and (np.asarray(env.render()) != picture).any()
    assert "\n" not in repr(env.unwrapped)


# --- The city


def test_the_cheapest_way_is_the_cheapest() -> None:
    city = City(size=7, seed=3, closed=0.25)
    best = np.full(city.count, np.inf)
    best[-1] = 0
    for _ in range(city.count):  # Bellman and Ford: as often as a way may have streets
        best = np.minimum(best, (city.minutes + best[city.to]).min(axis=1))
    np.testing.assert_array_equal(city.optimum, best)
    table = optimal_values(gymnasium.make("karpa_tf/City-v0", size=7, seed=3, closed=0.25))
    assert table is not None
    reachable = np.isfinite(best)
    np.testing.assert_allclose(table.max(axis=1)[reachable][:-1], -best[reachable][:-1], rtol=0.02)
    total, place = 0.0, 0
    city.reset(options={"start": 0})
    while place != city.count - 1:
        place, reward, over, _, info = city.step(int(table[place].argmax()))
        total -= reward
    assert over and total == city.optimum[0] == info["figures"]["minutes"]
    assert info["figures"]["over_optimum"] == 1 and info["figures"]["success"] == 1


def test_the_rule_takes_the_fewest_streets_and_more_minutes() -> None:
    city = City(size=9, seed=0, closed=0.2)
    ratios = []
    for start in city.starts:
        place, _ = city.reset(options={"start": int(start)})
        over, steps = False, 0
        while not over:
            place, _, over, _, info = city.step(city.rule(place))
            steps += 1
        assert steps == city.streets[start] and info["figures"]["blocked"] == 0
        ratios.append(info["figures"]["over_optimum"])
    assert min(ratios) >= 1 and np.mean(ratios) > 1.1


def test_a_city_is_a_function_of_its_settings() -> None:
    same, again, other = City(seed=5), City(seed=5), City(seed=7)
    np.testing.assert_array_equal(same.minutes, again.minutes)
    assert (same.minutes != other.minutes).any()
    open_ = np.isfinite(same.minutes)
    assert open_.sum() == 2 * (180 - 27), "180 streets, 15 % of them closed, in both directions"
    assert same.minutes[open_].min() == 1 and same.minutes[open_].max() == 9
    city = City(size=2, closed=0.25, seed=0)
    city.reset(options={"start": 0})
    (action,) = np.flatnonzero(~np.isfinite(city.minutes[0]))[:1]
    place, reward, over, _, info = city.step(action)
    assert (place, reward, over, info["figures"]["blocked"]) == (0, -1, False, 1)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("size=1", "A city's size is 2 to 30 junctions in a row. Received: 1."),
        ("size=31", "A city's size is 2 to 30 junctions in a row. Received: 31."),
        ("size=ten", "A city's size is 2 to 30 junctions in a row. Received: ten."),
        ("seed=-1", "A city's seed is a whole number of 0 or more. Received: -1."),
        ("closed=1", "closed, a share of a city's streets, is from 0 to below 1. Received: 1."),
        (
            "size=6 closed=0.9",
            "A city with size=6 seed=0 closed=0.9 has no way from its first junction to its goal",
        ),
        ("sise=6", 'karpa_tf/City-v0 has no setting sise; did you mean "size"?'),
        ("size", "what follows the id of an environment is NAME=VALUE. Received: size."),
    ],
)
def test_wrong_settings_are_one_sentence(settings: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        episodes.make(f"karpa_tf/City-v0 {settings}")
    assert str(caught.value).startswith("--env: ") and said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_environment_is_named() -> None:
    for wrong, right in (("karpa_tf/Citi-v0", "karpa_tf/City-v0"), ("Lanes-v0", "karpa_tf/Lanes-v0")):
        with pytest.raises(UserError, match=f'no environment "{wrong}"; did you mean "{right}"'):
            episodes.make(wrong)


def test_settings_go_to_other_environments_as_well() -> None:
    env = episodes.make_tabular("FrozenLake-v1 map_name=8x8 max_episode_steps=7", is_slippery=False)
    assert env.observation_space == gymnasium.spaces.Discrete(64)
    assert env.spec is not None and env.spec.max_episode_steps == 7


# --- The lanes


def straight(side: float = 0.0, speed: float = 10.0) -> np.ndarray:
    """A state on a straight stretch, with nobody near."""
    return np.array([side, 0.0, speed, 0.0, 90, 90, 90, speed, speed, speed])


def test_steering_and_pedals_do_what_they_say() -> None:
    nothing = np.zeros([2, 3])
    state, reward, crashed = lanes.drive(straight(), 0, nothing)
    assert not crashed and reward == pytest.approx(0.5) and state[:3] == pytest.approx([0, 0, 10])
    left, right = (lanes.drive(straight(), action, nothing)[0][1] for action in (1, 2))
    assert left == pytest.approx(lanes.SECONDS * 10 * lanes.STEERING) and right == -left
    assert lanes.drive(straight(), 3, nothing)[0][2] == pytest.approx(11.2)
    assert lanes.drive(straight(speed=5.0), 4, nothing)[0][2] == 5
    assert lanes.drive(straight(side=1.0), 0, nothing)[1] == pytest.approx(0.5 - 0.3 / 4)


def test_cars_crash_and_come_again() -> None:
    nothing = np.full([2, 3], 0.5)
    state = straight()
    state[5] = 4.0  # ahead, in the same lane
    assert lanes.drive(state, 0, nothing)[2] and lanes.drive(state, 0, nothing)[1] == 0
    state[5], state[4] = 90, 4.0  # beside, in another one
    assert not lanes.drive(state, 0, nothing)[2]
    assert lanes.drive(straight(side=5.1), 0, nothing)[2], "off the road"
    state[4] = -15.5
    following = lanes.drive(state, 0, nothing)[0]
    assert (following[4], following[7]) == (80, 11.5), "the next one comes ahead"


def test_the_careful_driver_arrives_and_a_blind_one_does_not() -> None:
    make_env = functools.partial(episodes.make, "karpa_tf/Lanes-v0")
    rule = episodes.rule_policy(make_env())
    assert rule is not None
    careful = episodes.summary(episodes.play(make_env, rule, range(20)))
    blind = episodes.summary(episodes.play(make_env, lambda seen: np.full(len(seen), 3), range(20)))
    assert careful["success"] > 0.9 and careful["crashed"] == 1 - careful["success"]
    assert careful["off_middle"] < 0.7 and 400 < careful["metres"] < 520
    assert blind["crashed"] == 1 and blind["mean_return"] < careful["mean_return"] / 3


# --- An episode that does not end


class Endless(gymnasium.Env):
    """Nothing ends it."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space = gymnasium.spaces.Discrete(2)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        return 0, {}

    def step(self, action):
        return 0, 0.0, False, False, {}


@pytest.fixture
def endless():
    gymnasium.register("Endless-v0", Endless)
    yield "Endless-v0"
    gymnasium.registry.pop("Endless-v0")


def test_an_environment_that_never_ends_is_one_sentence(endless, karpa, tmp_path) -> None:
    result = karpa("train", "q-learning", "--env", endless, "--logs", tmp_path / "logs")
    assert result.status == 2 and not (tmp_path / "logs").exists()
    said = (
        "--env: an episode of Endless-v0 has not ended within 10,000 steps, and it has no time limit; give "
        'it one: --env "Endless-v0 max_episode_steps=1000".'
    )
    assert said == result.err.strip().splitlines()[-1].removeprefix("karpa-tf: ")
    limited = f"{endless} max_episode_steps=5"
    make_env = functools.partial(episodes.make_tabular, limited)
    played = episodes.play(make_env, lambda states: np.zeros(len(states), int), [0])
    assert played.lengths.tolist() == [5]


# --- Learned


@pytest.fixture(scope="module")
def way(tmp_path_factory):
    """A run of q-learning in a small city."""
    from karpa_tf.cli import main

    logs = tmp_path_factory.mktemp("city")
    flags = ["--config", "city", "--env", SMALL, "--episodes", "600", "--logs", str(logs)]
    assert main(["train", "q-learning", *flags]) == 0
    return logs / "q-learning" / "1"


def test_a_table_finds_the_cheapest_ways(way, karpa, tmp_path) -> None:
    report = karpa("evaluate", way, "--json").json
    found, others = report["metrics"], report["baselines"]
    assert found["over_optimum"] == 1 == found["success"] and found["blocked"] == 0
    assert others["optimal"] == found and set(others) == {"random", "rule", "optimal"}
    assert others["rule"]["success"] == 1 and others["rule"]["over_optimum"] > 1.05
    assert others["random"]["minutes"] > 3 * found["minutes"] == -3 * found["mean_return"]
    assert json.loads((way / "metrics.json").read_text())["over_optimum"] == 1
    played = karpa("play", way, "--gif", tmp_path / "city.gif", "--episodes", 2)
    assert played.status == 0 and "success 1, minutes" in played.out, played.err


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["q-learning", "sarsa"])
def test_the_city_is_learned(recipe, karpa, tmp_path) -> None:
    assert karpa("train", recipe, "--config", "city", "--logs", tmp_path).status == 0
    metrics = json.loads((tmp_path / recipe / "1" / "metrics.json").read_text())
    assert metrics["success"] == 1 and metrics["over_optimum"] < 1.05
    assert metrics["baselines"]["rule"]["over_optimum"] > 1.2


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info >= (3, 12), reason="TF-Agents needs Python 3.11")
def test_the_lanes_are_learned(tmp_path) -> None:
    done = own_process("train", "dqn", "--config", "lanes", "--logs", tmp_path)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "dqn" / "1" / "metrics.json").read_text())
    rule = metrics["baselines"]["rule"]
    assert metrics["success"] > 0.9 and metrics["mean_return"] > rule["mean_return"]
