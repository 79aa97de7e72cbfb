"""What many answers say at once is what each would have said by itself."""

import asyncio
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headrace.inference.v1 import inference_pb2 as pb
from libs.clock import ManualClock
from libs.lane.draft import Draft
from libs.lane.forwarder import Forwarder
from libs.lane.frame import Frame
from libs.lane.work import FinishReason, Note, Outcome
from libs.models.tokenizers import Tokenizers
from libs.rpc.call import Call
from libs.streams.frames import DATA, HEAD, head
from libs.streams.outgoing import PREFIX, Outgoing
from libs.tasks import Tasks
from libs.telemetry.tracing import Span, untraced
from libs.tokens.byte_table import BYTES, ByteTable
from libs.tokens.tokenizer import Tokenizer
from services.admission import steady
from services.admission.convert import request_from_proto
from services.admission.generate import Generate, Streams
from services.admission.generation import Chunk
from services.admission.session import Session
from services.admission.steady import MOST_STEPS, SessionOutlet
from tests.unit.fronts import front
from tests.unit.lanes import HandStage
from tests.unit.letters import POLICY, SPEC, TENANT

MEMBERS = 12


@cache
def tokenizer() -> Tokenizer:
    """Byte-level: token n is the byte n."""
    cut = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    letters = {byte: chr(letter) for letter, byte in BYTES.items()}
    model = {"type": "BPE", "vocab": {letters[byte]: byte for byte in range(256)}, "merges": []}
    document: dict[str, object] = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": cut, "post_processor": None, "decoder": cut, "model": model,
    }  # fmt: skip
    return Tokenizer(json.dumps(document), {})


class Many:
    """Answers on one session, before a router that does what the test says, and what their client has read."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = {number: text.encode() for number, text in enumerate(texts, 1)}
        self.router, clock, tasks = HandStage(), ManualClock(), Tasks()
        forwarder = Forwarder("admission", lambda work, ready: ready[0], clock)
        forwarder.set_neighbours({"router-0": self.router})
        self.tokenizers = Tokenizers(lambda source, cache: tokenizer(), None, tasks)  # type: ignore[arg-type]
        self.tokenizers.want({"letters": SPEC})
        self.front = front(forwarder, lambda: POLICY, self.tokenizers, clock, tasks, Path("nowhere"))
        self.session = Session(self.front, untraced(), Call("/x", identity=TENANT), lambda: None)
        self.works: dict[int, int] = {}
        self.read: dict[int, str] = {}
        self.counted: dict[int, int] = {}
        self.log_probs: list[float] = []
        """Of the first."""
        self.ends: dict[int, pb.SessionEnd] = {}

    async def begin(self) -> None:
        await self.tokenizers.loaded()
        for number in self.texts:
            request = pb.GenerateRequest(
                model="letters", prompt="hello", request_id=f"r{number}", log_probs=number == 1
            )
            await self.session.begin(pb.SessionGenerate(id=number, request=request))
            (self.works[number],) = self.router.lane.works.keys() - self.works.values()
            self.read[number], self.counted[number] = "", 0
        self.take()

    def step(self, counts: Sequence[int]) -> None:
        """So many tokens for each."""
        lane, draft = self.router.lane, Draft()
        for (number, text), count in zip(self.texts.items(), counts, strict=True):
            work = self.works[number]
            if work in lane.works and (made := list(text[lane.made[work] :][:count])):
                draft.add(work, lane.made[work], made, [float(-token) for token in made] if number == 1 else ())
                lane.made[work] += len(made)
        lane.sink.on_frame(Frame.of(draft))

    def restart(self, number: int) -> None:
        lane, work = self.router.lane, self.works[number]
        if work in lane.works:
            lane.sink.on_note(work, Note(restart=True))
            lane.made[work] = 0

    def end(self, number: int) -> None:
        if self.works[number] in self.router.lane.works:
            self.router.lane.end(self.works[number], Outcome(FinishReason.STOP))

    def take(self) -> None:
        """One message."""
        message = self.session.take()
        assert len(set(message.ids)) == len(message.ids)
        begun_anew = {note.id for note in message.notes if note.restart}
        assert begun_anew.isdisjoint(message.ids)
        for number in begun_anew:
            self.read[number], self.counted[number] = "", 0
        for number, count, text in zip(message.ids, message.counts, message.texts or [""] * 99, strict=False):
            assert number not in self.ends
            self.read[number] += text
            self.counted[number] += count
        self.log_probs = [] if 1 in begun_anew else [*self.log_probs, *message.log_probs]
        self.ends |= {end.id: end for end in message.ends}

    def take_all(self) -> None:
        while self.session._dirty or any(self.session._outlets.values()):
            self.take()

    def play(self, happens: list[tuple[str, object]]) -> tuple[dict[int, int], dict[int, int], dict[int, str]]:
        """What happens, and the end of all; tokens of each answer that became void, those of its end, and its text."""
        void = dict.fromkeys(self.works, 0)
        for what, which in happens:
            match what:
                case "step":
                    self.step(which)  # type: ignore[arg-type]
                case "take":
                    self.take()
                case "take all":
                    self.take_all()
                case "restart":
                    assert isinstance(which, int)
                    void[which] += self.router.lane.made[self.works[which]]
                    self.restart(which)
                    void[which] -= self.router.lane.made[self.works[which]]
                case "end":
                    assert isinstance(which, int)
                    self.end(which)
        last = {number: self.router.lane.made[work] for number, work in self.works.items()}
        for number in self.works:
            self.end(number)
        self.take_all()
        return void, last, {n: text[: last[n]].decode(errors="replace") for n, text in self.texts.items()}


class Listener:
    """A call's context, above a stream whose client takes as many bytes as the test says."""

    def __init__(self) -> None:
        self.window = 2**30
        self.writable = True
        self.out = Outgoing(self, 1, 0)
        self.messages: list[pb.GenerateResponse] = []
        self._read = b""
        self._say: Callable[[], bool] = lambda: False
        self._over = asyncio.Event()
        self._due = False

    @property
    def room(self) -> bool:
        return self.out.room

    async def speak(self, say: Callable[[], bool]) -> None:
        self._say = say
        self.wake()
        await self._over.wait()

    def wake(self) -> None:
        self._due = True

    def say(self, message: pb.GenerateResponse) -> None:
        self.say_bytes(message.SerializeToString())

    def say_bytes(self, message: bytes) -> None:
        assert self.room
        self.out.write(message)

    def send(self, data: bytes) -> None:
        """What came to the client."""
        assert data[:HEAD] == head(len(data) - HEAD, DATA, 0, 1)
        self._read += data[HEAD:]
        while len(self._read) >= PREFIX and len(self._read) >= (end := PREFIX + int.from_bytes(self._read[:PREFIX])):
            self.messages.append(pb.GenerateResponse.FromString(self._read[PREFIX:end]))
            self._read = self._read[end:]

    def turn(self) -> None:
        """The end of a turn of the loop."""
        if self._due and self.room:
            self._due = False
            self._speak()

    def take(self, more: int) -> None:
        """There is room for so many bytes more."""
        self.out.window += more
        self.out.flush()
        if self.room:
            self._speak()

    def _speak(self) -> None:
        if self._say():
            self._over.set()


