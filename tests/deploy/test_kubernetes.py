"""The Kubernetes manifest: its schema, its names, and the shell that makes TF_CONFIG of them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

MANIFEST = Path(__file__).parents[2] / "deploy" / "kubernetes" / "train-job.yaml"


@pytest.fixture(scope="module")
def objects() -> dict[str, dict[str, Any]]:
    documents = yaml.safe_load_all(MANIFEST.read_text(encoding="utf-8"))
    return {document["kind"]: document for document in documents if document}


def container(objects: dict[str, dict[str, Any]]) -> dict[str, Any]:
    (only,) = objects["Job"]["spec"]["template"]["spec"]["containers"]
    return only


@pytest.mark.parametrize("version", ["1.29", "1.37"])
@pytest.mark.parametrize("kind", ["PersistentVolumeClaim", "Service", "Job"])
def test_it_keeps_to_the_schema(objects, kind, version) -> None:
    kubernetes_validate.validate(objects[kind], version, strict=True)


def test_the_schema_would_say_no() -> None:
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "a"}, "spec": {"completion": 4}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, "1.37", strict=True)


def test_the_objects_name_each_other_rightly(objects) -> None:
    job, service, claim = objects["Job"], objects["Service"], objects["PersistentVolumeClaim"]
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    env = {entry["name"]: entry["value"] for entry in container(objects)["env"]}
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == int(env["WORKERS"])
    assert env["JOB"] == job["metadata"]["name"]
    assert env["SERVICE"] == service["metadata"]["name"] == pod["subdomain"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": job["metadata"]["name"]}
    (volume,) = pod["volumes"]
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert "ReadWriteMany" in claim["spec"]["accessModes"]
    (mount,) = container(objects)["volumeMounts"]
    assert mount["name"] == volume["name"]
    for name in ("LOGS", "KARPA_TF_CACHE"):
        assert env[name].startswith(mount["mountPath"] + "/")


def start(objects: dict[str, dict[str, Any]], folder: Path, index: int) -> tuple[str, dict[str, Any]]:
    """Runs the container's command with a karpa-tf that says how it was called."""
    karpa = folder / "bin" / "karpa-tf"
    karpa.parent.mkdir(exist_ok=True)
    karpa.write_text('#!/bin/sh\necho "$*"\necho "$TF_CONFIG"\n')
    karpa.chmod(0o755)
    worker = container(objects)
    env = {entry["name"]: entry["value"] for entry in worker["env"]}
    env |= {
        "LOGS": str(folder / "logs"),
        "JOB_COMPLETION_INDEX": str(index),
        "PATH": f"{karpa.parent}:{os.environ['PATH']}",
    }
    result = subprocess.run(
        [*worker["command"], *worker["args"]], env=env, capture_output=True, text=True, check=True
    )
    words, config = result.stdout.splitlines()
    return words, json.loads(config)


@pytest.mark.parametrize("index", [0, 3])
def test_the_container_makes_tf_config(objects, tmp_path, index) -> None:
    words, config = start(objects, tmp_path, index)
    workers = [f"karpa-tf-train-{i}.karpa-tf-train:2222" for i in range(4)]
    assert config == {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
    assert words == f"train mlm-gru --strategy multi-worker --logs {tmp_path / 'logs'}"


def test_the_container_resumes_what_there_is(objects, tmp_path) -> None:
    run = tmp_path / "logs" / "mlm-gru" / "1"
    run.mkdir(parents=True)
    assert "--resume" not in start(objects, tmp_path, 1)[0]
    (run / "config.yaml").touch()
    assert (
        start(objects, tmp_path, 1)[0] == f"train mlm-gru --resume mlm-gru/latest --logs {tmp_path / 'logs'}"
    )
