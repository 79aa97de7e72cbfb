"""The report of a sweep as one HTML page that needs no other file. Pure."""

import base64
from collections.abc import Sequence

from jinja2 import DictLoader, Environment, StrictUndefined

from services.simulator import report
from services.simulator.measure import COOL_DOWN, WARM_UP
from services.simulator.plots import Plot
from services.simulator.points import Point, knee
from services.simulator.report import About

_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Headrace simulation: {{ about.trace }}</title>
<style>
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; color: #1d2329; background: #fff;
       max-width: 1180px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 26px; margin: 0 0 4px; }
h2 { font-size: 19px; margin: 40px 0 10px; }
h3 { font-size: 15px; margin: 0 0 6px; }
p { max-width: 82ch; margin: 6px 0; }
code, pre { font: 13px/1.5 ui-monospace, "DejaVu Sans Mono", monospace; }
pre { background: #f4f6f8; padding: 10px 12px; border-radius: 6px; overflow-x: auto; white-space: pre-wrap; }
table { border-collapse: collapse; font-size: 12.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 7px; text-align: right; border-bottom: 1px solid #e4e8ec; white-space: nowrap; }
th { font-weight: 600; line-height: 1.25; vertical-align: bottom; border-bottom: 2px solid #b9c1c9; }
.results { width: 100%; font-size: 12px; }
.results th { white-space: normal; }
.results td, .results th { padding: 4px 4px; }
th small { display: block; font-weight: 400; color: #5b646d; }
th:first-child, td:first-child, td.words, th.words { text-align: left; }
tr.load td { background: #f4f6f8; font-weight: 600; padding-top: 9px; text-align: left; }
tr.best td { font-weight: 600; }
.scroll { overflow-x: auto; }
.plots { display: grid; grid-template-columns: 1fr 1fr; gap: 26px 22px; }
figure { margin: 0; min-width: 0; }
figure.wide { grid-column: 1 / -1; }
figure img { width: 100%; height: auto; display: block; }
figcaption { color: #4b545d; font-size: 13px; max-width: 82ch; }
.facts { display: grid; grid-template-columns: 1fr 1fr; gap: 0 40px; }
.facts table { width: 100%; align-self: start; }
.facts td { white-space: normal; text-align: left; vertical-align: top; }
.facts td:first-child { color: #5b646d; white-space: nowrap; padding-left: 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; font-size: 14px; }
dt { font-weight: 600; } dd { margin: 0; }
.muted { color: #5b646d; }
@media (max-width: 800px) { .plots, .facts { grid-template-columns: 1fr; } }
</style>
</head>
<body>
<h1>Headrace simulation</h1>
<p class="muted">{{ about.trace }} on {{ about.setup.executors }} executors of {{ about.gpu }}</p>
{% for sentence in verdict %}<p>{{ sentence }}</p>
{% endfor %}
<pre>{{ about.command }}</pre>

<h2>Results</h2>
<div class="scroll"><table class="results">
<tr>{% for column in columns %}
<th>{{ column.title }}<small>{{ column.unit or "&nbsp;"|safe }}</small></th>{% endfor %}</tr>
{% for load, rows in loads %}
<tr class="load">
<td colspan="{{ columns|length }}">{{ load.name }}: {{ "{:,}".format(load.requests) }} requests</td></tr>
{% for cells, best in rows %}<tr{% if best %} class="best"{% endif %}>
{% for cell in cells %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}{% endfor %}
</table></div>
<p class="muted">Bold: the highest goodput at each load.</p>
{% if missed %}
<h3 style="margin-top:18px">Requests that were not within the SLO</h3>
<table>
<tr>{% for title in missed_titles %}<th{% if loop.last or loop.index == 2 %} class="words"{% endif %}>{{ title }}</th>
{% endfor %}</tr>
{% for cells in missed %}<tr>
{% for cell in cells %}<td{% if loop.last or loop.index == 2 %} class="words"{% endif %}>{{ cell }}</td>
{% endfor %}</tr>
{% endfor %}</table>
{% endif %}

<h2>Plots</h2>
<div class="plots">
{% for plot in plots %}<figure{% if plot.wide %} class="wide"{% endif %}>
<h3>{{ plot.title }}</h3>
<img src="data:image/png;base64,{{ plot.data }}" alt="{{ plot.title }}. {{ plot.caption }}">
<figcaption>{{ plot.caption }}</figcaption>
</figure>
{% endfor %}
</div>

{% if groups %}
<h2>Tiers and tenants at {{ detail }}</h2>
<div class="scroll"><table>
<tr>{% for title in group_titles %}<th>{{ title }}</th>{% endfor %}</tr>
{% for policy, rows in groups %}<tr class="load"><td colspan="{{ group_titles|length }}">{{ policy }}</td></tr>
{% for cells in rows %}<tr>
{% for cell in cells %}<td{% if loop.last %} class="words"{% endif %}>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}{% endfor %}
</table></div>
{% endif %}

<h2>Setup</h2>
<div class="facts">
<table>{% for name, value in facts %}<tr><td>{{ name }}</td><td>{{ value }}</td></tr>
{% endfor %}</table>
<table>{% for name, value in constants %}<tr><td><code>{{ name }}</code></td><td>{{ value }}</td></tr>
{% endfor %}<tr><td>source</td><td>{{ about.source }}</td></tr></table>
</div>

<h2>How to read this</h2>
<p>The batcher and the KV-cache manager are the mesh's own code, in virtual time. The engines are a step model with the
constants above; admission, router and network are a constant. So compare the policies with each other, and take the
times themselves for as good as the constants are.</p>
<p>An answer is within the SLO when it is whole, its first token came within {{ slo.first_token_s }} s or
{{ slo.stretch }} times what an idle executor without cache takes for this prompt, whichever is longer, and its tokens
were at most {{ slo.gap_ms }} ms apart on average. An async answer has to be whole, and no more.</p>
<p>Requests that arrive in the first {{ warm_up }}% and the last {{ cool_down }}% of the time are simulated and not
counted. Percentiles are of answered requests and nearest ranks: each is a time that some request had. A policy that
refuses what it cannot answer in time has better percentiles for it, and a smaller share answered: read the two
together, or goodput, which counts both.</p>
<dl>{% for column in columns %}
<dt>{{ column.title }}{% if column.unit %} ({{ column.unit }}){% endif %}</dt><dd>{{ column.note }}</dd>
{% endfor %}</dl>
</body>
</html>
"""


def render(about: About, points: Sequence[Point], plots: Sequence[Plot]) -> str:
    """The page."""
    environment = Environment(loader=DictLoader({"page": _TEMPLATE}), autoescape=True, undefined=StrictUndefined)
    loads = list(dict.fromkeys(each.load for each in points))
    at = knee(points)
    slo = about.slo
    return environment.get_template("page").render(
        about=about,
        verdict=report.verdict(points),
        columns=report.COLUMNS,
        loads=[(load, _rows([each for each in points if each.load == load])) for load in loads],
        missed_titles=report.MISSED_TITLES,
        missed=[cells for each in points if (cells := report.missed(each))],
        plots=[
            {
                "title": plot.title,
                "caption": plot.caption,
                "wide": plot.wide,
                "data": base64.b64encode(plot.png).decode(),
            }
            for plot in plots
        ],
        detail=at.name,
        groups=[
            (policy, [report.group_row(name, group) for name, group in parts])
            for policy, parts in report.groups(points)
        ],
        group_titles=report.GROUP_TITLES,
        facts=_facts(about),
        constants=[(name, f"{value:g}") for name, value in report.constants(about.setup.step)],
        slo={
            "first_token_s": f"{slo.first_token_s:g}",
            "stretch": f"{slo.stretch:g}",
            "gap_ms": f"{1000 * slo.gap_s:g}",
        },
        warm_up=f"{100 * WARM_UP:g}",
        cool_down=f"{100 * COOL_DOWN:g}",
    )


def _rows(points: Sequence[Point]) -> list[tuple[list[str], bool]]:
    most = max(each.measures.all.goodput_per_s for each in points)
    several = len(points) > 1
    return [(report.row(each), several and each.measures.all.goodput_per_s == most) for each in points]


def _facts(about: About) -> list[tuple[str, str]]:
    setup = about.setup
    tokens = setup.blocks * setup.block_tokens
    return [
        ("trace", f"{about.trace} ({about.form}): {about.trace_requests:,} requests in {about.trace_s:,.0f} s"),
        *report.mix_words(about.mix).items(),
        ("executors", f"{setup.executors} × {about.gpu}"),
        ("slots", f"{setup.slots} requests at once on each"),
        ("KV cache", f"{setup.blocks:,} blocks of {setup.block_tokens} tokens on each: {tokens:,} tokens"),
        ("step", f"at most {setup.step_tokens:,} tokens"),
        ("answers", f"at most {setup.max_tokens:,} tokens"),
        ("one way over the wire", f"{1e6 * setup.wire_s:g} µs"),
        ("seed", f"{about.mix.seed}"),
    ]
