"""Versions that appear, vanish or are broken, while a client goes on asking."""

from __future__ import annotations

import shutil
import weakref

import pytest

from karpa_tf.errors import UserError
from karpa_tf.serving.registry import models_in, versions_in
from tests.serving.conftest import Running, save_add, until

CONFIG = """
model_config_list {{
  config {{
    name: "add" base_path: "{models}/add" model_platform: "tensorflow"
    {more}
  }}
}}
"""


def write_config(models, more: str = "") -> str:
    path = models.parent / "models.config"
    path.write_text(CONFIG.format(models=models, more=more), encoding="utf-8")
    return str(path)


def test_a_folder_of_models_is_served_whole_and_grows(models) -> None:
    with Running(models) as server:
        assert server.status() == {"2": "AVAILABLE", "1": "AVAILABLE"}
        assert server.predict([1], where="/versions/1") == [2]
        save_add(models / "add", 3)
        until(lambda: server.predict([1]) == [4], "version 3 answers")
        assert server.predict([1], where="/versions/1") == [2]
        save_add(models / "more", 5)
        until(lambda: server.status("more") == {"5": "AVAILABLE"}, "a new model is served")
        shutil.rmtree(models / "more")
        until(lambda: server.status("more") == {"5": "END"}, "a model that is taken away is not")


def ready(server: Running) -> int:
    return server.get("/readyz").status


def test_a_model_without_versions_is_not_ready_and_one_taken_away_is_not_asked_for(models) -> None:
    with Running(models) as server:
        assert ready(server) == 200
        (models / "words" / "1").rename(models.parent / "words-1")
        until(lambda: ready(server) == 503, "a model has lost its versions")
        assert server.get("/healthz").status == 200
        (models.parent / "words-1").rename(models / "words" / "1")
        until(lambda: ready(server) == 200, "they are back")
        shutil.rmtree(models / "words")
        until(lambda: server.status("words") == {"1": "END"}, "the model is taken away")
        assert ready(server) == 200


@pytest.mark.parametrize("configured", [True, False])
def test_the_one_model_without_versions_is_not_ready(models, configured: bool) -> None:
    how = {"model_config_file": write_config(models)} if configured else {"folder": models / "add"}
    with Running(**how) as server:
        assert ready(server) == 200
        for version in ("1", "2"):
            (models / "add" / version).rename(models.parent / version)
        until(lambda: ready(server) == 503, "the model has lost its versions")
        save_add(models / "add", 3)
        until(lambda: ready(server) == 200, "a version is back")
        assert server.predict([1]) == [4]


def test_the_newest_version_replaces_the_old_one_and_back(models) -> None:
    shutil.rmtree(models / "add" / "2")
    with Running(model_config_file=write_config(models)) as server:
        assert server.status() == {"1": "AVAILABLE"}
        first = weakref.ref(server.server.registry.find("add").signature("").owner)
        save_add(models / "add", 2)
        # No prediction fails on the way: one of the two always answers.
        until(lambda: server.predict([1]) == [3], "version 2 answers")
        until(lambda: server.status() == {"2": "AVAILABLE", "1": "END"}, "version 1 is unloaded")
        until(lambda: first() is None, "its memory is given back")
        (models / "add" / "2").rename(models / "away")
        until(lambda: server.predict([1]) == [2], "version 1 answers again")
        until(lambda: server.status() == {"2": "END", "1": "AVAILABLE"}, "version 2 is unloaded")
        shutil.rmtree(models / "add" / "1")
        until(lambda: server.status() == {"2": "END", "1": "END"}, "nothing is left")
        assert server.post("/v1/models/add:predict", {"instances": [1]}).status == 404
        (models / "away").rename(models / "add" / "2")
        until(lambda: server.status()["2"] == "AVAILABLE", "it comes back")


def test_a_broken_version_takes_nothing_down_and_says_why(models) -> None:
    shutil.rmtree(models / "add" / "2")
    with Running(model_config_file=write_config(models)) as server:
        half = models / "add" / "2"
        shutil.copytree(models / "add" / "1" / "variables", half / "variables")
        until(lambda: server.status().get("2") == "END", "the half-written version is given up")
        (first, second) = server.get("/v1/models/add").json["model_version_status"]
        assert first["status"]["error_code"] == "NOT_FOUND"
        assert "no saved_model.pb" in first["status"]["error_message"]
        assert second == {
            "version": "1",
            "state": "AVAILABLE",
            "status": {"error_code": "OK", "error_message": ""},
        }
        assert server.predict([1]) == [2]
        # Completed, it is taken at the next look, without waiting for the retry.
        shutil.copy(models / "add" / "1" / "saved_model.pb", half)
        until(lambda: server.status() == {"2": "AVAILABLE", "1": "END"}, "the whole version is served")


