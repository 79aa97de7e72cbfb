"""Real OTLP over a real connection: what leaves a process arrives at a collector."""

import asyncio
import subprocess
import time
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import add_TraceServiceServicer_to_server

from libs.telemetry import names
from libs.telemetry.sink import OtlpSink
from libs.telemetry.span import MAX_TEXT, Kind
from libs.telemetry.store import find_request
from libs.telemetry.tracing import setup_tracing


async def arrival(sink: OtlpSink, count: int) -> None:
    async with asyncio.timeout(10):
        await sink.received(lambda spans: len(spans) >= count)


async def test_a_request_through_three_processes_is_one_trace(tmp_path: Path) -> None:
    async with OtlpSink() as sink:
        admission, router, batcher = (
            setup_tracing(service, f"{service}-0", endpoint, tmp_path, ratio)
            for service, endpoint, ratio in [
                ("admission", f"http://{sink.endpoint}", 1.0),
                ("router", sink.endpoint, 0.0),  # the decision came with the request
                ("batcher", f"http://{sink.endpoint}/", 0.0),
            ]
        )
        top = admission.start(names.GENERATE, kind=Kind.SERVER, attributes={names.REQUEST_ID: "r-1"})
        route = router.start(names.ROUTE, top.traceparent)
        queue = batcher.start(names.QUEUE, route.traceparent, start_time=1_700_000_000.0)
        queue.set(names.QUEUE_WAITING, 3)
        queue.set(names.REASON, "x" * (MAX_TEXT + 1))
        queue.set(names.GEN_AI_FINISH_REASONS, ["stop"])
        queue.event(names.CANCELLED)
        queue.error("deadline", "DEADLINE_PASSED")
        queue.end(1_700_000_000.5)
        route.end()
        top.end()
        await arrival(sink, 3)
        for tracing in (admission, router, batcher):
            await asyncio.to_thread(tracing.shutdown)
            assert tracing.fates == (1, 0)

        by_name = {span.name: span for span in sink.spans}
        generated, routed, queued = by_name[names.GENERATE], by_name[names.ROUTE], by_name[names.QUEUE]
        assert {span.trace_id for span in sink.spans} == {top.traceparent[3:35]}
        assert (generated.parent_id, routed.parent_id, queued.parent_id) == (
            "", generated.span_id, routed.span_id,
        )  # fmt: skip
        assert [span.traceparent[36:52] for span in (top, route, queue)] == [
            span.span_id for span in (generated, routed, queued)
        ]
        assert (generated.service, generated.instance, generated.kind) == (
            "admission",
            "admission-0",
            Kind.SERVER,
        )
        assert generated.attributes == {names.REQUEST_ID: "r-1"}
        assert (queued.start_ns, queued.duration_s) == (1_700_000_000 * 10**9, 0.5)
        assert queued.attributes == {
            names.QUEUE_WAITING: 3,
            names.REASON: "x" * MAX_TEXT,
            names.GEN_AI_FINISH_REASONS: ["stop"],
            names.ERROR_TYPE: "DEADLINE_PASSED",
        }
        assert [event.name for event in queued.events] == [names.CANCELLED]
        assert (queued.error, routed.error) == ("deadline", None)
    assert not list(tmp_path.iterdir())  # a collector takes the place of the files


async def test_unsampled_spans_do_not_leave(tmp_path: Path) -> None:
    async with OtlpSink() as sink:
        tracing = setup_tracing("router", "router-0", sink.endpoint, tmp_path, 0.0)
        tracing.start(names.ROUTE).end()
        tracing.start(names.ROUTE, f"00-{'a' * 32}-{'b' * 16}-01").end()
        await arrival(sink, 1)
        await asyncio.to_thread(tracing.shutdown)
        assert [span.parent_id for span in sink.spans] == ["b" * 16]


async def test_the_sink_writes_the_mesh_s_own_files(tmp_path: Path) -> None:
    async with OtlpSink(kept=10) as sink:
        sink.write_to(tmp_path / "envoy.jsonl")
        tracing = setup_tracing("envoy", "envoy-0", sink.endpoint, tmp_path, 1.0)
        for number in range(50):
            tracing.start("ingress", attributes={names.REQUEST_ID: f"r-{number}"}).end()
        await asyncio.to_thread(tracing.shutdown, 5.0)
        assert tracing.fates == (50, 0)
        assert len(sink.spans) == 10
        assert sink.lost == 0
    for number in range(50):
        (span,) = find_request(tmp_path, f"r-{number}")
        assert (span.name, span.service, span.instance) == ("ingress", "envoy", "envoy-0")


async def test_a_collector_that_comes_late_gets_the_spans(tmp_path: Path) -> None:
    async with OtlpSink() as first:
        address = first.endpoint
    tracing = setup_tracing("router", "router-0", address, tmp_path, 1.0)
    tracing.start(names.ROUTE).end()
    await asyncio.sleep(0.5)
    async with OtlpSink(address) as sink:
        await arrival(sink, 1)
        await asyncio.to_thread(tracing.shutdown)
    assert tracing.fates == (1, 0)


async def test_a_collector_that_is_away_does_not_hold_up_the_end(tmp_path: Path) -> None:
    async with OtlpSink() as first:
        address = first.endpoint
    tracing = setup_tracing("router", "router-0", address, tmp_path, 1.0)
    tracing.start(names.ROUTE).end()
    start = time.monotonic()
    await asyncio.to_thread(tracing.shutdown, 0.5)
    assert time.monotonic() - start < 2.5
    assert tracing.fates == (0, 1)


async def test_https_is_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = tmp_path / "tls.key", tmp_path / "tls.crt"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-days", "1", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    sink, server = OtlpSink(), grpc.aio.server()
    add_TraceServiceServicer_to_server(sink, server)  # type: ignore[no-untyped-call]
    credentials = grpc.ssl_server_credentials([(key.read_bytes(), certificate.read_bytes())])
    port = server.add_secure_port("localhost:0", credentials)
    await server.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(certificate))
    tracing = setup_tracing("router", "router-0", f"https://localhost:{port}", tmp_path, 1.0)
    tracing.start(names.ROUTE).end()
    await arrival(sink, 1)
    await asyncio.to_thread(tracing.shutdown)
    await server.stop(None)
    assert tracing.fates == (1, 0)


async def test_a_port_that_is_taken_is_refused() -> None:
    async with OtlpSink() as sink:
        with pytest.raises(RuntimeError):
            await OtlpSink(sink.endpoint).start()
