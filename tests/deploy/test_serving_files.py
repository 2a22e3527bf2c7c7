"""Every file of deploy/ that serves: parsed by what will read it, and in agreement with the others."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from karpa_tf.serving import config_files

DEPLOY = Path(__file__).parents[2] / "deploy"
FOLDER = DEPLOY / "tensorflow-serving"
MANIFESTS = DEPLOY / "kubernetes"


# --- TensorFlow Serving's own files ---------------------------------------------------------------


def test_the_models_config_is_one() -> None:
    config = config_files.read_models(str(FOLDER / "models.config"))
    (model,) = config.model_config_list.config
    assert (model.name, model.model_platform) == ("mlm-gru", "tensorflow")
    assert model.base_path == f"/models/{model.name}"
    assert model.model_version_policy.latest.num_versions == 2


def test_the_monitoring_and_batching_files_are_ones() -> None:
    assert (
        config_files.read_monitoring(str(FOLDER / "monitoring.config")) == config_files.DEFAULT_METRICS_PATH
    )
    limits = config_files.read_batching(str(FOLDER / "batching.config"), join=True, cores=2)
    assert (limits.rows, limits.request_rows, limits.waiting_rows, limits.threads) == (64, 64, 1024, 2)


def test_the_server_serves_with_them(templates_for_deploy, tmp_path) -> None:
    from tests.serving.conftest import Running

    text = (FOLDER / "models.config").read_text().replace("/models/", f"{templates_for_deploy}/")
    (tmp_path / "models.config").write_text(text)
    with Running(
        model_config_file=str(tmp_path / "models.config"),
        monitoring_config_file=str(FOLDER / "monitoring.config"),
        batching_parameters_file=str(FOLDER / "batching.config"),
        allow_version_labels_for_unavailable_models=True,
    ) as server:
        assert server.predict([1], model="mlm-gru", where="/labels/stable") == [2]


@pytest.fixture
def templates_for_deploy(tmp_path) -> Path:
    from tests.serving.conftest import save_add

    save_add(tmp_path / "models" / "mlm-gru", 1)
    return tmp_path / "models"


# --- Compose, Prometheus, Alertmanager, Grafana ---------------------------------------------------


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((FOLDER / "compose.yaml").read_text())


def test_the_compose_file_keeps_to_the_schema() -> None:
    program = Path(sys.executable).parent / "check-jsonschema"
    command = [str(program), "--builtin-schema", "vendor.compose-spec", str(FOLDER / "compose.yaml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_compose_file_names_files_that_are_there(compose) -> None:
    for service in compose["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (FOLDER / source).exists(), source
        # Nothing is open to other machines.
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert "${TENSORFLOW_SERVING_TAG:-" in compose["services"]["tensorflow-serving"]["image"]


def run(program: str, *words: str) -> None:
    if not shutil.which(program):
        pytest.skip(f"there is no {program}: Debian has it in prometheus and prometheus-alertmanager")
    done = subprocess.run([program, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_the_rules_and_the_configuration() -> None:
    run("promtool", "check", "rules", str(FOLDER / "alerts.yml"))
    run("promtool", "check", "config", str(FOLDER / "prometheus.yml"))


def test_amtool_accepts_the_routes() -> None:
    run("amtool", "check-config", str(FOLDER / "alertmanager.yml"))


def alerts() -> dict[str, str]:
    rules = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"][0]["rules"]
    return {rule["alert"]: rule["expr"] for rule in rules}


def panels() -> dict[str, list[str]]:
    dashboard = json.loads((FOLDER / "grafana" / "dashboard.json").read_text())
    return {panel["title"]: [target["expr"] for target in panel["targets"]] for panel in dashboard["panels"]}


def test_what_wakes_somebody_is_there() -> None:
    assert set(alerts()) == {"ServingErrors", "ServingSlow", "ServingNoVersion", "ServingQueue"}


def test_promtool_accepts_the_dashboards_questions(tmp_path) -> None:
    questions = [expr for exprs in panels().values() for expr in exprs]
    rules = [
        {"record": f"panel_{number}", "expr": expr.replace("$__rate_interval", "5m")}
        for number, expr in enumerate(questions)
    ]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    run("promtool", "check", "rules", str(path))


def test_they_ask_for_metrics_that_are_exported(templates_for_deploy) -> None:
    from tests.serving.conftest import Running

    asked = "\n".join([*alerts().values(), *(expr for exprs in panels().values() for expr in exprs)])
    names = set(re.findall(r":tensorflow:serving:[a-z_:]+", asked))
    with Running(templates_for_deploy) as server:
        server.predict([1], model="mlm-gru")
        text = server.get(config_files.DEFAULT_METRICS_PATH).body.decode()
    exported = set(re.findall(r"^(:tensorflow:serving:[a-z_:]+)", text, re.MULTILINE))
    assert names <= exported


def test_grafana_finds_its_data(compose) -> None:
    source = yaml.safe_load((FOLDER / "grafana" / "datasource.yml").read_text())["datasources"][0]
    provider = yaml.safe_load((FOLDER / "grafana" / "provider.yml").read_text())["providers"][0]
    dashboard = json.loads((FOLDER / "grafana" / "dashboard.json").read_text())
    assert all(panel["datasource"]["uid"] == source["uid"] for panel in dashboard["panels"])
    assert source["url"].split("//")[1].split(":")[0] in compose["services"]
    mounted = [volume.split(":")[1] for volume in compose["services"]["grafana"]["volumes"]]
    assert any(path.startswith(provider["options"]["path"]) for path in mounted)


# --- Kubernetes -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def objects() -> dict[str, dict[str, Any]]:
    documents = yaml.safe_load_all((MANIFESTS / "serving.yaml").read_text())
    return {document["kind"]: document for document in documents if document}


KINDS = [
    *("PersistentVolumeClaim", "ConfigMap", "Deployment", "Service", "HorizontalPodAutoscaler"),
    *("PodDisruptionBudget", "NetworkPolicy"),
]


@pytest.mark.parametrize("version", ["1.29", "1.37"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_manifests_keep_to_the_schema(objects, kind, version) -> None:
    assert set(objects) == set(KINDS)
    kubernetes_validate.validate(objects[kind], version, strict=True)


def test_the_objects_name_each_other_rightly(objects) -> None:
    deployment, service = objects["Deployment"], objects["Service"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert service["spec"]["selector"].items() <= labels.items()
    assert {port["targetPort"] for port in service["spec"]["ports"]} == set(ports)
    assert {f"--port={ports['grpc']}", f"--rest_api_port={ports['rest']}"} <= set(container["args"])
    for kind in ("PodDisruptionBudget", "NetworkPolicy"):
        spec = objects[kind]["spec"]
        assert (spec.get("selector") or spec["podSelector"])["matchLabels"].items() <= labels.items()
    assert (
        objects["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    )
    volumes = {volume["name"]: volume for volume in deployment["spec"]["template"]["spec"]["volumes"]}
    claim = objects["PersistentVolumeClaim"]["metadata"]["name"]
    assert volumes["models"]["persistentVolumeClaim"]["claimName"] == claim
    assert volumes["config"]["configMap"]["name"] == objects["ConfigMap"]["metadata"]["name"]
    assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)


def test_the_config_map_says_what_the_files_say(objects) -> None:
    data = objects["ConfigMap"]["data"]
    kinds = {
        "models.config": model_server_config_pb2.ModelServerConfig,
        "batching.config": config_files.MESSAGES["BatchingParameters"],
        "monitoring.config": config_files.MESSAGES["MonitoringConfig"],
    }
    assert set(data) == set(kinds)
    for name, kind in kinds.items():
        assert text_format.Parse(data[name], kind()) == text_format.Parse((FOLDER / name).read_text(), kind())


def test_the_autoscaler_follows_a_metric_that_the_adapter_makes(objects) -> None:
    (metric,) = objects["HorizontalPodAutoscaler"]["spec"]["metrics"]
    (rule,) = yaml.safe_load((MANIFESTS / "prometheus-adapter.yaml").read_text())["rules"]["custom"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    assert rule["seriesQuery"].startswith(":tensorflow:serving:request_count{")


# What we use of KServe's InferenceService; its CRD comes with no Python package.
INFERENCE_SERVICE = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "serving.kserve.io/v1beta1"},
        "kind": {"const": "InferenceService"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": {
            "type": "object",
            "required": ["predictor"],
            "additionalProperties": False,
            "properties": {
                "predictor": {
                    "type": "object",
                    "required": ["model"],
                    "additionalProperties": False,
                    "properties": {
                        "minReplicas": {"type": "integer"},
                        "maxReplicas": {"type": "integer"},
                        "model": {
                            "type": "object",
                            "required": ["modelFormat", "storageUri"],
                            "additionalProperties": False,
                            "properties": {
                                "modelFormat": {"type": "object", "required": ["name"]},
                                "runtimeVersion": {"type": "string"},
                                "storageUri": {"type": "string", "pattern": "^pvc://[a-z-]+/[a-z-]+$"},
                                "resources": {"type": "object"},
                            },
                        },
                    },
                }
            },
        },
    },
}


def test_the_kserve_variant(objects) -> None:
    import jsonschema

    service = yaml.safe_load((MANIFESTS / "kserve.yaml").read_text())
    jsonschema.validate(service, INFERENCE_SERVICE)
    model = service["spec"]["predictor"]["model"]
    assert model["storageUri"].split("/")[2] == objects["PersistentVolumeClaim"]["metadata"]["name"]
    image = objects["Deployment"]["spec"]["template"]["spec"]["containers"][0]["image"]
    assert image == f"tensorflow/serving:{model['runtimeVersion']}"


def test_one_tag_everywhere(objects, compose) -> None:
    image = objects["Deployment"]["spec"]["template"]["spec"]["containers"][0]["image"]
    default = re.search(r":-(.*)}", compose["services"]["tensorflow-serving"]["image"])
    assert default and image.endswith(f":{default[1]}")
