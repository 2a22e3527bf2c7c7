"""Opens every tab of TensorBoard in Chromium and looks whether it draws what the runs have written.

The pages are kept as pictures in logs/screenshots/, for a person to look at.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import SCREENSHOTS, TINY

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = pytest.mark.slow

# Patience for a loaded machine; nothing waits longer than it must.
SECONDS = 120
EPOCHS = 3


@pytest.fixture(scope="module")
def logs(browser: Browser, tmp_path_factory: pytest.TempPathFactory, text_file: Path) -> Path:
    """Two runs that differ in their learning rate; the second was profiled."""
    from karpa_tf.cli import main

    logs = tmp_path_factory.mktemp("tensorboard") / "logs"
    common = [
        "train",
        "mlm-gru",
        "--data",
        str(text_file),
        "--epochs",
        str(EPOCHS),
        "--histograms",
        "all",
        "--logs",
        str(logs),
        *TINY,
    ]
    assert main([*common, "--learning_rate", "0.01"]) == 0
    assert main([*common, "--learning_rate", "0.003", "--profile", "5:8"]) == 0
    return logs


@pytest.fixture(scope="module")
def server(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a TensorBoard that has read both runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    output = tmp_path_factory.mktemp("server") / "output.txt"
    command = [sys.executable, "-m", "karpa_tf", "tensorboard", "--logs", str(logs)]
    with output.open("w") as file:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)], stdout=file, stderr=subprocess.STDOUT
        )
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + SECONDS
        while not _has_read(address):
            assert time.monotonic() < deadline, f"TensorBoard has not read the runs:\n{output.read_text()}"
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
                pytest.fail(f"TensorBoard ended:\n{output.read_text()}")
        yield address
    finally:
        process.kill()
        process.wait()


def _has_read(address: str) -> bool:
    # What is written last is there in both runs.
    try:
        with urllib.request.urlopen(f"{address}/data/plugin/scalars/tags", timeout=10) as response:
            tags = json.load(response)
    except OSError:
        return False
    last = {"hparams": "final/loss", "train": "epoch/loss", "validation": "epoch/loss"}
    return all(tag in tags.get(f"mlm-gru/{run}/{part}", {}) for run in (1, 2) for part, tag in last.items())


@pytest.fixture
def page(browser: Browser, server: str) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1500, "height": 1000}, base_url=server)
    page.set_default_timeout(SECONDS * 1000)
    yield page
    page.close()


@pytest.fixture
def get(page: Page) -> Callable[..., Any]:
    """Asks a plugin for its data."""

    def get(path: str, **params: str) -> Any:
        response = page.request.get(f"/data/plugin/{path}", params=params)
        assert response.ok, response.text()
        return response.json()

    return get


def shoot(page: Page, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"tensorboard-{name}.png", animations="disabled")


def drawn(paths: Locator, at_least: int) -> None:
    """Waits for so many paths, and checks that they lead somewhere."""
    paths.nth(at_least - 1).wait_for(state="attached")
    for path in paths.all():
        outline = path.get_attribute("d") or ""
        assert outline.count("L") and "NaN" not in outline


def test_scalars_have_training_and_validation_on_one_chart(page: Page, get: Callable[..., Any]) -> None:
    for part in ("train", "validation"):
        points = get("scalars/scalars", tag="epoch/loss", run=f"mlm-gru/1/{part}")
        steps = [step for _, step, _ in points]
        assert len(steps) == EPOCHS and steps == sorted(set(steps))
        assert points[-1][2] < points[0][2]

    page.goto("/#scalars")
    for tag in ("epoch/loss", "batch/loss"):
        card = page.locator("tf-scalar-card").filter(has_text=tag)
        # Two runs of two lines; the ghosts are the same before smoothing.
        drawn(card.locator(".line-plot:not(.ghost) path.line"), 4)
    shoot(page, "scalars")


def test_custom_scalars_are_the_charts_of_the_recipe(page: Page) -> None:
    page.goto("/#custom_scalars")
    page.get_by_text("mlm-gru", exact=True).first.wait_for()
    for title in ("loss", "accuracy"):
        card = page.locator("tf-custom-scalar-multi-line-chart-card").filter(has_text=title)
        # Two runs of two lines.
        card.get_by_text("Matches (4)").wait_for()
        drawn(card.locator(".line-plot:not(.ghost) path.line"), 4)
    shoot(page, "custom-scalars")


def test_time_series_name_the_lines_of_a_chart(page: Page) -> None:
    page.goto("/#timeseries")
    card = page.locator("scalar-card").filter(has_text="epoch/loss")
    card.locator("canvas").wait_for()
    for run in (1, 2):
        for part in ("train", "validation"):
            # The table below the chart, with the value at the last step.
            card.get_by_text(f"mlm-gru/{run}/{part}", exact=True).wait_for(state="attached")
    card.scroll_into_view_if_needed()
    shoot(page, "timeseries")


def test_graph_shows_the_layers(page: Page) -> None:
    page.goto("/#graphs")
    model = page.locator("g.node").filter(has_text="mlm_gru").first
    # Until it has come to rest in the middle.
    page.get_by_text("Main Graph").wait_for()
    model.click(trial=True)
    shoot(page, "graphs")
    model.dblclick()
    for layer in ("embedding", "gru", "hidden", "logits"):
        page.locator("g.node g.node").filter(has_text=layer).first.wait_for(state="attached")
    shoot(page, "graphs-model")


@pytest.mark.parametrize(
    ("tab", "card", "path"),
    [
        ("distributions", "tf-distribution-loader", "path.area"),
        ("histograms", "tf-histogram-loader", "path.outline"),
    ],
)
def test_weights_are_drawn(page: Page, tab: str, card: str, path: str) -> None:
    page.goto(f"/#{tab}")
    for weight in ("embedding/embeddings", "gru/backward_kernel"):
        for run in (1, 2):
            chart = page.locator(card).filter(has_text=f"weights/{weight}").filter(has_text=f"/{run}/train")
            drawn(chart.locator(path), EPOCHS)
    shoot(page, tab)


def test_text_shows_the_fillings(page: Page) -> None:
    page.goto("/#text")
    table = page.locator("tf-text-loader table").first
    table.get_by_text("The [MASK] statement").wait_for()
    assert table.locator("tr").count() == 5
    assert "0." in table.locator("td").nth(1).inner_text()
    shoot(page, "text")


def test_hparams_compare_the_runs(page: Page) -> None:
    page.goto("/#hparams")
    table = page.locator("tf-hparams-table-view vaadin-grid")
    for text in ("mlm-gru/1", "mlm-gru/2", "learning_rate", "0.0030000", "0.010000", "final/loss"):
        table.get_by_text(text, exact=True).first.wait_for()
    shoot(page, "hparams")

    page.get_by_text("Parallel coordinates view").click()
    plot = page.locator("tf-hparams-parallel-coords-plot")
    drawn(plot.locator("g.foreground path"), 2)
    titles = plot.locator(".axis-title").all_text_contents()
    assert "learning_rate" in titles and "final/loss" in titles
    shoot(page, "hparams-parallel")


def test_projector_shows_the_pieces_of_the_vocabulary(page: Page, logs: Path) -> None:
    pieces = (logs / "mlm-gru" / "1" / "assets" / "vocab.txt").read_text().splitlines()
    page.goto("/#projector")
    # The projector is a page in a page in the page.
    frame = page.frame_locator("iframe").frame_locator("iframe")
    status = frame.locator(".status-bar-entry")
    status.filter(has_text=re.compile(rf"Points:\s+{len(pieces)}\b")).wait_for()
    status.filter(has_text=re.compile(r"Dimension:\s+16\b")).wait_for()
    inspector = frame.locator("vz-projector-inspector-panel")
    inspector.locator("#search-box input").fill("cat")
    # The one match is selected, and its nearest neighbours are listed and drawn with their labels.
    neighbours = inspector.locator(".nn-list .neighbor .label")
    neighbours.first.wait_for()
    assert set(neighbours.all_inner_texts()) < set(pieces)
    shoot(page, "projector")


def test_profile_has_a_trace_of_the_steps(page: Page, get: Callable[..., Any]) -> None:
    pytest.importorskip("tensorboard_plugin_profile", reason="tensorboard-plugin-profile is not installed")
    (run,) = get("profile/runs")
    assert run.startswith("mlm-gru/2/train/")
    (host,) = get("profile/hosts", run=run, tag="trace_viewer@")
    trace = get("profile/data", run=run, tag="trace_viewer@", host=host["hostname"])
    assert any("IteratorGetNext" in event.get("name", "") for event in trace["traceEvents"])

    # The page loads its charts from www.gstatic.com, so that without a network it shows no more than the
    # list of what was recorded.
    page.goto("/#profile")
    frame = page.frame_locator("iframe")
    frame.get_by_text("Sessions (1)").wait_for()
    frame.get_by_text(run.removesuffix("/")[:20]).first.wait_for()
    shoot(page, "profile")
