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
    # What a label names stays, whatever is exported later.
    assert set(model.version_labels.values()) <= set(model.model_version_policy.specific.versions)


def test_the_monitoring_and_batching_files_are_ones() -> None:
    assert (
        config_files.read_monitoring(str(FOLDER / "monitoring.config")) == config_files.DEFAULT_METRICS_PATH
    )
    limits = config_files.read_batching(str(FOLDER / "batching.config"), join=True, cores=2)
    assert (limits.rows, limits.request_rows, limits.waiting_rows, limits.threads) == (128, 128, 1024, 2)


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


def test_there_is_a_thread_for_every_request_that_is_joined(compose, objects) -> None:
    given = text_format.Parse(
        (FOLDER / "batching.config").read_text(), config_files.MESSAGES["BatchingParameters"]()
    )
    rows, running = given.max_batch_size.value, given.num_batch_threads.value
    (container,) = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    for flags in (compose["services"]["tensorflow-serving"]["command"], container["args"]):
        assert f"--rest_api_num_threads={rows * running}" in flags
        assert f"--grpc_max_threads={rows * (running + given.max_enqueued_batches.value)}" in flags


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


METRICS = Path(__file__).with_name("metrics")
Series = tuple[str, dict[str, str]]


def series(text: str) -> list[Series]:
    """The names and labels of a page of metrics."""
    found = re.findall(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(\{.*\})? ", text, re.MULTILINE)
    return [(name, dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', labels))) for name, labels in found]


def page(name: str) -> list[Series]:
    return series((METRICS / f"{name}.txt").read_text(encoding="utf-8"))


def resolves(expression: str, metrics: list[Series]) -> bool:
    """Whether every metric of an expression is on a page, with the labels that are asked for or summed by."""
    asked = re.findall(r"(:tensorflow:serving:[a-z_:]+)(\{[^}]*\})?", expression)
    grouped = {
        label.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(",")
    }
    grouped -= {"instance"}  # which Prometheus adds
    for name, selector in asked:
        matchers = re.findall(r'(\w+)(=~|!=|=)"([^"]*)"', selector.replace("$model", ".*"))

        def has(labels: dict[str, str], matchers: list[Any] = matchers) -> bool:
            for label, operator, value in matchers:
                given = labels.get(label, "")
                if (operator == "!=" and given == value) or (operator == "=" and given != value):
                    return False
                # Which statuses there are depends on what has happened.
                fits = label in labels and (label == "status" or re.fullmatch(value, given))
                if operator == "=~" and not fits:
                    return False
            return grouped <= set(labels)

        if not any(found == name and has(labels) for found, labels in metrics):
            return False
    return bool(asked)


def test_every_question_is_answered_by_the_server_it_is_for() -> None:
    pages = {name: page(name) for name in ("tensorflow-serving", "karpa-tf")}
    questions = {
        title: [e for expr in exprs for e in expr.split(" or ")] for title, exprs in panels().items()
    }
    questions |= {alert: re.split(r"\n\s+or ", expr) for alert, expr in alerts().items()}
    # What one of the two has no metric for.
    only_ours = {"Versions by state (karpa-tf serve)", "ServingNoVersion"}
    for title, expressions in questions.items():
        expressions = [e for e in expressions if not e.startswith("up{")]
        for name, metrics in pages.items():
            answered = [resolves(expression, metrics) for expression in expressions]
            if name == "tensorflow-serving" and title in only_ours:
                assert not any(answered), f"{title} is answered by {name} as well"
            else:
                assert any(answered), f"{title}: nothing of it is on the page of {name}"
        for expression in expressions:
            assert any(resolves(expression, metrics) for metrics in pages.values()), f"{title}: {expression}"


def test_a_client_cannot_raise_an_alert_by_a_name() -> None:
    assert "NOT_FOUND" not in alerts()["ServingNoVersion"]
    failing = alerts()["ServingErrors"]
    assert not re.search(r"NOT_FOUND|INVALID_ARGUMENT", failing)


def test_the_recorded_page_is_what_the_server_exports(templates_for_deploy) -> None:
    from tests.serving.conftest import Running

    with Running(templates_for_deploy) as server:
        server.predict([1], model="mlm-gru")
        server.post("/v1/models/mlm-gru:predict", b"nonsense")
        text = server.get(config_files.DEFAULT_METRICS_PATH).body.decode()

    def forms(metrics: list[Series]) -> set[tuple[str, frozenset[str]]]:
        return {
            (name, frozenset(labels))
            for name, labels in metrics
            if name.startswith((":tensorflow", "karpa_tf"))
        }

    assert forms(page("karpa-tf")) == forms(series(text))


def test_the_page_written_by_hand_agrees_with_a_recorded_one() -> None:
    texts = [
        (METRICS / f"{name}.txt").read_text(encoding="utf-8")
        for name in ("tensorflow-serving", "tensorflow-serving-recorded")
    ]
    ours, recorded = (dict(re.findall(r"^# TYPE (\S+) (\w+)$", text, re.MULTILINE)) for text in texts)
    assert recorded[":tensorflow:serving:request_count"] == "counter"
    for name, kind in ours.items():
        # What batching counts appears with --enable_batching, which was not given there.
        batching = name.startswith(":tensorflow:serving:batching_session:")
        assert recorded.get(name, kind if batching else None) == kind, name
    labels = {name: set(labels) for name, labels in series(texts[0])}
    for name, found in series(texts[1]):
        assert labels[name] == set(found), name


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
