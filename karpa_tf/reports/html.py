"""Pages of HTML that hold all that they show: no script, no style and no picture comes from elsewhere."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --mark: #1a73e8; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 62rem; padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; border-bottom: 1px solid var(--line); }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .6rem; text-align: left; vertical-align: top; }
td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.t { min-width: 14rem; overflow-wrap: anywhere; }
pre { overflow-x: auto; background: #8881; padding: .6rem; font-size: .85rem; }
img, svg { max-width: 100%; height: auto; } figure { margin: 1rem 0; }
h1, p, dd, figcaption { overflow-wrap: anywhere; }
figcaption, .note { font-size: .85rem; opacity: .75; } dt { font-weight: 600; } dd { margin: 0 0 .4rem 0; }
"""


def page(title: str, parts: Iterable[str]) -> str:
    """Returns a whole page.

    Args:
        title: of the page.
        parts: pieces of HTML.
    """
    head = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{_STYLE}</style></head>\n<body>\n<h1>{text(title)}</h1>\n"
    )
    return head + "\n".join(parts) + "\n</body></html>\n"


def text(value: object) -> str:
    """Returns a text with what means something in HTML written out."""
    return html.escape(str(value))


def section(title: str, *parts: str) -> str:
    """Returns a part with a title; nothing where there is nothing in it."""
    inner = "\n".join(filter(None, parts))
    return f"<section><h2>{text(title)}</h2>\n{inner}</section>" if inner else ""


def paragraph(words: str, kind: str = "") -> str:
    """Returns a paragraph of plain text."""
    return f"<p{f' class={kind}' if kind else ''}>{text(words)}</p>"


def code(lines: str) -> str:
    """Returns lines as they are."""
    return f"<pre>{text(lines)}</pre>"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Returns a table; numbers stand right, long texts may break."""
    cells = "".join(f"<th>{text(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>\n" for row in rows)
    if not body:
        return ""
    return f'<div class="wide"><table><thead><tr>{cells}</tr></thead><tbody>\n{body}</tbody></table></div>'


def _cell(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        words = str(value)
        return f"<td{' class=t' if len(words) > 30 else ''}>{text(words)}</td>"
    shown = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    return f'<td class="n">{shown}</td>'


def facts(values: Mapping[str, object]) -> str:
    """Returns names with what they are."""
    if not values:
        return ""
    named = (f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in values.items())
    return f"<dl>{''.join(named)}</dl>"


def picture(file: Path, caption: str) -> str:
    """Returns a PNG or GIF file as a part of the page; nothing where there is no such file."""
    if not file.is_file():
        return ""
    return drawing(file.read_bytes(), caption, file.suffix.lower().removeprefix("."))


def drawing(data: bytes, caption: str, kind: str = "png") -> str:
    """Returns the bytes of a picture as a part of the page."""
    inner = base64.b64encode(data).decode()
    return (
        f'<figure><img alt="{text(caption)}" src="data:image/{kind};base64,{inner}">'
        f"<figcaption>{text(caption)}</figcaption></figure>"
    )


_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 640, 240, 56, 28
_COLOURS = ("#1a73e8", "#e8710a", "#188038", "#a142f4")


def curves(title: str, series: Mapping[str, Mapping[int, float]], x: str) -> str:
    """Returns curves as a drawing in SVG.

    Args:
        title: of the drawing.
        series: values by step, by name; of four at most.
        x: what the steps are.
    """
    series = {name: points for name, points in series.items() if len(points) > 1}
    if not series:
        return ""
    steps = [step for points in series.values() for step in points]
    values = [value for points in series.values() for value in points.values()]
    low, high = min(values), max(values)
    first, last = min(steps), max(steps)
    wide, tall = _WIDTH - _LEFT - 12, _HEIGHT - _BOTTOM - 12

    def place(step: float, value: float) -> str:
        across = _LEFT + wide * (step - first) / max(last - first, 1)
        up = 12 + tall * (high - value) / ((high - low) or 1.0)
        return f"{across:.1f},{up:.1f}"

    lines, names = [], []
    for number, (name, points) in enumerate(series.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        drawn = " ".join(place(step, value) for step, value in points.items())
        lines.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{drawn}"/>')
        names.append(f'<tspan fill="{colour}">{text(name)}</tspan>')
    axis = "".join(
        f'<line x1="{_LEFT}" x2="{_WIDTH - 12}" y1="{y}" y2="{y}" stroke="#8886"/>'
        f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{value:.3g}</text>'
        for y, value in ((12, high), (12 + tall / 2, (high + low) / 2), (12 + tall, low))
    )
    ends = "".join(
        f'<text x="{at}" y="{_HEIGHT - 8}" text-anchor="{anchor}">{step:,}</text>'
        for at, anchor, step in ((_LEFT, "start", first), (_WIDTH - 12, "end", last))
    )
    middle = (
        f'<text x="{_LEFT + wide / 2}" y="{_HEIGHT - 8}" text-anchor="middle">{text(x)}: '
        f"{'  '.join(names)}</text>"
    )
    drawn_in = (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" role="img" aria-label="{text(title)}" '
        f'font-size="12" fill="currentColor">{axis}{"".join(lines)}{ends}{middle}</svg>'
    )
    return f"<figure>{drawn_in}<figcaption>{text(title)}</figcaption></figure>"
