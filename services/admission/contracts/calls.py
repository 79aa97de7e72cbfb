"""Finds tool calls in what a model writes. Pure.

The format is that of Nous Research's Hermes models, which Qwen's took over: each call is a JSON object between two
tags, anywhere in the answer,

    <tool_call>
    {"name": "weather", "arguments": {"city": "Paris"}}
    </tool_call>
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.admission.contracts import strict_json

OPENING, CLOSING = "<tool_call>", "</tool_call>"
RESULT_OPENING, RESULT_CLOSING = "<tool_response>", "</tool_response>"
"""Around what a tool said, in a turn of the user's."""
MAX_CALLS = 16
"""Of one answer; what is behind them counts as one malformed call."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call that can be read; whether it may be made is another question."""

    tool: str
    arguments: Mapping[str, Any]

    @property
    def text(self) -> str:
        """The arguments as JSON."""
        return strict_json.dumps(self.arguments)


@dataclass(frozen=True, slots=True)
class Malformed:
    """What stands where a call should, and why it is none."""

    why: str


class CallReader:
    """Takes an answer in as it is made; gives back what is not a call.

    What it gives and finds depends on the text alone, not on how it was cut. Holds one call, and outside of calls at
    most the beginning of a tag.
    """

    def __init__(self) -> None:
        self.calls: list[Call | Malformed] = []
        self._held = ""
        self._inside = False

    def push(self, text: str) -> str:
        """The next piece; returns what may be shown."""
        shown = []
        looked = max(0, len(self._held) - len(CLOSING))
        self._held += text
        while (at := self._held.find(tag := CLOSING if self._inside else OPENING, looked)) >= 0:
            before, self._held = self._held[:at], self._held[at + len(tag) :]
            if self._inside:
                self._add(read(before))
            else:
                shown.append(before)
            self._inside, looked = not self._inside, 0
        if not self._inside:
            keep = _beginning(self._held)
            shown.append(self._held[:keep])
            self._held = self._held[keep:]
        return "".join(shown)

    def flush(self) -> str:
        """The answer is complete; returns the rest of what may be shown."""
        held, self._held = self._held, ""
        if not self._inside:
            return held
        self._inside = False
        self._add(Malformed(f"it has no {CLOSING}"))
        return ""

    def _add(self, call: Call | Malformed) -> None:
        if len(self.calls) < MAX_CALLS:
            self.calls.append(call)
        elif len(self.calls) == MAX_CALLS:
            self.calls.append(Malformed(f"one answer may have {MAX_CALLS} calls; those behind were not made"))


def read(text: str) -> Call | Malformed:
    """What stands between two tags."""
    try:
        value = strict_json.loads(text.strip())
    except ValueError as error:
        return Malformed(f"it is not JSON: {error}")
    if not isinstance(value, dict):
        return Malformed("it is not a JSON object")
    if set(value) != {"name", "arguments"}:
        return Malformed('it has to have the keys "name" and "arguments", and no others')
    if not isinstance(value["name"], str) or not isinstance(value["arguments"], dict):
        return Malformed('"name" has to be a string, and "arguments" an object')
    return Call(value["name"], value["arguments"])


def _beginning(text: str) -> int:
    """Where the end of `text` starts that may be the beginning of a tag; its length if there is none."""
    for start in range(max(0, len(text) - len(OPENING) + 1), len(text)):
        if OPENING.startswith(text[start:]):
            return start
    return len(text)
