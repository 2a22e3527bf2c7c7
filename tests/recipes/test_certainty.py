"""The temperature of a run's probabilities, and `--unknown_rate`: from training to what is served."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from karpa_tf.export.loader import load_signature
from karpa_tf.judging.classification import softmax
from karpa_tf.judging.mixtures import best_temperature
from karpa_tf.recipe import find_recipe
from karpa_tf.training.run_folder import RunFolder
from tests.conftest import BERT_TINY, TINY_DIGITS, make_images, make_intents, write_csv

KNOWN = ["known", "unknown_score"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run of bert-classifier that says what is unknown; tests only read it."""
    from karpa_tf.cli import main

    folder = tmp_path_factory.mktemp("unknown")
    data = write_csv(folder / "intents.csv", make_intents(300))
    words = ["--data", data, *BERT_TINY, "--epochs", 3, "--unknown_rate", 0.05, "--logs", folder / "logs"]
    assert main([str(word) for word in ("train", "bert-classifier", *words)]) == 0
    return folder / "logs" / "bert-classifier" / "1"


@pytest.fixture(scope="module")
def images(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of mnist-mlp, on the digits of the conftest."""
    from karpa_tf.cli import main

    logs = tmp_path_factory.mktemp("unknown_images")
    data = digits.parents[2] / "digits.npz"
    words = ["--data", data, *TINY_DIGITS, "--unknown_rate", 0.1, "--test_flip", "true", "--logs", logs]
    assert main([str(word) for word in ("train", "mnist-mlp", *words)]) == 0
    return logs / "mnist-mlp" / "1"


def noted(run: Path) -> dict[str, Any]:
    return json.loads((run / "assets" / "certainty.json").read_text())


def test_probabilities_have_the_temperature_of_validation(classified, karpa, tmp_path) -> None:
    fitted = noted(classified)
    assert set(fitted) == {"temperature", "rows"} and fitted["rows"] == 30
    old = shutil.copytree(classified, tmp_path / "logs" / "bert-classifier" / "1")
    (old / "assets" / "certainty.json").unlink()  # a run of an earlier version
    each = [
        karpa("predict", run, "play music", "zzz", "--json").json["predictions"] for run in (classified, old)
    ]
    for now, before in zip(*each, strict=True):
        logits = np.log([before["probabilities"]]) / fitted["temperature"]
        np.testing.assert_allclose(now["probabilities"], softmax(logits)[0], atol=1e-5)
        assert now["label"] == before["label"] and set(now) == {"label", "probabilities"}
    said = [karpa("evaluate", run, "--json").json for run in (classified, old)]
    assert said[0]["metrics"]["accuracy"] == said[1]["metrics"]["accuracy"]
    assert f"{said[1]['metrics']['ece']:.4f}" in said[0]["facts"]["temperature"]
    assert "temperature" not in said[1]["facts"]


@pytest.mark.parametrize("name", ["texts", "images"])
def test_exports_say_what_is_unknown_as_the_run_does(name: str, request, karpa, tmp_path) -> None:
    run = request.getfixturevalue(name)
    result = karpa("export", run, "--to", tmp_path, "--json")
    assert result.status == 0, result.err
    outputs = result.json["signatures"]["serving_default"]["outputs"]
    assert [outputs[key] for key in KNOWN] == ["bool [n]", "float32 [n]"]
    model = Path(result.json["savedmodel"])
    threshold = json.loads((model / "assets" / "unknown.json").read_text())
    fitted = noted(run)["unknown"]
    assert threshold == {key: fitted[key] for key in ("score", "threshold", "rate")}
    assert json.loads((model / "assets.extra" / "rowwise.json").read_text())["signatures"]["serving_default"][
        "rowwise"
    ]
    card = (model / "assets.extra" / "model_card.md").read_text()
    assert f"temperature of {noted(run)['temperature']:.4g}" in card
    assert f"above {fitted['threshold']:.6g}" in card
    recipe = find_recipe(run.parent.name).load()
    served, own = load_signature(model), recipe.signature(RunFolder(run), recipe.about.predict())
    if name == "texts":
        rows = {
            "text": np.array(
                [text.encode() for text, _ in make_intents(20, 5)] + [b"zz \xf0\x9f\x99\x82"], object
            )
        }
    else:
        rows = {"image": make_images(20, 10, 1, seed=5)[0].astype(np.float32)}
    ours, theirs = own(rows), served(rows)
    np.testing.assert_allclose(ours["unknown_score"], theirs["unknown_score"], atol=1e-5)
    assert (ours["known"] == (ours["unknown_score"] <= np.float32(fitted["threshold"]))).all()
    assert (ours["known"] == theirs["known"]).all()


def test_evaluate_counts_rows_of_other_labels_as_unknown(texts, karpa, tmp_path) -> None:
    rows = [*make_intents(60, 7), *((f"{'qwxz ' * (n % 5 + 1)}{n}", "nonsense") for n in range(30))]
    result = karpa("evaluate", texts, "--data", write_csv(tmp_path / "open.csv", rows), "--json")
    assert result.status == 0, result.err
    metrics, beside = result.json["metrics"], result.json["baselines"]["maximum softmax"]
    names = {"called_unknown", "open_f1", "unknown_f1", "unknown_auroc"}
    assert names <= set(metrics) and names == set(beside)
    assert metrics["unknown_auroc"] > 0.8 and metrics["accuracy"] > 0.9
    assert result.json["facts"]["rows"] == 60
    assert "30, which count as unknown" in result.json["facts"]["rows of other labels"]
    nothing = write_csv(tmp_path / "none.csv", rows[60:])
    assert "No row is of a label that the run has, as " in karpa("evaluate", texts, "--data", nothing).err


def test_known_rows_are_seldom_called_unknown(texts, images, karpa) -> None:
    for run, rate in ((texts, 0.05), (images, 0.1)):
        metrics = json.loads((run / "metrics.json").read_text())
        assert metrics["called_unknown"] <= rate + 0.15  # of 30 rows
        assert f"{rate:.2%} being meant" in metrics["facts"]["called unknown"]
        assert metrics["baselines"]["maximum softmax"]["called_unknown"] <= rate + 0.15


def test_predict_says_what_is_unknown(texts, karpa, tmp_path) -> None:
    run = shutil.copytree(texts, tmp_path / "bert-classifier" / "1")
    fitted = noted(run)
    fitted["unknown"]["threshold"] = -1e9
    (run / "assets" / "certainty.json").write_text(json.dumps(fitted))
    assert "  unknown (" in karpa("predict", run, "play music").out
    fitted["unknown"]["threshold"] = 1e9
    (run / "assets" / "certainty.json").write_text(json.dumps(fitted))
    assert "unknown" not in karpa("predict", run, "play music").out


def test_too_few_rows_to_set_a_threshold_on(karpa, tmp_path) -> None:
    data = write_csv(tmp_path / "few.csv", make_intents(60))
    words = ["--data", data, *BERT_TINY, "--unknown_rate", 0.05, "--logs", tmp_path / "logs"]
    result = karpa("train", "bert-classifier", *words)
    assert result.status == 2 and not (tmp_path / "logs" / "bert-classifier").exists()
    assert "needs 20 of them at least" in result.err and "Received: 6." in result.err


def test_an_ensemble_has_no_score(images, karpa, tmp_path) -> None:
    """Its members are calibrated, and its probabilities are their mean."""
    other = shutil.copytree(images, tmp_path / "other" / "mnist-mlp" / "1")
    result = karpa("ensemble", images, other, "--logs", tmp_path / "logs", "--json")
    assert result.status == 0, result.err
    run = tmp_path / "logs" / "mnist-mlp" / "1"
    assert not (run / "assets" / "certainty.json").exists()
    assert "unknown_rate: 0.0" in (run / "config.yaml").read_text()
    assert json.loads((run / "metrics.json").read_text())["ece"] == pytest.approx(
        json.loads((images / "metrics.json").read_text())["ece"], abs=1e-4
    )


def test_a_mean_of_weights_fits_its_own(images, karpa, tmp_path) -> None:
    other = shutil.copytree(images, tmp_path / "other" / "mnist-mlp" / "1")
    fitted = {**noted(images), "temperature": 7.0}
    (other / "assets" / "certainty.json").write_text(json.dumps(fitted))
    result = karpa("interpolate", other, images, "--logs", tmp_path / "logs", "--json")
    assert result.status == 0, result.err
    found = noted(tmp_path / "logs" / "mnist-mlp" / "1")
    recipe: Any = find_recipe("mnist-mlp").load()
    run = RunFolder(tmp_path / "logs" / "mnist-mlp" / "1")
    labels, read = recipe.reader(
        run, recipe.open_data(run.open_config(recipe.about.settings)).splits["validation"]
    )
    expected = best_temperature(read(recipe.judged(run)), labels)
    assert found["temperature"] == pytest.approx(expected, rel=1e-4)
    assert found["unknown"]["score"] == noted(images)["unknown"]["score"]
