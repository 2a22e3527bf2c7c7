"""`dqn` from an environment to a served policy. Training runs in processes of its own, with legacy Keras."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from karpa_tf.errors import UserError
from karpa_tf.export.loader import load_signature
from karpa_tf.recipe import find_recipe
from karpa_tf.recipes.dqn import DqnExportOptions, DqnSettings, training
from karpa_tf.recipes.dqn import recipe as dqn
from karpa_tf.training.loop import Diverged
from karpa_tf.training.run_folder import RunFolder
from tests.conftest import TINY_DQN, own_process
from tests.rl.modules import MODULE
from tests.training.helpers import read_events

# TF-Agents' pins end at Python 3.11.
pytestmark = pytest.mark.skipif(sys.version_info >= (3, 12), reason="TF-Agents needs Python 3.11")


def test_the_run_folder_is_complete(balanced) -> None:
    metrics = json.loads((balanced / "metrics.json").read_text())
    assert 1200 <= metrics["environment_steps"] < 1208 and metrics["gradient_steps"] > 400
    assert metrics["selection_environment_steps"] > 0
    assert metrics["mean_return"] >= metrics["min_return"] and metrics["episodes"] == 100
    assert metrics["baselines"]["random"]["mean_return"] < 50
    for name in ("config.yaml", "command.txt", "environment.json", "best.weights.h5", "assets/policy.json"):
        assert (balanced / name).is_file()
    assert RunFolder(balanced).open_config(DqnSettings).units == 32


def test_the_best_policy_is_kept_and_not_the_last(balanced) -> None:
    """The weights in the file are those of the step at which no judgement was better."""
    metrics = json.loads((balanced / "metrics.json").read_text())
    state = {}
    for path in (balanced / "checkpoints").glob("step-*.npz"):
        with np.load(path) as file:
            state = json.loads(file["state"].tobytes())
            if int(path.stem.split("-")[1]) == metrics["best_step"]:
                kept = [file[f"{index:05d}"] for index in range(6)]
    assert state["callbacks"][2]["step"] <= metrics["best_step"]
    _, model = dqn.open_model(RunFolder(balanced))
    for mine, weights in zip(model.get_weights(), kept, strict=True):
        np.testing.assert_array_equal(mine, weights)


def test_tensorboard_shows_what_the_page_says(balanced) -> None:
    events = read_events(balanced)
    tags = {
        folder: {tag for f, tag, _ in events if f == folder} for folder in ("train", "validation", "hparams")
    }
    own = {"dqn/episode/return", "dqn/episode/length", "dqn/batch/loss", "dqn/q", "dqn/epsilon"}
    assert own <= tags["train"]
    assert any(tag.startswith("dqn/weights/") for tag in tags["train"])
    assert tags["validation"] == {"dqn/episode/return", "filmstrip"}
    assert {"final/mean_return", "final/environment_steps"} <= tags["hparams"]


def test_a_resumed_run_ends_to_the_bit_as_if_never_stopped(balanced, tmp_path) -> None:
    run = shutil.copytree(balanced, tmp_path / "dqn" / "1")
    paths = sorted((run / "checkpoints").glob("step-*.npz"))
    middle = len(paths) // 2
    with np.load(paths[middle]) as file:
        best = json.loads(file["state"].tobytes())["callbacks"][2]
    for path in paths[middle + 1 :]:
        path.unlink()
    (run / "metrics.json").unlink()
    done = own_process("train", "dqn", "--resume", run)
    assert done.returncode == 0, done.stderr
    assert best["number"] == middle + 1
    with np.load(paths[-1]) as mine, np.load(balanced / "checkpoints" / paths[-1].name) as whole:
        assert sorted(mine.files) == sorted(whole.files)
        for name in whole.files:
            np.testing.assert_array_equal(mine[name], whole[name])
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (run, balanced)]
    # The best weights of the finished run lie in the folder: those up to the checkpoint are its own.
    assert metrics[0]["best_step"] == metrics[1]["best_step"]
    points = [
        {key: value for key, value in read_events(folder).items() if key[1] != "filmstrip"}
        for folder in (run, balanced)
    ]
    assert points[0] == points[1]


def test_evaluate_certifies_through_a_savedmodel(balanced, karpa) -> None:
    report = karpa("evaluate", balanced, "--json").json
    metrics = json.loads((balanced / "metrics.json").read_text())
    assert report["data"] == "CartPole-v1" and set(report["baselines"]) == {"random"}
    for name, value in report["metrics"].items():
        assert metrics[name] == value
    assert metrics["facts"]["seeds"] == "1000000000 to 1000000099"
    result = karpa("evaluate", balanced, "--data", "rows.csv")
    assert result.status == 2 and "takes no --data. Received: rows.csv" in result.err


def test_predict_gives_actions_and_values(balanced, karpa, tmp_path) -> None:
    (tmp_path / "in.jsonl").write_text('{"observation": [0, 0, 0.1, 0]}\n{"observation": [0, 0, -0.1, 0]}\n')
    rows = karpa("predict", balanced, "--input", tmp_path / "in.jsonl", "--json").json["predictions"]
    assert [set(row) for row in rows] == [{"action", "q_values"}] * 2
    assert all(row["action"] == int(np.argmax(row["q_values"])) for row in rows)
    typed = karpa("predict", balanced, "[0, 0, 0.1, 0]", "--json").json["predictions"]
    # A row alone and one of two are not multiplied in the same order.
    assert [row["action"] for row in typed] == [rows[0]["action"]]
    assert typed[0]["q_values"] == pytest.approx(rows[0]["q_values"], rel=1e-5)


@pytest.mark.parametrize(
    "row", ["[0, 0, 1]", '["a", 0, 0, 0]', "[NaN, 0, 0, 0]", "3", '{"observation": null}']
)
def test_a_wrong_observation_is_one_sentence(balanced, karpa, row) -> None:
    result = karpa("predict", balanced, row)
    assert result.status == 2 and "Observation 1 must be 4 numbers" in result.err
    assert len(result.err.strip().splitlines()) == 1


def test_export_serves_the_policy_and_tf_agents_own_form(balanced, tmp_path) -> None:
    done = own_process("export", balanced, "--to", tmp_path, "--force", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["signatures"]["serving_default"] == {
        "inputs": {"observation": "float32 [n, 4]"},
        "outputs": {"action": "int64 [n]", "q_values": "float32 [n, 2]"},
    }
    x = np.random.default_rng(0).normal(size=[7, 4]).astype(np.float32)
    served = tf.saved_model.load(report["savedmodel"]).signatures["serving_default"](
        observation=tf.constant(x)
    )
    _, model = dqn.open_model(RunFolder(balanced))
    np.testing.assert_allclose(served["q_values"], model(x), atol=1e-5)
    np.testing.assert_array_equal(served["action"], np.argmax(model(x), axis=1))
    assert "mean_return" in (Path(report["savedmodel"]) / "assets.extra" / "model_card.md").read_text()
    # As TensorFlow Serving loads it; Python's loader would need TF-Agents.
    warmup = tmp_path / "dqn-policy" / "1" / "assets.extra" / "tf_serving_warmup_requests"
    records = list(tf.data.TFRecordDataset(str(warmup)).as_numpy_iterator())
    asked = [prediction_log_pb2.PredictionLog.FromString(record).predict_log.request for record in records]
    assert [request.model_spec.signature_name for request in asked] == ["action", "action"]
    assert [tf.make_ndarray(request.inputs["0/observation"]).shape for request in asked] == [(1, 4), (4, 4)]
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        meta = tf.compat.v1.saved_model.load(session, ["serve"], str(tmp_path / "dqn-policy" / "1"))
        action = meta.signature_def["action"]
        for request in asked:  # they are what the signature takes
            feed = {action.inputs[key].name: tf.make_ndarray(value) for key, value in request.inputs.items()}
            session.run({key: info.name for key, info in action.outputs.items()}, feed)
        step = {"step_type": np.zeros(7), "reward": np.zeros(7), "discount": np.ones(7), "observation": x}
        feed = {info.name: step[name.removeprefix("0/")] for name, info in action.inputs.items()}
        np.testing.assert_array_equal(session.run(action.outputs["action"].name, feed), served["action"])


def test_export_without_legacy_keras(balanced, tmp_path) -> None:
    """In this process, whose TensorFlow came with Keras 3."""
    folder = RunFolder(balanced)
    with pytest.raises(UserError, match="set TF_USE_LEGACY_KERAS=1"):
        dqn.Dqn().export(folder, DqnExportOptions(to=str(tmp_path), force=True))
    assert not list(tmp_path.iterdir())
    options = DqnExportOptions(to=str(tmp_path), force=True, policy_saver=False)
    assert dqn.Dqn().export(folder, options).path == str(tmp_path / "dqn" / "1")


def test_training_in_a_process_with_keras_3_is_one_sentence(karpa, tmp_path) -> None:
    result = karpa("train", "dqn", "--logs", tmp_path / "logs")
    assert result.status == 2 and "set TF_USE_LEGACY_KERAS=1" in result.err
    assert len(result.err.strip().splitlines()) == 1
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--epochs", "3"], "has no option --epochs"),
        (["--environment_step", "3"], 'did you mean "--environment_steps"?'),
        (["--environments", "0"], "environments must be at least 1. Received: 0."),
        (["--gamma", "2"], "gamma must be at least 0 and at most 1. Received: 2."),
        (["--buffer_size", "10"], "buffer_size and initial_steps must be at least 24"),
        (["--loss", "hubert"], 'did you mean "huber"?'),
    ],
)
def test_a_mistake_is_one_sentence(karpa, tmp_path, monkeypatch, flags, sentence) -> None:
    monkeypatch.chdir(tmp_path)
    result = karpa("train", "dqn", *flags)
    assert result.status == 2 and sentence in result.err
    assert len(result.err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_resume_takes_environment_steps_alone(balanced, karpa) -> None:
    result = karpa("train", "dqn", "--resume", balanced, "--units", 8)
    assert result.status == 2 and "only --environment_steps may grow" in result.err
    result = karpa("train", "dqn", "--resume", balanced, "--environment_steps", 100)
    assert result.status == 2 and "--environment_steps may only grow" in result.err


def test_damaged_weights_are_one_sentence(balanced, karpa, tmp_path) -> None:
    run = shutil.copytree(balanced, tmp_path / "dqn" / "1")
    (run / "best.weights.h5").write_bytes(b"damaged")
    result = karpa("evaluate", run)
    assert result.status == 2 and "best.weights.h5 cannot be read" in result.err
    (run / "metrics.json").unlink()
    result = karpa("export", run, "--to", tmp_path / "models")
    assert result.status == 2 and "has not ended" in result.err and not (tmp_path / "models").exists()


def test_a_wrong_environment_leaves_nothing(tmp_path) -> None:
    done = own_process("train", "dqn", "--env", "CartPole-v7", "--logs", tmp_path / "logs")
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert '--env: Gymnasium has no environment "CartPole-v7"; did you mean "CartPole-v1"?' in done.stderr
    assert not (tmp_path / "logs").exists()


@pytest.mark.slow
def test_the_default_settings_get_their_certificate(tmp_path) -> None:
    done = own_process("train", "dqn", "--seed", 3, "--logs", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout)["metrics"]
    assert (metrics["mean_return"], metrics["std_return"], metrics["min_return"]) == (500, 0, 500)
    steps = find_recipe("dqn").read_settings("default")["environment_steps"]
    assert metrics["environment_steps"] <= steps
    again = own_process(
        "train", "dqn", "--resume", tmp_path / "dqn" / "1", "--environment_steps", steps + 1, "--json"
    )
    assert json.loads(again.stdout)["metrics"] == metrics, "a perfect policy needs no more training"


@pytest.mark.slow
def test_another_environment_trains_through_python(tmp_path) -> None:
    small = ["--environment_steps", 1500, "--initial_steps", 500, "--judge_every", 500, "--judge_episodes", 2]
    done = own_process("train", "dqn", "--env", "Acrobot-v1", *small, "--logs", tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout)["metrics"]
    assert -500 <= metrics["mean_return"] < 0 and metrics["environment_steps"] >= 1500
    done = own_process(
        "train", "dqn", "--resume", tmp_path / "dqn" / "1", "--environment_steps", 2000, "--json"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["metrics"]["environment_steps"] >= 2000


@pytest.mark.slow
def test_ctrl_c_keeps_the_best_policy_and_says_how_to_go_on(tmp_path) -> None:
    words = ["train", "dqn", "--target_return", "1000", "--logs", str(tmp_path)]
    process = subprocess.Popen([sys.executable, "-m", "karpa_tf", *words], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("step "):
            process.send_signal(signal.SIGINT)
            break
    lines += process.stderr.readlines()
    assert process.wait(timeout=60) == 130
    assert "karpa-tf train dqn --resume" in "".join(lines)
    run = tmp_path / "dqn" / "1"
    assert list((run / "checkpoints").glob("step-*.npz")) and not (run / "metrics.json").exists()
    done = own_process("predict", run, "[0, 0, 0, 0]", "--json")
    assert json.loads(done.stdout)["predictions"][0]["action"] in (0, 1)


@pytest.mark.slow
def test_init_starts_from_another_runs_weights(balanced, tmp_path) -> None:
    settings = [*TINY_DQN, "--environment_steps", 200, "--initial_steps", 199, "--logs", tmp_path]
    done = own_process("train", "dqn", *settings, "--init", balanced, "--learning_rate", "1e-9")
    assert done.returncode == 0, done.stderr
    _, before = dqn.open_model(RunFolder(balanced))
    _, after = dqn.open_model(RunFolder(tmp_path / "dqn" / "1"))
    for a, b in zip(before.get_weights(), after.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    done = own_process("train", "dqn", *TINY_DQN, "--units", 16, "--logs", tmp_path, "--init", balanced)
    assert done.returncode == 2 and "--init: " in done.stderr


# --- An environment of the user's own: its actions are -1, 0 and 1, and it cannot be drawn


@pytest.fixture(scope="module")
def below_zero(tmp_path_factory) -> Path:
    """A run on it; tests only read it."""
    if sys.version_info >= (3, 12):
        pytest.skip("TF-Agents needs Python 3.11")
    folder = tmp_path_factory.mktemp("below_zero")
    (folder / "own_line.py").write_text(MODULE)
    settings = [
        *("--environment_steps", 200, "--initial_steps", 60, "--environments", 2, "--judge_every", 10),
        *("--judge_episodes", 2, "--updates", 1, "--target_return", 2, "--units", 8, "--layers", 1),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")])))
        words = ["train", "dqn", "--env", "own_line:LineBelow-v0", *settings, "--logs", folder]
        done = own_process(*words)
        assert done.returncode == 0, done.stderr
        (folder / "stderr.txt").write_text(done.stderr)
        done = own_process("export", folder / "dqn" / "1", "--to", folder / "savedmodels", "--force")
        assert done.returncode == 0, done.stderr
    return folder


def test_a_run_without_a_film_ends_with_its_certificate(below_zero) -> None:
    said = (below_zero / "stderr.txt").read_text()
    assert "No film of an episode: own_line:LineBelow-v0 cannot be drawn (TypeError" in said
    assert "nan" not in said and "-" not in re.findall(r"\S+ left", said)[-1]
    metrics = json.loads((below_zero / "dqn" / "1" / "metrics.json").read_text())
    assert metrics["episodes"] == 100


def test_what_cannot_be_drawn_cannot_be_filmed(below_zero, karpa, tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(below_zero)
    result = karpa("play", below_zero / "dqn" / "1", "--gif", tmp_path / "line.gif")
    assert result.status == 2 and not list(tmp_path.iterdir())
    assert "own_line:LineBelow-v0 cannot be drawn (TypeError" in result.err


def test_actions_are_those_of_the_environment(below_zero, karpa) -> None:
    run = RunFolder(below_zero / "dqn" / "1")
    _, model = dqn.open_model(run)
    x = np.array([[-2.0], [0.0], [1.0], [2.0]], np.float32)
    expected = np.argmax(model(x), axis=1) - 1
    result = karpa("predict", run.path, *(f"[{value}]" for value in x[:, 0]), "--json")
    assert [row["action"] for row in result.json["predictions"]] == expected.tolist()
    served = load_signature(below_zero / "savedmodels" / "dqn" / "1")({"observation": x})
    np.testing.assert_array_equal(served["action"], expected)
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        path = str(below_zero / "savedmodels" / "dqn-policy" / "1")
        meta = tf.compat.v1.saved_model.load(session, ["serve"], path)
        action = meta.signature_def["action"]
        step = {"step_type": np.zeros(4), "reward": np.zeros(4), "discount": np.ones(4), "observation": x}
        feed = {info.name: step[name.removeprefix("0/")] for name, info in action.inputs.items()}
        np.testing.assert_array_equal(session.run(action.outputs["action"].name, feed), expected)


def test_a_run_of_before_first_action_was_written_asks_the_environment(
    below_zero, tmp_path, monkeypatch
) -> None:
    run = RunFolder(Path(shutil.copytree(below_zero / "dqn" / "1", tmp_path / "dqn" / "1")))
    facts = json.loads((run.assets / "policy.json").read_text())
    assert facts.pop("first_action") == -1
    (run.assets / "policy.json").write_text(json.dumps(facts))
    monkeypatch.syspath_prepend(below_zero)
    assert dqn.read_facts(run)["first_action"] == -1


def test_errors_of_tensorflow_are_told_apart() -> None:
    def explained(message: str) -> Exception:
        return training.explained(tf.errors.InvalidArgumentError(None, None, message), "Line-v0", 7)

    diverged = explained("Graph execution error:\n\nLoss is inf or nan. : Tensor had NaN values\n [[node]]")
    assert isinstance(diverged, Diverged) and "The loss is not a number after 7 environment" in str(diverged)
    failed = explained(
        "Graph execution error:\n\n2 roots\nValueError: no motor\nTraceback (most recent call last):\n\n"
        '  File "x.py"\nValueError: no motor'
    )
    assert isinstance(failed, UserError) and not isinstance(failed, Diverged)
    assert str(failed) == "--env: Line-v0 failed after 7 environment steps: ValueError: no motor."
    other = tf.errors.InvalidArgumentError(None, None, "Incompatible shapes: [2] vs. [3]")
    assert training.explained(other, "Line-v0", 7) is other


@pytest.mark.slow
def test_export_where_tf_agents_is_not_installed(balanced, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(dqn, "has_tf_agents", lambda: False)
    result = dqn.Dqn().export(RunFolder(balanced), DqnExportOptions(to=str(tmp_path), force=True))
    assert result.path == str(tmp_path / "dqn" / "1") and "policy_saver" not in result.more
    assert result.lines == [
        "dqn-policy, the form of TF-Agents' PolicySaver, is left out: tf-agents is not installed."
    ]
