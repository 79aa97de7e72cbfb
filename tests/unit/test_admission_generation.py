"""One answer on its way out, and many of them on one stream."""

import asyncio
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from msgspec.structs import replace

from headrace.inference.v1 import inference_pb2
from libs.clock import ManualClock
from libs.errors import Cancelled, DeadlinePassed, RequestInvalid
from libs.lane.draft import Draft
from libs.lane.forwarder import Forwarder
from libs.lane.frame import Frame
from libs.lane.work import FinishReason, Note, Outcome
from libs.models.tokenizers import Tokenizers
from libs.rpc.call import Call
from libs.streams.call import MESSAGE_BYTES
from libs.tasks import Tasks
from libs.telemetry.tracing import Span, untraced
from libs.tokens.detokenize import Detokenizer
from services.admission import session as session_module
from services.admission.admit import admit, check
from services.admission.convert import chunk_to_proto, finish_fields
from services.admission.generation import Chunk, Finish, Generation
from services.admission.request import Request, SamplingRequest
from services.admission.session import Session
from tests.unit.fronts import front
from tests.unit.lanes import HandStage
from tests.unit.letters import POLICY, SPEC, TENANT, tokenizer, tokens

END = Outcome(FinishReason.STOP)


class Out:
    """A generation and everything that a client has taken of it."""

    def __init__(self, *stops: str, resumed: str = "", **changes: object) -> None:
        request = Request(
            "letters", prompt="x", sampling=SamplingRequest(90, stop=stops), resumed=tokens(resumed), **changes  # type: ignore[arg-type]
        )  # fmt: skip
        checked = check(request, TENANT, POLICY, 0.0)
        admitted = admit(checked, [1, 2], 256, "r")
        needed = request.text or stops
        self.calls = 0
        self.generation = Generation(
            checked, admitted, Detokenizer(tokenizer()) if needed else None, self._changed, 5.0
        )
        self.chunks: list[Chunk] = []

    def _changed(self, _: Generation) -> None:
        self.calls += 1

    def push(self, text: "str | bytes", now: float = 7.0) -> "Out":
        data = text.encode() if isinstance(text, str) else text
        self.generation.push(list(data), [-1.0] * len(data), now)
        return self

    def take(self) -> Chunk:
        self.chunks.append(self.generation.take())
        return self.chunks[-1]

    def end(self, outcome: Outcome = END) -> Finish:
        self.generation.end(outcome, 9.0)
        finish = self.take().finish
        assert finish is not None
        return finish

    @property
    def text(self) -> str:
        return "".join(chunk.text for chunk in self.chunks)


def test_text_comes_as_it_is_made() -> None:
    out = Out()
    assert out.push("Hi").take() == Chunk("Hi", count=2)
    out.push(" th")
    assert out.push("ere").take() == Chunk(" there", count=6)
    finish = out.end(replace(END, cached_tokens=1, queued_s=0.5))
    assert (finish.reason, finish.stop, finish.model) == (FinishReason.STOP, "", "letters")
    assert (finish.prompt_tokens, finish.cached_tokens, finish.output_tokens) == (2, 1, 8)
    assert (finish.queued_s, finish.first_token_s, finish.total_s) == (0.5, 2.0, 4.0)


def test_what_is_asked_for_and_nothing_else() -> None:
    assert Out(token_ids=True).push("Hi").take() == Chunk("Hi", token_ids=tokens("Hi"), count=2)
    assert Out(text=False, token_ids=True).push("Hi").take() == Chunk(token_ids=tokens("Hi"), count=2)
    assert Out(log_probs=True).push("Hi").take() == Chunk("Hi", count=2, log_probs=[-1.0, -1.0])
    assert Out("no", text=False).push("Hi").take() == Chunk(count=2)


def test_a_character_leaves_whole() -> None:
    out, data = Out(), "世".encode()
    out.push(data[:2])
    assert out.take().text == ""
    out.push(data[2:])
    assert out.take().text == "世"


