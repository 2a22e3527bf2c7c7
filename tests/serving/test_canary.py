"""A canary answers its share of the clients, and nobody once it is seen to be worse."""

from __future__ import annotations

import logging
import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from karpa_tf.errors import UserError
from karpa_tf.serving.canary import Canary, interval
from karpa_tf.serving.options import RolloutOptions, ServeOptions
from tests.serving.conftest import SECONDS, Running, samples, until

FOLLOWED = {"model_config_file_poll_wait_seconds": 1, "allow_version_labels_for_unavailable_models": True}


class Sort(tf.Module):
    """serving_default: `label` is warm above 0, else cold; and `version`. Breaks above a limit."""

    def __init__(self, version: int, middle: float, limit: float) -> None:
        super().__init__()

        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
        def sort(x):
            place = tf.where(x > limit, 2, tf.cast(x > middle, tf.int32))
            return {"label": tf.gather(["cold", "warm"], place), "version": 0 * place + version}

        self.sort = sort


@pytest.fixture(scope="module")
def sorts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions of one model: 1 and 2 answer alike, 3 breaks on what is warm, 4 calls more things warm."""
    folder = tmp_path_factory.mktemp("sorts")
    for version, middle, limit in ((1, 0.0, 9.0), (2, 0.0, 9.0), (3, 0.0, 0.5), (4, -0.6, 9.0)):
        module = Sort(version, middle, limit)
        signatures = {"serving_default": module.sort}
        tf.saved_model.save(module, str(folder / "sort" / str(version)), signatures=signatures)
    return folder


def ask(channel: grpc.Channel, x: float, client: str = "", **spec: Any) -> dict[str, Any]:
    """Returns the first row of an answer over gRPC, or the code of its refusal."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "sort"
    if "version" in spec:
        request.model_spec.version.value = spec["version"]
    if "label" in spec:
        request.model_spec.version_label = spec["label"]
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.array([x], np.float32)))
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    try:
        metadata = [("x-client-id", client)] if client else []
        answer = stub.Predict(request, timeout=SECONDS, metadata=metadata)
    except grpc.RpcError as error:
        return {"code": error.code().name}
    found = {name: tf.make_ndarray(value)[0] for name, value in answer.outputs.items()}
    return {"model": answer.model_spec.version.value, **found}


def within(count: int, trials: int, share: float) -> bool:
    """Whether a count is one that a binomial variable has but once in 10,000 times not."""
    return abs(count - trials * share) <= 3.9 * math.sqrt(trials * share * (1 - share)) + 0.5


def test_a_client_stays_where_its_share_puts_it() -> None:
    clients = [f"client {number}" for number in range(20_000)]
    ten, thirty = (Canary("a", 2, 1, share) for share in (0.1, 0.3))
    first = {client for client in clients if ten.takes(client)}
    assert within(len(first), 20_000, 0.1)
    assert first < {client for client in clients if thirty.takes(client)}
    for other in (Canary("b", 2, 1, 0.1), Canary("a", 3, 1, 0.1)):  # split by itself
        both = sum(other.takes(client) for client in first)
        assert within(both, len(first), 0.1)
    assert not any(Canary("a", 2, 1, 0.0).takes(client) for client in clients)
    assert all(Canary("a", 2, 1, 1.0).takes(client) for client in clients)
    assert repr(ten) == "Canary(model='a', version=2, stable=1, share=0.1)"


def test_the_bounds_hold_at_all_times() -> None:
    assert interval(0, 0, 0.1) == (0.0, 1.0)
    low, high = interval(30, 100, 0.01)
    assert 0.15 < low < 0.2 and 0.43 < high < 0.5
    # Where density and alpha meet.
    for value in (low, high):
        log_density = math.log(101 * math.comb(100, 30)) + 30 * math.log(value) + 70 * math.log1p(-value)
        assert log_density == pytest.approx(math.log(0.01), abs=1e-6)
    random, left = np.random.default_rng(0), 0
    for _ in range(300):
        hits = np.cumsum(random.random(300) < 0.3)
        bounds = [interval(int(hits[n - 1]), n, 0.2) for n in range(1, 301, 3)]
        left += any(not low <= 0.3 <= high for low, high in bounds)
    assert left / 300 <= 0.2


def simulated(random: np.random.Generator, fails: tuple[float, float], warm: tuple[float, float]) -> int:
    """Returns how many clients a canary had answered when it was stopped, 0 if it never was.

    `fails` and `warm`: how likely a request is to, of stable and of the canary. Each of 1,000 clients asks
    twice, and some send what always fails: no version is to blame for them.
    """
    canary, answered = Canary("sort", 2, 1, 0.4), set()
    for client in random.permutation(np.repeat(np.arange(1000), 2)).astype(str).tolist():
        ours = canary.takes(client)
        answered |= {client} if ours else set()
        if int(client) % 50 == 7 or random.random() < fails[ours]:
            canary.failed(client, 2 if ours else 1)
        else:
            canary.answered(client, 2 if ours else 1, b"warm" if random.random() < warm[ours] else b"cold")
        if canary.stopped:
            return len(answered)
    return 0


