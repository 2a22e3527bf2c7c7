"""What serves without training: the set of packages, the images, the service of systemd, the manifest.

Docker does not run where these tests do. So each Dockerfile is read, and `tests/serving/test_exports.py` does
what its lines say in a fresh environment, which then serves every export.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import kubernetes_validate
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from karpa_tf.parser import Parser
from karpa_tf.serving.options import ServeOptions
from tests.deploy import dockerfiles
from tests.deploy.dockerfiles import LEFT_OUT, ROOT
from tests.serving.command import Command
from tests.serving.conftest import SECONDS

DEPLOY = ROOT / "deploy"
DOCKERFILE = DEPLOY / "Dockerfile"
SERVICE = DEPLOY / "systemd" / "karpa-tf-serve.service"


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    """The serving-only set: version by package."""
    found = {}
    for line in (DEPLOY / "requirements-serve.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            found[canonicalize_name(name)] = version
    return found


def test_the_set_has_all_that_its_packages_need(pins) -> None:
    """As far as the same versions are installed here; test_exports.py asks pip of the set itself."""
    left_out: dict[str, set[str]] = {}
    compared = set()
    for name in pins:
        package = metadata.distribution("tensorflow" if name == "tensorflow-cpu" else name)
        if package.version != pins[name]:
            continue
        compared.add(name)
        for requirement in map(Requirement, package.requires or []):
            needed = canonicalize_name(requirement.name)
            if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
                continue
            if needed not in pins:
                left_out.setdefault(name, set()).add(needed)
            else:
                assert requirement.specifier.contains(pins[needed]), f"{name} asks for {requirement}"
    assert compared
    assert left_out == {name: LEFT_OUT[name] for name in LEFT_OUT if name in compared}


def test_the_set_keeps_to_what_the_package_requires(pins) -> None:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    lines = parser["options"]["install_requires"].splitlines()
    required = [Requirement(line) for line in lines if line and not line.startswith("#")]
    bounds = {canonicalize_name(r.name): r.specifier for r in required}
    bounds["tensorflow-cpu"] = bounds["tensorflow"]
    shared = pins.keys() & bounds.keys()
    assert len(shared) >= 10
    for name in shared:
        assert bounds[name].contains(pins[name]), f"{name} must be {bounds[name]}"


# Runs `karpa-tf` as if no module but those of the set were installed.
WITHOUT = """
import json, sys

hidden = set(json.loads(sys.argv.pop(1)))

class Finder:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in hidden else self.finder.find_spec(name, path, target)