def test_half_a_character_at_the_end_shows_as_one_that_is_broken() -> None:
    out = Out()
    out.push(b"a\xe4")
    out.end()
    assert out.text == "a\ufffd"


def test_a_stop_string_across_tokens_ends_the_answer_in_front_of_it() -> None:
    out = Out("END", "other")
    out.push("He says E")
    assert out.take().text == "He says "
    out.push("N")
    out.push("D and more")
    assert out.generation.stop == "END"
    out.push("what still comes is dropped")
    finish = out.end(Outcome(error=Cancelled("as asked")))
    assert out.text == "He says "
    assert (finish.reason, finish.stop) == (FinishReason.STOP, "END")


def test_what_looked_like_a_stop_string_is_shown_in_the_end() -> None:
    out = Out("END")
    out.push("the EN")
    out.end()
    assert out.text == "the EN"


def test_stop_strings_count_where_only_ids_are_asked_for() -> None:
    out = Out("b", text=False, token_ids=True)
    out.push("abc")
    finish = out.end(Outcome(error=Cancelled("as asked")))
    assert finish.stop == "b"
    assert out.text == ""


def test_a_stop_string_across_the_seam_of_a_resume() -> None:
    out = Out("END", resumed="He says EN")
    out.push("D!")
    finish = out.end(Outcome(error=Cancelled("as asked")))
    assert (out.text, finish.stop) == ("", "END")
    assert finish.output_tokens == 12


def test_what_was_held_back_at_the_seam_is_shown_behind_it() -> None:
    out = Out("END", resumed="He says EN")
    out.push("ter")
    out.end()
    assert out.text == "ENter"


def test_a_character_across_the_seam_of_a_resume() -> None:
    data = "世".encode()
    out = Out()
    whole = Out()
    whole.push("a世")
    out.generation.work = replace(out.generation.work, resumed=list(b"a" + data[:1]))
    resumed = Generation(
        out.generation.checked,
        structs.replace(admit(out.generation.checked, [1, 2], 256, "r"), work=out.generation.work),
        Detokenizer(tokenizer()), lambda _: None, 0.0,
    )  # fmt: skip
    resumed.push(list(data[1:]), [], 0.0)
    assert resumed.take().text == "世"
    assert resumed.tokens == 4


def test_a_stop_string_that_the_caller_has_already_ends_the_answer_at_once() -> None:
    out = Out("END", resumed="He says END")
    assert out.generation.stop == "END"
    out.push("what still comes is dropped")
    assert out.end(Outcome(error=Cancelled("as asked"))).stop == "END"
    assert out.text == ""


@given(
    st.text(st.sampled_from("abEND 世é"), max_size=30),
    st.lists(st.integers(0, 60), max_size=6),
    st.integers(0, 60),
)
def test_however_it_is_cut_and_resumed_the_text_is_the_same(text: str, cuts: list[int], seam: int) -> None:
    data = text.encode()
    expected = text.partition("END")[0]
    bounds = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    whole = Out("END")
    for start, end in pairwise(bounds):
        whole.push(data[start:end])
    whole.end()
    assert whole.text == expected
    assert bool(whole.generation.stop) == ("END" in text)
    # The same, taken up by another process behind `seam` tokens.
    before, rest = data[:seam], data[seam:]
    first = Out("END")
    first.push(before)
    first.take()
    second = Out("END")
    checked = second.generation.checked
    request = structs.replace(checked.request, resumed=list(before))
    admitted = admit(structs.replace(checked, request=request), [1, 2], 256, "r")
    second.generation = Generation(checked, admitted, Detokenizer(tokenizer()), lambda _: None, 0.0)
    second.push(rest)
    second.end()
    assert first.text + second.text == expected


