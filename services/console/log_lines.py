"""Log lines of the mesh's processes for a person: JSON in, one coloured line out. Pure."""

import json
from collections.abc import Mapping

from rich.text import Text

LEVELS = {"debug": "bright_black", "info": "cyan", "warning": "yellow", "error": "bold red", "critical": "bold red"}
SHORT = {"warning": "warn", "critical": "crit"}
_SHOWN_FIRST = ("timestamp", "level", "service", "instance", "event")
_LAST = ("exception", "stack")
"""Of many lines; they stand below."""


def pretty(line: str, name: str = "") -> Text:
    """The line; as it is when it is not one of ours. `name` goes in front where several logs are shown."""
    lead = Text(f"{name:<13} ", style="magenta") if name else Text()
    fields = _parse(line)
    if fields is None:
        return lead + Text(line)
    level = str(fields.get("level", ""))
    text = lead + Text.assemble(
        (_clock(str(fields.get("timestamp", ""))), "dim"),
        " ",
        (f"{SHORT.get(level, level):<5}", LEVELS.get(level, "")),
        " ",
        (str(fields.get("event", "")), "bold" if level in ("error", "warning") else ""),
    )
    for key, value in fields.items():
        if key not in _SHOWN_FIRST and key not in _LAST:
            text.append(f"  {key}=", "dim").append(_value(value))
    for key in _LAST:
        if fields.get(key):
            text.append("\n").append(str(fields[key]).rstrip(), "bright_black")
    return text


def _parse(line: str) -> Mapping[str, object] | None:
    if not line.startswith("{"):
        return None
    try:
        fields = json.loads(line)
    except ValueError:  # cut off, or not ours
        return None
    if not isinstance(fields, dict):
        return None
    if "msg" in fields and "event" not in fields:  # etcd's words for the same
        fields = {"event": fields.pop("msg"), "timestamp": fields.pop("ts", ""), **fields}
        fields["level"] = {"warn": "warning"}.get(str(fields.get("level")), fields.get("level"))
    return fields


def _clock(timestamp: str) -> str:
    """The time of day to the millisecond, of an ISO timestamp; the date is the file's."""
    return timestamp.partition("T")[2][:12].rstrip("Z+") or timestamp


def _value(value: object) -> str:
    return value if isinstance(value, str) and " " not in value else json.dumps(value, ensure_ascii=False)
