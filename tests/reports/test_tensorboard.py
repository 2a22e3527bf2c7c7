from __future__ import annotations

import re
import socket
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorboard.plugins.custom_scalar import layout_pb2, metadata
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams import metadata as hparams

from karpa_tf.reports.tensorboard import (
    TensorBoard,
    cut_events,
    write_final,
    write_histogram,
    write_hparams,
    write_projector,
)
from tests.conftest import BERT_TINY
from tests.events import read_events, read_values, tags_of

DOCUMENT = Path(__file__).parents[2] / "docs" / "tensorboard.md"


def write_steps(folder: Path, steps: Iterable[int]) -> None:
    with tf.summary.create_file_writer(str(folder)).as_default():
        for step in steps:
            tf.summary.scalar("loss", 1.0 / (step + 1), step)


def steps_of(folder: Path) -> list[int]:
    return [event.step for event in read_events(folder) if event.summary.value]


# --- The tags -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pretrained(intents_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of bert-classifier that has learned masked words first."""
    from karpa_tf.cli import main

    logs = tmp_path_factory.mktemp("pretrained")
    words = ["--data", intents_file, "--epochs", 1, "--pretrain_data", "same", "--pretrain_epochs", 2]
    words += ["--batch_size", 4, "--logs", logs]
    assert main(["train", "bert-classifier", *BERT_TINY, *map(str, words)]) == 0
    return logs / "bert-classifier" / "1"


