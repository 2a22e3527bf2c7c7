"""A chat page before one `karpa-tf serve`: a classifier says what is known, a retriever finds the answer.

    python examples/customer-service/chat.py http://127.0.0.1:8501 --port 8080

Nothing is loaded from elsewhere, and the page speaks to this program alone, which asks the server.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

# The models of the server.
CLASSIFIER, RETRIEVER = "bert-classifier", "retriever"
# Characters of a question, and what is said where the classifier does not know one.
LONGEST = 1000
PASSED_ON = "I do not know that yet. I have passed it on, and a colleague will answer you."
PAGE = Path(__file__).with_name("chat.html")
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}


class Chat:
    """The program behind the page.

    Args:
        server: address of `karpa-tf serve`, as http://127.0.0.1:8501.
    """

    def __init__(self, server: str) -> None:
        self.server = server.rstrip("/")

    def app(self) -> web.Application:
        """Returns the page at `/`, and questions at `/ask`."""
        app = web.Application(client_max_size=16 * LONGEST)
        app.add_routes([web.get("/", self.page), web.post("/ask", self.ask)])
        app.cleanup_ctx.append(self._session)
        return app

    async def _session(self, app: web.Application) -> Any:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as self.session:
            yield

    async def page(self, request: web.Request) -> web.Response:
        """Answers with the page."""
        return web.Response(text=PAGE.read_text("utf-8"), content_type="text/html", headers=_HEADERS)

    async def ask(self, request: web.Request) -> web.Response:
        """Answers `{"text": ...}` with what `reply` returns; or with `error`, a sentence."""
        try:
            text = (await request.json())["text"]
        except (ValueError, TypeError, KeyError):
            text = None
        if not isinstance(text, str) or not text.strip() or len(text) > LONGEST:
            said = f'Send {{"text": "..."}} with 1 to {LONGEST} characters.'
            return web.json_response({"error": said}, status=400)
        try:
            return web.json_response(await self.reply(text.strip()))
        except (aiohttp.ClientError, TimeoutError, OSError):
            said = "The service does not answer now. Please try again in a minute."
            return web.json_response({"error": said}, status=502)

    async def reply(self, text: str) -> dict[str, Any]:
        """Returns `known`, `label`, `reply`, and of what is known the `entry` that has it and its `score`."""
        intent = await self._predict(CLASSIFIER, text)
        found = {"known": bool(intent["known"]), "label": intent["label"]}
        if not found["known"]:
            return {**found, "reply": PASSED_ON}
        nearest = await self._predict(RETRIEVER, text)
        entry, reply, score = (nearest[name][0] for name in ("entry", "answer", "score"))
        return {**found, "reply": reply, "entry": entry, "score": score}

    async def _predict(self, model: str, text: str) -> dict[str, Any]:
        url = f"{self.server}/v1/models/{model}:predict"
        async with self.session.post(url, json={"instances": [text]}, raise_for_status=True) as answer:
            return json.loads(await answer.read())["predictions"][0]


def main() -> None:
    """Serves the page until it is stopped."""
    parser = argparse.ArgumentParser(description="A chat page before karpa-tf serve.")
    parser.add_argument("server", help="Address of the server, as http://127.0.0.1:8501.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    given = parser.parse_args()

    def ready(_: str) -> None:
        print(f"Chat: http://{given.host}:{given.port}/", flush=True)

    web.run_app(Chat(given.server).app(), host=given.host, port=given.port, print=ready, access_log=None)


if __name__ == "__main__":
    main()
