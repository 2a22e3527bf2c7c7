"""Resume and `--init` never go on with something else, and what fails leaves nothing behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from karpa_tf.training.run_folder import lock_folder
from tests.conftest import BERT_TINY, TINY, TINY_DIGITS, TINY_TABLE, make_text


def copy_of(run: Path, logs: Path, data: Path | None = None) -> Path:
    """Copies a run; `data`: where its data is now."""
    target = logs / run.parent.name / "1"
    shutil.copytree(run, target)
    (target / "metrics.json").unlink()
    if data:
        path = target / "config.yaml"
        values = yaml.safe_load(path.read_text()) | {"data": str(data)}
        path.write_text(yaml.safe_dump(values))
    return target


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def renamed_label(text: str) -> str:
    return text.replace(",music", ",songs")


def appended_rows(text: str) -> str:
    return text + "".join(f"play the {number}th song of Eva,music\n" for number in range(40))


def one_word(text: str) -> str:
    return text.replace("ate", "eats", 1)


@pytest.mark.parametrize(
    ("fixture", "change", "said"),
    [
        ("classified", renamed_label, "(no music any more; new: songs)"),
        ("classified", appended_rows, "instead of"),
        ("tagged", lambda text: text.replace("B-CITY", "B-TOWN"), "new: B-TOWN, I-TOWN"),
        ("trained", one_word, "is not the data that"),
    ],
    ids=["a renamed label", "appended rows", "a renamed type", "another word"],
)
def test_a_run_does_not_go_on_with_other_data(fixture, change, said, karpa, request, tmp_path) -> None:
    run = request.getfixturevalue(fixture)
    source = Path(yaml.safe_load((run / "config.yaml").read_text())["data"])
    changed = tmp_path / source.name
    changed.write_text(change(source.read_text()))
    copy = copy_of(run, tmp_path, changed)
    before = contents(copy)
    result = karpa("train", run.parent.name, "--resume", copy)
    assert result.status == 2 and said in result.err and f"--init {copy}" in result.err
    assert len(result.err.strip().splitlines()) == 1
    assert contents(copy) == before
    # With the data that it began with it goes on.
    changed.write_text(source.read_text())
    assert karpa("train", run.parent.name, "--resume", copy).status == 0


def test_renamed_class_folders_and_changed_pixels_are_other_data(digits, karpa, tmp_path) -> None:
    with np.load(digits.parents[2] / "digits.npz") as file:
        x, y = file["x_train"], file["y_train"]
    names = np.array(["cat", "dog", "owl"])[y]
    for name, labels, said in (
        ("pixels", y, "as many of them, but others"),
        ("names", names, "new: cat, dog"),
    ):
        np.savez(tmp_path / f"{name}.npz", x_train=x[::-1] if name == "pixels" else x, y_train=labels)
        copy = copy_of(digits, tmp_path / name, tmp_path / f"{name}.npz")
        result = karpa("train", "mnist-mlp", "--resume", copy)
        assert result.status == 2 and said in result.err, result.err


@pytest.mark.slow
def test_init_latest_is_the_run_that_was_the_latest(text_file, karpa, tmp_path) -> None:
    words = ["train", "mlm-gru", *TINY, "--data", text_file, "--epochs", 1, "--logs", tmp_path]
    assert karpa(*words).status == 0
    result = karpa(*words, "--init", "mlm-gru/latest")
    assert result.status == 0, result.err
    second = yaml.safe_load((tmp_path / "mlm-gru" / "2" / "config.yaml").read_text())
    assert second["init"] == str((tmp_path / "mlm-gru" / "1").resolve())
    assert karpa(*words, "--init", "mlm-gru/latest").status == 0
    third = yaml.safe_load((tmp_path / "mlm-gru" / "3" / "config.yaml").read_text())
    assert third["init"] == str((tmp_path / "mlm-gru" / "2").resolve())


def other_vocabulary(run: Path, folder: Path) -> Path:
    pieces = (run / "assets" / "vocab.txt").read_text().splitlines()
    path = folder / "vocab.txt"
    path.write_text("\n".join([*pieces[:-1], "zebra"]) + "\n")
    return path


def short_text(tmp_path: Path) -> list[object]:
    path = tmp_path / "other.txt"
    path.write_text(make_text(400, seed=9))
    return ["mlm-gru", *TINY, "--data", path, "--epochs", 1]


def test_appended_data_goes_through_init(classified, trained, karpa, tmp_path) -> None:
    """The new run has the vocabulary of the old one, and begins with its weights."""
    more = tmp_path / "more.csv"
    more.write_text(appended_rows((classified.parents[2] / "intents.csv").read_text()))
    texts = ["bert-classifier", *BERT_TINY, "--data", more, "--epochs", 1]
    for words, run in ((texts, classified), (short_text(tmp_path), trained)):
        result = karpa("train", *words, "--init", run, "--logs", tmp_path, "--json")
        assert result.status == 0, result.err
        new = Path(result.json["run"])
        assert (new / "assets" / "vocab.txt").read_bytes() == (run / "assets" / "vocab.txt").read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (lambda run, tmp: [*short_text(tmp), "--init", "mlm-gru/latest"], "There is no run of mlm-gru"),
        (
            lambda run, tmp: [*short_text(tmp), "--init", run, "--vocabulary", other_vocabulary(run, tmp)],
            "has another vocabulary",
        ),
        (lambda run, tmp: [*short_text(tmp), "--init", run, "--lowercase", "false"], "lowercase true"),
        (
            lambda run, tmp: ["mnist-mlp", *TINY_DIGITS, "--epochs", 1, "--init", run],
            "is a run of mlm-gru, not of mnist-mlp, and has other labels",
        ),
        (lambda run, tmp: ["q-learning", *TINY_TABLE, "--env", "CartPole-v1"], "CartPole-v1"),
        (
            lambda run, tmp: ["bert-classifier", *BERT_TINY, "--preset", tmp / "none", "--method", "lora"],
            "none",
        ),
    ],
    ids=[
        "no such run",
        "another vocabulary",
        "upper case",
        "another model",
        "another environment",
        "no preset",
    ],
)
def test_what_fails_before_its_first_step_leaves_nothing(words, said, karpa, trained, tmp_path) -> None:
    logs = tmp_path / "logs"
    result = karpa("train", *words(trained, tmp_path), "--logs", logs)
    assert result.status == 2 and not logs.exists()
    import re

    assert re.search(said, result.err), result.err


def test_a_run_that_is_being_trained_is_left_alone(trained, karpa, tmp_path) -> None:
    copy = copy_of(trained, tmp_path)
    before = contents(copy)
    lock = lock_folder(copy)
    result = karpa("train", "mlm-gru", "--resume", copy, "--epochs", 9)
    assert result.status == 2 and "trained into by another process" in result.err
    assert contents(copy) == before
    lock.release()


Damage = Callable[[dict], object]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda values: values | {"format": 99}, "has format 99, and this version of karpa_tf reads up to 1"),
        (lambda values: values | {"units_": 4}, 'no field "units_"; did you mean "units"?'),
        (lambda values: values | {"epochs": "ten"}, "epochs must be a whole number. Received: ten."),
        (lambda values: values | {"dropout": float("nan")}, "dropout must be a finite number. Received: nan"),
        (lambda values: ["a", "list"], "it holds no fields"),
        (lambda values: values | {"seed": 2**32}, "seed must be at least 0 and below 4294967296"),
    ],
)
def test_settings_of_another_version_are_one_sentence(damage: Damage, said, trained, karpa, tmp_path) -> None:
    copy = copy_of(trained, tmp_path)
    path = copy / "config.yaml"
    path.write_text(yaml.safe_dump(damage(yaml.safe_load(path.read_text()))))
    for command in (["evaluate", copy], ["train", "mlm-gru", "--resume", copy]):
        result = karpa(*command)
        assert result.status == 2 and said in result.err, result.err
        assert len(result.err.strip().splitlines()) == 1


def test_a_run_of_an_older_version_opens(trained, karpa, tmp_path) -> None:
    """Without a format, and without a field that came later."""
    copy = copy_of(trained, tmp_path)
    values = yaml.safe_load((copy / "config.yaml").read_text())
    assert values.pop("format") == 1 and values.pop("ema") == 0.99
    (copy / "config.yaml").write_text(yaml.safe_dump(values))
    assert karpa("evaluate", copy).status == 0
    assert karpa("train", "mlm-gru", *TINY, "--config", copy / "config.yaml", "--logs", tmp_path).status == 0


def test_one_damaged_run_is_a_line_of_the_table(trained, karpa, tmp_path) -> None:
    copy = copy_of(trained, tmp_path)
    shutil.copytree(copy, tmp_path / "mlm-gru" / "2")
    (copy / "config.yaml").write_text("epochs: [")
    (tmp_path / "mlm-gru" / "2" / "metrics.json").write_text("{")
    shutil.copytree(trained, tmp_path / "mlm-gru" / "3")
    result = karpa("runs", "--logs", tmp_path)
    assert result.status == 0
    lines = result.out.splitlines()
    assert sum("damaged: " in line for line in lines) == 2 and sum("finished" in line for line in lines) == 1
    rows = karpa("runs", "--logs", tmp_path, "--json").json["runs"]
    assert [row["status"] for row in rows] == ["damaged", "damaged", "finished"]


def test_a_run_whose_settings_are_gone_is_a_line_too(trained, karpa, tmp_path) -> None:
    for number, text in (("1", None), ("2", "[1]")):
        run = shutil.copytree(trained, tmp_path / "mlm-gru" / number)
        if text is None:
            (run / "config.yaml").unlink()
        else:
            (run / "metrics.json").write_text(text)
    result = karpa("runs", "--logs", tmp_path)
    assert result.status == 0 and result.out.count("  damaged: ") == 2


def test_a_key_given_twice_is_refused(karpa, tmp_path) -> None:
    (tmp_path / "mine.yaml").write_text("epochs: 1\nepochs: 2\n")
    result = karpa("train", "mlm-gru", "--config", tmp_path / "mine.yaml", "--logs", tmp_path)
    assert result.status == 2 and '"epochs" is given more than once' in result.err


@pytest.mark.parametrize(("fixture", "name"), [("classified", "labels.json"), ("digits", "labels.json")])
def test_labels_that_were_changed_are_noticed(fixture, name, karpa, request, tmp_path) -> None:
    copy = copy_of(request.getfixturevalue(fixture), tmp_path)
    path = copy / "assets" / name
    labels = json.loads(path.read_text())
    for damaged in (labels[::-1], labels[:-1], {}, "x"):
        path.write_text(json.dumps(damaged))
        result = karpa("evaluate", copy)
        assert result.status == 2 and "its labels are not those" in result.err, result.err


def test_without_its_note_of_the_data_a_run_does_not_go_on(trained, karpa, tmp_path) -> None:
    copy = copy_of(trained, tmp_path)
    (copy / "assets" / "data.json").unlink()
    result = karpa("train", "mlm-gru", "--resume", copy)
    assert result.status == 2 and "data.json cannot be read" in result.err


def test_a_run_in_a_folder_of_another_name(trained, karpa, tmp_path) -> None:
    shutil.copytree(trained, tmp_path / "mine" / "1")
    result = karpa("evaluate", tmp_path / "mine" / "1")
    assert result.status == 2 and "a run lies in LOGS/RECIPE/NUMBER" in result.err
