"""The report of a drill as one HTML page that needs no other file. Pure."""

import base64
from collections.abc import Sequence
from datetime import UTC, datetime

from jinja2 import DictLoader, Environment, StrictUndefined

from services.console.drill.plots import Plot
from services.console.drill.values import Result, Verdict

_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Headrace drill: {{ order.model }}, {{ order.tier }}</title>
<style>
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; color: #1d2329; background: #fff;
       max-width: 1100px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 26px; margin: 0 0 4px; }
h2 { font-size: 19px; margin: 38px 0 10px; }
h3 { font-size: 15px; margin: 26px 0 6px; }
p { max-width: 82ch; margin: 6px 0; }
code, pre { font: 13px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; }
pre { background: #f4f6f8; padding: 10px 12px; border-radius: 6px; overflow-x: auto; white-space: pre-wrap; }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: 6px 8px; text-align: left; border-bottom: 1px solid #e4e8ec; vertical-align: top; }
th { font-weight: 600; border-bottom: 2px solid #b9c1c9; white-space: nowrap; }
td.number, th.number { text-align: right; white-space: nowrap; }
.verdict { font-weight: 600; white-space: nowrap; }
.go { color: #00704f; } .no-go { color: #b33f00; } .unknown { color: #5b646d; }
.badge { display: inline-block; padding: 3px 12px; border-radius: 14px; color: #fff; font-weight: 600; }
.badge.go { background: #00805b; } .badge.no-go { background: #c24a00; } .badge.unknown { background: #6b737c; }
.muted { color: #5b646d; }
small { display: block; color: #5b646d; }
figure { margin: 0; }
figure img { width: 100%; height: auto; display: block; }
figcaption { color: #4b545d; font-size: 13px; max-width: 90ch; }
</style>
</head>
<body>
<h1>Headrace drill</h1>
<p class="muted">{{ order.tier }} requests for {{ order.model }}, {{ began }}, {{ "%.0f"|format(result.seconds) }} s</p>
<p><span class="badge {{ verdict }}">{{ headline }}</span></p>
<p>{{ "{:,}".format(result.sent) }} requests: {{ "{:,}".format(result.answered) }} answered,
{{ "{:,}".format(result.refused) }} refused for want of room, {{ "{:,}".format(result.failed) }} failed.
The load ended because {{ result.stopped }}.</p>
{% if order.scale != 1 %}<p>For this drill the saturations at which rungs begin were multiplied by
{{ "%g"|format(order.scale) }}; they are as before again.</p>{% endif %}
<pre>{{ result.command }}</pre>

<h2>Rungs</h2>
<table>
<tr><th>rung</th><th class="number">begins at</th><th class="number">reached after</th><th class="number">at load</th>
<th></th><th>evidence</th></tr>
{% for found in result.rungs %}<tr>
<td><b>{{ found.rung.name }}</b><small>{{ found.rung.does }}</small></td>
<td class="number">{{ "%g"|format(found.rung.at) }}</td>
<td class="number">
{%- if found.reached_s is not none %}{{ "%.1f"|format(found.reached_s) }} s{% else %}–{% endif %}</td>
<td class="number">{% if found.per_s is not none %}{{ "%.1f"|format(found.per_s) }}/s{% else %}–{% endif %}</td>
<td class="verdict {{ found.check.verdict.value }}">{{ found.check.verdict.value }}</td>
<td>{{ found.check.evidence }}
{%- if found.check.advice and found.check.verdict.value != "go" %}
<small>→ {{ found.check.advice }}</small>{% endif %}</td>
</tr>
{% endfor %}</table>

<h2>The ladder as a whole</h2>
<table>
{% for check in result.checks %}<tr>
<td>{{ check.what }}</td><td class="verdict {{ check.verdict.value }}">{{ check.verdict.value }}</td>
<td>{{ check.evidence }}
{%- if check.advice and check.verdict.value != "go" %}<small>→ {{ check.advice }}</small>{% endif %}</td>
</tr>
{% endfor %}</table>

<h2>Over time</h2>
<p class="muted">The shade is the level: the deeper, the more rungs are in force.</p>
{% for plot in plots %}<figure>
<h3>{{ plot.title }}</h3>
<img src="data:image/png;base64,{{ plot.data }}" alt="{{ plot.title }}. {{ plot.caption }}">
<figcaption>{{ plot.caption }}</figcaption>
</figure>
{% endfor %}

<h2>How to read this</h2>
<p>The load is an open loop: requests come at a rate, whatever becomes of them, and that rate grows by
{{ "%g"|format(100 * (order.growth - 1)) }} % a second until the next rung is reached. Each asks for {{ order.tokens }}
tokens behind a prompt of about {{ order.words }}. Once a second a probe asks for {{ order.probe_tokens }} tokens, more
than the rungs leave it. A rung is <b class="go">go</b> when it was reached and its effect was seen in answers,
<b class="no-go">no-go</b> when answers contradict it, and <b class="unknown">unknown</b> when it was not reached, or
nothing could be seen.</p>
</body>
</html>
"""


def render(result: Result, plots: Sequence[Plot]) -> str:
    """The page."""
    environment = Environment(loader=DictLoader({"page": _TEMPLATE}), autoescape=True, undefined=StrictUndefined)
    verdict = worst(result)
    return environment.get_template("page").render(
        result=result,
        order=result.order,
        began=datetime.fromtimestamp(result.began, UTC).strftime("%Y-%m-%d %H:%M UTC"),
        verdict=verdict.value,
        headline=headline(result),
        plots=[
            {"title": each.title, "caption": each.caption, "data": base64.b64encode(each.png).decode()}
            for each in plots
        ],
    )


def worst(result: Result) -> Verdict:
    """Of all checks."""
    verdicts = {check.verdict for check in [*(each.check for each in result.rungs), *result.checks]}
    for verdict in (Verdict.NO_GO, Verdict.UNKNOWN):
        if verdict in verdicts:
            return verdict
    return Verdict.GO


def headline(result: Result) -> str:
    """What came of it, in one sentence."""
    reached = sum(each.reached_s is not None for each in result.rungs)
    did = sum(each.check.verdict is Verdict.GO for each in result.rungs)
    rest = "" if not result.aborted else "; stopped before its end"
    return f"{did} of {len(result.rungs)} rungs did what they say, {reached} were reached{rest}"
