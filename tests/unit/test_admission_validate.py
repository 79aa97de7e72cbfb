"""Every violation of a request, at once."""

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from headrace.inference.v1 import inference_pb2
from libs.errors import RequestInvalid
from libs.lane.work import Grammar, Tier
from libs.rpc.status import to_status
from services.admission.convert import request_from_proto
from services.admission.request import Request, SamplingRequest, Turn
from services.admission.validate import violations


def subjects(request: Request) -> list[str]:
    return [violation.subject for violation in violations(request)]


def sampled(**fields: object) -> list[str]:
    return subjects(Request("m", prompt="x", sampling=SamplingRequest(**fields)))  # type: ignore[arg-type]


def grammar(form: str, text: str) -> list[str]:
    return subjects(Request("m", prompt="x", grammar=Grammar(form, text)))  # type: ignore[arg-type]


def test_a_plain_request_is_well_formed() -> None:
    assert subjects(Request("m", prompt="x")) == []
    assert subjects(Request("m", chat=[Turn("user", "")])) == []


def test_everything_that_is_wrong_is_told_at_once() -> None:
    request = Request(
        "",
        chat=[Turn("user", "hi"), Turn("", "who?")],
        sampling=SamplingRequest(
            max_tokens=0, temperature=-0.1, top_p=0.0, repetition_penalty=11.0, presence_penalty=3.0,
            frequency_penalty=float("nan"), stop=["ok", "", "x" * 257],
        ),
        grammar=Grammar("json_schema", "{"),
        request_id="no spaces",
        tags={"Key": "v", "k": "v" * 257},
        timeout_s=0.0,
    )  # fmt: skip
    assert subjects(request) == [
        "model", "chat.messages[1].role", "sampling.max_tokens", "sampling.temperature", "sampling.top_p",
        "sampling.repetition_penalty", "sampling.presence_penalty", "sampling.frequency_penalty", "sampling.stop[1]",
        "sampling.stop[2]", "grammar.json_schema", "request_id", "tags['Key']", "tags['k']", "timeout",
    ]  # fmt: skip
    assert all(violation.description for violation in violations(request))


def test_an_input_is_required() -> None:
    assert subjects(Request("m")) == ["input"]
    assert subjects(Request("m", prompt="")) == ["prompt"]
    assert subjects(Request("m", chat=[])) == ["chat.messages"]


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("temperature", [0.0, 2.0], [-0.01, 2.01, float("nan"), float("inf")]),
        ("top_p", [0.01, 1.0], [0.0, 1.01, -1.0]),
        ("repetition_penalty", [0.01, 10.0], [0.0, 10.1]),
        ("presence_penalty", [-2.0, 2.0], [-2.1, 2.1]),
        ("frequency_penalty", [-2.0, 2.0], [-2.1, 2.1]),
        ("max_tokens", [1], [0]),
        ("top_k", [0, 1], []),
    ],
)
def test_ranges(name: str, good: list[float], bad: list[float]) -> None:
    assert [value for value in good if sampled(**{name: value})] == []
    assert [value for value in bad if sampled(**{name: value}) != [f"sampling.{name}"]] == []


def test_lists_are_bounded_and_so_is_what_is_said_of_them() -> None:
    assert sampled(stop=["x"] * 16) == []
    assert sampled(stop=[""] * 10_000) == ["sampling.stop", *(f"sampling.stop[{n}]" for n in range(16))]
    assert len(subjects(Request("m", prompt="x", tags={f"K{n}": "v" for n in range(10_000)}))) == 17
    many = subjects(Request("m", chat=[Turn("", "")] * 10_000))
    assert len(many) == 1025


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("json_schema", '{"type": "object", "properties": {"a": {"type": "string"}}}'), ("json_schema", "true"),
        ("regex", "[a-z]+"), ("ebnf", "root ::= 'a'"),
    ],
)  # fmt: skip
def test_good_grammars(form: str, text: str) -> None:
    assert grammar(form, text) == []


