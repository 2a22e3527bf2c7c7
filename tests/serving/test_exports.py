"""Every recipe's export, end to end: numbers equal to Python's, over REST and gRPC.

Four are asked: our own server; the same with what deploy/Dockerfile installs and nothing else; a C++
program that loads a SavedModel as TensorFlow Serving does; and TensorFlow Serving itself, where the variable
KARPA_TF_MODEL_SERVER names its binary (`make serve-test MODEL_SERVER=/path/to/tensorflow_model_server`).
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import grpc
import numpy as np
import pytest

from tests.conftest import own_process
from tests.deploy import dockerfiles
from tests.serving.command import Command
from tests.serving.conftest import SECONDS, Running, free_port, predict_over_grpc, until

pytestmark = pytest.mark.slow

DOCKERFILE = dockerfiles.ROOT / "deploy" / "Dockerfile"
MODEL_SERVER = os.environ.get("KARPA_TF_MODEL_SERVER", "")
TEXTS = ["On day bab1 the [MASK] ate fish in the barn.", "Ada Moss went to Oslo .", "play music"]
# A recipe, the fixture that has a run of it, and what leads from there to the run.
RUNS = {
    "mlm-gru": ("trained", ""),
    "bert-classifier": ("classified", ""),
    "bert-tagger": ("tagged", ""),
    "mnist-mlp": ("digits", ""),
    "cifar10-cnn": ("photos", ""),
    "q-learning": ("frozen", "q-learning/1"),
    "sarsa": ("frozen", "sarsa/1"),
}
if sys.version_info < (3, 12):  # as TF-Agents wants it
    RUNS["dqn"] = ("balanced", "")
RECIPES = list(RUNS)


@pytest.fixture(scope="module")
def exports(tmp_path_factory, request) -> Path:
    """A folder of models with an export of each recipe, and a second one of mlm-gru."""
    from karpa_tf.cli import main

    folder = tmp_path_factory.mktemp("exports") / "savedmodels"
    for name in ["mlm-gru", *RECIPES]:
        fixture, below = RUNS[name]
        words = ["export", str(request.getfixturevalue(fixture) / below), "--to", str(folder), "--force"]
        # TF-Agents' policies want a process without Keras 3.
        assert (own_process(*words).returncode if name == "dqn" else main(words)) == 0
    return folder


@pytest.fixture(scope="module")
def inputs(exports) -> dict[str, dict[str, np.ndarray]]:
    """Three rows for each recipe's serving_default."""
    specs = {name: load(exports / name / "1").inputs for name in RECIPES}
    return {name: {key: three_rows(spec) for key, spec in specs[name].items()} for name in RECIPES}


@functools.cache
def load(path: Path, signature: str = "serving_default") -> Any:
    """A signature of a SavedModel, loaded once."""
    from karpa_tf.export.loader import load_signature

    return load_signature(path, signature)


def three_rows(spec: Any) -> np.ndarray:
    if spec.dtype.name == "string":
        return np.array([text.encode() for text in TEXTS], object)
    if spec.dtype.is_integer:
        return np.arange(3).astype(spec.dtype.as_numpy_dtype)
    return np.random.default_rng(0).random((3, *spec.shape[1:])).astype(np.float32)


@pytest.fixture(scope="module")
def expected(exports, inputs) -> dict[str, list[dict[str, Any]]]:
    """What Python answers, by recipe, as JSON's types."""
    found = {}
    for name in RECIPES:
        outputs = load(exports / name / "1")(inputs[name])
        found[name] = [{key: plain(value[row]) for key, value in outputs.items()} for row in range(3)]
    return found


@dataclass
class Address:
    rest: str
    grpc: str
    log: Callable[[], str] = lambda: ""


@contextlib.contextmanager
def ours(folder: Path, config: Path) -> Iterator[Address]:
    with Running(model_config_file=str(config / "models.config")) as server:
        yield Address(server.rest, server.grpc)


@contextlib.contextmanager
def ours_without_training(folder: Path, config: Path) -> Iterator[Address]:
    """`karpa-tf serve` of a fresh environment that has what deploy/Dockerfile installs."""
    programs = dockerfiles.execute(DOCKERFILE, config)
    checked = subprocess.run([str(programs / "pip"), "check"], capture_output=True, text=True).stdout
    left_out = {name for needs in dockerfiles.LEFT_OUT.values() for name in needs}
    lines = [line for line in checked.splitlines() if not line.startswith("karpa-tf ")]
    missing = {name for line in lines for name in re.findall(" requires (.*), which is not installed", line)}
    # `python -m venv` brings setuptools on Python 3.11.
    assert missing | {"setuptools"} == left_out and " has requirement " not in "".join(lines), checked
    # Not with the files beside these tests.
    program = ["env", "-u", "PYTHONPATH", programs / "karpa-tf"]
    command = Command("--model_config_file", config / "models.config", "--json", program=program)
    try:
        assert set(command.ready()["models"]) == set(RECIPES)
        yield Address(f"http://127.0.0.1:{command.rest_port}", f"127.0.0.1:{command.port}")
    finally:
        status, _, err = command.end(signal.SIGTERM)
        shutil.rmtree(config)
    assert status == 0 and "Traceback" not in err, err


