"""What the remote engine decides: breaker, limits, events, requests, errors and costs."""

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.catalogue import Price
from libs.catalogue.options import Breaker as Policy
from libs.errors import InternalError, NotSupported, Overloaded, RequestInvalid, StageUnavailable
from libs.lane.work import Grammar, Sampling, Tier, Work
from services.executor.engine import Exactness
from services.executor.remote import faults, request, sse
from services.executor.remote.breaker import Breaker, State
from services.executor.remote.chunks import ChunkInvalid, decode
from services.executor.remote.limits import BURST_S, Bucket, Limits
from services.executor.remote.usage import Usage, cost

POLICY = Policy(failures=3, window_s=10, open_s=5, successes=2)


def fail(breaker: Breaker, now: float) -> None:
    breaker.leave(breaker.enter(), False, now)


def test_a_breaker_opens_for_failures_within_its_window() -> None:
    breaker = Breaker(POLICY)
    for now in (0, 9, 18, 29, 29.5):
        fail(breaker, now)
    assert breaker.state(29.5) is State.CLOSED, "never three in ten seconds"
    fail(breaker, 30)
    assert breaker.state(30) is State.OPEN
    assert breaker.refused_s(32) == 3


def test_probes_close_it_and_one_failure_opens_it_again() -> None:
    breaker = Breaker(POLICY)
    breaker.trip(0)
    assert breaker.state(5) is State.HALF_OPEN
    first, second = breaker.enter(), breaker.enter()
    assert breaker.refused_s(5) == 1.0, "no more probes than it needs successes"
    breaker.leave(first, None, 5)
    assert breaker.refused_s(5) is None, "one that tells nothing makes room for another"
    breaker.leave(second, False, 6)
    assert breaker.state(6) is State.OPEN
    for now in (11, 12):
        assert breaker.refused_s(now) is None
        breaker.leave(breaker.enter(), True, now)
    assert breaker.state(12) is State.CLOSED


def test_news_from_before_a_change_are_old() -> None:
    breaker = Breaker(POLICY)
    tickets = [breaker.enter() for _ in range(9)]
    for ticket in tickets[:3]:
        breaker.leave(ticket, False, 0)
    assert breaker.state(5) is State.HALF_OPEN
    for ticket in tickets[3:]:
        breaker.leave(ticket, False, 5)
    assert breaker.state(5) is State.HALF_OPEN


@given(st.lists(st.tuples(st.floats(0, 3), st.sampled_from([True, False, None]))))
def test_a_breaker_never_stays_shut(steps: list[tuple[float, bool | None]]) -> None:
    breaker, now, under_way = Breaker(POLICY), 0.0, list[int]()
    for wait, success in steps:
        now += wait
        if breaker.refused_s(now) is None:
            under_way.append(breaker.enter())
        if under_way and wait > 1:
            breaker.leave(under_way.pop(0), success, now)
    for ticket in under_way:
        breaker.leave(ticket, None, now)
    now += POLICY.open_s
    for _ in range(POLICY.successes):
        assert breaker.refused_s(now) is None
        breaker.leave(breaker.enter(), True, now)
    assert breaker.state(now) is State.CLOSED


@given(
    per_minute=st.integers(1, 1000),
    asks=st.lists(st.tuples(st.floats(0, 20), st.integers(1, 2000)), min_size=1, max_size=50),
)
def test_a_bucket_never_lets_more_through_than_flows_in(per_minute: int, asks: list[tuple[float, int]]) -> None:
    bucket, now = Bucket(per_minute), 0.0
    rate = per_minute / 60
    most = max(rate * BURST_S, 1.0)
    passed: list[tuple[float, int]] = []
    for wait, amount in asks:
        now += wait
        passed.append((now + bucket.take(amount, now), amount))
    times = [at for at, _ in passed]
    assert times == sorted(times) or all(a <= b + 1e-6 for a, b in pairwise(times)), "in order"
    for n in range(len(passed)):  # what passed before the last of them is what was held, and flowed in since
        spent = sum(amount for _, amount in passed[:n])
        assert spent + min(passed[n][1], most) <= most + times[n] * rate + 1e-6 * max(spent, 1)


