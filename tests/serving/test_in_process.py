"""`karpa_tf.serving.serve`: a server beside a script."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from urllib.request import Request, urlopen

import grpc
import numpy as np
import pytest

from karpa_tf.errors import UserError
from karpa_tf.serving import serve
from tests.serving.conftest import SECONDS, free_port, predict_over_grpc, save_add


def ask(url: str, x: list[float]) -> list[float]:
    request = Request(f"{url}/v1/models/add:predict", json.dumps({"instances": x}).encode())
    with urlopen(request, timeout=SECONDS) as response:
        return json.load(response)["predictions"]


def test_it_answers_while_the_block_runs_and_again_in_the_next_one(tmp_path: Path) -> None:
    save_add(tmp_path / "add", 2)
    before = set(threading.enumerate())
    for port in (0, free_port()):
        with serve(tmp_path, port=port) as server:
            assert ask(str(server.rest), [1.0]) == [3.0]
            assert server.models == {"add": [2]} and repr(server).startswith(
                "Serving(rest='http://127.0.0.1:"
            )
            if port:
                with grpc.insecure_channel(server.grpc) as channel:
                    answer = predict_over_grpc(channel, "add", x=np.array([1.0], np.float32))
                np.testing.assert_array_equal(answer["y"], [3.0])
            else:
                assert server.grpc is None
        with pytest.raises(OSError):
            ask(str(server.rest), [1.0])
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name == "serve"]


def test_an_error_in_the_block_ends_it_too(tmp_path: Path) -> None:
    save_add(tmp_path / "add", 1)
    with pytest.raises(ZeroDivisionError), serve(tmp_path) as server:
        assert ask(str(server.rest), [1.0]) == [2.0]
        _ = 1 / 0
    with pytest.raises(OSError):
        ask(str(server.rest), [1.0])


def test_what_keeps_it_from_starting_is_raised_where_it_was_called(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='serve has no flag "prot"; did you mean "port"'), serve(prot=1):
        pass
    with pytest.raises(UserError, match="nothing"), serve(tmp_path / "nothing"):
        pass
    save_add(tmp_path / "add", 1)
    with serve(tmp_path) as server, pytest.raises(UserError, match="cannot be listened on"):
        taken = int(str(server.rest).rsplit(":", 1)[1])
        with serve(tmp_path, rest_api_port=taken):
            pass