class ManyCalls(Many):
    """The same answers, each on a stream of its own."""

    def __init__(self, texts: Sequence[str]) -> None:
        super().__init__(texts)
        self.listeners = {number: Listener() for number in self.texts}
        self.streams = Streams(self.front)
        self.last: dict[int, asyncio.Task[Chunk]] = {}

    async def begin(self) -> None:
        await self.tokenizers.loaded()
        for number, listener in self.listeners.items():
            call = Generate(listener, Span(), self.streams)  # type: ignore[arg-type]
            request = pb.GenerateRequest(
                model="letters", prompt="hello", request_id=f"r{number}", log_probs=number == 1
            )
            parsed = request_from_proto(request, traceparent="", call_deadline=None)
            answer = await self.front.start(parsed, TENANT, Span(), call.changed)
            (self.works[number],) = self.router.lane.works.keys() - self.works.values()
            self.last[number] = asyncio.create_task(call.end(answer))
            await asyncio.sleep(0)
            listener.out.window = 40

    def step(self, counts: Sequence[int]) -> None:
        super().step(counts)
        self.turn()

    def restart(self, number: int) -> None:
        super().restart(number)
        self.turn()

    def end(self, number: int) -> None:
        super().end(number)
        self.turn()

    def turn(self) -> None:
        for listener in self.listeners.values():
            listener.turn()

    def take(self) -> None:
        for listener in self.listeners.values():
            listener.take(12)

    def take_all(self) -> None:
        for listener in self.listeners.values():
            listener.take(100_000)

    def text(self, number: int) -> str:
        """What the client has of an answer."""
        text = ""
        for message in self.listeners[number].messages:
            text = message.text if message.restart else text + message.text
        return text


counts = st.lists(st.sampled_from([1, 1, 1, 1, 1, 1, 2, 3, 0]), min_size=MEMBERS, max_size=MEMBERS)
numbers = st.integers(1, MEMBERS)
happenings = st.lists(
    st.one_of(
        st.tuples(st.just("step"), st.just([1] * MEMBERS)),
        st.tuples(st.just("step"), counts),
        st.tuples(st.just("take"), st.none()),
        st.tuples(st.just("take all"), st.none()),
        st.tuples(st.just("restart"), numbers),
        st.tuples(st.just("end"), numbers),
    ),
    max_size=30,
)
texts = st.text(st.sampled_from("abcdefgh ijklmnop é世"), min_size=30, max_size=30)