def test_an_error_ends_it_and_the_first_end_counts() -> None:
    out = Out()
    out.push("a")
    out.generation.end(Outcome(error=DeadlinePassed("late")), 9.0)
    out.generation.end(END, 9.0)
    out.push("b")
    chunk = out.take()
    assert isinstance(chunk.error, DeadlinePassed)
    assert (chunk.text, chunk.finish) == ("a", None)
    assert out.calls == 2


def test_why_it_waits_is_told_once_and_until_it_runs() -> None:
    out = Out()
    out.generation.note("m@1", "m is being loaded")
    assert out.take() == Chunk(waiting="m is being loaded")
    assert out.take() == Chunk()
    out.generation.note("", "m waits for memory")
    out.generation.note("", "m is being loaded")
    assert out.take() == Chunk(waiting="m is being loaded"), "the newest, to one who reads slowly"
    out.generation.note("", "nearly")
    out.push("Hi")
    assert out.take() == Chunk("Hi", "m@1", count=2), "it runs: nobody wants to read why it did not"
    out.generation.note("", "too late")
    assert out.take() == Chunk()
    assert out.calls == 5


def test_the_version_comes_with_the_first_tokens_only() -> None:
    out = Out()
    out.generation.note("m@1", "")
    out.generation.note("m@2", "")  # it was sent elsewhere before it began
    assert out.calls == 0
    assert out.push("a").take().version == "m@2"
    assert out.push("b").take().version == ""


def test_who_waits_and_is_ended_is_told_the_end() -> None:
    out = Out()
    out.generation.note("m@1", "m is being loaded")
    out.generation.end(Outcome(error=DeadlinePassed("late")), 9.0)
    out.generation.note("", "m is being loaded")
    chunk = out.take()
    assert (chunk.waiting, chunk.version) == ("", "")
    assert isinstance(chunk.error, DeadlinePassed)


def test_messages_say_the_same() -> None:
    out = Out(token_ids=True, log_probs=True)
    out.push("Hi")
    finish = out.end(replace(END, cached_tokens=1, queued_s=0.25))
    assert chunk_to_proto(Chunk(waiting="w"), "") == inference_pb2.GenerateResponse(waiting="w")
    assert chunk_to_proto(Chunk("x", "m@1", count=1), "").model_version == "m@1"
    message = chunk_to_proto(out.chunks[0], "r")
    assert (message.request_id, message.text, list(message.token_ids)) == ("r", "Hi", tokens("Hi"))
    assert list(message.log_probs) == [-1.0, -1.0]
    assert message.finish == inference_pb2.Finish(**finish_fields(finish))
    assert message.finish.reason == inference_pb2.FINISH_REASON_STOP
    assert message.finish.usage == inference_pb2.Usage(prompt_tokens=2, cached_tokens=1, output_tokens=2)
    assert message.finish.timings.queued.ToMicroseconds() == 250_000
    assert message.finish.timings.total.ToMicroseconds() == 4_000_000


# --- the front, and many generations on one stream -----------------------------------------------


class Streams:
    """Admission in front of a router that does what the test says."""

    def __init__(self) -> None:
        self.clock, self.router, self.tasks = ManualClock(), HandStage(), Tasks()
        self.forwarder = Forwarder("admission", lambda work, ready: ready[0], self.clock)
        self.forwarder.set_neighbours({"router-0": self.router})
        tokenizers = Tokenizers(lambda source, folder: tokenizer(), None, self.tasks)  # type: ignore[arg-type]
        tokenizers.want({"letters": SPEC})
        self.tokenizers = tokenizers
        self.front = front(self.forwarder, lambda: POLICY, tokenizers, self.clock, self.tasks, Path("nowhere"))
        self.session = Session(self.front, untraced(), Call("/x", identity=TENANT), lambda: None)

    async def begin(self, number: int, **changes: object) -> None:
        await self.tokenizers.loaded()
        request = inference_pb2.GenerateRequest(model="letters", prompt="hello", **changes)  # type: ignore[arg-type]
        await self.session.begin(inference_pb2.SessionGenerate(id=number, request=request))

    def answer(self, text: str, *, end: Outcome | None = None) -> None:
        """The same answer for every work that runs."""
        lane, frame = self.router.lane, Draft()
        for work_id in lane.works:
            frame.add(work_id, lane.made[work_id], tokens(text), [-1.0] * len(tokens(text)))
            lane.made[work_id] += len(tokens(text))
        lane.sink.on_frame(Frame.of(frame))
        if end is not None:
            for work_id in list(lane.works):
                lane.end(work_id, end)

    def said(self, response: inference_pb2.SessionResponse) -> dict[int, str]:
        return dict(zip(response.ids, response.texts or [""] * len(response.ids), strict=True))


