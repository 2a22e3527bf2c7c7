"""Q-learning and SARSA, from one update to Taxi's optimum."""

from __future__ import annotations

import json
import shutil

import gymnasium
import numpy as np
import pytest
import tensorflow as tf
import yaml
from tensorflow.core.framework import tensor_pb2

from karpa_tf.rl.tabular import optimal_values, play_and_learn
from karpa_tf.training.run_folder import RunFolder
from tests.conftest import TINY_TABLE


class Corridor(gymnasium.Env):
    """Three states in a row; action 1 goes right, and beyond the last one lies the goal, worth 1."""

    observation_space = gymnasium.spaces.Discrete(3)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.state = 0
        return 0, {}

    def step(self, action):
        self.state += 1 if action else 0
        ended = self.state == 3
        return min(self.state, 2), float(ended), ended, False, {}


def learn(on_policy: bool, table: list[list[float]]) -> list[list[float]]:
    options = {"epsilon": 0.0, "learning_rate": 0.5, "gamma": 0.9, "on_policy": on_policy}
    play_and_learn(Corridor(), table, np.random.default_rng(0), **options)
    return table


@pytest.mark.parametrize("on_policy", [False, True])
def test_an_episode_updates_by_the_textbook(on_policy) -> None:
    table = learn(on_policy, [[0.0, 0.1], [0.0, 0.2], [0.0, 0.4]])
    # Q += 0.5 * (r + 0.9 * next - Q), each with the next state's value as it then was.
    expected = [0.1 + 0.5 * (0.9 * 0.2 - 0.1), 0.2 + 0.5 * (0.9 * 0.4 - 0.2), 0.4 + 0.5 * (1 - 0.4)]
    assert [row[1] for row in table] == pytest.approx(expected)
    assert [row[0] for row in table] == [0, 0, 0]


def test_sarsa_learns_of_the_action_that_it_takes_and_q_learning_of_the_best() -> None:
    class Two(Corridor):
        """The second step ends it, whatever is done."""

        def step(self, action):
            self.state += 1
            return self.state, 0.0, self.state == 2, False, {}

    def first(on_policy: bool, seed: int) -> float:
        table = [[0.0, 0.0], [0.0, 1.0], [0.0, 0.0]]
        options = {"epsilon": 1.0, "learning_rate": 1.0, "gamma": 1.0, "on_policy": on_policy}
        play_and_learn(Two(), table, np.random.default_rng(seed), **options)
        return max(table[0])

    assert {first(False, seed) for seed in range(20)} == {1.0}
    assert {first(True, seed) for seed in range(20)} == {0.0, 1.0}


def test_value_iteration_finds_the_way_over_the_ice() -> None:
    env = gymnasium.make("FrozenLake-v1", is_slippery=False)
    table = optimal_values(env, gamma=0.9)
    assert table is not None
    assert table[0].max() == pytest.approx(0.9**5)  # six steps to the goal
    assert optimal_values(Corridor()) is None


@pytest.mark.parametrize("recipe", ["q-learning", "sarsa"])
def test_it_reaches_the_optimum(frozen, karpa, recipe) -> None:
    report = karpa("evaluate", frozen / recipe / "1", "--json").json
    assert report["metrics"] == report["baselines"]["optimal"]
    assert report["metrics"]["mean_return"] == 1 and report["metrics"]["episodes"] == 1000
    assert report["baselines"]["random"]["mean_return"] < 0.1
    assert report["recipe"] == recipe and report["data"] == "FrozenLake-v1"


def test_the_learning_curve_is_in_tensorboard(frozen) -> None:
    from tests.training.helpers import read_events

    events = read_events(frozen / "sarsa" / "1")
    tags = {tag for folder, tag, _ in events if folder == "train"}
    assert tags == {
        f"sarsa/{tag}" for tag in ("episode/return", "episode/length", "epsilon", "learning_rate", "q_values")
    }
    assert {"final/mean_return", "final/std_return"} <= {
        tag for folder, tag, _ in events if folder == "hparams"
    }
    returns = {
        step: float(tf.make_ndarray(tensor_pb2.TensorProto.FromString(value[0])))
        for (_, tag, step), value in events.items()
        if tag == "sarsa/episode/return"
    }
    assert sorted(returns) == list(range(20, 1501, 20))
    assert returns[1500] > returns[20]


