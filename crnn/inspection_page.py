"""An inspection as one self-contained web page: no server, no external resources, readable without scripts."""

from __future__ import annotations

import base64
import html
import json
import math
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .inspection import Inspection

__all__ = ["page"]

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # a byte of a file name or an argument that was not UTF-8
_MOST_SURPRISE = 12.0  # nats; the colour scale ends here

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>%(title)s</title>
<style>
:root { color-scheme: light; }
body { font: 16px/1.9 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: #1a1a1a; }
h1 { font-size: 1.2rem; margin: 0; }
p.about, footer { color: #555; font-size: .85rem; line-height: 1.4; }
#text span { border-radius: .2em; padding: .1em .15em; cursor: default; white-space: pre-wrap; }
#text span.marker { color: #888; font-size: .7em; }
#text span.unknown { border-bottom: 2px dotted #777; }
#text span.chosen { outline: 2px solid #000; }
form { background: #f3f3f3; border-radius: .4em; padding: .4rem .8rem; font-size: .9rem; }
form label { margin-right: 1.2em; }
input[type=number] { width: 5em; }
#details { min-height: 12rem; font-size: .9rem; line-height: 1.5; }
#details table { border-collapse: collapse; }
#details td { padding: 0 .8em 0 0; font-variant-numeric: tabular-nums; }
#details i { display: inline-block; height: .7em; background: #4878a8; }
</style>
</head>
<body>
<h1>%(title)s</h1>
<p class="about">%(about)s</p>
<form id="form" onsubmit="return false">
<label>colour: <select id="trace"><option value="">surprise (nats)</option>%(options)s</select></label>
<label>unit: <input type="number" id="unit" value="0" min="0" max="%(last_unit)d"></label>
<span id="range"></span>
</form>
<p id="text">%(spans)s</p>
<div id="details"><p class="about">Point at a word to see what the model expected there; click to keep it.</p></div>
<script type="application/json" id="data">%(data)s</script>
<script>
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const spans = [...document.querySelectorAll("#text span[data-n]")];
const trace = document.getElementById("trace"), unit = document.getElementById("unit");
const range = document.getElementById("range"), details = document.getElementById("details");
const original = spans.map(s => s.style.background);
const cache = {};
let kept = -1;
function values(name) {
  if (!cache[name]) {
    const bytes = atob(data.traces[name].bytes), t = data.traces[name];
    cache[name] = Float32Array.from(bytes, c => t.low + (t.high - t.low) * c.charCodeAt(0) / 255);
  }
  return cache[name];
}
function colour(v, low, high) {
  const largest = Math.max(Math.abs(low), Math.abs(high)) || 1, a = Math.min(1, Math.abs(v) / largest);
  return v < 0 ? `rgba(40,90,200,${0.85 * a})` : `rgba(220,90,20,${0.85 * a})`;
}
function paint() {
  const name = trace.value;
  if (!name) { spans.forEach((s, i) => s.style.background = original[i]); range.textContent = ""; return; }
  const t = data.traces[name], u = Math.min(Math.max(0, unit.valueAsNumber || 0), data.units - 1), v = values(name);
  spans.forEach((s, i) => s.style.background = colour(v[i * data.units + u], t.low, t.high));
  range.textContent = `blue ${t.low.toFixed(2)} ... orange ${t.high.toFixed(2)}`;
}
function show(n) {
  const word = data.words[n], box = document.createElement("div"), head = document.createElement("p");
  head.textContent = word.surprise === null ? `${word.token}: the start, nothing predicts it`
    : `${word.token}: ${word.surprise.toFixed(2)} nats, probability ${Math.exp(-word.surprise).toPrecision(2)}`;
  if (trace.value) {
    const v = values(trace.value)[n * data.units + Math.min(unit.valueAsNumber || 0, data.units - 1)];
    head.textContent += `; ${trace.value}, unit ${unit.value}: ${v.toFixed(2)}`;
  }
  box.append(head);
  const table = document.createElement("table");
  for (const [token, p] of word.guesses) {
    const row = table.insertRow();
    row.insertCell().textContent = token;
    row.insertCell().textContent = (100 * p).toFixed(1) + " %%";
    const bar = document.createElement("i");
    bar.style.width = (16 * p) + "rem";
    row.insertCell().append(bar);
  }
  box.append(table);
  details.replaceChildren(box);
}
spans.forEach((s, n) => {
  s.addEventListener("mouseenter", () => { if (kept < 0) show(n); });
  s.addEventListener("click", () => {
    spans.forEach(o => o.classList.remove("chosen"));
    kept = kept === n ? -1 : n;
    if (kept >= 0) { s.classList.add("chosen"); show(n); }
  });
});
trace.addEventListener("change", paint);
unit.addEventListener("input", paint);
</script>
<footer>made by crnn %(version)s</footer>
</body>
</html>
"""


def page(inspection: Inspection, title: str, level: str = "word", markers: tuple[str, ...] = ()) -> str:
    """The page's HTML.

    Parameters
    ----------
    inspection
        What to show.
    title
        Heading.
    level
        "word", "character" or "whitespace": whether blanks stand between tokens.
    markers
        Tokens to be shown small.
    """
    from . import __version__

    about = (
        f"{inspection.predictions} tokens, {inspection.loss:.3f} nats per token, "
        f"perplexity {math.exp(min(inspection.loss, 700.0)):.1f}. "
        "The redder a word, the more it surprised the model; dotted words are not in its vocabulary."
    )
    data = {
        "units": next(iter(inspection.traces.values())).shape[1],
        "words": [
            {
                "token": token,
                "surprise": None if math.isnan(surprise) else round(float(surprise), 4),
                "guesses": [[word, round(p, 5)] for word, p in guesses],
            }
            for token, surprise, guesses in zip(inspection.tokens, inspection.surprise, inspection.guesses)
        ],
        "traces": {name: _quantised(values) for name, values in inspection.traces.items()},
    }
    content = _PAGE % {
        "title": html.escape(title),
        "about": html.escape(about),
        "options": "".join(f'<option value="{name}">{name}</option>' for name in inspection.traces),
        "last_unit": data["units"] - 1,
        "spans": _spans(inspection, " " if level != "character" else "", markers),
        # inside a script element only "<" could end it early
        "data": json.dumps(data).replace("<", "\\u003c"),
        "version": __version__,
    }
    return _LONE_SURROGATE.sub("\N{REPLACEMENT CHARACTER}", content)


def _spans(inspection: Inspection, blank: str, markers: tuple[str, ...]) -> str:
    spans = []
    for number, (token, surprise, guesses) in enumerate(
        zip(inspection.tokens, inspection.surprise, inspection.guesses)
    ):
        kinds = [
            kind
            for kind, applies in (("marker", token in markers), ("unknown", not inspection.known[number]))
            if applies
        ]
        strength = 0.0 if math.isnan(surprise) else min(1.0, float(surprise) / _MOST_SURPRISE)
        hint = (
            ""
            if math.isnan(surprise)
            else f"{surprise:.2f} nats; " + ", ".join(f"{word} {100 * p:.0f} %" for word, p in guesses)
        )
        spans.append(
            f'<span data-n="{number}" class="{" ".join(kinds)}" title="{html.escape(hint)}" '
            f'style="background:rgba(214,39,40,{0.75 * strength:.3f})">{html.escape(_visible(token))}</span>'
        )
        if "\n" in token or (token == (markers[-1:] or ("",))[0] and len(set(markers)) > 1):
            spans.append("<br>")
    return blank.join(spans)


def _visible(token: str) -> str:
    return "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}" if token == "\n" else token


def _quantised(values: NDArray[Any]) -> dict[str, Any]:
    """A trace in one byte per value, between its own limits: 256 shades are more than an eye tells apart."""
    low, high = float(values.min()), float(values.max())
    scale = 255.0 / (high - low) if high > low else 0.0
    steps = np.rint((values - low) * scale).astype(np.uint8)
    return {"low": low, "high": high, "bytes": base64.b64encode(steps.tobytes()).decode("ascii")}