async def test_a_step_of_many_generations_is_one_message() -> None:
    streams = Streams()
    for number in (3, 1, 2):
        await streams.begin(number)
    streams.session.take()
    streams.answer("Hi")
    assert streams.session.has_news
    response = streams.session.take()
    assert streams.said(response) == {3: "Hi", 1: "Hi", 2: "Hi"}
    assert list(response.counts) == [2, 2, 2]
    streams.answer("!", end=END)
    response = streams.session.take()
    assert sorted(end.id for end in response.ends) == [1, 2, 3]
    assert all(end.finish.usage.output_tokens == 3 for end in response.ends)
    assert not streams.session.over
    streams.session.half_close()
    assert streams.session.over
    assert streams.front.usage.tenants["t"].output_tokens == 9
    assert streams.front.in_flight == 0


async def test_what_is_wrong_with_one_ends_one() -> None:
    streams = Streams()
    await streams.begin(1, request_id="mine", sampling=inference_pb2.Sampling(temperature=-1))
    await streams.begin(2)
    (end,) = streams.session.take().ends
    assert (end.id, end.request_id, end.failure.code) == (1, "mine", 3)
    await streams.begin(1)  # the number is free again
    assert len(streams.router.lane.works) == 2


async def test_a_number_in_use_ends_the_stream() -> None:
    streams = Streams()
    await streams.begin(1)
    with pytest.raises(RequestInvalid):
        await streams.begin(1)


async def test_a_cancel_ends_in_an_outcome_and_an_unknown_one_in_nothing() -> None:
    streams = Streams()
    await streams.begin(1)
    streams.session.cancel(99)
    streams.session.cancel(1)
    (up_id,) = streams.router.lane.cancels
    streams.router.lane.end(up_id, Outcome(error=Cancelled("as asked")))
    (end,) = streams.session.take().ends
    assert end.failure.code == 1


async def test_a_stop_string_cancels_the_work() -> None:
    streams = Streams()
    await streams.begin(1, sampling=inference_pb2.Sampling(stop=["b"]))
    streams.answer("abc")
    (up_id,) = streams.router.lane.cancels
    streams.router.lane.end(up_id, Outcome(error=Cancelled("as asked")))
    response = streams.session.take()
    assert streams.said(response) == {1: "a"}
    assert response.ends[0].finish.stop == "b"


async def test_a_stream_that_goes_stops_everything_on_it() -> None:
    streams = Streams()
    for number in range(3):
        await streams.begin(number)
    streams.session.abandon()
    assert sorted(streams.router.lane.cancels) == sorted(streams.router.lane.works)


async def test_a_slow_reader_gets_messages_below_the_limit() -> None:
    streams = Streams()
    for number in range(60):
        await streams.begin(number, output_form=inference_pb2.OUTPUT_FORM_TEXT_AND_TOKEN_IDS, log_probs=True)
    for _ in range(3):
        streams.answer("世" * 300)  # far past max_tokens, to have much of it
    written: dict[int, str] = {}
    count = 0
    while streams.session._dirty:
        response = streams.session.take()
        assert response.ByteSize() < MESSAGE_BYTES
        written |= streams.said(response)
        count += 1
    assert count > 1
    assert written == dict.fromkeys(range(60), "世" * 900)