@pytest.mark.parametrize("recipe", ["q-learning", "sarsa"])
def test_a_resumed_run_ends_with_the_same_table(frozen, karpa, tmp_path, recipe) -> None:
    command = ["train", recipe, *TINY_TABLE, "--logs", tmp_path]
    assert (
        karpa(*command, "--episodes", 1500, "--checkpoint_seconds", 0, "--keep_checkpoints", 100).status == 0
    )
    run = tmp_path / recipe / "1"
    whole = np.load(run / "assets" / "q_values.npy")
    np.testing.assert_array_equal(whole, np.load(frozen / recipe / "1" / "assets" / "q_values.npy"))
    for path in (run / "checkpoints").glob("step-*.npz"):
        if int(path.stem.split("-")[1]) > 700:
            path.unlink()
    (run / "metrics.json").unlink()
    assert karpa("train", recipe, "--resume", run).status == 0
    np.testing.assert_array_equal(np.load(run / "assets" / "q_values.npy"), whole)
    assert json.loads((run / "metrics.json").read_text())["mean_return"] == 1


def test_predict_and_export_take_the_number_of_a_state(frozen, karpa, tmp_path) -> None:
    run = frozen / "q-learning" / "1"
    rows = karpa("predict", run, "0", '{"observation": 14}', "--json").json["predictions"]
    assert [set(row) for row in rows] == [{"action", "q_values"}] * 2
    assert rows[1]["action"] == 2, "right: onto the goal"
    result = karpa("export", run, "--to", tmp_path, "--json")
    assert result.json["signatures"]["serving_default"] == {
        "inputs": {"observation": "int64 [n]"},
        "outputs": {"action": "int64 [n]", "q_values": "float32 [n, 4]"},
    }
    served = tf.saved_model.load(str(tmp_path / "q-learning" / "1")).signatures["serving_default"]
    outputs = served(observation=tf.constant([0, 14], tf.int64))
    assert outputs["action"].numpy().tolist() == [row["action"] for row in rows]


@pytest.mark.parametrize("row", ["16", "-1", "1.5", '"a"', "[1]", "true"])
def test_a_state_that_is_none_is_one_sentence(frozen, karpa, row) -> None:
    result = (
        karpa("predict", frozen / "sarsa" / "1", "--", row)
        if row == "-1"
        else karpa("predict", frozen / "sarsa" / "1", row)
    )
    assert result.status == 2 and "must be a state, a whole number from 0 to 15" in result.err


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--env", "Texi-v3"], 'no environment "Texi-v3"; did you mean "Taxi-v3"?'),
        (["--env", "CartPole-v1"], "are not numbers from 0"),
        (["--episodes", "0"], "episodes must be at least 1"),
        (["--epochs", "3"], "has no option --epochs"),
    ],
)
def test_a_mistake_is_one_sentence(karpa, tmp_path, monkeypatch, flags, sentence) -> None:
    monkeypatch.chdir(tmp_path)
    result = karpa("train", "q-learning", *flags)
    assert result.status == 2 and sentence in result.err
    assert len(result.err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_an_unlearned_or_damaged_run_is_not_exported(frozen, karpa, tmp_path) -> None:
    run = shutil.copytree(frozen / "sarsa" / "1", tmp_path / "sarsa" / "1")
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps({**metrics, "mean_return": 0.0}))
    result = karpa("export", run, "--to", tmp_path / "models")
    assert result.status == 2 and "has not learned its task" in result.err
    (run / "assets" / "q_values.npy").write_bytes(b"damaged")
    result = karpa("evaluate", run)
    assert result.status == 2 and "q_values.npy cannot be read" in result.err


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["q-learning", "sarsa"])
def test_the_default_settings_reach_the_optimum_of_taxi(karpa, tmp_path, recipe) -> None:
    assert karpa("train", recipe, "--logs", tmp_path).status == 0
    metrics = json.loads((tmp_path / recipe / "1" / "metrics.json").read_text())
    assert metrics["mean_return"] >= 7.5 and metrics["episodes"] == 1000
    assert metrics["mean_return"] >= metrics["baselines"]["optimal"]["mean_return"] - 0.05
    config = yaml.safe_load((RunFolder(tmp_path / recipe / "1").path / "config.yaml").read_text())
    assert config["env"] == "Taxi-v3"


class Hot(Corridor):
    def step(self, action):
        raise RuntimeError("motor is hot")


@pytest.mark.parametrize("recipe", ["q-learning", "sarsa"])
def test_an_error_of_the_environment_is_one_sentence(recipe, karpa, tmp_path) -> None:
    gymnasium.register("Hot-v0", Hot)
    result = karpa("train", recipe, "--env", "Hot-v0", "--episodes", 3, "--logs", tmp_path / "logs")
    assert result.status == 2 and not (tmp_path / "logs").exists()
    assert "--env: Hot-v0 failed in episode 0: RuntimeError: motor is hot." in result.err
    gymnasium.registry.pop("Hot-v0")
