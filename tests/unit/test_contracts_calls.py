"""Tool calls in what a model writes: found whole, wherever it is cut, and read strictly."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.admission.contracts import strict_json
from services.admission.contracts.calls import CLOSING, MAX_CALLS, OPENING, Call, CallReader, Malformed, read

PLAIN = st.text(st.sampled_from('ab<>/_ tool_call\n{}"é世'), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(st.text(max_size=6), VALUES, max_size=3)


def written(name: str, arguments: dict[str, Any]) -> str:
    return f"{OPENING}\n{json.dumps({'name': name, 'arguments': arguments})}\n{CLOSING}"


def heard(text: str, cuts: list[int]) -> tuple[str, list[Call | Malformed]]:
    reader, shown, start = CallReader(), "", 0
    for cut in [*sorted(cuts), len(text)]:
        shown += reader.push(text[start : max(start, cut)])
        start = max(start, cut)
    shown += reader.push(text[start:])
    return shown + reader.flush(), reader.calls


def test_calls_are_taken_out_of_the_text_around_them() -> None:
    text = f"Let me look. {written('clock', {'zone': 'UTC'})} and {written('sun', {})}!"
    shown, calls = heard(text, [])
    assert shown == "Let me look.  and !"
    assert calls == [Call("clock", {"zone": "UTC"}), Call("sun", {})]
    assert calls[0].text == '{"zone": "UTC"}'  # type: ignore[union-attr]


@given(st.lists(st.tuples(PLAIN, st.text(max_size=8), ARGUMENTS), max_size=4), PLAIN, st.lists(st.integers(0, 400)))
def test_however_it_is_cut_the_same_is_found(
    pieces: list[tuple[str, str, dict[str, Any]]], tail: str, cuts: list[int]
) -> None:
    text = "".join(plain + written(name, arguments) for plain, name, arguments in pieces) + tail
    whole = heard(text, [])
    assert heard(text, cuts) == whole
    assert heard(text, list(range(len(text)))) == whole


@given(st.lists(st.tuples(st.text("ab \n", max_size=6), st.text(max_size=8), ARGUMENTS), max_size=4))
def test_what_is_written_well_is_read_as_it_was_meant(pieces: list[tuple[str, str, dict[str, Any]]]) -> None:
    text = "".join(plain + written(name, arguments) for plain, name, arguments in pieces)
    shown, calls = heard(text, [])
    assert shown == "".join(plain for plain, _, _ in pieces)
    assert calls == [Call(name, arguments) for _, name, arguments in pieces]
    assert [strict_json.loads(call.text) for call in calls if isinstance(call, Call)] == [a for _, _, a in pieces]


@given(st.text(st.sampled_from('<tool_call>/{}"name:argumets,[]1 \n\\ud8'), max_size=80))
def test_nothing_that_a_model_writes_is_an_error(text: str) -> None:
    heard(text, [])
    read(text)


@pytest.mark.parametrize(
    ("inside", "why"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ('{"name": "clock"}', "keys"),
        ('{"name": "clock", "arguments": {}, "id": 1}', "no others"),
        ('{"name": 1, "arguments": {}}', '"name" has to be a string'),
        ('{"name": "clock", "arguments": "{}"}', '"arguments" an object'),
        ('{"name": "a", "name": "b", "arguments": {}}', "twice"),
        ('{"name": "clock", "arguments": {"x": NaN}}', "NaN"),
        ('{"name": "clock", "arguments": {"x": "\\ud800"}}', "surrogate"),
        ('{"name": "clock", "arguments": ' + "[" * 100_000 + "}", "nested"),
    ],
    ids=lambda value: value[:30],
)
def test_what_is_no_call_says_why(inside: str, why: str) -> None:
    (call,) = heard(f"{OPENING}{inside}{CLOSING}", [])[1]
    assert isinstance(call, Malformed)
    assert why in call.why


def test_a_call_without_an_end_is_none() -> None:
    shown, calls = heard("a<tool_call>{", [])
    assert shown == "a"
    assert calls == [Malformed("it has no </tool_call>")]


def test_what_only_looked_like_a_call_is_shown_in_the_end() -> None:
    reader = CallReader()
    assert reader.push("a <tool_ca") == "a "
    assert reader.push("rt> <tool") == "<tool_cart> "
    assert reader.flush() == "<tool"


def test_calls_of_one_answer_are_bounded() -> None:
    calls = heard(written("clock", {}) * (MAX_CALLS + 10), [])[1]
    assert calls[:MAX_CALLS] == [Call("clock", {})] * MAX_CALLS
    assert [type(call) for call in calls[MAX_CALLS:]] == [Malformed]
