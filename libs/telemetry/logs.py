"""Logs: one JSON object per line on stderr, or a coloured line for a person at a terminal.

Call sites use structlog: `log = structlog.get_logger(__name__)`, then `log.info("lane broke", peer=peer,
traceparent=work.traceparent)`; a traceparent becomes trace_id and span_id. What goes through `logging`, from
libraries, comes out in the same form.

Prompts, answers and API keys are never logged. Call sites do not; where one slips, the last step before the
writer keeps it in: fields with such names are blanked, and of objects only the class is said, since a work, a
message or a list of tokens may be one.
"""

import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from libs.telemetry.span import parse_traceparent

SECRET_FIELDS = frozenset({
    "answer", "api_key", "authorization", "content", "headers", "messages", "metadata", "prompt",
    "prompt_token_ids", "resumed", "schema", "text", "token", "token_ids", "tokens",
})  # fmt: skip
"""Fields that are blanked, whatever they hold, unless that is a number."""
MAX_FIELD = 2000
"""Characters of a field that are kept; of a traceback, twenty times as many."""
MAX_ITEMS = 16
"""Items of a list or mapping; one with more is only counted: it might be tokens."""
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def setup_logs(service: str, instance: str, level: str = "info") -> None:
    """Sets up the process's logs. Raises ValueError for a level that is not one of LEVELS."""
    if level not in LEVELS:
        raise ValueError(f"log level {level!r} is not one of {', '.join(LEVELS)}")
    person = sys.stderr.isatty()

    def name_process(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        return {"service": service, "instance": instance, **event}

    processors: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper("%H:%M:%S.%f" if person else "iso", utc=not person),
        name_process,
        add_trace_ids,
        structlog.processors.format_exc_info,  # plain: other forms show local variables, so prompts
        keep_secrets,
        structlog.dev.ConsoleRenderer() if person else _render,
    ]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    # Libraries tell at "info" what is of interest to their authors.
    logging.basicConfig(level=max(LEVELS[level], logging.WARNING), handlers=[_ToStructlog()], force=True)
    for ours in ("libs", "services"):
        logging.getLogger(ours).setLevel(LEVELS[level])
    logging.captureWarnings(True)


def add_trace_ids(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Turns a traceparent into trace_id and span_id."""
    traceparent = event.pop("traceparent", "")
    context = parse_traceparent(traceparent) if isinstance(traceparent, str) else None
    if context is not None:
        event["trace_id"], event["span_id"] = context.trace_id, context.span_id
    return event


def keep_secrets(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Lets plain, short and harmless values through, and no others."""
    return {field: _harmless(field, value) for field, value in event.items()}


def _harmless(field: str, value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if field in SECRET_FIELDS:
        return "[not logged]"
    if isinstance(value, str):
        return value[: MAX_FIELD * 20] if field == "exception" else value[:MAX_FIELD]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {value}"[:MAX_FIELD]
    if isinstance(value, list | tuple | set | frozenset | Mapping) and len(value) > MAX_ITEMS:
        return f"[{len(value)} items]"
    if isinstance(value, Mapping):
        return {str(key): _harmless(str(key), item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_harmless("", item) for item in value]
    return f"<{type(value).__name__}>"


def _render(logger: WrappedLogger, method: str, event: EventDict) -> str:
    return msgspec.json.encode(event).decode()


class _ToStructlog(logging.Handler):
    """Hands the records of `logging` to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            structlog.get_logger().log(
                record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info or None
            )
        except Exception:  # as every handler does: logging must not break what it reports on
            self.handleError(record)
