"""Streams on an event loop, from a source that does what the test says."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from libs.clock import SystemClock
from libs.errors import Overloaded, StageUnavailable
from libs.lane.work import FinishReason, Outcome, Sampling, Tier, Work
from services.executor.engine import Capabilities, Capacity, Exactness, RunnerStats, Step
from services.executor.stream.runner import StreamRunner
from services.executor.stream.source import Piece

CLOCK = SystemClock()


def work(max_tokens: int = 100, resumed: tuple[int, ...] = (), seconds: float = 60, log_probs: bool = False) -> Work:
    return Work(
        "r", "t", Tier.INTERACTIVE, "m", [1, 2], Sampling(max_tokens), CLOCK.now() + seconds, resumed=resumed,
        log_probs=log_probs,
    )  # fmt: skip


class HandSource:
    """Streams whose pieces, errors and ends a test sends."""

    def __init__(self) -> None:
        self.queues: dict[int, asyncio.Queue[Piece | BaseException | None]] = {}
        self.closed: list[int] = []
        self.most_open = 0
        self.close_takes: Callable[[], Awaitable[object]] | None = None

    async def open(self, work_id: int, work: Work) -> AsyncIterator[Piece]:
        queue = self.queues[work_id] = asyncio.Queue()
        self.most_open = max(self.most_open, len(self.queues) - len(self.closed))
        try:
            while (sent := await queue.get()) is not None:
                if isinstance(sent, BaseException):
                    raise sent
                yield sent
        finally:
            if self.close_takes is not None:
                await self.close_takes()
            self.closed.append(work_id)

    def send(self, work_id: int, *tokens: int, finish: FinishReason | None = None) -> None:
        self.queues[work_id].put_nowait(Piece(tokens, finish=finish))


class Rig:
    """A runner over such a source, and all that its listener heard, with what must always hold."""

    def __init__(self, slots: int = 2) -> None:
        self.source = HandSource()
        capacity = Capacity(slots, 10, 16, Exactness.MODELLED)
        self.runner = StreamRunner(self.source, capacity, Capabilities(Exactness.MODELLED), self, CLOCK)
        self.tokens: dict[int, list[int]] = {}
        self.outcomes: dict[int, Outcome] = {}
        self.started: dict[int, int] = {}
        self.steps: list[Step] = []
        self.broken: list[str] = []
        self.stats = RunnerStats()

    def submit(self, work_id: int, work: Work) -> None:
        self.tokens[work_id] = list(work.resumed)
        self.runner.submit(work_id, work)

    def on_step(self, step: Step) -> None:
        self.steps.append(step)
        self.stats = step.stats
        for work_id, cached in step.started:
            assert work_id not in self.started
            self.started[work_id] = cached
        frame, end = step.frame, 0
        assert len(set(frame.work_ids)) == len(frame.work_ids)
        for work_id, offset, count in zip(frame.work_ids, frame.offsets, frame.counts, strict=True):
            assert offset == len(self.tokens[work_id])
            assert work_id in self.started
            assert work_id not in self.outcomes
            start, end = end, end + count
            self.tokens[work_id] += frame.token_ids[start:end]
        for work_id, outcome in step.outcomes:
            assert work_id not in self.outcomes
            assert outcome.output_tokens == len(self.tokens[work_id])
            self.outcomes[work_id] = outcome

    def on_broken(self, reason: str) -> None:
        self.broken.append(reason)

    def errors(self) -> dict[int, str]:
        return {work_id: outcome.error.reason for work_id, outcome in self.outcomes.items() if outcome.error}


async def turns(count: int = 6) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_tokens_of_one_turn_are_one_step() -> None:
    rig = Rig(slots=3)
    for work_id in (1, 2, 3):
        rig.submit(work_id, work())
    await turns()
    rig.source.queues[1].put_nowait(Piece(cached_tokens=32))
    await turns()
    assert rig.started == {1: 32}
    rig.source.send(1, 7)
    rig.source.send(1, 8, 9)
    rig.source.send(2, 5, 6)
    rig.source.send(3, 4, finish=FinishReason.STOP)
    await turns()
    assert len(rig.steps) == 2
    assert rig.steps[1].frame.counts == [3, 2, 1]
    assert rig.tokens == {1: [7, 8, 9], 2: [5, 6], 3: [4]}
    assert rig.outcomes == {3: Outcome(FinishReason.STOP, output_tokens=1)}
    assert rig.stats == RunnerStats(running=2)
    await rig.runner.close()
    assert Counter(rig.source.closed) == Counter([1, 2, 3])
    assert len(rig.steps) == 2


async def test_works_wait_for_a_slot_in_order() -> None:
    rig = Rig(slots=1)
    for work_id in (1, 2, 3):
        rig.submit(work_id, work())
    await turns()
    rig.runner.cancel(2)
    await turns()
    assert rig.errors() == {2: "CANCELLED"}
    assert rig.stats == RunnerStats(running=1, waiting=1)
    rig.source.send(1, 1, finish=FinishReason.STOP)
    await turns()
    rig.source.send(3, 1, finish=FinishReason.STOP)
    await turns()
    assert list(rig.outcomes) == [2, 1, 3]
    assert rig.source.most_open == 1


async def test_more_than_it_holds_is_refused() -> None:
    rig = Rig(slots=1)
    for work_id in range(81):
        rig.submit(work_id, work())
    await turns()
    assert rig.errors() == {80: "OVERLOADED"}
    assert isinstance(rig.outcomes[80].error, Overloaded)
    await rig.runner.close()
    with pytest.raises(RuntimeError):
        rig.submit(99, work())


async def test_an_answer_is_never_longer_than_asked() -> None:
    rig = Rig()
    rig.submit(1, work(max_tokens=5, resumed=(1, 2)))
    rig.submit(2, work(max_tokens=2, resumed=(1, 2)))
    rig.submit(3, work(max_tokens=2))
    await turns()
    assert rig.outcomes == {2: Outcome(FinishReason.LENGTH, output_tokens=2)}
    rig.source.send(1, 3, 4, 5, 6, finish=FinishReason.STOP)
    rig.source.send(3, 3, 4, finish=FinishReason.STOP)
    await turns()
    assert rig.tokens[1] == [1, 2, 3, 4, 5]
    assert rig.outcomes[1].finish is FinishReason.LENGTH, "the engine said more"
    assert rig.outcomes[3].finish is FinishReason.STOP, "the engine stopped just there"
    assert Counter(rig.source.closed) == Counter([1, 3])


async def test_log_probs_run_beside_the_tokens() -> None:
    rig = Rig()
    rig.submit(1, work(max_tokens=2, log_probs=True))
    rig.submit(2, work())
    await turns()
    rig.source.queues[1].put_nowait(Piece((5, 6, 7), (-0.1, -0.2, -0.3)))
    rig.source.queues[2].put_nowait(Piece((5,), (-0.1,)))
    await turns()
    assert rig.steps[-1].frame.log_probs[:2] == [-0.1, -0.2]
    assert rig.steps[-1].frame.log_probs[2] != rig.steps[-1].frame.log_probs[2], "NaN: it was not asked for"
    await rig.runner.close()


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (StageUnavailable("away"), "STAGE_UNAVAILABLE"),
        (None, "STAGE_UNAVAILABLE"),
        (ZeroDivisionError("a secret"), "INTERNAL"),
        (asyncio.CancelledError(), "STAGE_UNAVAILABLE"),
    ],
)
async def test_a_stream_that_fails_is_an_outcome(
    sent: BaseException | None, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    rig = Rig(slots=1)
    rig.submit(1, work())
    await turns()
    rig.source.send(1, 5)
    rig.source.queues[1].put_nowait(sent)
    with caplog.at_level(logging.ERROR):
        await turns()
    assert rig.errors() == {1: reason}
    assert "secret" not in str(rig.outcomes[1].error)
    assert bool(caplog.records) == (reason == "INTERNAL")
    rig.submit(2, work())
    await turns()
    rig.source.send(2, 1, finish=FinishReason.STOP)
    await turns()
    assert rig.outcomes[2].finish is FinishReason.STOP


async def test_deadlines_act_on_those_that_wait_and_those_that_run() -> None:
    rig = Rig(slots=1)
    rig.submit(1, work(seconds=0.05))
    rig.submit(2, work(seconds=0.02))
    rig.submit(3, work(seconds=-1))
    rig.submit(4, replace(work(), deadline=float("inf")))
    await asyncio.sleep(0.03)
    assert set(rig.outcomes) == {2, 3}
    await asyncio.sleep(0.04)
    assert rig.errors() == dict.fromkeys((1, 2, 3), "DEADLINE_PASSED")
    assert rig.source.closed == [1]
    assert 4 in rig.source.queues
    await rig.runner.close()


async def test_a_slot_is_free_when_its_stream_has_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.executor.stream.runner.CLOSE_S", 0.05)
    rig = Rig(slots=1)
    forever = asyncio.Event()
    rig.source.close_takes = forever.wait
    rig.submit(1, work())
    rig.submit(2, work())
    await turns()
    rig.runner.cancel(1)
    await turns()
    assert rig.errors() == {1: "CANCELLED"}, "the outcome does not wait for the server"
    assert 2 not in rig.source.queues
    await asyncio.sleep(0.1)
    assert 2 in rig.source.queues, "a stream that does not end is cancelled again"
    rig.source.close_takes = None
    await rig.runner.close()


async def test_a_work_cancelled_before_its_stream_began_gives_its_slot_back() -> None:
    rig = Rig(slots=1)
    for work_id in range(5):
        rig.submit(work_id, work())
        rig.runner.cancel(work_id)
    rig.submit(9, work())
    await turns()
    assert rig.source.queues.keys() == {9}
    await rig.runner.close()


async def test_an_engine_that_dies_breaks_the_runner() -> None:
    rig = Rig(slots=1)
    rig.submit(1, work())
    rig.submit(2, work())
    await turns()
    rig.source.send(1, 5)
    await asyncio.sleep(0)
    rig.runner.fail_all("its process ended")
    rig.runner.fail_all("twice")
    rig.runner.cancel(1)
    rig.runner.tell()
    await rig.runner.close()
    assert (rig.broken, rig.tokens[1], rig.outcomes) == (["its process ended"], [5], {})
    assert rig.source.closed == [1]


async def test_a_question_runs_beside_all_others() -> None:
    rig = Rig(slots=1)
    rig.submit(1, work())
    answer = asyncio.create_task(rig.runner.ask(work(max_tokens=2)))
    await turns()
    rig.source.send(-1, 5)
    rig.source.send(-1, 6, 7)
    assert await answer == [5, 6]
    assert rig.outcomes == {}
    await rig.runner.close()


actions = st.lists(
    st.tuples(
        st.sampled_from(["submit", "send", "send", "finish", "fail", "cancel", "turn", "die"]), st.integers(0, 9)
    ),
    max_size=80,
)  # fmt: skip


@given(actions=actions, slots=st.integers(1, 3))
@settings(deadline=None, max_examples=200)
def test_every_work_has_one_outcome_and_no_slot_is_lost(actions: list[tuple[str, int]], slots: int) -> None:
    async def play() -> None:
        rig = Rig(slots)
        submitted = 0
        for action, number in actions:
            queue = rig.source.queues.get(number)
            if action == "submit":
                rig.submit(submitted, work(max_tokens=3 + number, resumed=(1,) * (number % 3)))
                submitted += 1
            elif action == "cancel":
                rig.runner.cancel(number)
            elif action == "turn":
                await turns(number % 4)
            elif queue is not None and action == "send":
                queue.put_nowait(Piece(range(number % 3)))
            elif queue is not None and action == "finish":
                queue.put_nowait(Piece((), finish=FinishReason.STOP))
            elif queue is not None and action == "fail":
                queue.put_nowait(StageUnavailable("away"))
            elif queue is not None and action == "die":
                queue.put_nowait(None)
            assert len(rig.source.queues) - len(rig.source.closed) <= slots
        for work_id in range(submitted):
            rig.runner.cancel(work_id)
        await turns(20)
        assert rig.outcomes.keys() == set(range(submitted))
        assert Counter(rig.source.closed) == Counter(list(rig.source.queues))
        if submitted:
            assert rig.stats == RunnerStats()
        for work_id in range(100, 100 + slots):
            rig.submit(work_id, work())
        await turns()
        assert all(work_id in rig.source.queues for work_id in range(100, 100 + slots)), "every slot is there"
        await rig.runner.close()

    asyncio.run(play())