def test_document_lists_every_tag_and_no_other(
    trained: Path,
    classified: Path,
    pretrained: Path,
    tagged: Path,
    balanced: Path,
    frozen: Path,
    digits: Path,
    photos: Path,
) -> None:
    rows = re.findall(r"^\| `([^`]+)` \| (\w+) \|", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(set(rows)) == len(rows)
    written = {
        (tag, folder.name)
        for run in (trained, classified, pretrained, tagged, balanced, digits, photos, *frozen.glob("*/1"))
        for folder in (run, *run.iterdir())
        if folder.is_dir()
        for tag in tags_of(read_events(folder))
    }
    undocumented = [w for w in written if not any(matches(w, row) for row in rows)]
    unwritten = [row for row in rows if not any(matches(w, row) for w in written)]
    assert (undocumented, unwritten) == ([], [])


def test_each_recipe_has_charts_of_its_own(
    trained: Path, classified: Path, tagged: Path, balanced: Path, frozen: Path, digits: Path, photos: Path
) -> None:
    """In one folder TensorBoard joins the layouts, and a chart shows whatever tags it matches."""
    runs = (trained, classified, tagged, balanced, digits, photos, *frozen.glob("*/1"))
    written = {
        tag: run.parent.name
        for run in runs
        for folder in ("train", "validation")
        for tag in tags_of(read_events(run / folder))
    }
    charts = 0
    for run in runs:
        value = read_values(run / "hparams")[metadata.CONFIG_SUMMARY_TAG]
        assert value.metadata.plugin_data.plugin_name == metadata.PLUGIN_NAME
        layout = layout_pb2.Layout.FromString(tf.make_ndarray(value.tensor).item())
        (category,) = layout.category
        assert category.title == run.parent.name
        for chart in category.chart:
            for pattern in chart.multiline.tag:
                found = {recipe for tag, recipe in written.items() if re.match(pattern, tag)}
                assert found == {category.title}, (pattern, found)
                charts += 1
    assert charts >= 2 * len(runs)


def test_settings_that_are_defaults_are_left_out(trained: Path, balanced: Path) -> None:
    shown = [set(start_info(run / "hparams").hparams) for run in (trained, balanced)]
    assert {"data", "epochs", "batch_size", "learning_rate", "seed", "units"} <= shown[0]
    assert {"env", "environment_steps", "batch_size", "learning_rate", "seed", "updates"} <= shown[1]
    assert not {"clip_norm", "gamma", "strategy", "histograms"} & (shown[0] | shown[1])


def test_a_finished_run_says_so(trained: Path) -> None:
    texts = [
        value.tensor.string_val[0].decode()
        for event in read_events(trained / "hparams")
        for value in event.summary.value
        if value.tag == "status"
    ]
    assert re.fullmatch(r"begun \d{4}-\d\d-\d\d \d\d:\d\d", texts[0])
    assert len(texts) == 2 and re.fullmatch(r"finished after [\d,]+ steps", texts[1])
    content = read_values(trained / "hparams")[hparams.SESSION_END_INFO_TAG].metadata.plugin_data.content
    assert hparams.parse_session_end_info_plugin_data(content).status == api_pb2.STATUS_SUCCESS


@pytest.mark.parametrize(("which", "written"), [("few", [0, 2, 4, 6, 8, 10]), ("all", None), ("none", [])])
def test_histograms_are_a_few_all_or_none(which: str, written: list[int] | None, tmp_path: Path) -> None:
    weights = {f"weights/{i}": tf.ones([2, 3]) for i in range(11)} | {"weights/bias": tf.ones([3])}
    callback = TensorBoard(tmp_path, weights=lambda: weights, histograms=which)
    callback.on_train_begin()
    callback.on_epoch_end(0, {"loss": 1.0})
    callback.on_train_end()
    expected = set(weights) if written is None else {f"weights/{i}" for i in written}
    assert {tag for tag in tags_of(read_events(tmp_path / "train")) if tag[:8] == "weights/"} == expected


def test_a_port_that_is_taken_is_a_sentence(karpa, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = karpa("tensorboard", "--logs", tmp_path, "--port", port)
    assert result.status == 2
    assert f"could not bind to port {port}, it was already in use; give another --port" in result.err


def start_info(folder: Path) -> Any:
    content = read_values(folder)[hparams.SESSION_START_INFO_TAG].metadata.plugin_data.content
    return hparams.parse_session_start_info_plugin_data(content)


def matches(written: tuple[str, str], row: tuple[str, str]) -> bool:
    return fnmatchcase(written[0], row[0]) and written[1] == row[1]


def test_histograms_are_those_of_tensorflow(tmp_path: Path) -> None:
    values = tf.random.stateless_normal([50, 40], [1, 2])
    with tf.summary.create_file_writer(str(tmp_path)).as_default():
        for name, data in (("some", values), ("alike", tf.ones([3, 2]))):
            write_histogram(f"ours/{name}", data, 1)
            tf.summary.histogram(f"theirs/{name}", data, 1)
    found = {v.tag: v for event in read_events(tmp_path) for v in event.summary.value}
    for name in ("some", "alike"):
        ours, theirs = (tf.make_ndarray(found[f"{side}/{name}"].tensor) for side in ("ours", "theirs"))
        ours, theirs = (a[a[:, 2] > 0] for a in (ours, theirs))
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
        kinds = {found[f"{side}/{name}"].metadata.plugin_data.plugin_name for side in ("ours", "theirs")}
        assert kinds == {"histograms"}


def test_graph_is_written_once(trained: Path) -> None:
    graphs = [event.graph_def for event in read_events(trained / "train") if event.graph_def]
    assert len(graphs) == 1
    names = {node.name for node in tf.compat.v1.GraphDef.FromString(graphs[0]).node}
    assert any("gru" in name for name in names) and any("logits" in name for name in names)


def test_two_runs_of_equal_settings_stay_two(tmp_path: Path) -> None:
    names = set()
    for run in ("mlm-gru/1", "mlm-gru/2"):
        folder = tmp_path / run / "hparams"
        with tf.summary.create_file_writer(str(folder)).as_default():
            write_hparams({"units": 8, "data": "embedded", "mixed": True, "none": None}, run)
        write_final(tmp_path / run, {"loss": 2.0}, 7)
        events = read_events(folder)
        assert tags_of(events) == {hparams.SESSION_START_INFO_TAG, "final/loss"}
        for event in events:
            for value in event.summary.value:
                if value.tag == hparams.SESSION_START_INFO_TAG:
                    content = value.metadata.plugin_data.content
                    start = hparams.parse_session_start_info_plugin_data(content)
                    assert set(start.hparams) == {"units", "data", "mixed"}
                    names.add(start.group_name)
    assert names == {"mlm-gru/1", "mlm-gru/2"}


# --- Resume ---------------------------------------------------------------------------------------


def test_cut_takes_out_what_lies_beyond_the_step(tmp_path: Path) -> None:
    write_steps(tmp_path, range(0, 50, 10))
    write_steps(tmp_path, range(50, 80, 10))
    cut_events(tmp_path, 30)
    assert steps_of(tmp_path) == [0, 10, 20, 30]
    assert read_events(tmp_path)[0].file_version
    # Nothing is left over that TensorBoard would read.
    assert {path.name.split(".")[0] for path in tmp_path.iterdir()} == {"events"}


def test_cut_at_the_last_step_takes_nothing(tmp_path: Path) -> None:
    write_steps(tmp_path, range(5))
    before = read_events(tmp_path)
    cut_events(tmp_path, 4)
    assert read_events(tmp_path) == before


@pytest.mark.parametrize("lost", [1, 7, 20])
def test_cut_tolerates_a_record_that_was_not_finished(tmp_path: Path, lost: int) -> None:
    write_steps(tmp_path, range(5))
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(tf.errors.DataLossError):
        read_events(tmp_path)
    cut_events(tmp_path, 100)
    assert steps_of(tmp_path) == [0, 1, 2, 3]


def test_cut_tolerates_an_empty_file_and_a_missing_folder(tmp_path: Path) -> None:
    (tmp_path / "events.out.tfevents.1.host").touch()
    cut_events(tmp_path, 100)
    assert not list(tmp_path.iterdir())
    cut_events(tmp_path / "missing", 100)


def test_cut_at_none_takes_everything_and_leaves_other_files(tmp_path: Path) -> None:
    write_steps(tmp_path, range(5))
    (tmp_path / "labels.tsv").write_text("a\n")
    cut_events(tmp_path, None)
    assert [path.name for path in tmp_path.iterdir()] == ["labels.tsv"]


def test_a_run_that_goes_on_writes_its_settings_and_final_metrics_anew(tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    for epochs, step in ((1, None), (2, 10)):
        callback = TensorBoard(tmp_path, hparams={"epochs": epochs})
        callback.set_model(model)
        callback.on_resume(step)
        assert not tags_of(read_events(tmp_path / "hparams"))
        callback.on_train_begin()
        callback.on_train_end()
        write_final(tmp_path, {"loss": 2.0}, 10)
        values = [value for event in read_events(tmp_path / "hparams") for value in event.summary.value]
        assert [value.tag for value in values] == ["_hparams_/session_start_info", "status", "final/loss"]


# --- Projector ------------------------------------------------------------------------------------


def test_projector_files_hold_the_matrix_and_a_label_a_row(tmp_path: Path) -> None:
    labels = ["cat", "##s", "a\tb", "\n", "", "日本"]
    matrix = np.random.default_rng(0).normal(size=(len(labels), 3)).astype(np.float32)
    for _ in range(2):  # a resumed run writes it again
        write_projector(tmp_path, matrix, labels)
    read, lines = read_projector(tmp_path)
    np.testing.assert_array_equal(read, matrix)
    assert lines == ["cat", "##s", "a b", "·", "·", "日本"]


def test_projector_takes_columns_of_facts(tmp_path: Path) -> None:
    labels = {"label": ["cat", "dog"], "text": ["a\tcat\nhere", ""]}
    write_projector(tmp_path, np.eye(2, dtype=np.float32), labels)
    assert read_projector(tmp_path)[1] == ["label\ttext", "cat\ta cat here", "dog\t·"]
    # A single column has no name: the plugin would take it for a label.
    write_projector(tmp_path / "one", np.eye(2, dtype=np.float32), {"label": ["cat", "dog"]})
    assert read_projector(tmp_path / "one")[1] == ["cat", "dog"]


def test_projector_of_a_run_has_the_vocabulary(trained: Path) -> None:
    matrix, labels = read_projector(trained / "train")
    assert labels == (trained / "assets" / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert matrix.shape == (len(labels), 16)


def read_projector(folder: Path) -> tuple[np.ndarray, list[str]]:
    """Reads what the projector plugin reads."""
    from google.protobuf import text_format
    from tensorboard.plugins import projector

    config = projector.ProjectorConfig()
    text_format.Parse((folder / "projector_config.pbtxt").read_text(), config)
    (embedding,) = config.embeddings
    labels = (folder / embedding.metadata_path).read_text(encoding="utf-8").split("\n")
    assert labels.pop() == ""
    checkpoint = tf.train.load_checkpoint(tf.train.latest_checkpoint(str(folder)))
    return checkpoint.get_tensor(embedding.tensor_name), labels