def test_what_is_as_good_goes_on_and_what_is_worse_stops() -> None:
    random = np.random.default_rng(0)
    assert not any(simulated(random, (0.02, 0.02), (0.5, 0.5)) for _ in range(20))
    failing = [simulated(random, (0.02, 0.2), (0.5, 0.5)) for _ in range(10)]
    assert all(failing) and np.median(failing) < 200
    moved = [simulated(random, (0.02, 0.02), (0.5, 0.8)) for _ in range(5)]
    assert all(moved) and np.median(moved) < 300


def test_requests_that_name_no_version_are_split(sorts: Path) -> None:
    with Running(sorts, canary="sort=2:30%") as server, server.channel() as channel:
        asked = {client: ask(channel, 1.0, client)["model"] for client in map(str, range(400))}
        counts = Counter(asked.values())
        assert set(counts) == {2, 4} and within(counts[2], 400, 0.3)  # the newest other one is the stable one
        for client in map(str, range(0, 400, 8)):
            assert ask(channel, -1.0, client)["model"] == asked[client]
            body = {"instances": [1.0]}
            answer = server.post("/v1/models/sort:predict", body, {"X-Client-Id": client})
            assert answer.json["predictions"][0]["version"] == asked[client]
        # Without a name it is the address, which REST and gRPC share.
        nameless = {ask(channel, 1.0)["model"] for _ in range(5)}
        nameless |= {server.predict([1.0], "sort")[0]["version"] for _ in range(5)}
        canary = next(one.canary for one in server.server.registry.models())
        assert nameless == {2 if canary.takes("127.0.0.1") else 4}
        # Who names a version gets it.
        ours = next(client for client, version in asked.items() if version == 2)
        assert {ask(channel, 1.0, client, version=1)["model"] for client in (ours, "another")} == {1}
        path = "/v1/models/sort/versions/4:predict"
        answer = server.post(path, {"instances": [1.0]}, {"X-Client-Id": ours})
        assert answer.json["predictions"][0]["version"] == 4
        counted = samples(server, "karpa_tf_version_requests_total")
        named = {int(version): count for (_, _, version), count in counted.items()}
        assert named[1] == 2 and named[2] + named[4] == 400 + 50 + 50 + 10 + 1 and named[2] >= counts[2]
        assert samples(server, "karpa_tf_version_seconds_total")["sort", "2"] > 0
        assert samples(server, "karpa_tf_canary_share") == {("sort", "2"): 0.3}
        assert samples(server, "karpa_tf_canary_stopped") == {("sort", "2"): 0}
        page = server.get("/").body.decode()
        assert "The canary, version 2, answers 30% of the clients that name no version" in page
        assert "warm 9" in page.split("<td>2<td>AVAILABLE")[1].split("<tr>")[0]


