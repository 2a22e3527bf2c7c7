"""The page that a person looks at: shares over time, what is on, the last alarms. HTML and SVG, no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

# Labels that are drawn: those with the largest shares.
_FEW = 8
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 720, 180, 60, 14, 24
_STYLE = """
:root { color-scheme: light dark; --line: #0b62c4; --band: #0b62c433; --bad: #b3261e; --good: #1b6e3c; }
@media (prefers-color-scheme: dark) {
  :root { --line: #7db7ff; --band: #7db7ff33; --bad: #ff9188; --good: #7fd6a2; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 1rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin: 1.4rem 0 .2rem; overflow-wrap: anywhere; }
.on { color: var(--bad); font-weight: 600; } .off { color: var(--good); }
svg { width: 100%; height: auto; display: block; }
svg text { font: 12px system-ui, sans-serif; fill: currentColor; }
.grid { stroke: currentColor; opacity: .15; }
.normal { stroke: currentColor; opacity: .6; stroke-dasharray: 5 4; }
.line { stroke: var(--line); stroke-width: 2; fill: none; } .band { fill: var(--band); }
.mark { stroke: var(--bad); stroke-width: 1.5; }
li { overflow-wrap: anywhere; } .scroll { overflow-x: auto; }
table { border-collapse: collapse; } th, td { text-align: left; padding: .2rem .8rem .2rem 0; }
td { font-variant-numeric: tabular-nums; border-top: 1px solid #8884; }
@media (max-width: 40rem) { svg text { font-size: 20px; } th, td { padding-right: .4rem; font-size: .9rem; } }
"""


def page(model: str, snapshot: Mapping[str, Any], nonce: str) -> str:
    """Returns the page.

    Args:
        model: that is watched.
        snapshot: `report`, `reports`, `last` and counts of a watcher; empty before the first text.
        nonce: of the style, for the Content-Security-Policy.
    """
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="refresh" content="15"><title>karpa-tf watch</title>'
        f'<style nonce="{nonce}">{_STYLE}</style></head><body><h1>karpa-tf watch: {escape(model)}</h1>'
    )
    if not snapshot:
        return f"{head}<p>No text yet.</p></body></html>"
    report = snapshot["report"]
    return (
        f"{head}{_state(snapshot)}"
        f"<h2>Shares</h2><p>Of the last {report['window']:,} texts, with 95 % intervals; dashed: the normal "
        f"share; red: an alarm on shares began.</p>{_table(report)}{_charts(snapshot)}"
        f"<h2>Last alarms</h2>{_alarms(snapshot['last'])}</body></html>"
    )


def _state(snapshot: Mapping[str, Any]) -> str:
    report, lines = snapshot["report"], []
    names = {"shares": "Shares of the labels", "input": "Input"}
    for kind, on in report["on"].items():
        level = f"the largest sum is at {report['levels'][kind]:.0%} of its bound"
        said = (
            f'<span class="on">alarm: {escape(", ".join(on))}</span>'
            if on
            else '<span class="off">no alarm</span>'
        )
        lines.append(f"<li>{names[kind]}: {said}; {level}.")
    if "shares" not in report["on"]:
        lines.insert(0, f"<li>Shares of the labels: the baseline is being taken, {snapshot['baseline']}.")
    if "input" not in report["on"]:
        lines.append(
            "<li>Input is not watched, and shares are not corrected: the model has no reference.json."
        )
    skipped = sum(snapshot["skipped"].values())
    reasons = ", ".join(
        f"{escape(reason)} {count:,}" for reason, count in sorted(snapshot["skipped"].items())
    )
    more = f" ({reasons})" if reasons else ""
    lines.append(f"<li>{snapshot['texts']:,} texts; {skipped:,} lines skipped{more}.")
    if snapshot["dropped"]:
        lines.append(f'<li><span class="on">{snapshot["dropped"]:,} alarms not taken by the webhook.</span>')
    return f"<ul>{''.join(lines)}</ul>"


def _shown(report: Mapping[str, Any]) -> list[str]:
    return sorted(report["shares"], key=lambda label: -report["shares"][label]["share"])[:_FEW]


def _table(report: Mapping[str, Any]) -> str:
    rows = ""
    for label in _shown(report):
        row = report["shares"][label]
        normal = "" if row["normal"] is None else f"{row['normal']:.1%}"
        rows += (
            f"<tr><td>{escape(label)}<td>{row['share']:.1%}<td>{row['low']:.1%} to {row['high']:.1%}"
            f"<td>{normal}<td>{row['predicted']:.1%}"
        )
    left = len(report["shares"]) - _FEW
    note = f"<p>{left} more labels with smaller shares are not shown.</p>" if left > 0 else ""
    return (
        '<div class="scroll"><table><tr><th>label<th>share<th>interval<th>normal<th>predicted'
        f"{rows}</table></div>{note}"
    )


def _charts(snapshot: Mapping[str, Any]) -> str:
    reports = [*snapshot["reports"]]
    if len(reports) < 2:
        return "<p>There is a chart from the second report on.</p>"
    began = [
        event["began"]
        for event in snapshot["last"]
        if event["event"] == "alarm" and event["kind"] == "shares"
    ]
    return "".join(
        f"<h2>{escape(label)}</h2>{_chart(label, reports, began)}" for label in _shown(snapshot["report"])
    )


def _chart(label: str, reports: Sequence[Mapping[str, Any]], began: Sequence[int]) -> str:
    rows = [(report["text"], report["shares"][label]) for report in reports if label in report["shares"]]
    first, last = rows[0][0], max(rows[-1][0], rows[0][0] + 1)

    def x(text: float) -> str:
        return f"{_LEFT + (text - first) / (last - first) * (_WIDTH - _LEFT - 8):.1f}"

    def y(share: float) -> str:
        return f"{_TOP + (1 - share) * (_HEIGHT - _BOTTOM - _TOP):.1f}"

    grid = "".join(
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH}" y1="{y(share)}" y2="{y(share)}"/>'
        f'<text x="{_LEFT - 6}" y="{float(y(share)) + 4:.1f}" text-anchor="end">{share:.0%}</text>'
        for share in (0, 0.5, 1)
    )
    upper = [f"{x(text)},{y(row['high'])}" for text, row in rows]
    lower = [f"{x(text)},{y(row['low'])}" for text, row in reversed(rows)]
    line = " ".join(f"{x(text)},{y(row['share'])}" for text, row in rows)
    normal = rows[-1][1]["normal"]
    dashed = ""
    if normal is not None:
        dashed = f'<line class="normal" x1="{_LEFT}" x2="{_WIDTH}" y1="{y(normal)}" y2="{y(normal)}"/>'
    marks = "".join(
        f'<line class="mark" x1="{x(text)}" x2="{x(text)}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>'
        for text in began
        if first <= text <= last
    )
    ends = (
        f'<text x="{_LEFT}" y="{_HEIGHT - 4}">text {first:,}</text>'
        f'<text x="{_WIDTH}" y="{_HEIGHT - 4}" text-anchor="end">{last:,}</text>'
    )
    said = f"{escape(label)}: {rows[-1][1]['share']:.1%} at text {last:,}"
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{said}">{grid}'
        f'<polygon class="band" points="{" ".join(upper + lower)}"/>{dashed}{marks}'
        f'<polyline class="line" points="{line}"/>{ends}</svg>'
    )


def _alarms(events: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for event in reversed([*events]):
        if event["event"] == "over":
            parts.append(f"<li>Text {event['text']:,}: {event['kind']}, over.")
            continue
        samples = "".join(f"<li>{escape(row['text'])} ({escape(row['label'])})" for row in event["samples"])
        parts.append(
            f"<li>Text {event['text']:,}: {event['kind']}, {escape(event['direction'])}, since about text "
            f"{event['began']:,}.<ul>{samples}</ul>"
        )
    return f"<ul>{''.join(parts)}</ul>" if parts else "<p>None.</p>"
