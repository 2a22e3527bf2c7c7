"""What a user relies on at the command line."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from karpa_tf.cli import _done, _find_run, _train_parser
from karpa_tf.recipe import all_recipes
from karpa_tf.settings import convert
from tests.conftest import TINY


@pytest.mark.parametrize(
    "command",
    [
        *(["--help"], ["list"], ["train", "mlm-gru", "--help"], ["runs"], ["--version"]),
        *(["ensemble", "--help"], ["distill", "--help"]),
    ],
)
def test_help_and_list_import_nothing_heavy(command: list[str], tmp_path: Path) -> None:
    code = (
        "import sys, karpa_tf.cli\n"
        "try:\n    karpa_tf.cli.main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "heavy = {'tensorflow', 'keras', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_every_field_that_a_recipe_takes_is_documented_in_help() -> None:
    for recipe in all_recipes().values():
        text = " ".join(_train_parser(recipe).format_help().split())
        for field in dataclasses.fields(recipe.about.settings):
            taken = field.name not in getattr(recipe.about.settings, "refuses", ())
            assert (f"--{field.name} " in text) == taken
            assert (" ".join(field.metadata["help"].split()) in text) == taken


def test_shipped_settings_load_and_tell_what_to_expect() -> None:
    for recipe in all_recipes().values():
        assert recipe.expected()
        for name in recipe.shipped_settings():
            recipe.about.settings(**recipe.read_settings(name))


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("trian mlm-gru", 'There is no verb "trian"; did you mean "train"?'),
        ("train mlm-gr", 'There is no recipe "mlm-gr"; did you mean "mlm-gru"?'),
        ("train mlm-gru --epoch 3", 'no option --epoch; did you mean "--epochs"?'),
        ("train mlm-gru --epochs many", "--epochs must be a whole number. Received: many."),
        ("train mlm-gru --epochs 0", "epochs must be at least 1. Received: 0."),
        ("train mlm-gru --dropout 1.5", "dropout must be at least 0 and below 1. Received: 1.5."),
        (
            "train mlm-gru --objective evry",
            'one of masked, every. Received: evry; did you mean "every"?',
        ),
        (
            "train mlm-gru --deterministic perhaps",
            "mlm-gru takes no more words. Received: perhaps",
        ),
        ("train mlm-gru --epochs", "karpa-tf train mlm-gru: argument --epochs: expected one argument."),
        ("train mlm-gru --learning_rate nan", "--learning_rate must be a finite number. Received: nan."),
        ("train", "karpa-tf train: RECIPE is missing"),
        ("train ./nowhere", "nowhere is no recipe: it has no __init__.py"),
        ("train mlm-gru --config defalt", 'did you mean "default"?'),
        ("train mlm-gru --resume nowhere", "There is no run nowhere"),
        ("train mlm-gru --profile 3", "--profile takes START:STOP"),
        ("runs mlm", 'There is no recipe "mlm"'),
        ("evaluate mlm-gru/latest", "There is no run of mlm-gru in logs"),
        ("evaluate mlm-gro/latest", 'did you mean "mlm-gru"?'),
        ("predict nowhere text", "There is no run nowhere"),
    ],
)
def test_a_mistake_is_one_sentence(command: str, sentence: str, karpa, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = karpa(*command.split())
    assert result.status == 2
    assert sentence in result.err
    assert len(result.err.strip().splitlines()) == 1
    assert result.out == ""
    assert not list(tmp_path.iterdir()), "a mistake leaves nothing behind"


def test_settings_file_with_a_wrong_key_or_type(karpa, tmp_path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("learning_rat: 0.1\n")
    result = karpa("train", "mlm-gru", "--config", path)
    assert result.status == 2 and 'did you mean "learning_rate"?' in result.err
    path.write_text("learning_rate: fast\n")
    result = karpa("train", "mlm-gru", "--config", path)
    assert result.status == 2
    assert f"{path}: learning_rate must be a finite number. Received: fast." in result.err
    path.write_text("learning_rate: 1e-2\nepochs: 0\n")
    result = karpa("train", "mlm-gru", "--config", path)
    assert result.status == 2 and f"{path}: epochs must be at least 1. Received: 0." in result.err


def test_a_folder_that_is_no_run(karpa, tmp_path) -> None:
    result = karpa("evaluate", tmp_path)
    assert result.status == 2 and "is not a run folder: it holds no config.yaml" in result.err


def test_train_refuses_fields_beside_resume(karpa, trained) -> None:
    result = karpa("train", "mlm-gru", "--resume", trained, "--batch_size", 8)
    assert result.status == 2 and "--batch_size cannot go with --resume" in result.err
    result = karpa("train", "mlm-gru", "--resume", trained, "--epochs", 1)
    assert result.status == 2 and "--epochs may only grow" in result.err


def test_doctor_is_well(karpa, tmp_path) -> None:
    result = karpa("doctor", "--json", "--logs", tmp_path / "logs")
    assert result.status == 0
    assert result.json["ok"] is True
    assert all(check["ok"] and not check["mend"] for check in result.json["checks"])


def test_runs_shows_what_differs(karpa, trained) -> None:
    result = karpa("runs", "--logs", trained.parent.parent)
    assert re.search(r"mlm-gru/1 +finished", result.out)
    rows = karpa("runs", "mlm-gru", "--logs", trained.parent.parent, "--json").json["runs"]
    assert rows[0]["config"]["units"] == 24
    assert rows[0]["metrics"]["top1_accuracy"] > 0
    for one in ("mlm-gru/latest", "mlm-gru/1", trained):
        found = karpa("runs", one, "--logs", trained.parent.parent, "--json").json["runs"]
        assert [row["run"] for row in found] == [str(trained)], one
    result = karpa("runs", "mlm-gru/77", "--logs", trained.parent.parent)
    assert result.status == 2 and "There is no run mlm-gru/77" in result.err


@pytest.mark.slow
def test_ctrl_c_keeps_the_best_weights_and_says_how_to_go_on(text_file, tmp_path) -> None:
    command = [sys.executable, "-m", "karpa_tf", "train", "mlm-gru", "--data", str(text_file)]
    process = subprocess.Popen(
        [*command, *TINY, "--epochs", "1000", "--patience", "0"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ},
    )
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith("epoch 2"):
            process.send_signal(signal.SIGINT)
            break
    lines += process.stderr.readlines()
    assert process.wait(timeout=60) == 130
    assert "karpa-tf train mlm-gru --resume" in "".join(lines)
    run = tmp_path / "logs" / "mlm-gru" / "1"
    assert (run / "best.weights.h5").exists()
    assert list((run / "checkpoints").glob("step-*.npz"))
    done = subprocess.run(
        [sys.executable, "-m", "karpa_tf", "predict", str(run), "the [MASK] ate grass.", "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert json.loads(done.stdout)["predictions"][0]["filled_text"]


@pytest.mark.parametrize(
    "words",
    [
        ["predict", "R", "--logs", "L", "a text", "more"],
        ["predict", "--logs", "L", "R", "a text", "more"],
        ["predict", "R", "a text", "--logs=L", "--json", "more"],
        ["predict", "R", "--json", "--logs", "L", "--", "a text", "more"],
    ],
)
def test_options_and_words_come_in_any_order(words) -> None:
    args = _find_run("predict", words[1:])
    assert (args.run, args.logs, args.inputs) == ("R", "L", ["a text", "more"])


def test_a_flag_may_stand_alone_or_take_a_value() -> None:
    for words, expected in (
        (["--force", "R"], True),
        (["R", "--force"], True),
        (["--force", "false", "R"], False),
        (["--force=yes", "R"], True),
    ):
        args = _find_run("export", words)
        assert (args.run, convert("force", bool, args.force, text=True)) == ("R", expected)


def test_help_says_which_recipe_takes_what(karpa, capsys) -> None:
    for verb, lines in {
        "evaluate": [
            "cifar10-cnn, mnist-mlp: --attack {none,fgsm,pgd}",
            "options of every recipe: --data TEXT",
        ],
        "export": [
            "mlm-gru: --top_k N",
            "multi-task: int8: a quarter of the size. (default: none); cifar10-cnn, mnist-mlp: With",
        ],
        "predict": ["mlm-gru: --top_k N", "--input FILE", "INPUTS Inputs; else standard input."],
        "explain": ["INPUTS Image files"],
    }.items():
        with pytest.raises(SystemExit):
            karpa(verb, "--help")
        text = " ".join(capsys.readouterr().out.split())
        for line in lines:
            assert line in text, text


def test_help_behind_a_run_is_that_of_its_recipe(trained, classified, karpa, capsys) -> None:
    for run, given, other in (
        (trained, "--top_k N", "--attack"),
        (classified, "--data TEXT", "--top_k"),
    ):
        verb = "predict" if run is trained else "evaluate"
        for words in ([run, "--help"], ["-h", run]):
            with pytest.raises(SystemExit):
                karpa(verb, *words)
            text = capsys.readouterr().out
            assert given in text and other not in text
    assert "logs/none" in karpa("evaluate", "logs/none", "--help").err


@pytest.mark.parametrize("words", [["predict", "[" + "0, " * 500 + "0]"], ["evaluate", "x" * 5000]])
def test_what_is_no_path_by_its_length_is_a_sentence(words: list[str], karpa) -> None:
    result = karpa(*words)
    assert result.status == 2
    assert f"{words[0]} takes a path where it got something longer than any: {words[1][:60]}" in result.err


def test_json_has_no_nan(capsys) -> None:
    _done(Namespace(json=True), {"metrics": {"f1": math.nan, "loss": math.inf}, "text": "é中"})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "metrics": {"f1": None, "loss": None},
        "text": "é中",
    }
