"""Works on their way through router, batcher and executor, over real lanes."""

import asyncio

from libs.errors import Cancelled, DeadlinePassed, ModelUnknown, Overloaded
from libs.lane.work import FinishReason
from services.batcher.queue import Limits
from tests.rpc.chain import Answers, chain, reference, spec, work


async def test_answers_are_those_of_the_engine_alone() -> None:
    works = [work(i, tokens=5 + i) for i in range(40)]
    expected = await reference(works)
    async with chain(executors=2, batchers=2) as mesh:
        answers = Answers()
        lane = mesh.router.open(answers)
        for index, one in enumerate(works):
            lane.submit(index, one)
        await answers.until(lambda a: len(a.outcomes) == len(works))
        assert [answers.tokens[i] for i in range(len(works))] == expected
        for index, outcome in answers.outcomes.items():
            assert outcome.finish is FinishReason.LENGTH
            assert outcome.output_tokens == 5 + index
            assert outcome.executor in mesh.hosts
        assert any(len(frame) > 1 for frame in answers.frames), "no frame carried several works"


async def test_an_executor_that_dies_costs_no_token() -> None:
    works = [work(i, tokens=120) for i in range(12)]
    expected = await reference(works)
    async with chain(executors=2) as mesh:
        answers = Answers()
        lane = mesh.router.open(answers)
        for index, one in enumerate(works):
            lane.submit(index, one)
        await answers.until(lambda a: len(a.tokens) == 12 and all(len(t) > 10 for t in a.tokens.values()))
        await mesh.executors["executor-0"].cut()
        await answers.until(lambda a: len(a.outcomes) == len(works))
        assert [answers.tokens[i] for i in range(len(works))] == expected
        assert {o.executor for o in answers.outcomes.values()} == {"executor-1"}


async def test_a_batcher_that_dies_costs_no_token() -> None:
    works = [work(i, tokens=120) for i in range(12)]
    expected = await reference(works)
    async with chain(executors=1, batchers=2) as mesh:
        answers = Answers()
        lane = mesh.router.open(answers)
        for index, one in enumerate(works):
            lane.submit(index, one)
        await answers.until(lambda a: len(a.tokens) == 12 and all(len(t) > 10 for t in a.tokens.values()))
        for served in mesh.batchers.values():  # one after the other, so that the one in use is hit for sure
            await served.cut()
            await asyncio.sleep(0.05)
            await served.mend()
            await asyncio.sleep(0.3)
        await answers.until(lambda a: len(a.outcomes) == len(works))
        assert [answers.tokens[i] for i in range(len(works))] == expected
        await asyncio.sleep(0.1)
        stats = mesh.hosts["executor-0"].models["simulated"].stats
        assert (stats.running, stats.waiting, stats.blocks_used) == (0, 0, 0)


async def test_a_cancel_frees_the_blocks_and_has_an_outcome() -> None:
    async with chain() as mesh:
        answers = Answers()
        lane = mesh.router.open(answers)
        lane.submit(1, work(1, tokens=2000))
        await answers.until(lambda a: len(a.tokens.get(1, ())) > 5)
        hosted = mesh.hosts["executor-0"].models["simulated"]
        assert hosted.stats.blocks_used > 0
        lane.cancel(1)
        await answers.until(lambda a: 1 in a.outcomes)
        assert isinstance(answers.outcomes[1].error, Cancelled)
        assert hosted.stats.blocks_used == 0
        assert mesh.forwarder.in_flight == 0


async def test_closing_the_lane_cancels_down_to_the_engine() -> None:
    async with chain() as mesh:
        answers = Answers()
        lane = mesh.router.open(answers)
        for index in range(4):
            lane.submit(index, work(index, tokens=2000))
        await answers.until(lambda a: len(a.tokens) == 4)
        lane.close()
        hosted = mesh.hosts["executor-0"].models["simulated"]
        async with asyncio.timeout(5):
            while hosted.stats.running or hosted.stats.blocks_used:
                await asyncio.sleep(0.005)
        assert mesh.hosts["executor-0"].in_flight == 0


async def test_a_deadline_ends_a_work_where_it_stands() -> None:
    async with chain(model=spec(slots=1)) as mesh:
        answers = Answers()
        lane = mesh.router.open(answers)
        lane.submit(1, work(1, tokens=3000, timeout_s=0.5))
        lane.submit(2, work(2, tokens=10, timeout_s=0.3))  # waits behind the only slot
        await answers.until(lambda a: len(a.outcomes) == 2)
        stages = {}
        for index in (1, 2):
            error = answers.outcomes[index].error
            assert isinstance(error, DeadlinePassed)
            stages[index] = error.metadata["stage"]
        assert stages == {1: "executor", 2: "queue"}
        lane.submit(3, work(3, tokens=5))
        await answers.until(lambda a: 3 in a.outcomes)  # the slot is free again
        assert answers.outcomes[3].finish is FinishReason.LENGTH


async def test_a_full_queue_refuses() -> None:
    async with chain(model=spec(slots=1), limits=Limits(works=2)) as mesh:
        answers = Answers()
        lane = mesh.router.open(answers)
        for index in range(4):
            lane.submit(index, work(index, tokens=400))
        await answers.until(lambda a: len(a.outcomes) >= 1)
        assert isinstance(answers.outcomes[3].error, Overloaded)
        assert answers.outcomes[3].error.retry_after_s is not None
        lane.close()


async def test_an_unknown_model_is_refused_by_the_router() -> None:
    async with chain() as mesh:
        answers = Answers()
        lane = mesh.router.open(answers)
        lane.submit(1, work(1, model="nobody"))
        assert isinstance(answers.outcomes[1].error, ModelUnknown)


async def test_explain_goes_through_every_stage() -> None:
    async with chain() as mesh:
        await asyncio.sleep(0.3)
        decisions = await mesh.router.explain(work(1))
        assert [d.stage for d in decisions] == ["router", "batcher", "batcher", "executor"]
        assert decisions[2].choice == "executor executor-0"
        assert all(d.reason for d in decisions)