@contextlib.contextmanager
def tensorflow_serving(folder: Path, config: Path, *flags: str) -> Iterator[Address]:
    port, rest_port = free_port(), free_port()
    log = config / "server.log"
    command = [MODEL_SERVER, f"--port={port}", f"--rest_api_port={rest_port}"]
    command += [
        f"--model_config_file={config / 'models.config'}",
        "--file_system_poll_wait_seconds=1",
        *flags,
    ]
    with log.open("w") as output:
        # Its log is read: at the level that the tests set for TensorFlow it would say nothing.
        environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    try:
        address = Address(f"http://127.0.0.1:{rest_port}", f"127.0.0.1:{port}", log.read_text)
        deadline = time.monotonic() + SECONDS
        while not all(is_available(address, name) for name in RECIPES):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        yield address
    finally:
        process.terminate()
        process.wait(SECONDS)


def is_available(address: Address, name: str) -> bool:
    try:
        with urlopen(f"{address.rest}/v1/models/{name}", timeout=SECONDS) as response:
            states = [version["state"] for version in json.load(response)["model_version_status"]]
    except OSError:
        return False
    return "AVAILABLE" in states


def write_config(folder: Path, config: Path) -> None:
    entries = "".join(
        f'config {{ name: "{name}" base_path: "{folder / name}" model_platform: "tensorflow" '
        "model_version_policy { all {} } }\n"
        for name in RECIPES
    )
    (config / "models.config").write_text(f"model_config_list {{\n{entries}}}\n", encoding="utf-8")


SERVERS = [
    pytest.param(ours, id="karpa-tf"),
    pytest.param(ours_without_training, id="karpa-tf-serving-only"),
    pytest.param(
        tensorflow_serving,
        id="tensorflow-serving",
        marks=pytest.mark.skipif(
            not MODEL_SERVER,
            reason="KARPA_TF_MODEL_SERVER names no tensorflow_model_server: not tested against one",
        ),
    ),
]


@pytest.fixture(scope="module", params=SERVERS)
def address(request, exports, tmp_path_factory) -> Iterator[Address]:
    config = tmp_path_factory.mktemp("config")
    write_config(exports, config)
    with request.param(exports, config) as found:
        yield found


def over_rest(address: Address, name: str, rows: list[Any], version: str = "") -> list[dict[str, Any]]:
    body = json.dumps({"instances": rows}).encode()
    url = f"{address.rest}/v1/models/{name}{version}:predict"
    with urlopen(Request(url, body), timeout=SECONDS) as response:
        return json.load(response)["predictions"]


def assert_alike(got: Any, want: Any) -> None:
    if isinstance(want, dict):
        assert set(got) == set(want)
        for name in want:
            assert_alike(got[name], want[name])
    elif isinstance(want, list):
        assert len(got) == len(want)
        for a, b in zip(got, want, strict=True):
            assert_alike(a, b)
    elif isinstance(want, float):
        assert got == pytest.approx(want, abs=1e-5)
    else:
        assert got == want


@pytest.mark.parametrize("name", RECIPES)
def test_rest_equals_python(address, inputs, expected, name) -> None:
    rows = [{key: plain(value[row]) for key, value in inputs[name].items()} for row in range(3)]
    assert_alike(over_rest(address, name, rows), expected[name])


@pytest.mark.parametrize("name", RECIPES)
def test_grpc_equals_python(address, inputs, expected, name) -> None:
    with grpc.insecure_channel(address.grpc) as channel:
        outputs = predict_over_grpc(channel, name, **inputs[name])
    rows = [{key: plain(value[row]) for key, value in outputs.items()} for row in range(3)]
    assert_alike(rows, expected[name])


def plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [plain(item) for item in value]
    if isinstance(value, bytes):
        return value.decode()
    return value.item() if isinstance(value, np.generic) else value


@pytest.mark.parametrize("name", RECIPES)
def test_every_export_has_shown_that_it_may_be_joined(exports, name) -> None:
    text = (exports / name / "1" / "assets.extra" / "rowwise.json").read_text(encoding="utf-8")
    seen = json.loads(text)["signatures"]["serving_default"]
    assert seen["rowwise"], seen["reason"]
    widths = {
        "mlm-gru": dict.fromkeys(["top_scores", "top_tokens"], "masks"),
        "bert-tagger": dict.fromkeys(["scores", "tags", "tokens"], "words"),
    }
    assert seen["lengths"] == widths.get(name, {})


