"""The status page in Chromium: it shows the models, and its form sends a request and shows the answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.conftest import SCREENSHOTS

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture
def page(browser: Browser, server) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1000, "height": 1400}, base_url=server.rest)
    page.set_default_timeout(120_000)
    yield page
    page.close()


def test_the_page_shows_models_and_sends_a_request(page) -> None:
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto("/")
    section = page.locator("section#add")
    assert section.locator("tr").filter(has_text="AVAILABLE").count() == 3
    assert section.get_by_role("heading", name="serving_default").is_visible()
    assert (
        "curl -d '{\"instances\": [0.0]}'"
        in section.locator("pre").filter(has_text="predict").first.inner_text()
    )

    page.get_by_label("Signature").select_option(label="add version 2, serving_default")
    body = page.get_by_label("Body")
    assert '"instances"' in body.input_value()
    body.fill('{"instances": [1, 2.5]}')
    page.get_by_role("button", name="Send").click()
    answer = page.locator("output")
    answer.filter(has_text="200").wait_for()
    assert '"predictions":[3.0,4.5]' in answer.inner_text()

    # Every made-up body is one that its signature takes.
    options = page.get_by_label("Signature").locator("option").all_inner_texts()
    for option in options:
        page.get_by_label("Signature").select_option(label=option)
        page.get_by_role("button", name="Send").click()
        answer.filter(has_text="200 ").wait_for()
    assert any(option.startswith("words version 1") for option in options)

    body.fill('{"instances": ["<b>not a number"]}')
    page.get_by_label("Signature").select_option(label="add version 1, serving_default")
    body.fill('{"instances": ["<b>not a number</b>"]}')
    page.get_by_role("button", name="Send").click()
    answer.filter(has_text="400").wait_for()
    assert "<b>not a number</b>" in answer.inner_text()
    # A refusal is logged by the browser itself; nothing else is wrong with the page.
    assert all("400 (Bad Request)" in complaint for complaint in complaints), complaints
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / "serving.png", full_page=True)