def test_a_canary_that_fails_is_stopped_until_the_configuration_changes(
    karpa, sorts: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = sorts / "sort"
    config = sorts / "models.config"
    assert karpa("rollout", folder, "--stable", 1, "--canary", 3, "--share", "50%").status == 0
    caplog.set_level(logging.INFO, "karpa_tf.serving")
    with Running(model_config_file=str(config), **FOLLOWED) as server, server.channel() as channel:
        clients = iter(map(str, range(1000)))
        canary = next(one.canary for one in server.server.registry.models())
        own = 0
        while not canary.stopped:
            client = next(clients)
            answer = ask(channel, 1.0, client)
            assert answer == ({"code": "INVALID_ARGUMENT"} if canary.takes(client) else answer)
            own += "code" in answer
            # The same client again is no further evidence.
            assert ("code" in ask(channel, 1.0, client)) == ("code" in answer and not canary.stopped)
        assert 8 <= own <= 20
        assert f"of {own} clients whose requests failed, {own} were its own" in canary.stopped
        assert f"sort: the canary, version 3, was stopped: {canary.stopped}" in caplog.text
        assert {ask(channel, 1.0, next(clients))["model"] for _ in range(20)} == {1}
        assert ask(channel, -1.0, label="canary")["model"] == 3  # who asks for it gets it
        assert samples(server, "karpa_tf_canary_share") == {("sort", "3"): 0}
        assert samples(server, "karpa_tf_canary_stopped") == {("sort", "3"): 1}
        assert "The canary, version 3, was stopped: of" in server.get("/").body.decode()
        failed = samples(server, "karpa_tf_version_requests_total")
        assert failed["sort", "INVALID_ARGUMENT", "3"] > own
        # The same again changes nothing; another share is another trial.
        config.write_text("\n" + config.read_text(encoding="utf-8"), encoding="utf-8")
        server.call(server.server.registry.serve_config(server.server._config_file.read()))
        assert next(one.canary for one in server.server.registry.models()) is canary
        result = karpa("rollout", folder, "--share", "100%")
        assert result.status == 0 and "canary-100%: version 3" in result.out, result.err
        until(lambda: ask(channel, -1.0, "any").get("model") == 3, "the new share is taken")
        assert karpa("rollout", folder, "--rollback").status == 0
        until(lambda: ask(channel, 1.0, "any").get("model") == 1, "the canary is taken back")
        assert samples(server, "karpa_tf_canary_share") == {}


@pytest.mark.parametrize("tolerance", [0.1, 1.0])
def test_a_canary_whose_labels_move_is_stopped(sorts: Path, tolerance: float) -> None:
    random = np.random.default_rng(0)
    with (
        Running(sorts, canary="sort=4:50%", canary_tolerance=tolerance) as server,
        server.channel() as channel,
    ):
        canary = next(one.canary for one in server.server.registry.models())
        assert canary.stable == 3
        canary.stable = 1  # version 3 breaks
        for number, x in enumerate(random.uniform(-1, 0.4, 600).tolist()):
            ask(channel, x, str(number))
            if canary.stopped:
                break
        assert bool(canary.stopped) == (tolerance < 1)
        if canary.stopped:
            assert 'were given the label "' in canary.stopped and number > 50


def test_a_canary_that_goes_is_answered_by_stable(
    sorts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for version in "12":
        shutil.copytree(sorts / "sort" / version, tmp_path / "sort" / version)
    caplog.set_level(logging.INFO, "karpa_tf.serving")
    with Running(tmp_path / "sort", canary="sort=2:100%") as server, server.channel() as channel:
        assert ask(channel, 1.0)["model"] == 2
        (tmp_path / "sort" / "2").rename(tmp_path / "away")
        until(lambda: ask(channel, 1.0)["model"] == 1, "stable answers")
        assert caplog.text.count("sort: the canary, version 2, is not there: stable answers") == 1
        assert samples(server, "karpa_tf_canary_stopped") == {("sort", "2"): 0}
        (tmp_path / "away").rename(tmp_path / "sort" / "2")
        until(lambda: ask(channel, 1.0)["model"] == 2, "the canary answers again")
        (tmp_path / "sort" / "1").rename(tmp_path / "away")
        until(lambda: server.status("sort")["1"] == "END", "version 1 is gone")
        assert ask(channel, 1.0)["model"] == 2  # better than nobody


@pytest.mark.parametrize(
    ("canary", "says"),
    [
        ("sort=9:10%", "--canary: sort has no version 9. It has: 1, 2, 3, 4."),
        ("other=2:10%", "--canary: no model other is served. There are: sort."),
    ],
)
def test_a_canary_that_is_not_there_is_one_sentence(sorts: Path, canary: str, says: str) -> None:
    with pytest.raises(UserError) as error:
        Running(sorts, canary=canary)
    assert str(error.value) == says


def test_a_lone_version_is_no_canary(templates: Path) -> None:
    with pytest.raises(UserError, match="words has no version but 1 to answer the other clients"):
        Running(templates, canary="words=1:10%")


def test_shares_that_are_none_are_one_sentence() -> None:
    for share in ("101%", "-1%", "0.1", "ten%", "nan%", ""):
        with pytest.raises(UserError, match="a share is a number from 0% to 100%"):
            ServeOptions(canary=f"a=2:{share}")
    for canary in ("a", "a=b:1%", "=2:10%", "2:10%"):
        with pytest.raises(UserError, match="--canary takes MODEL=VERSION:SHARE"):
            ServeOptions(canary=canary)
    with pytest.raises(UserError, match="--canary goes with a folder"):
        ServeOptions(canary="a=2:10%", model_config_file="models.config")
    with pytest.raises(UserError, match="--share: a share is a number"):
        RolloutOptions(canary=2, share="half")
    assert ServeOptions(canary="a=2:10%, b=3:0.5%").canary


def test_a_share_needs_its_versions(karpa, sorts: Path, tmp_path: Path) -> None:
    config = tmp_path / "some.config"
    assert karpa("rollout", sorts / "sort", "--stable", 1, "--config", config).status == 0
    result = karpa("rollout", sorts / "sort", "--share", "10%", "--config", config)
    assert result.status == 2 and "give one with --canary N" in result.err
    text = config.read_text(encoding="utf-8").replace('key: "stable"', 'key: "canary-10%"')
    config.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match='has a canary with a share, and no version label "stable"'):
        Running(model_config_file=str(config))
