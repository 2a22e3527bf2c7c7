"""`karpa-tf rollout` writes what a server reads."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tensorflow as tf

from karpa_tf.serving.config_files import read_models
from tests.serving.conftest import Running, until


def served(server: Running) -> dict[str, float]:
    """What each label answers to 0: the number of its version."""
    answers = {}
    for label in ("stable", "canary"):
        answer = server.post(f"/v1/models/add/labels/{label}:predict", {"instances": [0.0]})
        answers[label] = answer.json["predictions"][0] if answer.status == 200 else None
    return answers


def test_a_server_follows_from_canary_to_promotion_and_back(karpa, models: Path) -> None:
    folder, config = models / "add", models / "models.config"
    result = karpa("rollout", folder, "--stable", 1, "--json")
    assert result.status == 0 and result.json["labels"] == {"stable": 1}, result.err
    options = {"model_config_file_poll_wait_seconds": 1, "allow_version_labels_for_unavailable_models": True}
    with Running(model_config_file=str(config), **options) as server:
        assert served(server) == {"stable": 1.0, "canary": None}
        for words, labels in (
            (["--canary", 2], {"stable": 1.0, "canary": 2.0}),
            (["--rollback"], {"stable": 1.0, "canary": None}),
            (["--stable", 1, "--canary", 2], {"stable": 1.0, "canary": 2.0}),
            (["--promote"], {"stable": 2.0, "canary": None}),
            (["--stable", 1], {"stable": 1.0, "canary": None}),
        ):
            assert karpa("rollout", folder, *words).status == 0
            until(lambda labels=labels: served(server) == labels, f"{words}: {labels}")


def test_other_models_and_paths_of_the_file_stay(karpa, models: Path) -> None:
    config = models / "served.config"
    config.write_text(
        'model_config_list { config { name: "words" base_path: "/models/words" }'
        ' config { name: "add" base_path: "/models/add" model_platform: "tensorflow" } }'
    )
    result = karpa("rollout", models / "add", "--stable", 2, "--config", config)
    assert result.status == 0 and f"{config}: add, stable: version 2" in result.out
    words, add = read_models(str(config)).model_config_list.config
    assert (words.name, words.base_path, words.model_platform) == ("words", "/models/words", "")
    assert (add.base_path, [*add.model_version_policy.specific.versions]) == ("/models/add", [2])


def test_a_version_that_takes_something_else_is_refused(karpa, models: Path) -> None:
    folder = models / "add"
    shutil.copytree(models / "words" / "1", folder / "3")
    module = tf.Module()
    spec = tf.TensorSpec([None], tf.int64, "x")
    module.add = tf.function(lambda x: {"y": x, "more": x}, input_signature=[spec])
    tf.saved_model.save(module, str(folder / "4"), signatures={"serving_default": module.add})
    (folder / "5").mkdir()
    (folder / "5" / "saved_model.pb").write_bytes(b"nothing of the kind")
    for words, says in (
        (["--canary", 2], "has no stable version of add yet: say which one with --stable N."),
        (["--promote"], "has no canary of add: begin one with --stable N --canary M."),
        (["--stable", 1, "--canary", 1], "Received: 1 for both."),
        (["--stable", 1, "--canary", 9], "has no version 9. It has: 1, 2, 3, 4, 5."),
        (["--stable", 1, "--canary", 3], "has no signature"),
        (
            ["--stable", 4, "--canary", 1],
            "in the inputs of serving_default: x is float [?] and was int64 [?].",
        ),
        (["--stable", 1, "--canary", 5], "it is no SavedModel."),
        ([], "rollout takes --stable N, --canary N, --share 10%, --promote or --rollback."),
        (["--promote", "--stable", 1], "exclude each other"),
    ):
        result = karpa("rollout", folder, *words)
        assert result.status == 2 and says in result.err, result.err
    assert not (models / "models.config").exists()
    # A version may give more than the one before, and not less.
    module.less = tf.function(lambda x: {"y": x}, input_signature=[spec])
    tf.saved_model.save(module, str(folder / "6"), signatures={"serving_default": module.less})
    assert karpa("rollout", folder, "--stable", 6, "--canary", 4).status == 0
    # As probabilities are, once a label has been learned.
    for version, size in (("7", 2), ("8", 3)):
        module.wide = tf.function(lambda x, size=size: {"y": tf.one_hot(x, size)}, input_signature=[spec])
        tf.saved_model.save(module, str(folder / version), signatures={"serving_default": module.wide})
    assert karpa("rollout", folder, "--stable", 7, "--canary", 8).status == 0
    result = karpa("rollout", folder, "--stable", 8, "--canary", 7)
    assert result.status == 2 and "y is float [?, 2] and was float [?, 3]." in result.err
    result = karpa("rollout", folder, "--stable", 4, "--canary", 6)
    assert (
        result.status == 2
        and "outputs of serving_default: more is not there and was int64 [?]." in result.err
    )


@pytest.mark.parametrize("word", ["models.config", "models"])
def test_a_file_that_cannot_be_written_is_one_sentence(karpa, models: Path, word: str) -> None:
    result = karpa("rollout", models / "add", "--stable", 1, "--config", models / "none" / word)
    assert result.status == 2 and "make the folder that it belongs into first" in result.err
