"""A figure of `poise bench` as a page of its own: one file that loads nothing from the network."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from poise.report.bench.frames import Drawn
from poise.report.embed import script_json

SCRIPT = """
const figure = JSON.parse(document.getElementById("figure").textContent);
Plotly.newPlot("plot", figure.data, figure.layout, { displayModeBar: false, responsive: true });
"""

STYLE = """
:root { color-scheme: light; }
body { margin: 2rem auto; padding: 0 1rem; max-width: 60rem; color: #1d2126; background: #fdfdfc;
       font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.35rem; margin: 0 0 .8rem; }
h2 { font-size: 1.05rem; margin: 1.6rem 0 .4rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: 0 0 1rem; }
dt { color: #565d66; }
dd { margin: 0; }
table { border-collapse: collapse; }
th, td { padding: .3rem .7rem .3rem 0; border-bottom: 1px solid #dfe3e8; text-align: left; vertical-align: top; }
.partial { color: #c85200; font-weight: 600; }
.plot { overflow-x: auto; }
#plot { min-width: 40rem; }
footer { margin-top: 2rem; color: #565d66; font-size: .85rem; }
"""

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{{ policy }}">
<title>{{ title }}</title>
<style>{{ style }}</style>
</head>
<body>
<h1>{{ title }}</h1>
<dl>{% for name, told in facts %}
<dt>{{ name }}</dt><dd>{{ told }}</dd>{% endfor %}
</dl>
{% if partial %}<p class="partial">{{ partial }}</p>{% endif %}
<div class="plot"><div id="plot" role="img" aria-label="{{ alt }}"></div></div>
{% if trends %}<h2>Does what the paper shows hold here?</h2>
<table><thead><tr><th>In the paper</th><th>Here</th><th>Combinations</th><th>Not in</th></tr></thead><tbody>
{% for row in trends %}<tr>{% for part in row %}<td>{{ part }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table>{% endif %}
<footer>{{ footer }}</footer>
<script type="application/json" id="figure">{{ figure }}</script>
<script>{{ plotly }}</script>
<script>{{ script }}</script>
</body>
</html>
"""


def page(result: Drawn, figure: go.Figure, trends: Sequence[tuple[str, ...]]) -> str:
    """The page; every text of the spec and of the result is escaped.

    Args:
        result: what is shown. figure: drawn.
        trends: per trend of the paper its text, one word, in how many combinations it is there, and where it is not.
    """
    plotly, script = Markup(get_plotlyjs()), Markup(SCRIPT)  # noqa: S704 - the library's own script and ours
    hashes = " ".join(f"'sha256-{_sha256(part)}'" for part in (plotly, script))
    spec, about = result.spec, result.about
    partial = ""
    if about["done"] < about["shards"]:
        partial = f"Partial: {about['done']} of {about['shards']} shards are finished."
    drawn = json.loads(figure.to_json())
    drawn["layout"].pop("title", None)  # the heading says it
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(TEMPLATE).render(
        policy=f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:",
        title=f"{spec.shows}: {' '.join(spec.title.split())}",
        style=Markup(STYLE),  # noqa: S704 - ours
        facts=_facts(result),
        partial=partial,
        alt=figure.layout.meta["alt"],
        trends=trends,
        footer=f"Made by poise {about.get('poise', '')}. This file loads nothing from the network.",
        figure=script_json(drawn),
        plotly=plotly,
        script=script,
    )


def _facts(result: Drawn) -> list[tuple[str, str]]:
    spec, about = result.spec, result.about
    profile = spec.profile(about["profile"])
    found = [
        ("Paper", " ".join(spec.setting.split())),
        ("Here", f"profile {about['profile']}; {' '.join(profile.differs.split()) or 'as the paper'}"),
    ]
    made = ", ".join(str(about[name]) for name in ("created", "machine") if about.get(name))
    return [*found, ("Made", made)] if made else found


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