@pytest.mark.parametrize("width", [steady.WIDTH, 4])
@settings(deadline=None, max_examples=60)
@given(said=st.lists(texts, min_size=MEMBERS, max_size=MEMBERS), happens=happenings)
@example(  # who has more to say than goes into a message must not overtake itself
    said=["abc def ghi jkl mno abc def gh"] * MEMBERS,
    happens=[("restart", 2), *[("step", [1] * MEMBERS), ("take", None)] * 3],
)
def test_each_client_reads_its_whole_answer_once(
    width: int, said: list[str], happens: list[tuple[str, object]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steady, "WIDTH", width)
        asyncio.run(all_read(said, happens))


async def all_read(said: list[str], happens: list[tuple[str, object]]) -> None:
    many = Many(said)
    await many.begin()
    made, last, expected = many.play(happens)
    assert many.read == expected
    assert many.counted == last
    assert many.log_probs == [float(-token) for token in many.texts[1][: last[1]]]
    usage = {number: end.finish.usage.output_tokens for number, end in many.ends.items()}
    assert usage == {number: last[number] + made[number] for number in many.works}
    assert many.front.usage.tenants["t"].output_tokens == sum(usage.values())
    kept = {entry.request_id: entry.answer for entry, _ in many.front._desks.audit._waiting}
    assert kept == {f"r{n}": many.texts[n][: last[n]].decode(errors="ignore") for n in many.works}
    assert not many.front._steady._works


@settings(deadline=None, max_examples=60)
@given(said=st.lists(texts, min_size=MEMBERS, max_size=MEMBERS), happens=happenings)
def test_each_caller_reads_its_whole_answer_once(said: list[str], happens: list[tuple[str, object]]) -> None:
    asyncio.run(all_called(said, happens))


async def all_called(said: list[str], happens: list[tuple[str, object]]) -> None:
    many = ManyCalls(said)
    await many.begin()
    _, _, expected = many.play(happens)
    ends = {number: await task for number, task in many.last.items()}
    assert {number: many.text(number) for number in many.works} == expected
    assert all(end.finish is not None for end in ends.values())
    for listener in many.listeners.values():
        assert [message.HasField("finish") for message in listener.messages].index(True) == len(listener.messages) - 1
    assert not many.front._steady._works
    assert not many.streams._homes
    assert not many.streams._outlets


async def test_steady_calls_write_a_token_as_it_comes() -> None:
    many = ManyCalls(["a plain answer of some length"] * MEMBERS)
    await many.begin()
    many.take_all()
    many.step([1] * MEMBERS)
    flights = [flight.generation for flight in many.front._flights.values()]
    assert [generation.steady for generation in flights] == [False] + [True] * (MEMBERS - 1)
    for _ in range(3):
        many.step([1] * MEMBERS)
    assert [generation.tokens for generation in flights] == [4] + [1] * (MEMBERS - 1)
    assert {number: many.text(number) for number in many.works} == dict.fromkeys(many.works, "a pl")
    assert {len(listener.messages) for listener in many.listeners.values()} == {4}
    many.listeners[2].out.window = 0
    many.step([3] * MEMBERS)
    many.step([1] * MEMBERS)
    assert many.text(2) == "a pl"
    many.listeners[2].take(100)
    assert many.text(2) == many.text(3) == "a plain "
    assert len(many.listeners[2].messages) == len(many.listeners[3].messages)
    for task in many.last.values():
        task.cancel()


async def test_steady_answers_do_not_pass_their_generations() -> None:
    many = Many(["a plain answer of some length"] * MEMBERS)
    await many.begin()
    many.step([1] * MEMBERS)
    many.take_all()
    generations = [flight.generation for flight in many.front._flights.values()]
    assert [generation.steady for generation in generations] == [False] + [True] * (MEMBERS - 1)
    many.step([1] * MEMBERS)
    many.step([2] * MEMBERS)
    assert [generation.tokens for generation in generations] == [4] + [1] * (MEMBERS - 1)
    assert [member.id for member in many.session._dirty] == [1]
    many.take()
    assert set(many.read.values()) == {"a pl"}
    for number in many.works:
        many.end(number)
    many.take_all()
    assert [generation.tokens for generation in generations] == [4] * MEMBERS


def test_an_outlet_joins_what_waits_and_tells_it_in_parts() -> None:
    filled: list[bool] = []
    outlet = SessionOutlet(ByteTable([b"a"]), lambda: filled.append(True))
    for _ in range(MOST_STEPS + 2):
        outlet.put(([7, 3], [1, 2], ["a", "bb"]))
    assert len(filled) == MOST_STEPS + 2
    assert len(outlet._steps) <= MOST_STEPS
    most = MOST_STEPS + 2
    step, apart = outlet.take(20)
    assert (step, apart) == (([7], [most], ["a" * most]), True)
    assert outlet
    step, apart = outlet.take(10_000)
    assert (step, apart) == (([3], [2 * most], ["bb" * most]), False)
    assert not outlet


async def test_what_comes_while_parts_of_an_answer_are_told_is_told() -> None:
    many = Many(["abc"])
    await many.begin()
    many.restart(1)
    many.step([1])
    many.take()  # that it begins anew, and nothing else
    many.end(1)
    many.take_all()
    assert (many.read, many.ends[1].finish.usage.output_tokens) == ({1: "a"}, 1)
