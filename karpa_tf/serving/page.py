"""The status page at `/`: models, versions, signatures, and a form that sends one request."""

from __future__ import annotations

import base64
import json
import math
import secrets
from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np
from aiohttp import web

from karpa_tf.serving.json_tensors import Spec, not_carried
from karpa_tf.serving.model import Model, Signature
from karpa_tf.serving.observing import LABEL_MINUTES, Observer, Recent
from karpa_tf.serving.registry import Registry, Served, State, Version

# Characters of a body that the page shows, and values of which it makes one.
_LONGEST_BODY = 20_000
_MOST_VALUES = 4096

_COLUMNS = ("version", "state", "labels", "loaded in", "requests", "failed", "median", "p99", "answers")
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #8884; }
pre { background: #8882; padding: .6rem; overflow-x: auto; white-space: pre-wrap; }
textarea, select, output { font: 14px/1.4 monospace; width: 100%; box-sizing: border-box; display: block; }
output { white-space: pre-wrap; min-height: 2rem; }
label { display: block; margin: .8rem 0 .2rem; }
"""
_SCRIPT = """
const form = document.querySelector("form"), choice = form.elements.signature;
const show = () => { form.elements.body.value = choice.selectedOptions[0].dataset.body; };
choice.addEventListener("change", show);
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const answer = form.querySelector("output");
  answer.value = "...";
  try {
    const response = await fetch(choice.selectedOptions[0].dataset.path,
                                 {method: "POST", body: form.elements.body.value});
    answer.value = response.status + " " + await response.text();
  } catch (error) { answer.value = String(error); }
});
show();
"""


def respond(registry: Registry, observer: Observer, address: str) -> web.Response:
    """Returns the page; `address` is what the browser calls this server."""
    nonce = secrets.token_urlsafe(16)
    parts = [_model(served, observer, address) for served in registry.models()]
    form = _form(registry)
    html = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>karpa-tf serve</title>'
        f'<style nonce="{nonce}">{_STYLE}</style><h1>karpa-tf serve</h1>'
        + "".join(parts or ["<p>No model is served.</p>"])
        + (form + f'<script nonce="{nonce}">{_SCRIPT}</script>' if form else "")
    )
    headers = {
        # Nothing is loaded from anywhere, and the form speaks to this server only.
        "Content-Security-Policy": f"default-src 'none'; style-src 'nonce-{nonce}'; "
        f"script-src 'nonce-{nonce}'; connect-src 'self'; base-uri 'none'; frame-ancestors 'none'",
        "Cache-Control": "no-store",
    }
    return web.Response(text=html, content_type="text/html", headers=headers)


def _model(served: Served, observer: Observer, address: str) -> str:
    versions = [served.versions[number] for number in sorted(served.versions, reverse=True)]
    rows = "".join(_version(version, served.labels) for version in versions)
    table = f"<table><tr><th>{'<th>'.join(_COLUMNS)}{rows}</table>"
    if served.canary:
        table += f"<p>{escape(served.canary.describe())}</p>"
    newest = next((version.model for version in versions if version.model), None)
    signatures = ""
    if newest is not None:
        signatures = "".join(_signature(newest, key, address) for key in _names(newest))
    name = escape(served.name)
    return (
        f'<section id="{name}"><h2>{name}</h2>{table}{_lately(served.name, observer)}{signatures}</section>'
    )


def _lately(name: str, observer: Observer) -> str:
    recent = observer.recent.get(name)
    percentiles = recent.percentiles() if recent else None
    if recent is None or percentiles is None:
        return "<p>No request yet.</p>"
    median, high = percentiles
    number = len(recent.milliseconds)
    text = f"<p>Last {number} requests: median {median:.1f} ms, 99th percentile {high:.1f} ms.</p>"
    if shares := _shares(recent):
        text += f"<p>Labels of the last {LABEL_MINUTES} minutes: {shares}.</p>"
    return text


def _shares(recent: Recent) -> str:
    return ", ".join(f"{escape(label)} {share:.0%}" for label, share in recent.shares().items())


def _version(version: Version, labels: Mapping[str, int]) -> str:
    state = State.Name(version.state)
    if version.error:
        state += f": {version.error.code}: {version.error.message}"
    named = ", ".join(sorted(label for label, number in labels.items() if number == version.number))
    cells = [str(version.number), escape(state), escape(named)]
    if model := version.model:
        recent, times = model.recent, [f"{value:.1f} ms" for value in model.recent.percentiles() or ()]
        failed = recent.statuses.total() - recent.statuses["OK"]
        cells += [f"{model.seconds:.1f} s", str(recent.statuses.total()), str(failed), *(times or ["", ""])]
        cells += [_shares(recent)]
    return f"<tr><td>{'<td>'.join(cells)}"


def _names(model: Model) -> list[str]:
    """The signatures' names, the default one first."""
    return sorted(model.signatures, key=lambda name: (name != "serving_default", name))


