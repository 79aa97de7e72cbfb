"""A small OTLP gRPC collector: keeps the latest spans, and writes them to a trace file when told to.

`headrace up` runs one for Envoy, which can send its spans but not write them; tests assert on one.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as stubs

from libs.telemetry.otlp import encode_line, line_frame, read_export
from libs.telemetry.span import SpanRecord
from libs.telemetry.span_file import LIMIT_BYTES, SpanFile

KEPT_SPANS = 10_000
"""Spans that are kept in memory by default."""


class OtlpSink(stubs.TraceServiceServicer):
    """Receives spans. Use as an async context manager, or `start` and `stop`."""

    def __init__(self, listen: str = "127.0.0.1:0", kept: int = KEPT_SPANS) -> None:
        """
        Args:
            listen: host:port; port 0 takes a free one.
            kept: Spans in `spans`; when there are more, the oldest go.
        """
        self.spans: deque[SpanRecord] = deque(maxlen=kept)
        self.lost = 0
        """Spans that could not be written to the file."""
        self.port = 0
        self._listen = listen
        self._server: grpc.aio.Server | None = None
        self._file: SpanFile | None = None
        self._arrived = asyncio.Condition()

    @property
    def endpoint(self) -> str:
        """host:port to send to."""
        return f"{self._listen.rpartition(':')[0]}:{self.port}"

    def write_to(self, path: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        """From now on appends every span to a trace file as well. Raises OSError when it cannot be opened."""
        if self._file:
            self._file.close()
        self._file = SpanFile(path, limit_bytes)

    async def received(self, enough: Callable[[Sequence[SpanRecord]], bool]) -> list[SpanRecord]:
        """Waits until `enough` accepts the spans that are kept, and returns them. Put a timeout around it."""
        async with self._arrived:
            await self._arrived.wait_for(lambda: enough(self.spans))
            return list(self.spans)

    async def start(self) -> None:
        """Listens. Raises RuntimeError when the port is taken."""
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        stubs.add_TraceServiceServicer_to_server(self, server)  # type: ignore[no-untyped-call]
        self.port = server.add_insecure_port(self._listen)
        await server.start()
        self._server = server

    async def stop(self) -> None:
        """Ends running calls after a second. Idempotent."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(1.0)
        if self._file:
            self._file.close()
            self._file = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def Export(
        self, request: messages.ExportTraceServiceRequest, context: object
    ) -> messages.ExportTraceServiceResponse:
        """TraceService/Export. A span that cannot be written is still received: its sender has no remedy."""
        received = list(read_export(request))
        async with self._arrived:
            self.spans.extend(record for _, record in received)
            self._arrived.notify_all()
        if self._file:
            try:
                self._file.append([encode_line(record, line_frame(origin)) for origin, record in received])
            except OSError:
                self.lost += len(received)
        return messages.ExportTraceServiceResponse()
