from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from karpa_tf.errors import UserError
from karpa_tf.recipes.mlm_gru import MlmGruSettings
from karpa_tf.training.listing import list_runs
from karpa_tf.training.run_folder import (
    create_run,
    find_events,
    lock_folder,
    locked,
    open_run,
    remove_if_unused,
)


def test_runs_are_numbered_and_never_shared(tmp_path) -> None:
    with ThreadPoolExecutor(16) as pool:
        folders = list(pool.map(lambda _: create_run(tmp_path, "mlm-gru", ["train"]), range(32)))
    assert sorted(int(f.path.name) for f in folders) == list(range(1, 33))
    assert (folders[0].path / "command.txt").read_text() == "karpa-tf train\n"


def test_latest_is_the_newest_run_that_has_begun(tmp_path) -> None:
    for _ in range(11):
        create_run(tmp_path, "mlm-gru", []).write_config(MlmGruSettings())
    create_run(tmp_path, "mlm-gru", [])
    assert open_run("mlm-gru/latest", tmp_path).path.name == "11"
    assert open_run("mlm-gru/3", tmp_path).path.name == "3"
    assert open_run(tmp_path / "mlm-gru" / "latest").path.name == "11"


def test_config_survives_a_round_trip(tmp_path) -> None:
    folder = create_run(tmp_path, "mlm-gru", [])
    config = MlmGruSettings(data="ein Pfad/日本.txt", learning_rate=1e-7, deterministic=True)
    folder.write_config(config)
    assert MlmGruSettings(**folder.read_config()) == config


def test_damaged_files_are_named(tmp_path) -> None:
    folder = create_run(tmp_path, "mlm-gru", [])
    folder.write_config(MlmGruSettings())
    assert folder.read_metrics() is None
    (folder.path / "metrics.json").write_text('{"loss": 1')
    with pytest.raises(UserError, match=r"metrics\.json is damaged"):
        folder.read_metrics()
    (folder.path / "config.yaml").write_text("")
    with pytest.raises(UserError, match=r"config\.yaml is damaged"):
        folder.read_config()


def test_an_unused_folder_goes_and_a_used_one_stays(tmp_path) -> None:
    used = create_run(tmp_path / "logs", "mlm-gru", [])
    used.write_config(MlmGruSettings())
    used.checkpoints.mkdir()  # as the first step does
    remove_if_unused(used)
    remove_if_unused(create_run(tmp_path / "logs", "mlm-gru", []))
    assert [row["run"] for row in list_runs(tmp_path / "logs")] == [str(used.path)]
    assert [p.name for p in used.path.parent.iterdir()] == ["1"]


def test_the_status_of_a_run(tmp_path) -> None:
    folder = create_run(tmp_path, "mlm-gru", [])
    folder.write_environment(3, group="1")
    folder.write_config(MlmGruSettings())

    def status() -> str:
        (row,) = list_runs(tmp_path)
        assert row.get("group", "mlm-gru/1") == "mlm-gru/1"
        return f"{row['status']} {row.get('reason', '')}".strip()

    assert status() == "stopped"
    folder.note_failure(ValueError("two\nlines"))
    assert status() == "failed ValueError: two lines"
    with locked(folder.path):
        assert status() == "running"
        with pytest.raises(UserError, match="is being trained into by another process"):
            lock_folder(folder.path)
    folder.write_environment(3)  # it goes on
    assert status() == "stopped"
    folder.write_metrics({"loss": 1.0})
    assert status() == "finished"
    (folder.path / "environment.json").write_text("[]")
    assert status().startswith("damaged")


def test_the_folder_that_tensorboard_is_to_show(tmp_path) -> None:
    logs = tmp_path / "logs"
    folder = create_run(logs, "mlm-gru", [])
    folder.write_config(MlmGruSettings())
    assert find_events("", logs) == logs
    assert find_events("mlm-gru", logs) == logs / "mlm-gru"
    assert find_events("mlm-gru/latest", logs) == find_events("mlm-gru/1", logs) == folder.path
    assert find_events(str(folder.path), tmp_path) == folder.path
    with pytest.raises(UserError, match=r"no run of dqn in .*; train one first"):
        find_events("dqn", logs)
    with pytest.raises(UserError, match=r"A run is named by its folder, or RECIPE/latest. Received:"):
        open_run("", logs)
    with pytest.raises(UserError, match="There is no run mlm-gru/2"):
        find_events("mlm-gru/2", logs)
    with pytest.raises(UserError, match=r"There is no folder .*nothing: train first"):
        find_events("", tmp_path / "nothing")


def test_logs_that_cannot_be_written(tmp_path) -> None:
    (tmp_path / "logs").write_text("not a folder")
    with pytest.raises(UserError, match="cannot be written"):
        create_run(tmp_path / "logs", "mlm-gru", [])