def _signature(model: Model, key: str, address: str) -> str:
    signature = model.signatures[key]
    table = (
        f"<h3>{escape(key)}</h3><table>{_tensors('in', signature.inputs)}"
        f"{_tensors('out', signature.outputs)}</table><p>{_joining(signature)}</p>"
    )
    if reason := _not_over_rest(signature):
        return table + f"<p>{escape(reason)}</p>"
    text = json.dumps(example_body(signature, key), ensure_ascii=False)
    # In a shell a quote ends the text; this way it is one.
    body = text.replace("'", "'\\''") if len(text) <= _LONGEST_BODY else "BODY"
    curl = f"curl -d '{body}' \\\n  {address}/v1/models/{model.name}:predict"
    return table + f"<pre>{escape(curl)}</pre>"


def _not_over_rest(signature: Signature) -> str:
    """Returns why no JSON asks the signature, "" if some does."""
    needed = {name: spec for name, spec in signature.inputs.items() if name not in signature.defaults}
    return signature.unserved or not_carried(needed, signature.outputs)


def _joining(signature: Signature) -> str:
    said = "joined" if signature.joining.joined else "not joined"
    return f"Requests are {said}: {escape(signature.joining.reason)}."


def _tensors(direction: str, specs: Mapping[str, Spec]) -> str:
    return "".join(
        f"<tr><td>{direction}<td>{escape(name)}<td>{dtype} {escape(_shape(shape))}"
        for name, (dtype, shape) in sorted(specs.items())
    )


def _shape(shape: tuple[int, ...] | None) -> str:
    if shape is None:
        return "of any shape"
    return "[" + ", ".join("?" if size == -1 else str(size) for size in shape) + "]"


def _form(registry: Registry) -> str:
    options = ""
    for served in registry.models():
        for number in served.available():
            model = served.versions[number].model
            if model is None:
                continue
            for key in _names(model):
                if _not_over_rest(model.signatures[key]):
                    continue
                text = json.dumps(example_body(model.signatures[key], key), indent=1, ensure_ascii=False)
                body = escape(text if len(text) <= _LONGEST_BODY else "")
                path = f"/v1/models/{served.name}/versions/{number}:predict"
                title = escape(f"{served.name} version {number}, {key}")
                options += f'<option data-path="{escape(path)}" data-body="{body}">{title}</option>'
    if not options:
        return ""
    return (
        "<h2>Send a request</h2><form>"
        f'<label for="signature">Signature</label><select id="signature" name="signature">{options}</select>'
        '<label for="body">Body</label>'
        '<textarea id="body" name="body" rows="8" spellcheck="false"></textarea>'
        '<p><button>Send</button></p><label for="answer">Answer</label><output id="answer"></output></form>'
    )


def example_body(signature: Signature, key: str) -> dict[str, Any]:
    """Returns a body that the signature takes, with one row of made-up values where it takes rows."""
    tensors = (*signature.inputs.values(), *signature.outputs.values())
    by_rows = all(shape and shape[0] == -1 for _, shape in tensors)
    body: dict[str, Any] = {} if key == "serving_default" else {"signature_name": key}
    if (
        sum(math.prod(max(size, 1) for size in shape or ()) for _, shape in signature.inputs.values())
        > _MOST_VALUES
    ):
        return body | {"instances" if by_rows else "inputs": ["(too many values for an example)"]}
    if signature.example is not None and by_rows:
        # What the exporter wrote for warming up is what the signature is for.
        given = {name: _json(array[0]) for name, array in signature.example.items()}
        return body | {"instances": [next(iter(given.values())) if len(given) == 1 else given]}
    values = {
        name: _example(dtype, shape[1:] if by_rows and shape else shape or ())
        for name, (dtype, shape) in signature.inputs.items()
        if name not in signature.defaults
    }
    if by_rows:
        return body | {"instances": [next(iter(values.values())) if len(values) == 1 else values]}
    return body | {"inputs": values}


def _json(value: Any) -> Any:
    """Returns a value of a row as JSON has it."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return {"b64": base64.b64encode(value).decode()}
    if isinstance(value, np.ndarray):
        return [_json(item) for item in value]
    return value.item()


def _example(dtype: str, shape: tuple[int, ...]) -> Any:
    if shape:
        return [_example(dtype, shape[1:]) for _ in range(max(shape[0], 1))]
    if dtype == "string":
        return "Turn on the light in the kitchen."
    return {"bool": True}.get(dtype, 0.0 if "float" in dtype else 0)
