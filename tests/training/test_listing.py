"""`karpa-tf runs`: choosing, sorting, tags and deleting."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
import yaml

from karpa_tf.errors import UserError
from karpa_tf.recipe import find_recipe
from karpa_tf.training import listing
from karpa_tf.training.run_folder import RunFolder, create_run, locked


def make_run(logs: Path, metrics: dict[str, float] | None, **settings: object) -> RunFolder:
    folder = create_run(logs, "mnist-mlp", ["train", "mnist-mlp"])
    folder.write_config(find_recipe("mnist-mlp").about.settings(**settings))
    if metrics is not None:
        folder.write_metrics(metrics)
    folder.note(cpu_seconds=12.5)
    return folder


@pytest.fixture
def logs(tmp_path) -> Path:
    make_run(tmp_path, {"accuracy": 0.91, "loss": 0.4}, seed=0, units="16")
    make_run(tmp_path, {"accuracy": 0.97, "loss": 0.2}, seed=1, learning_rate=0.01)
    make_run(tmp_path, None, seed=1)
    return tmp_path


def numbers(done) -> list[str]:
    return [Path(row["run"]).name for row in done.json["runs"]]


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ("seed=0", ["1"]),
        ("seed!=0", ["2", "3"]),
        ("seed>=1 accuracy>0.9", ["2"]),
        ("accuracy<0.95", ["1"]),
        ("status=stopped", ["3"]),
        ("deterministic=false", ["1", "2", "3"]),
        ("learning_rate=1e-2", ["2"]),
        ("cpu_seconds<=12.5", ["1", "2", "3"]),
        ("seed == 0", ["1"]),
        ("accuracy > 0.95", ["2"]),
        ("units>9", ["1"]),
    ],
)
def test_where_chooses(logs, karpa, where, found) -> None:
    assert numbers(karpa("runs", "--where", where, "--logs", logs, "--json")) == found


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("accuracy", ["2", "1", "3"]),
        ("loss", ["2", "1", "3"]),
        ("learning_rate", ["1", "3", "2"]),
        ("status", "123"),
    ],
)
def test_sort_puts_the_best_first(logs, karpa, name, found) -> None:
    assert numbers(karpa("runs", "--sort", name, "--logs", logs, "--json")) == list(found)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["--where", "seed"],
            '--where takes NAME=VALUE, also with != < <= > >=, as "seed=0". Received: seed.',
        ),
        (["--where", "accuracy>abc"], "--where: accuracy is a number. Received: abc."),
        (["--where", "sed=0"], '--where: no run has "sed"; did you mean "seed"?'),
        (["--sort", "acuracy"], '--sort: no run has "acuracy"; did you mean "accuracy"?'),
        (["rm"], "karpa-tf runs rm: name the runs that are to be deleted."),
        (["rm", "mnist-mlp/9", "--yes"], "There is no run mnist-mlp/9"),
        (["tag", "mnist-mlp/1"], "karpa-tf runs tag: give the words behind the run."),
        (["tag", "mnist-mlp/1", "a,b"], "A tag is one word, without commas, = and <>. Received: 'a,b'."),
        (["untag", "mnist-mlp/1", "best"], "mnist-mlp/1 has no tag best."),
    ],
)
def test_what_is_wrong_is_a_sentence(logs, karpa, words, sentence) -> None:
    done = karpa("runs", *words, "--logs", logs)
    assert done.status == 2 and sentence in done.err


def test_nothing_found_says_so(logs, karpa) -> None:
    done = karpa("runs", "--where", "seed=7", "--logs", logs)
    assert done.status == 0 and done.out == f"No runs in {logs} for which seed=7 holds.\n"


def test_tags_are_kept_shown_and_taken_off(logs, karpa) -> None:
    assert karpa("runs", "tag", "mnist-mlp/2", "best", "of-may", "--logs", logs).status == 0
    shown = karpa("runs", "--logs", logs).out
    assert "best,of-may" in shown and "12.5" in shown
    assert numbers(karpa("runs", "--where", "tags=best", "--logs", logs, "--json")) == ["2"]
    RunFolder(logs / "mnist-mlp" / "2").write_environment(1)
    assert karpa("runs", "untag", "mnist-mlp/2", "of-may", "--logs", logs, "--json").json["tags"] == ["best"]


def test_deleting_asks_first(logs, karpa, monkeypatch) -> None:
    run = logs / "mnist-mlp" / "1"
    done = karpa("runs", "rm", run, "--logs", logs)
    assert done.status == 2 and "asks before it deletes, and nobody can answer here; give --yes." in done.err
    for answer, there in (("n\n", True), ("\n", True), ("y\n", False)):
        terminal = io.StringIO(answer)
        monkeypatch.setattr(terminal, "isatty", lambda: True)
        monkeypatch.setattr("sys.stdin", terminal)
        assert karpa("runs", "rm", run, "--logs", logs).status == 0
        assert run.exists() is there
    assert sorted(os.listdir(logs / "mnist-mlp")) == ["2", "3"]


def test_a_run_that_others_came_of_is_named_and_one_in_training_stays(logs, karpa) -> None:
    first, second = logs / "mnist-mlp" / "1", logs / "mnist-mlp" / "2"
    heir = make_run(logs, {"accuracy": 0.9}, init=str(first.resolve()))
    with (
        locked(second),
        pytest.raises(UserError, match=r"is being trained; stop that first. Nothing was deleted"),
    ):
        listing.remove([RunFolder(first), RunFolder(second)])
    assert first.exists()
    done = karpa("runs", "rm", first, "--yes", "--logs", logs)
    assert f"{heir.path} came of {first} and may need it." in done.err and not first.exists()


def test_a_damaged_run_is_one_marked_line(logs, karpa) -> None:
    (logs / "mnist-mlp" / "1" / "config.yaml").write_text("a: [")
    (logs / "mnist-mlp" / "2" / "metrics.json").write_text("{")
    lines = karpa("runs", "--sort", "seed", "--where", "recipe=mnist-mlp", "--logs", logs).out.splitlines()
    assert sum("damaged: " in line for line in lines) == 2
    assert yaml.safe_load((logs / "mnist-mlp" / "3" / "config.yaml").read_text())["seed"] == 1
    assert json.loads((logs / "mnist-mlp" / "3" / "environment.json").read_text())["cpu_seconds"] == 12.5
