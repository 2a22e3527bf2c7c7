"""The status page in Chromium: it shows the models, and its form sends a request and shows the answer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.conftest import SCREENSHOTS
from tests.serving.conftest import Running, until

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


def test_with_tokens_the_page_asks_for_one_and_its_form_uses_it(browser, templates, tmp_path) -> None:
    """A browser asks for a name and a password: any name, and the token."""
    tokens = tmp_path / "tokens"

    def accept(token: str) -> None:
        new = tmp_path / "new"
        new.write_text(hashlib.sha256(token.encode()).hexdigest() + "\n", encoding="utf-8")
        new.replace(tokens)

    accept("right")
    with Running(templates, token_file=str(tokens)) as server:

        def visit(token: str) -> Page:
            page = browser.new_page(
                base_url=server.rest, http_credentials={"username": "ada", "password": token}
            )
            page.set_default_timeout(120_000)
            return page

        page = visit("wrong")
        refused = page.goto("/")
        assert refused is not None and refused.status == 401
        assert "Send a header Authorization: Bearer TOKEN" in page.content()
        assert page.locator("form").count() == 0 and "serving_default" not in page.content()
        page.close()

        page = visit("right")
        page.goto("/")
        page.get_by_label("Signature").select_option(label="add version 2, serving_default")
        page.get_by_label("Body").fill('{"instances": [1, 2.5]}')
        answer = page.locator("output")
        page.get_by_role("button", name="Send").click()
        answer.filter(has_text="200 ").wait_for()
        assert '"predictions":[3.0,4.5]' in answer.inner_text()

        # A token that is withdrawn while the page is open.
        accept("another")
        right = {"Authorization": "Bearer right"}
        until(lambda: server.get("/v1/models/add", right).status == 401, "the token is withdrawn")
        page.get_by_role("button", name="Send").click()
        answer.filter(has_text="401 ").wait_for()
        assert "Send a header Authorization: Bearer TOKEN" in answer.inner_text()
        page.close()
