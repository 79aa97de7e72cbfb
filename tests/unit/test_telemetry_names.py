"""Names: those of the conventions are the conventions', ours follow the house's form, all are documented."""

import re
from pathlib import Path

import pytest
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes, rpc_attributes
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics
from opentelemetry.semconv.attributes import client_attributes, error_attributes, server_attributes

from libs.telemetry import names

STRINGS = {key: value for key, value in vars(names).items() if key.isupper() and isinstance(value, str)}
CONVENTIONS = {
    value
    for module in (gen_ai_attributes, rpc_attributes, client_attributes, error_attributes, server_attributes)
    for key, value in vars(module).items()
    if key.isupper() and isinstance(value, str)
}
STAGES = "admission|router|batcher|kvcache|executor|placement|process"


@pytest.mark.parametrize("name", [text for text in STRINGS.values() if re.match(r"(gen_ai|rpc|error|client)\.", text)])
def test_an_attribute_of_the_conventions_is_one(name: str) -> None:
    assert name in CONVENTIONS


def test_no_name_is_given_twice() -> None:
    attributes = [value for value in STRINGS.values() if "." in value]
    assert len(attributes) == len(set(attributes))
    metrics = [metric.name for metric in names.METRICS]
    assert len(metrics) == len(set(metrics))


@pytest.mark.parametrize("metric", names.METRICS, ids=lambda metric: metric.name)
def test_a_metric_is_named_by_the_house(metric: names.Metric) -> None:
    assert re.fullmatch(rf"headrace_({STAGES})(_[a-z]+)+|gen_ai_server(_[a-z]+)+_seconds", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert bool(metric.buckets) == (metric.kind == "histogram")
    assert list(metric.buckets) == sorted(set(metric.buckets))
    assert metric.text.endswith(".") or metric.text.endswith("what runs")


def test_the_gen_ai_metrics_are_those_of_the_conventions() -> None:
    ours = {metric.name for metric in names.METRICS if metric.name.startswith("gen_ai")}
    theirs = (
        gen_ai_metrics.GEN_AI_SERVER_REQUEST_DURATION,
        gen_ai_metrics.GEN_AI_SERVER_TIME_TO_FIRST_TOKEN,
        gen_ai_metrics.GEN_AI_SERVER_TIME_PER_OUTPUT_TOKEN,
    )
    assert ours == {f"{name.replace('.', '_')}_seconds" for name in theirs}


def test_every_name_is_on_its_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "telemetry.md").read_text()
    for metric in names.METRICS:
        assert f"`{metric.name}`" in page
    for name in STRINGS.values():
        if re.fullmatch(r"(headrace|gen_ai|rpc|error)[a-z0-9_.]+", name):
            assert f"`{name}`" in page, name


def test_everything_that_has_a_name_is_emitted_by_somebody() -> None:
    """A metric that nobody sets makes an alert that cannot fire."""
    root = Path(names.__file__).parents[2]
    code = "".join(
        path.read_text()
        for folder in ("services", "libs")
        for path in (root / folder).rglob("*.py")
        if path.name != "names.py" and "console" not in path.parts
    )
    declared = [name for name, value in vars(names).items() if name in STRINGS or isinstance(value, names.Metric)]
    silent = [name for name in declared if not re.search(rf"\bnames\.{name}\b", code)]
    assert silent == []
