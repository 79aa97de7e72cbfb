"""The way of a span out of the process: a bounded queue, a thread, and a collector or a file.

The event loop does nothing but append to the queue. The thread sleeps until a span comes, waits a moment
for more, and writes them in small batches: it holds the interpreter's lock for less than a millisecond.
"""

import logging
import threading
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from libs.telemetry.otlp import encode_line, line_frame
from libs.telemetry.span import SpanRecord, Value
from libs.telemetry.span_file import SpanFile

QUEUE_SPANS = 8192
"""Spans that wait at most; when the queue is full the newest is dropped and counted."""
DELAY_S = 0.2
"""Seconds for which the thread lets spans gather."""
BATCH_SPANS = 32
"""Spans per write: at 26 µs each, their conversion to OTLP delays the event loop by less than 1 ms."""

_log = logging.getLogger(__name__)


class SpanWriter(Protocol):
    """Where spans go. Used by one thread; only `close` may come from another."""

    def write(self, records: Sequence[SpanRecord]) -> bool:
        """Writes a batch; False when it is lost. Must not raise."""
        ...

    def close(self) -> None:
        """Gives up what is being written. Idempotent."""
        ...


class SpanQueue:
    """Takes spans from any thread and writes them in one of its own, which `close` ends."""

    def __init__(self, writer: SpanWriter) -> None:
        self.exported = 0
        self.dropped = 0
        self._writer = writer
        self._waiting: deque[SpanRecord] = deque()
        self._wake = threading.Event()
        self._stop = threading.Event()
        # A daemon: a collector that hangs must not keep a process from ending.
        self._thread = threading.Thread(target=self._run, name="spans", daemon=True)
        self._thread.start()

    def put(self, record: SpanRecord) -> None:
        """Queues a span. Never blocks; drops it when the queue is full or closed."""
        if len(self._waiting) >= QUEUE_SPANS or self._stop.is_set():
            self.dropped += 1
            return
        self._waiting.append(record)
        if not self._wake.is_set():  # asking is cheaper than setting: once per batch
            self._wake.set()

    def close(self, timeout: float) -> None:
        """Writes what waits, for at most `timeout` seconds; the rest is dropped. Idempotent."""
        self._stop.set()
        self._wake.set()
        self._thread.join(timeout)
        self._writer.close()
        self._thread.join(0.5)
        if self._thread.is_alive():
            self.dropped += len(self._waiting)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.wait()
            self._stop.wait(DELAY_S)
            self._wake.clear()  # before emptying the queue: a span that comes now sets it again
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(BATCH_SPANS, len(self._waiting)))]
                if self._writer.write(batch):
                    self.exported += len(batch)
                else:
                    self.dropped += len(batch)


class FileWriter:
    """Writes to a local file; says so once when that starts to fail, and once when it works again."""

    def __init__(self, file: SpanFile, resource: dict[str, Value]) -> None:
        self._file = file
        self._frame = line_frame(resource)
        self._failing = False

    def write(self, records: Sequence[SpanRecord]) -> bool:
        try:
            self._file.append([encode_line(record, self._frame) for record in records])
        except (OSError, ValueError) as fault:  # ValueError: closed
            if not self._failing:
                _log.warning("spans cannot be written and are dropped: %s", fault)
            self._failing = True
            return False
        if self._failing:
            _log.info("spans are written again")
        self._failing = False
        return True

    def close(self) -> None:
        self._file.close()