sys.meta_path[:] = map(Finder, sys.meta_path)
from karpa_tf.cli import main
sys.exit(main())
"""


def others(pins: dict[str, str]) -> list[str]:
    """The modules of all installed packages that are not of the set."""
    allowed = {*pins, "tensorflow", "karpa-tf"}
    modules = metadata.packages_distributions().items()
    return [name for name, packages in modules if allowed.isdisjoint(map(canonicalize_name, packages))]


def without(pins: dict[str, str]) -> list[str]:
    hidden = others(pins)
    assert {"keras", "keras_hub", "sklearn", "matplotlib", "mlxtend", "gymnasium", "tqdm"} <= set(hidden)
    return [sys.executable, "-c", WITHOUT, json.dumps(hidden)]


def test_an_export_is_served_where_only_the_set_is_installed(pins, trained, karpa, tmp_path) -> None:
    models = tmp_path / "models"
    assert karpa("export", trained, "--to", models, "--force").status == 0
    text = "On day bab1 the [MASK] ate fish in the barn."
    (row,) = karpa("predict", trained, text, "--json").json["predictions"]
    command = Command(*image_words(models), "--host", "127.0.0.1", "--json", program=without(pins))
    try:
        assert command.ready()["models"] == {"mlm-gru": [1]}
        (answer,) = command.predict(text, "mlm-gru")
        assert answer["filled_text"] == row["filled_text"]
        # What the image asks itself, and what Kubernetes asks.
        test = [word.replace(":8501/", f":{command.rest_port}/") for word in health_check()]
        subprocess.run([sys.executable, *test[1:]], check=True, timeout=SECONDS)
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            asked = container(manifest())[probe]["httpGet"]
            assert asked["port"] == "rest"
            with urlopen(f"http://127.0.0.1:{command.rest_port}{asked['path']}", timeout=SECONDS) as page:
                assert page.status == 200
    finally:
        status, _, err = command.end(signal.SIGTERM)
    assert status == 0 and "Traceback" not in err, err
    # Without a server it fails.
    assert subprocess.run([sys.executable, *test[1:]], capture_output=True).returncode != 0


def test_training_there_is_one_sentence(pins, tmp_path) -> None:
    command = [*without(pins), "train", "mnist-mlp", "--logs", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    (line,) = done.stderr.splitlines()
    missing = r"karpa-tf: train needs \w+, which is not installed here; `pip install karpa-tf` brings it\."
    assert done.returncode == 2 and re.fullmatch(missing, line)


# --- The images -----------------------------------------------------------------------------------


def flags_of_serve(words: list[str]) -> Any:
    """Reads the words behind `karpa-tf serve` as the command does."""
    parser = Parser("serve", "", {"models?": ""})
    parser.add_fields(ServeOptions)
    return parser.read(words)


def image_words(models: Path | str) -> list[str]:
    """What the image runs behind `karpa-tf serve`, with a folder of models for its own."""
    instructions = dockerfiles.read(DOCKERFILE)
    words = [*dockerfiles.words_of(instructions, "ENTRYPOINT"), *dockerfiles.words_of(instructions, "CMD")]
    assert words[:2] == ["karpa-tf", "serve"]
    return [str(models) if word == "/models" else word for word in words[2:]]


def health_check() -> list[str]:
    words = dockerfiles.words_of(dockerfiles.read(DOCKERFILE), "HEALTHCHECK")
    assert words[:2] == ["python", "-c"]
    return words


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.train"])
def test_an_image_is_made_of_what_is_there_and_is_not_root(name) -> None:
    path = DEPLOY / name
    sources = dockerfiles.sources(path)
    assert sources and [source for source in sources if not (ROOT / source).exists()] == []
    instructions = dockerfiles.read(path)
    names = [instruction for instruction, _ in instructions]
    assert names.index("USER") > max(i for i, name in enumerate(names) if name == "RUN")
    assert dict(instructions)["USER"] == "1000:1000"
    assert dockerfiles.words_of(instructions, "ENTRYPOINT")[0] == "karpa-tf"


def test_the_image_listens_where_it_says() -> None:
    options = ServeOptions()
    args = flags_of_serve(image_words("/models"))
    assert (args.models, args.host) == ("/models", "0.0.0.0")
    assert "port" not in args and "rest_api_port" not in args
    assert dict(dockerfiles.read(DOCKERFILE))["EXPOSE"] == f"{options.port} {options.rest_api_port}"
    assert f"http://127.0.0.1:{options.rest_api_port}/readyz" in health_check()[2]


def test_the_training_image_has_a_python_for_every_recipe() -> None:
    bases = [
        words.split()[0] for name, words in dockerfiles.read(DEPLOY / "Dockerfile.train") if name == "FROM"
    ]
    assert set(bases) == {"python:3.11-slim"}


@pytest.mark.slow
def test_the_training_image_is_made_and_trains(tmp_path) -> None:
    """Its lines, and a run with what they installed."""
    python = shutil.which("python3.11") if sys.version_info[:2] != (3, 11) else sys.executable
    if not python:
        pytest.skip("the image has Python 3.11, which is not here")
    programs = dockerfiles.execute(DEPLOY / "Dockerfile.train", tmp_path, python)
    words = ["train", "q-learning", "--episodes", "20", "--logs", str(tmp_path / "logs")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(programs / "karpa-tf"), *words], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    shutil.rmtree(programs.parent)


# --- systemd --------------------------------------------------------------------------------------


def test_the_service_runs_a_command_of_ours() -> None:
    (line,) = re.findall("^ExecStart=(.*)$", SERVICE.read_text(encoding="utf-8"), re.MULTILINE)
    program, verb, *words = shlex.split(line)
    assert (program, verb) == ("/opt/karpa-tf/bin/karpa-tf", "serve")
    assert flags_of_serve(words).models == "/var/lib/karpa-tf/savedmodels"
    (stop,) = re.findall(r"^TimeoutStopSec=(\d+)$", SERVICE.read_text(encoding="utf-8"), re.MULTILINE)
    assert int(stop) > ServeOptions().drain_seconds


def test_systemd_accepts_the_service(tmp_path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("there is no systemd-analyze: Debian has it in systemd")
    program = tmp_path / "karpa-tf"
    program.touch(mode=0o755)
    text = SERVICE.read_text(encoding="utf-8").replace("/opt/karpa-tf/bin/karpa-tf", str(program))

    def verify(text: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / SERVICE.name).write_text(text, encoding="utf-8")
        command = ["systemd-analyze", "verify", str(tmp_path / SERVICE.name)]
        return subprocess.run(command, capture_output=True, text=True)

    done = verify(text)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Restrt" in verify(text.replace("Restart=", "Restrt=")).stderr


# --- Kubernetes -----------------------------------------------------------------------------------


def manifest(name: str = "karpa-tf-serve.yaml") -> dict[str, dict[str, Any]]:
    documents = yaml.safe_load_all((DEPLOY / "kubernetes" / name).read_text(encoding="utf-8"))
    return {document["kind"]: document for document in documents if document}


def container(objects: dict[str, dict[str, Any]]) -> dict[str, Any]:
    (only,) = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    return only


KINDS = [
    *("PersistentVolumeClaim", "Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"),
    "NetworkPolicy",
]


@pytest.mark.parametrize("version", ["1.29", "1.37"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_manifest_keeps_to_the_schema(kind, version) -> None:
    assert set(manifest()) == set(KINDS)
    kubernetes_validate.validate(manifest()[kind], version, strict=True)


def test_the_objects_name_each_other_rightly() -> None:
    objects = manifest()
    deployment, name = objects["Deployment"], objects["Deployment"]["metadata"]["name"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert objects["Service"]["spec"]["selector"].items() <= labels.items()
    for kind in ("PodDisruptionBudget", "NetworkPolicy"):
        spec = objects[kind]["spec"]
        assert (spec.get("selector") or spec["podSelector"])["matchLabels"].items() <= labels.items()
    assert objects["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == name
    ports = {port["name"]: port["containerPort"] for port in container(objects)["ports"]}
    options = ServeOptions()
    assert ports == {"grpc": options.port, "rest": options.rest_api_port}
    assert {port["targetPort"] for port in objects["Service"]["spec"]["ports"]} == set(ports)
    volumes = {volume["name"]: volume for volume in deployment["spec"]["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container(objects)["volumeMounts"]} == set(volumes)
    claim = objects["PersistentVolumeClaim"]
    assert volumes["models"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    # Whoever applies both manifests has one volume.
    assert claim == manifest("serving.yaml")["PersistentVolumeClaim"]


def test_the_container_is_the_image() -> None:
    objects = manifest()
    words = dockerfiles.words_of(dockerfiles.read(DOCKERFILE), "ENTRYPOINT")[2:] + container(objects)["args"]
    args = flags_of_serve(words)
    mounts = {mount["name"]: mount for mount in container(objects)["volumeMounts"]}
    assert (args.models, args.host) == (mounts["models"]["mountPath"], "0.0.0.0")
    assert mounts["models"]["readOnly"] and mounts["tmp"]["mountPath"] == "/tmp"
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    user = f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}"
    assert user == dict(dockerfiles.read(DOCKERFILE))["USER"]
    assert container(objects)["securityContext"]["readOnlyRootFilesystem"]
    assert pod["terminationGracePeriodSeconds"] > ServeOptions().drain_seconds + 10
