"""Several seeds of one recipe: runs of a group."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from karpa_tf.errors import UserError
from karpa_tf.recipe import find_recipe
from karpa_tf.training import seeds
from tests.conftest import TINY_DIGITS, TINY_TABLE, make_images

# Episodes of a table: little, so that the random numbers of a seed are still seen in it.
TABLE = [*TINY_TABLE, "--episodes", "60", "--deterministic"]


@pytest.mark.parametrize(("text", "found"), [("0:3", [0, 1, 2]), ("7, 0,3", [7, 0, 3]), ("4:6", [4, 5])])
def test_seeds_are_a_range_or_a_list(text, found) -> None:
    assert seeds.parse_seeds(text) == found


@pytest.mark.parametrize("text", ["3", "0:1", "5:2", "0:10:2", "a:b", "1,,2", "1,1", "-1,2", ":"])
def test_what_is_no_list_of_seeds_is_a_sentence(text) -> None:
    with pytest.raises(UserError, match=f"--seeds takes two seeds at least.* Received: {text}"):
        seeds.parse_seeds(text)


def row(number: int, value: float | None, **more: Any) -> dict[str, Any]:
    metrics = {} if value is None else {"accuracy": value, "episodes": 100, "baselines": {}}
    status = "stopped" if value is None else "finished"
    run = {"run": f"logs/mnist-mlp/{number}", "config": {"seed": number}, "group": "mnist-mlp/1"}
    return {**run, "status": status, "metrics": metrics, **more}


def test_the_interval_is_students() -> None:
    values = [0.91, 0.94, 0.92, 0.97, 0.93]
    rows = [row(i, value) for i, value in enumerate(values, 1)] + [row(6, None)]
    (group,) = seeds.groups([*rows, {"run": "logs/mnist-mlp/7", "status": "finished", "metrics": {}}])
    assert group["seeds"] == [1, 2, 3, 4, 5, 6] and group["finished"] == 5
    assert list(group["metrics"]) == ["accuracy"], "counts have no mean, and baselines are none of ours"
    assert group["metrics"]["accuracy"] == pytest.approx(0.934)
    assert group["deviations"]["accuracy"] == pytest.approx(np.std(values, ddof=1))
    # 2.776 is the 97.5th percentile of Student's t with four degrees of freedom, as tables print it.
    half = 2.776 * np.std(values, ddof=1) / np.sqrt(5)
    assert group["intervals"]["accuracy"] == pytest.approx([0.934 - half, 0.934 + half], rel=1e-4)
    lines = list(seeds.format_group(group))
    assert lines[0] == "mnist-mlp/1: 6 seeds, 5 finished"
    assert lines[1] == "  accuracy  0.934 +- 0.023; 95 % interval of the mean 0.9054 to 0.9626"


def test_one_finished_run_has_no_interval() -> None:
    (group,) = seeds.groups([row(1, 0.9), row(2, None)])
    assert group["metrics"] == {"accuracy": 0.9} and not group["intervals"]
    assert seeds.paper_line(group, find_recipe("mnist-mlp").about) == ""


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """Two seeds of q-learning, and what the command printed; tests only read them."""
    logs = tmp_path_factory.mktemp("seeds")
    words = ["train", "q-learning", *TABLE, "--seeds", "3,5", "--logs", str(logs), "--json"]
    done = subprocess.run([sys.executable, "-m", "karpa_tf", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "seed 5, 2 of 2" in done.stderr
    return logs, json.loads(done.stdout)


def test_a_seed_of_a_group_is_the_run_of_that_seed_to_the_bit(trained, karpa, tmp_path) -> None:
    logs, _ = trained
    assert karpa("train", "q-learning", *TABLE, "--seed", 5, "--logs", tmp_path).status == 0
    alone, mine, other = tmp_path / "q-learning" / "1", *(logs / "q-learning" / n for n in "21")
    assert alone.joinpath("metrics.json").read_bytes() == mine.joinpath("metrics.json").read_bytes()
    tables = [np.load(run / "assets" / "q_values.npy") for run in (alone, mine, other)]
    np.testing.assert_array_equal(tables[0], tables[1])
    assert (tables[0] != tables[2]).any(), "seeds differ"
    # config.yaml is that of any run: it says nothing of the group.
    assert alone.joinpath("config.yaml").read_text() == mine.joinpath("config.yaml").read_text()


def test_a_group_is_summed_up(trained, karpa) -> None:
    logs, printed = trained
    assert printed["seeds"] == [3, 5] and printed["group"] == "q-learning/1"
    returns = [json.loads(Path(run, "metrics.json").read_text())["mean_return"] for run in printed["runs"]]
    assert printed["metrics"]["mean_return"] == pytest.approx(np.mean(returns))
    low, high = printed["intervals"]["mean_return"]
    assert low <= min(returns) and high >= max(returns)
    assert printed["line"].startswith("q-learning on FrozenLake-v1: return ")
    assert "(2 seeds, 95 % interval " in printed["line"]
    with Image.open(printed["curves"]) as picture:
        assert picture.format == "PNG" and picture.size == (770, 462)
        assert len(np.unique(np.asarray(picture.convert("L")))) > 20, "something is drawn"

    result = karpa("runs", "--logs", logs)
    assert "q-learning/1: 2 seeds, 2 finished" in result.out and "95 % interval of the mean" in result.out
    report = karpa("runs", "--logs", logs, "--json").json
    assert [run["group"] for run in report["runs"]] == ["q-learning/1"] * 2
    assert report["groups"][0]["metrics"] == printed["metrics"]


def test_curves_are_read_as_they_were_written(trained) -> None:
    from karpa_tf.reports.curves import read_scalars

    train = trained[0] / "q-learning" / "1" / "train"
    curve = read_scalars(train, "q-learning/episode/return")
    assert list(curve) == [20, 40, 60] and all(0 <= value <= 1 for value in curve.values())
    (file,) = train.glob("events.out.tfevents.*")
    (train.parent / "cut").mkdir()
    (train.parent / "cut" / file.name).write_bytes(file.read_bytes()[:-5])
    cut = read_scalars(train.parent / "cut", "q-learning/episode/return")
    assert cut == {step: value for step, value in curve.items() if step in cut} and 20 in cut


def test_a_curve_that_ends_early_keeps_its_last_value(tmp_path) -> None:
    from karpa_tf.reports.curves import mean_of_curves

    steps, mean, deviation = mean_of_curves([{10: 1.0, 20: 3.0, 30: 5.0}, {20: 7.0}])
    assert steps.tolist() == [20, 30] and mean.tolist() == [5.0, 6.0]
    np.testing.assert_allclose(deviation, [np.sqrt(8), np.sqrt(2)])


def test_seeds_refuse_what_does_not_go_with_them(trained, karpa, tmp_path) -> None:
    logs, _ = trained
    result = karpa("train", "q-learning", "--seeds", "0:2", "--seed", 1)
    assert result.status == 2 and "--seed and --seeds do not go together" in result.err
    result = karpa("train", "mnist-mlp", "--seeds", "0:2", "--strategy", "multi-worker")
    assert result.status == 2 and "--seeds trains on one machine" in result.err
    new = tmp_path / "logs"
    result = karpa("train", "q-learning", "--seeds", "0,1000000", "--logs", new)
    assert result.status == 2 and "seed must be at least 0 and below 1000000" in result.err
    result = karpa("train", "q-learning", "--seeds", "0:2", "--env", "FrozenLak-v1", "--logs", new)
    assert result.status == 2
    assert "The training of seed 0 has failed, as said above; nothing is kept" in result.err
    assert not new.exists()
    # A group that is finished trains nothing, and says the same.
    again = karpa("train", "q-learning", "--resume", logs / "q-learning/2", "--seeds", "3,5", "--json")
    assert again.status == 0 and "seed " not in again.err
    assert again.json == trained[1] | {"runs": again.json["runs"], "curves": again.json["curves"]}


@pytest.mark.slow
def test_a_group_that_was_stopped_goes_on(tmp_path) -> None:
    """Ctrl-C in the second seed; then the rest, and a third seed, to the bits of runs of their own."""
    x, y = make_images(300, 10, 1)
    np.savez(tmp_path / "digits.npz", x_train=x, y_train=y)
    data = ["--data", str(tmp_path / "digits.npz"), *TINY_DIGITS, "--deterministic"]
    command = [sys.executable, "-m", "karpa_tf", "train", "mnist-mlp"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

    def start(*words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*command, *words], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
        )

    process = start(*data, "--seeds", "0,1")
    assert process.stderr
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("seed 1"):
            break
    for line in process.stderr:  # the second seed's first epoch
        lines.append(line)
        if line.startswith("epoch 1"):
            break
    process.send_signal(signal.SIGINT)
    said = "".join([*lines, *process.stderr])
    assert process.wait() == 130, said
    go_on = "karpa-tf train mnist-mlp --resume logs/mnist-mlp/1 --seeds 0,1"
    assert f"1 of 2 seeds are finished. Go on with: {go_on}" in said

    process = start("--resume", "logs/mnist-mlp/1", "--seeds", "0,1,2")
    said = process.communicate()[1]
    assert process.returncode == 0, said
    assert "seed 0" not in said and "seed 1, 2 of 3" in said and "seed 2, 3 of 3" in said
    assert (tmp_path / "logs/mnist-mlp/seeds-1.png").is_file()

    alone = start(*data, "--seed", "1", "--logs", "alone")
    assert alone.wait() == 0
    figures = [
        json.loads((tmp_path / run / "metrics.json").read_text())
        for run in ("logs/mnist-mlp/2", "alone/mnist-mlp/1")
    ]
    assert figures[0] == figures[1]


def test_one_process_at_a_time_trains_a_group(trained, karpa) -> None:
    logs, _ = trained
    words = ["train", "q-learning", "--resume", logs / "q-learning" / "1", "--seeds", "3,8"]
    with seeds.locked(logs / "q-learning" / "1", seeds.GROUP_LOCK):
        result = karpa(*words)
    assert result.status == 2
    assert "The seeds of q-learning/1 are being trained by another process; wait until" in result.err


def test_seeds_of_another_length_are_not_averaged(trained, karpa) -> None:
    logs, _ = trained
    words = ["train", "q-learning", "--resume", logs / "q-learning" / "1", "--seeds", "3,8", "--episodes", 80]
    result = karpa(*words)
    assert result.status == 2
    assert "seed 5 of q-learning/1 has episodes 60, which would be averaged with 80" in result.err
    assert len(karpa("runs", "q-learning", "--logs", logs, "--json").json["runs"]) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["q-learning", "--seeds", ""], "--seeds takes two seeds at least"),
        (["mnist-mlp", "--seeds", "0:2", "--folds", "3"], "--seeds and --folds do not go together"),
    ],
)
def test_seeds_that_cannot_be_trained_leave_nothing(words, said, karpa, tmp_path) -> None:
    result = karpa("train", *words, "--logs", tmp_path / "logs")
    assert result.status == 2 and said in result.err
    assert not (tmp_path / "logs").exists()


@pytest.mark.slow
def test_the_first_runs_of_an_own_recipe_may_be_seeds(karpa, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert karpa("new", "mine", "--like", "q-learning").status == 0
    assert "No runs in logs" in karpa("runs", "./mine").out
    words = ["train", "./mine", *TABLE, "--seeds", "0,1", "--json"]
    done = subprocess.run([sys.executable, "-m", "karpa_tf", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["seeds"] == [0, 1]