def test_both_versions_answer(address, expected) -> None:
    for version in ("/versions/1", "/versions/2"):
        assert_alike(over_rest(address, "mlm-gru", TEXTS, version), expected["mlm-gru"])


needs_model_server = pytest.mark.skipif(
    not MODEL_SERVER, reason="KARPA_TF_MODEL_SERVER names no tensorflow_model_server"
)


@needs_model_server
def test_tensorflow_serving_reads_the_warm_up_and_follows_versions(exports, tmp_path, expected) -> None:
    folder = tmp_path / "savedmodels"
    for name in RECIPES:
        shutil.copytree(exports / name / "1", folder / name / "1")
    write_config(folder, tmp_path)
    with tensorflow_serving(folder, tmp_path) as address:
        read = "Finished reading warmup data"
        until(lambda: address.log().count(read) >= len(RECIPES), "every model's warm-up file was read")
        shutil.copytree(exports / "mlm-gru" / "2", tmp_path / "new")
        (tmp_path / "new").rename(folder / "mlm-gru" / "2")

        def second() -> bool:
            with contextlib.suppress(OSError):
                return bool(over_rest(address, "mlm-gru", TEXTS, "/versions/2"))
            return False

        until(second, "version 2 answers")
        assert_alike(over_rest(address, "mlm-gru", TEXTS), expected["mlm-gru"])


@needs_model_server
def test_tensorflow_serving_batches_them(exports, tmp_path, expected) -> None:
    from concurrent.futures import ThreadPoolExecutor

    write_config(exports, tmp_path)
    batching = Path(__file__).parents[2] / "deploy" / "tensorflow-serving" / "batching.config"
    flags = ["--enable_batching=true", f"--batching_parameters_file={batching}"]
    with tensorflow_serving(exports, tmp_path, *flags) as address, ThreadPoolExecutor(8) as pool:
        # One text a request, all of one length, so that the outputs can be joined.
        jobs = [pool.submit(over_rest, address, "bert-classifier", [TEXTS[n % 3]]) for n in range(24)]
        for number, job in enumerate(jobs):
            assert_alike(job.result(), [expected["bert-classifier"][number % 3]])


@pytest.fixture(scope="module")
def run_signatures(tmp_path_factory) -> Callable[..., str]:
    """Our C++ program, compiled against TensorFlow's own wheel."""
    if not shutil.which("g++"):
        pytest.skip("there is no g++: the C++ loader was not tried")
    tensorflow = package_folder("tensorflow")
    program = tmp_path_factory.mktemp("cc") / "run_signatures"
    command = ["g++", "-std=c++17", "-D_GLIBCXX_USE_CXX11_ABI=1", f"-I{tensorflow / 'include'}"]
    command += [str(Path(__file__).with_name("run_signatures.cc")), "-o", str(program), f"-L{tensorflow}"]
    command += ["-l:libtensorflow_cc.so.2", "-l:libtensorflow_framework.so.2", f"-Wl,-rpath,{tensorflow}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # Stock TensorFlow Serving has these ops built in.
    ops = sorted(map(str, (package_folder("tensorflow_text") / "python" / "ops").glob("*.so")))

    def run(savedmodel: Path, text: str) -> str:
        done = subprocess.run([str(program), str(savedmodel), text, *ops], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def package_folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    assert spec and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


@pytest.mark.parametrize("name", RECIPES)
def test_the_cpp_loader_runs_every_signature(run_signatures, exports, name) -> None:
    path = exports / name / "1"
    seen = set()
    for line in run_signatures(path, TEXTS[0]).splitlines():
        signature, output, dtype, shape, *values = line.split(" ")
        loaded = load(path, signature)
        want = loaded({key: as_the_program_fills(spec) for key, spec in loaded.inputs.items()})[output]
        assert json.loads(shape) == list(want.shape)
        if dtype == "string":
            assert [bytes.fromhex(value[1:]) for value in values] == want.ravel().tolist()
        else:
            np.testing.assert_allclose([float(value) for value in values], want.ravel(), atol=1e-5)
        seen.add(signature)
    assert "serving_default" in seen


def as_the_program_fills(spec: Any) -> np.ndarray:
    if spec.dtype.name == "string":
        return np.array([TEXTS[0].encode(), f"{TEXTS[0]} {TEXTS[0]}".encode()], object)
    value = 0 if spec.dtype.is_integer else 0.5
    return np.full([2, *spec.shape[1:]], value, spec.dtype.as_numpy_dtype)