@pytest.mark.parametrize(
    ("form", "text", "says"),
    [
        ("json_schema", "{", "not JSON"),
        ("json_schema", '{"type": 5}', "at '/type'"),
        ("json_schema", "7", "not a JSON schema"),
        ("json_schema", "[" * 60_000, "nested too deeply"),
        ("json_schema", '{"a":' * 10_000 + "{}" + "}" * 10_000, "nested too deeply"),
        ("json_schema", '{"properties": {"\\ud800": {"type": 5}}}', "not a JSON schema"),
        ("json_schema", "9" * 5000, "JSON"),
        ("json_schema", " ", "empty"),
        ("regex", "(", "not a regular expression"),
        ("regex", "a{999999999999999999999}", "not a regular expression"),
        ("regex", "(" * 30_000, "not a regular expression"),
        ("regex", "x" * 70_000, "longer than"),
        ("ebnf", "", "empty"),
    ],
)
def test_bad_grammars(form: str, text: str, says: str) -> None:
    (violation,) = violations(Request("m", prompt="x", grammar=Grammar(form, text)))  # type: ignore[arg-type]
    assert violation.subject == f"grammar.{form}"
    assert says in violation.description
    assert to_status(RequestInvalid.of([violation])).message


@given(st.text(max_size=40))
def test_no_text_is_too_strange_for_a_grammar(text: str) -> None:
    for form in ("json_schema", "regex", "ebnf"):
        assert all(found == f"grammar.{form}" for found in grammar(form, text))


sampling_messages = st.builds(
    inference_pb2.Sampling,
    max_tokens=st.none() | st.integers(0, 2**32 - 1),
    temperature=st.none() | st.floats(width=32),
    top_p=st.none() | st.floats(width=32),
    top_k=st.none() | st.integers(0, 2**32 - 1),
    seed=st.none() | st.integers(0, 2**64 - 1),
    stop=st.lists(st.text(max_size=4), max_size=18),
)
requests = st.builds(
    inference_pb2.GenerateRequest,
    model=st.text(max_size=5),
    prompt=st.text(max_size=5),
    sampling=sampling_messages,
    tier=st.sampled_from([0, 1, 2, 9]),
    output_form=st.sampled_from([0, 1, 2, 3, 9]),
    request_id=st.text(max_size=5),
    tags=st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=3),
    resumed_token_ids=st.lists(st.integers(0, 2**32 - 1), max_size=5),
)


def test_every_field_of_a_request_is_read() -> None:
    fields = {
        "model": "m", "chat": {"messages": [{"role": "ROLE_USER", "content": "hi"}]}, "log_probs": True,
        "sampling": {"max_tokens": 3, "stop": ["x"]}, "grammar": {"regex": "a+"}, "tier": "TIER_ASYNC",
        "request_id": "r", "tags": {"a": "b"}, "output_form": "OUTPUT_FORM_TEXT_AND_TOKEN_IDS", "timeout": "2s",
        "resumed_token_ids": [1, 2], "resumed_model_version": "m@1", "contract": "c", "requires": ["tools"],
    }  # fmt: skip
    message = json_format.ParseDict(fields, inference_pb2.GenerateRequest())
    unread = {field.name for field in message.DESCRIPTOR.fields} - {field.name for field, _ in message.ListFields()}
    assert unread == {"prompt"}  # which cannot be where a chat is
    assert request_from_proto(message, traceparent="t", call_deadline=9.0, in_session=True) == Request(
        model="m", chat=[Turn("user", "hi")], sampling=SamplingRequest(max_tokens=3, stop=("x",)),
        grammar=Grammar("regex", "a+"), log_probs=True, tier=Tier.ASYNC, request_id="r", tags={"a": "b"}, text=True,
        token_ids=True, timeout_s=2.0, resumed=[1, 2], resumed_version="m@1", contract="c", requires=("tools",),
        traceparent="t", call_deadline=9.0, in_session=True,
    )  # fmt: skip
    empty = inference_pb2.GenerateRequest()
    assert request_from_proto(empty, traceparent="", call_deadline=None) == Request(model="")
    assert request_from_proto(inference_pb2.GenerateRequest(prompt=""), traceparent="", call_deadline=None).prompt == ""


@given(requests)
def test_whatever_the_caller_wrote_can_be_judged_and_told(message: inference_pb2.GenerateRequest) -> None:
    request = request_from_proto(message, traceparent="", call_deadline=None)
    found = list(violations(request))
    status = to_status(RequestInvalid.of(found))
    assert status.code == 3
    assert request.prompt == message.prompt
    assert (request.sampling.max_tokens is None) == (not message.sampling.HasField("max_tokens"))
