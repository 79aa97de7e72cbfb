"""Metrics: declared once, bounded, served to who asks for them."""

import asyncio
import time
import urllib.request

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from libs.telemetry import names
from libs.telemetry.metrics import Metrics, bounded_label, exemplar, serve_metrics
from libs.telemetry.tracing import Tracing, untraced

SAMPLED = f"00-{'a' * 32}-{'b' * 16}-01"


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("router", "router-0", "1.2.3")


def scrape(port: int) -> dict[str, float]:
    """Every sample without labels by its name, else by name and the values of its labels."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}
    )
    with urllib.request.urlopen(request, timeout=5) as answer:
        text = answer.read().decode()
    samples: dict[str, float] = {}
    for family in text_string_to_metric_families(text):  # type: ignore[no-untyped-call]
        for sample in family.samples:
            samples[" ".join([sample.name, *sample.labels.values()])] = sample.value
            if sample.exemplar:
                samples[f"exemplar {sample.exemplar.labels['trace_id']}"] = sample.exemplar.value
    return samples


def test_every_declared_metric_can_be_made_and_served(metrics: Metrics) -> None:
    for metric in names.METRICS:
        if metric in (names.PROCESS_BUILD, names.PROCESS_SPANS):
            continue  # made by Metrics itself
        getattr(metrics, metric.kind)(metric)
    with serve_metrics(metrics, 0) as server:
        samples = scrape(server.port)
    build = next(name for name in samples if name.startswith("headrace_process_build_info"))
    assert {"router", "router-0", "1.2.3"} < set(build.split())
    assert samples["process_resident_memory_bytes"] > 1e6
    assert samples["headrace_router_ready_lanes"] == 0


def test_a_metric_is_made_once_and_as_declared(metrics: Metrics) -> None:
    metrics.counter(names.ROUTER_WORKS)
    with pytest.raises(ValueError, match="Duplicated"):
        metrics.counter(names.ROUTER_WORKS)
    with pytest.raises(ValueError, match="declared as a gauge"):
        metrics.counter(names.ROUTER_RUNNING)


def test_an_observation_leads_to_its_trace(metrics: Metrics) -> None:
    wait = metrics.histogram(names.BATCHER_WAIT).labels("smollm2", "interactive")
    wait.observe(0.004, exemplar(SAMPLED))
    wait.observe(0.004, exemplar(SAMPLED[:-1] + "0"))
    with serve_metrics(metrics, 0) as server:
        samples = scrape(server.port)
    assert samples["headrace_batcher_wait_seconds_count smollm2 interactive"] == 2
    assert samples[f"exemplar {'a' * 32}"] == 0.004


def test_a_port_that_is_taken_is_refused_and_a_closed_one_is_free(metrics: Metrics) -> None:
    with serve_metrics(metrics, 0) as server:
        with pytest.raises(OSError):
            serve_metrics(metrics, server.port)
        port = server.port
    serve_metrics(metrics, port).close()


def test_a_label_from_a_request_cannot_make_a_series() -> None:
    known = {"smollm2"}
    assert bounded_label("smollm2", known) == "smollm2"
    assert bounded_label("anything", known) == "other"
    assert bounded_label("anything", known, "unknown") == "unknown"


def test_the_fates_of_spans_are_counted(metrics: Metrics) -> None:
    class Fates:
        fates = (7, 3)

    metrics.count_spans(Fates())
    assert metrics.registry.get_sample_value("headrace_process_spans_total", {"fate": "exported"}) == 7
    assert metrics.registry.get_sample_value("headrace_process_spans_total", {"fate": "dropped"}) == 3
    tracing: Tracing = untraced()
    assert tracing.fates == (0, 0)


async def test_a_loop_that_is_held_up_is_seen(metrics: Metrics) -> None:
    task = asyncio.create_task(metrics.watch_loop())
    await asyncio.sleep(0.05)
    time.sleep(0.75)
    await asyncio.sleep(0.05)
    task.cancel()
    lag = metrics.registry.get_sample_value("headrace_process_loop_lag_seconds")
    assert lag is not None
    assert 0.2 <= lag <= 2.0