def test_what_was_not_used_comes_back() -> None:
    limits = Limits(0, 600)
    assert limits.take(100, 0) == 0
    assert limits.take(100, 0) == 10
    limits.give_back(150)
    assert limits.take(50, 0) == 0
    assert limits.take(10_000, 0) == 10, "more than it could ever hold passes when it is full"
    limits = Limits(60, 0)
    assert [limits.take(5, 0) for _ in range(11)] == [0.0] * 10 + [1.0]
    limits.give_back(5, request=True)
    assert limits.take(5, 0) == 1.0
    limits.close(30, 0)
    assert limits.take(5, 10) == 20
    assert limits.closed_s(31) == 0


@given(
    events=st.lists(st.binary(max_size=20).filter(lambda b: b"\n" not in b and b"\r" not in b), max_size=8),
    cuts=st.sets(st.integers(0, 300)),
    end=st.sampled_from([b"\n", b"\r\n"]),
)
def test_events_come_out_wherever_the_bytes_were_cut(events: list[bytes], cuts: set[int], end: bytes) -> None:
    data = b": hello" + end + b"".join(b"event: x" + end + b"data: " + event + end * 2 for event in events)
    edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    parser = sse.Events()
    found = [event for start, stop in pairwise(edges) for event in parser.push(data[start:stop])]
    assert found == events


@pytest.mark.parametrize("line", [b"data: " + b"x" * 1000, b"data: x\n"])
def test_events_are_bounded(line: bytes) -> None:
    parser = sse.Events()
    for _ in range(sse.LINE_BYTES // len(line) - 1):
        parser.push(line)
    with pytest.raises(sse.LineTooLong):
        parser.push(line * 1_000_000)


@given(st.binary(max_size=60) | st.sampled_from([b"[" * 100_000, b'{"choices":[7]}', b"[]", b"null", b'{"usage":[]}']))
def test_what_is_no_chunk_is_told_from_one(data: bytes) -> None:
    try:
        chunk = decode(data)
    except ChunkInvalid:
        return
    assert isinstance(chunk.choices, list)


@pytest.mark.parametrize(
    ("status", "body", "error", "failure"),
    [
        (400, {"error": {"message": "top_k is not supported"}}, NotSupported, False),
        (422, {"detail": "temperature: at most 2"}, RequestInvalid, False),
        (413, "too much", RequestInvalid, False),
        (401, {"error": {"message": "wrong key sk-1"}}, InternalError, True),
        (403, None, InternalError, True),
        (404, {"error": {"message": "no model"}}, StageUnavailable, True),
        (408, None, StageUnavailable, True),
        (429, {"error": {"message": "slow down"}}, Overloaded, False),
        (502, "<html>", StageUnavailable, True),
    ],
)
def test_each_status_has_its_meaning(status: int, body: Any, error: type, failure: bool) -> None:
    message = faults.message_of(json.dumps(body).encode(), "sk-1")
    fault = faults.of_status(status, {}, message, 0)
    assert (type(fault.error), fault.failure) == (error, failure)
    assert "sk-1" not in fault.error.message


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7), ("0", 1), ("1.5", 1.5), ("soon", 1), ("", 1), ("-3", 1), ("nan", 1), ("1e9", 3600),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 40), ("Thu, 01 Jan 1970 00:00:01 GMT", 1),
    ],
)  # fmt: skip
def test_retry_after_is_a_number_or_a_date(header: str, seconds: float) -> None:
    assert faults.retry_after_s({"Retry-After": header}, 60) == seconds


def test_a_message_is_a_line() -> None:
    message = faults.message_of(json.dumps({"error": {"message": "a\nsk-1\n" + "b" * 1000}}).encode(), "sk-1")
    assert message.startswith("a *** bbb")
    assert len(message) == faults.MESSAGE_CHARACTERS + 1


