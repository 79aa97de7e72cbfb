"""One trace holds all hops of a request, with the right parents: asserted on what really leaves over OTLP."""

import asyncio

from libs.telemetry import names
from libs.telemetry.sink import OtlpSink
from libs.telemetry.span import SpanRecord
from tests.system.client import ask, connect
from tests.system.mesh import Mesh


def only(spans: list[SpanRecord], service: str, name: str) -> SpanRecord:
    found = [span for span in spans if span.service == service and span.name == name]
    assert len(found) == 1, f"{service} {name}: {len(found)} spans of {sorted((s.service, s.name) for s in spans)}"
    return found[0]


async def test_one_trace_holds_all_hops_with_correct_parents() -> None:
    async with OtlpSink() as sink:
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{sink.endpoint}"}
        mesh = Mesh(engine="simulated", executors=1, envoy=True, env=environment)
        await asyncio.to_thread(mesh.__enter__)
        try:
            async with connect(mesh.target, mesh.key) as client:
                answer = await client.generate(ask("simulated", "trace me", max_tokens=5, request_id="traced-1"))
            assert answer.request_id == "traced-1"

            def trace() -> list[SpanRecord]:
                ids = {s.trace_id for s in sink.spans if s.attributes.get(names.REQUEST_ID) == "traced-1"}
                return [span for span in sink.spans if span.trace_id in ids]

            async with asyncio.timeout(20):
                while len(trace()) < 8:
                    await asyncio.sleep(0.1)
        finally:
            await asyncio.to_thread(mesh.__exit__, None, None, None)
        spans = trace()
        admission = only(spans, "admission", names.GENERATE)
        route = only(spans, "router", names.ROUTE)
        queue = only(spans, "batcher", names.QUEUE)
        dispatch = only(spans, "batcher", names.DISPATCH)
        lookup = only(spans, "kvcache", names.LOOKUP)
        prefill = only(spans, "executor", names.PREFILL)
        decode = only(spans, "executor", names.DECODE)
        envoy = next(span for span in spans if span.span_id == admission.parent_id)
        assert envoy.service == "envoy"
        assert envoy.parent_id == ""
        parents = {
            route.span_id: admission, queue.span_id: route, dispatch.span_id: route, lookup.span_id: dispatch,
            prefill.span_id: dispatch, decode.span_id: dispatch,
        }  # fmt: skip
        for span in spans:
            if span.span_id in parents:
                assert span.parent_id == parents[span.span_id].span_id, f"{span.name} hangs below the wrong span"
        assert admission.attributes[names.GEN_AI_OUTPUT_TOKENS] == 5
        assert decode.attributes[names.GEN_AI_OUTPUT_TOKENS] == 5
        assert dispatch.attributes[names.EXECUTOR] == "executor-1"
        assert admission.start_ns <= route.start_ns <= dispatch.start_ns <= prefill.start_ns <= decode.start_ns
