"""Metrics of a process, for Prometheus: made from the declarations in `names`, served by a thread."""

import asyncio
import platform
import time
from collections import deque
from collections.abc import Container, Iterator
from threading import Thread
from types import TracebackType
from typing import Protocol, Self
from wsgiref.simple_server import WSGIServer

import grpc
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    start_http_server,
)
from prometheus_client.gc_collector import GCCollector
from prometheus_client.metrics_core import CounterMetricFamily
from prometheus_client.registry import Collector

from libs.telemetry import names
from libs.telemetry.names import Metric
from libs.telemetry.span import parse_traceparent
from libs.turns import until_next

LAG_INTERVAL_S = 0.5
LAG_WINDOW_S = 10.0


class Metrics:
    """The metrics of one process. Each is made once, by the part that counts.

    A counter's `inc` costs about 0.3 µs once its labels are bound: bind those of the hot path at the start
    (`requests = metrics.counter(names.X).labels(...)`).
    """

    def __init__(self, service: str, instance: str, version: str) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.gauge(names.PROCESS_BUILD).labels(
            service, instance, version, platform.python_version(), grpc.__version__
        ).set(1)

    def counter(self, metric: Metric) -> Counter:
        """Makes a counter. Raises ValueError when it is not declared as one, or was made before."""
        _check(metric, "counter")
        return Counter(metric.name, metric.text, metric.labels, registry=self.registry)

    def gauge(self, metric: Metric) -> Gauge:
        """Makes a gauge; raises as `counter` does."""
        _check(metric, "gauge")
        return Gauge(metric.name, metric.text, metric.labels, registry=self.registry)

    def histogram(self, metric: Metric) -> Histogram:
        """Makes a histogram; raises as `counter` does."""
        _check(metric, "histogram")
        return Histogram(metric.name, metric.text, metric.labels, buckets=metric.buckets, registry=self.registry)

    def count_spans(self, tracing: "HasFates") -> None:
        """Counts the spans of the process, read when Prometheus asks."""
        self.registry.register(_SpanFates(tracing))

    async def watch_loop(self) -> None:
        """Measures how late the event loop wakes a sleeper, for ever: a task of the process's main group.

        Tasks are counted only when somebody asks, in the thread that serves the metrics.
        """
        loop = asyncio.get_running_loop()
        self.gauge(names.PROCESS_TASKS).set_function(lambda: len(asyncio.all_tasks(loop)))
        gauge = self.gauge(names.PROCESS_LOOP_LAG)
        latest: deque[float] = deque(maxlen=round(LAG_WINDOW_S / LAG_INTERVAL_S))
        while True:
            wait_s = until_next(LAG_INTERVAL_S)
            due = time.monotonic() + wait_s
            await asyncio.sleep(wait_s)
            latest.append(max(0.0, time.monotonic() - due))
            gauge.set(max(latest))


class HasFates(Protocol):
    """A `libs.telemetry.tracing.Tracing`."""

    @property
    def fates(self) -> tuple[int, int]:
        """Spans exported and dropped."""
        ...


class MetricsServer:
    """Serves /metrics until it is closed; in OpenMetrics form, with exemplars, to who asks for that."""

    def __init__(self, server: WSGIServer, thread: Thread) -> None:
        self._server = server
        self._thread = thread

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._server.server_port

    def close(self) -> None:
        """Stops listening; takes up to half a second."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def serve_metrics(metrics: Metrics, port: int, host: str = "127.0.0.1") -> MetricsServer:
    """Serves metrics from a thread; port 0 takes a free one. Raises OSError when the port is taken."""
    return MetricsServer(*start_http_server(port, host, metrics.registry))


def bounded_label(value: str, known: Container[str], other: str = "other") -> str:
    """The value of a label if it is one of those known, else `other`.

    Whatever comes from a request goes through this: a caller must not be able to make time series.
    """
    return value if value in known else other


def exemplar(traceparent: str) -> dict[str, str] | None:
    """What ties an observation to its trace, for `observe(value, exemplar)`; None if it is not sampled."""
    context = parse_traceparent(traceparent)
    return {"trace_id": context.trace_id, "span_id": context.span_id} if context and context.sampled else None


class _SpanFates(Collector):
    def __init__(self, tracing: HasFates) -> None:
        self._tracing = tracing

    def collect(self) -> Iterator[CounterMetricFamily]:
        exported, dropped = self._tracing.fates
        metric = names.PROCESS_SPANS
        family = CounterMetricFamily(metric.name.removesuffix("_total"), metric.text, labels=metric.labels)
        family.add_metric(["exported"], exported)
        family.add_metric(["dropped"], dropped)
        yield family


def _check(metric: Metric, kind: str) -> None:
    if metric.kind != kind:
        raise ValueError(f"{metric.name} is declared as a {metric.kind}, not as a {kind}")