def test_costs_follow_the_price() -> None:
    price = Price(input=3, cached_input=1, output=15, currency="USD")
    assert cost(Usage(1_000_000, 400_000, 100_000), price) == pytest.approx(1.8 + 0.4 + 1.5)
    assert cost(Usage(5, 9, 0), price) == pytest.approx(9e-6), "an endpoint that miscounts makes nothing negative"
    assert cost(Usage(5, 0, 5), None) == 0


def body(api: request.Api, work: Work, written: str = "", **dialect: Any) -> dict[str, Any]:
    made = request.body("m", api, request.Dialect(**dialect), work, work.sampling.max_tokens, written, repr)
    assert made.pop("model") == "m"
    assert made.pop("stream") is True
    return made


def work(**fields: Any) -> Work:
    sampling = Sampling(**{"max_tokens": 10, "seed": 5, **fields.pop("sampling", {})})
    return Work("r", "t", Tier.INTERACTIVE, "m", [1, 2], sampling, 0.0, **fields)


def test_requests_say_what_the_work_says() -> None:
    usage = {"stream_options": {"include_usage": True}}
    turns = (("system", "Be kind."), ("user", "Hi."))
    sent = body("chat", work(chat=turns, log_probs=True, sampling={"temperature": 0.5, "presence_penalty": 1.0}))
    assert sent == {
        "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi."}],
        "max_tokens": 10, "seed": 5, "temperature": 0.5, "presence_penalty": 1.0, "logprobs": True, **usage,
    }  # fmt: skip
    assert body("chat", work(), max_tokens="max_completion_tokens", usage=False) == {
        "messages": [{"role": "user", "content": "[1, 2]"}], "max_completion_tokens": 10, "seed": 5,
    }  # fmt: skip
    assert body("completions", work(log_probs=True)) == {
        "prompt": "[1, 2]", "max_tokens": 10, "seed": 5, "logprobs": 1, **usage,
    }  # fmt: skip
    sampling = {"top_k": 4, "ignore_end": True, "repetition_penalty": 1.2}
    assert body("completions_tokens", work(sampling=sampling)) == {
        "prompt": [1, 2], "max_tokens": 10, "seed": 5, "top_k": 4, "ignore_eos": True, "repetition_penalty": 1.2,
        "return_token_ids": True, **usage,
    }  # fmt: skip


def test_what_has_passed_is_continued() -> None:
    resumed = work(resumed=(3, 4, 5))
    assert body("completions", resumed, " so far")["prompt"] == "[1, 2] so far"
    sent = body("completions_tokens", resumed, " so far")
    assert (sent["prompt"], sent["max_tokens"]) == ([1, 2, 3, 4, 5], 7)
    assert body("completions_tokens", resumed)["max_tokens"] == 10, "an answer that is made again is made whole"
    sent = body("chat", resumed, "So far")
    assert sent["messages"][-1] == {"role": "assistant", "content": "So far"}
    assert (sent["continue_final_message"], sent["add_generation_prompt"]) == (True, False)


def test_a_work_without_a_seed_gets_its_own() -> None:
    one = body("chat", work(sampling={"seed": None}))
    assert one["seed"] == body("chat", work(sampling={"seed": None}))["seed"] < request.SEEDS
    assert "seed" not in body("chat", work(sampling={"seed": None, "temperature": 0.0}))


def test_grammars_go_with_chats() -> None:
    sent = body("chat", work(grammar=Grammar("json_schema", '{"type": "object"}')))
    assert sent["response_format"]["json_schema"]["schema"] == {"type": "object"}
    with pytest.raises(RequestInvalid):
        body("chat", work(grammar=Grammar("json_schema", "{")))
    with pytest.raises(NotSupported):
        body("chat", work(sampling={"repetition_penalty": 1.3}))
    apis: list[request.Api] = ["chat", "completions", "completions_tokens"]
    for api in apis:
        can = request.capabilities(api, request.Dialect(), replay=True, paid=False)
        assert can.grammars == (frozenset({"json_schema"}) if api == "chat" else frozenset())
        assert can.exactness is Exactness.MODELLED


def test_an_answer_is_no_longer_than_the_context_allows() -> None:
    assert request.longest(work(), 9) == 7
    assert request.longest(work(), 0) == 10