async def test_a_client_that_does_not_read_its_failures_is_not_read_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "MAX_GENERATIONS", 4)
    monkeypatch.setattr(session_module, "RESPONSE_ENDS", 3)
    streams = Streams()
    await streams.tokenizers.loaded()

    async def flood() -> None:
        for number in range(10):
            await streams.begin(number, request_id="no spaces")

    flooding = asyncio.create_task(flood())
    ends: list[int] = []
    while len(ends) < 10:
        async with asyncio.timeout(5):
            while not streams.session.has_news:
                await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(streams.session._failed) <= 4
        part: Sequence[inference_pb2.SessionEnd] = streams.session.take().ends
        assert len(part) <= 3
        ends += [end.id for end in part]
    await flooding
    assert ends == list(range(10))


async def test_a_resumed_answer_that_is_complete_is_cancelled_at_once() -> None:
    streams = Streams()
    await streams.tokenizers.loaded()
    request = Request("letters", prompt="x", sampling=SamplingRequest(stop=["b"]), resumed=tokens("ab"))
    streams.router.lane.submit = lambda *_: None  # type: ignore[method-assign]
    await streams.front.start(request, TENANT, Span(), lambda _: None)
    assert len(streams.router.lane.cancels) == 1


async def test_a_long_grammar_is_judged_once_and_the_same() -> None:
    streams = Streams()
    text = '{"type": 5, "title": "' + "x" * 1000 + '"}'
    for number in range(2):
        await streams.begin(number, grammar=inference_pb2.Grammar(json_schema=text))
    assert [end.failure.code for end in streams.session.take().ends] == [3, 3]


async def test_a_stream_carries_notes_of_its_generations() -> None:
    streams = Streams()
    for number in (5, 6):
        await streams.begin(number)
    first, second = streams.router.lane.works
    streams.router.lane.sink.on_note(first, Note("letters@0", "letters is being loaded"))
    streams.router.lane.sink.on_note(second, Note("letters@0"))
    response = streams.session.take()
    assert list(response.notes) == [inference_pb2.SessionNote(id=5, waiting="letters is being loaded")]
    assert not response.ids
    streams.answer("Hi")
    response = streams.session.take()
    assert sorted((note.id, note.model_version) for note in response.notes) == [(5, "letters@0"), (6, "letters@0")]
    assert streams.said(response) == {5: "Hi", 6: "Hi"}
    streams.answer("!", end=END)
    assert not streams.session.take().notes


async def test_notes_count_towards_the_size_of_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "RESPONSE_BYTES", 10_000)
    streams = Streams()
    for number in range(20):
        await streams.begin(number)
    for work_id in streams.router.lane.works:
        streams.router.lane.sink.on_note(work_id, Note(waiting="世" * 400))
    told: list[int] = []
    while streams.session._dirty:
        response = streams.session.take()
        assert response.ByteSize() < 2 * 10_000
        told += [note.id for note in response.notes]
    assert sorted(told) == list(range(20))


async def test_a_note_of_a_work_that_has_ended_is_dropped() -> None:
    streams = Streams()
    await streams.begin(1)
    (up_id,) = streams.router.lane.works
    streams.answer("Hi", end=END)
    streams.session.take()
    streams.front.on_note(up_id, Note(waiting="too late"))
    streams.front.on_note(99, Note(waiting="nobody's"))
    assert not streams.session._dirty


async def test_a_resumed_generation_goes_to_the_version_that_its_caller_names() -> None:
    streams = Streams()
    await streams.begin(1, request_id="r-0", resumed_token_ids=[0], resumed_model_version="letters@0")
    (sent,) = streams.router.lane.works.values()
    assert (list(sent.resumed), sent.pool) == ([0], "letters@0")
    await streams.begin(2, resumed_token_ids=[65], resumed_model_version="bare@0")
    (end,) = streams.session.take().ends
    assert (end.id, end.failure.code) == (2, 3)