def test_variables_that_are_missing(models) -> None:
    for file in (models / "add" / "2" / "variables").iterdir():
        file.unlink()
    with Running(models) as server:
        assert server.status() == {"2": "END", "1": "AVAILABLE"}
        error = server.get("/v1/models/add/versions/2").json["model_version_status"][0]["status"]
        assert error["error_code"] != "OK" and "variables" in error["error_message"]


def test_a_start_beside_a_broken_newest_version(models) -> None:
    (models / "add" / "2" / "saved_model.pb").write_bytes(b"garbage")
    with Running(model_config_file=write_config(models)) as server:
        assert server.predict([1]) == [2]
        assert server.status() == {"2": "END", "1": "AVAILABLE"}


def test_a_failed_version_is_tried_again(models, monkeypatch) -> None:
    from karpa_tf.serving import server as module
    from karpa_tf.serving.refusal import Refusal

    load, tries = module.load_model, []

    def flaky(name, version, path, **options):
        tries.append(version)
        if len(tries) < 3:
            raise Refusal("UNAVAILABLE", "the disk is busy")
        return load(name, version, path, **options)

    monkeypatch.setattr(module, "load_model", flaky)
    shutil.rmtree(models / "words")
    shutil.rmtree(models / "add" / "2")
    with Running(models, load_retry_interval_micros=0) as server:
        until(lambda: server.status() == {"1": "AVAILABLE"}, "the third try succeeds")
    assert tries == [1, 1, 1]


def test_labels_lead_to_versions_and_back(models) -> None:
    labels = 'version_labels {{ key: "stable" value: {} }} model_version_policy {{ all {{}} }}'
    config = write_config(models, labels.format(2))
    with Running(model_config_file=config, model_config_file_poll_wait_seconds=1) as server:
        assert server.predict([1], where="/labels/stable") == [3]
        write_config(models, labels.format(1))
        until(lambda: server.predict([1], where="/labels/stable") == [2], "the label leads back")
        # What cannot be followed changes nothing.
        write_config(models, labels.format(9))
        (models.parent / "models.config").write_text("nonsense", encoding="utf-8")
        assert server.predict([1], where="/labels/stable") == [2]


def test_a_label_needs_its_version(models) -> None:
    config = write_config(models, 'version_labels { key: "next" value: 7 }')
    with pytest.raises(UserError, match='label "next" of model add is for version 7, which is not served'):
        Running(model_config_file=config)
    with Running(model_config_file=config, allow_version_labels_for_unavailable_models=True) as server:
        assert server.post("/v1/models/add/labels/next:predict", {"instances": [1]}).status == 404


def test_policies(models) -> None:
    save_add(models / "add", 3)
    for policy, wanted in (
        ("latest { num_versions: 2 }", {"3", "2"}),
        ("specific { versions: 1 versions: 8 }", {"1"}),
        ("all {}", {"3", "2", "1"}),
    ):
        config = write_config(models, f"model_version_policy {{ {policy} }}")
        with Running(model_config_file=config) as server:
            assert set(server.status()) == wanted, policy


def test_which_folders_are_versions(tmp_path) -> None:
    for name in ("1", "0003", "v2", "-2", "2.0", "tmp_3", "٤", ".5"):
        (tmp_path / "m" / name).mkdir(parents=True)
    (tmp_path / "m" / "9").write_text("a file")
    (tmp_path / "README.md").write_text("")
    (tmp_path / "empty").mkdir()
    assert {number: path.name for number, path in versions_in(tmp_path / "m").items()} == {1: "1", 3: "0003"}
    (tmp_path / "m-onnx" / "1").mkdir(parents=True)
    (tmp_path / "m-onnx" / "1" / "model.onnx").write_bytes(b"")
    assert models_in(tmp_path) == {"m": tmp_path / "m"}
    assert models_in(tmp_path / "m") == {"m": tmp_path / "m"}


def test_warm_up_is_replayed(templates, tmp_path) -> None:
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    version = tmp_path / "models" / "add" / "1"
    shutil.copytree(templates / "add" / "1", version)
    (version / "assets.extra").mkdir()

    def write(signature: str) -> None:
        request = predict_pb2.PredictRequest()
        request.model_spec.signature_name = signature
        request.inputs["x"].CopyFrom(tf.make_tensor_proto([1.0]))
        log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
        with tf.io.TFRecordWriter(str(version / "assets.extra" / "tf_serving_warmup_requests")) as writer:
            writer.write(log.SerializeToString())

    write("serving_default")
    with Running(tmp_path / "models") as server:
        assert server.status() == {"1": "AVAILABLE"}
    # A model that cannot answer its own warm-up requests is not served.
    write("nope")
    with Running(tmp_path / "models") as server:
        assert server.status() == {"1": "END"}
    with Running(tmp_path / "models", enable_model_warmup=False) as server:
        assert server.status() == {"1": "AVAILABLE"}
