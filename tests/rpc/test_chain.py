"""Works on their way through router, batcher and executor, over real lanes."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace

from msgspec import structs

from libs.catalogue import Scaling, Simulation
from libs.clock import SystemClock
from libs.errors import Cancelled, DeadlinePassed, ModelUnknown, NoExecutor, Overloaded
from libs.lane.forwarder import Forwarder
from libs.lane.work import FinishReason, Tier
from services.batcher.executors import ExecutorInfo
from services.batcher.queue import Limits
from services.batcher.seat import ModelCapacity
from services.router.route import PoolState
from tests.rpc.chain import Answers, chain, reference, served, spec, work

OLD = spec()
NEW = spec(version="1", simulation=Simulation(step_base_us=2000.0, seed=8))
"""Another version of the model: its answers are others."""


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
        stats = mesh.hosts["executor-0"].copies["simulated@0"].stats
        assert (stats.running, stats.waiting, stats.blocks_used) == (0, 0, 0)


async def test_a_cancel_frees_the_blocks_and_has_an_outcome() -> None:
    async with chain() as mesh:
        answers = Answers()
        lane = mesh.router.open(answers)
        lane.submit(1, work(1, tokens=2000))
        await answers.until(lambda a: len(a.tokens.get(1, ())) > 5)
        hosted = mesh.hosts["executor-0"].copies["simulated@0"]
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
        hosted = mesh.hosts["executor-0"].copies["simulated@0"]
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


async def test_async_work_that_is_pushed_out_costs_no_token() -> None:
    works = [work(0, tokens=300, tier=Tier.ASYNC), work(1, tokens=5)]
    expected = await reference(works)
    async with chain(model=spec(slots=1)) as mesh:
        answers = Answers()
        lane = mesh.router.open(answers)
        lane.submit(0, works[0])
        await answers.until(lambda a: len(a.tokens.get(0, ())) > 10)
        lane.submit(1, works[1])
        await answers.until(lambda a: 1 in a.outcomes)
        assert 0 not in answers.outcomes, "the one that came later went first"
        await answers.until(lambda a: 0 in a.outcomes)
        assert [answers.tokens[0], answers.tokens[1]] == expected
        assert answers.outcomes[0].finish is FinishReason.LENGTH


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


async def test_a_router_that_dies_costs_no_token_and_mixes_no_versions() -> None:
    works = [work(i, tokens=400) for i in range(8)]
    old, new = await reference(works, OLD), await reference(works, NEW)
    assert all(one != other for one, other in zip(old, new, strict=True))
    async with chain(model=OLD, versions=[NEW]) as mesh, AsyncExitStack() as stack:
        routers = {name: await served(mesh.router) for name in ("router-0", "router-1")}
        for router in routers.values():
            stack.push_async_callback(router.cut)
        front = Forwarder("admission", lambda one, ready: ready[0], SystemClock())
        front.set_neighbours({name: mesh.remote(router) for name, router in routers.items()})
        stack.callback(front.close)
        async with asyncio.timeout(5):
            while len(front.ready_neighbours()) < 2:
                await asyncio.sleep(0.01)
        answers = Answers()
        lane = front.open(answers)
        for index, one in enumerate(works):
            lane.submit(index, structs.replace(one, pool=""))
        await answers.until(lambda a: len(a.tokens) == 8 and all(len(t) > 10 for t in a.tokens.values()))
        # From here on, everything new goes to the new version.
        mesh.known = replace(
            mesh.known, models={NEW.name: NEW}, pools={NEW.pool: PoolState(9), OLD.pool: PoolState(leaving=1)}
        )
        await routers["router-0"].cut()
        lane.submit(8, structs.replace(work(0, tokens=20), pool=""))
        await answers.until(lambda a: len(a.outcomes) == 9)
        assert [answers.tokens[i] for i in range(8)] == old, "each ended where it began"
        assert answers.tokens[8] == new[0][:20]
        assert {note.pool for i in range(8) for note in answers.notes[i]} == {OLD.pool}
        assert [len(answers.notes[i]) for i in range(8)] == [2] * 8, "by each router once"


async def test_a_model_that_is_not_loaded_is_waited_for_and_the_caller_told() -> None:
    cold = spec(scaling=Scaling(0, 1))
    async with chain(model=cold) as mesh:
        (batcher,) = mesh.deciding.values()
        (executor,) = mesh.executors.values()
        remote, asked = mesh.remote(executor), asyncio.Event()
        batcher.starved = asked.set
        batcher.set_executors({"executor-0": ExecutorInfo(remote, {})})
        mesh.known = replace(mesh.known, models={cold.name: cold}, pools={})
        answers = Answers()
        mesh.router.open(answers).submit(1, work(1))
        await answers.until(lambda a: len(a.notes.get(1, ())) == 2)
        assert asked.is_set()
        coming = ExecutorInfo(remote, {}, {cold.pool: "is being loaded"})
        batcher.set_executors({"executor-0": coming})
        await answers.until(lambda a: len(a.notes[1]) == 3)
        assert [note.waiting for note in answers.notes[1]] == [
            "simulated is loaded on demand", "no executor has simulated yet", "simulated is being loaded on executor-0"
        ]  # fmt: skip
        assert not answers.outcomes
        capacity = ModelCapacity(cold.slots, cold.blocks, cold.block_tokens)
        batcher.set_executors({"executor-0": ExecutorInfo(remote, {cold.pool: capacity})})
        await answers.until(lambda a: 1 in a.outcomes)
        assert answers.tokens[1] == (await reference([work(1)]))[0]


async def test_what_waits_for_a_version_that_is_withdrawn_goes_to_the_next() -> None:
    async with chain(model=OLD, versions=[NEW]) as mesh:
        (batcher,) = mesh.deciding.values()
        (executor,) = mesh.executors.values()
        remote = mesh.remote(executor)
        capacity = {NEW.pool: ModelCapacity(NEW.slots, NEW.blocks, NEW.block_tokens)}
        batcher.set_versions(frozenset({OLD.pool, NEW.pool}))
        batcher.set_executors({"executor-0": ExecutorInfo(remote, capacity)})
        answers = Answers()
        lane = mesh.router.open(answers)
        lane.submit(1, work(1))
        lane.submit(2, work(2, resumed=(await reference([work(2)], OLD))[0][:3]))
        await answers.until(lambda a: all(len(a.notes.get(i, ())) == 2 for i in (1, 2)))
        mesh.known = replace(mesh.known, models={NEW.name: NEW}, pools={NEW.pool: PoolState(1)})
        batcher.set_versions(frozenset({NEW.pool}))
        await answers.until(lambda a: len(a.outcomes) == 2)
        assert answers.tokens[1] == (await reference([work(1)], NEW))[0]
        assert isinstance(answers.outcomes[2].error, NoExecutor), "it has begun: no other version may end it"
        assert mesh.forwarder.in_flight == 0
