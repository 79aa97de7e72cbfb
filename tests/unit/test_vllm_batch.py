"""What the child of vLLM knows of its works."""

from libs.kvcache.values import BlockEvent
from libs.lane.work import Sampling, Tier, Work
from services.executor.child.wire import Ended, Stepped
from services.executor.vllm.batch import Batch


def work(tier: Tier = Tier.INTERACTIVE, resumed: int = 0, log_probs: bool = False, deadline: float = 10.0) -> Work:
    return Work(
        "r", "t", tier, "m", [1, 2, 3], Sampling(max_tokens=8), deadline, resumed=[7] * resumed, log_probs=log_probs
    )


def report(batch: Batch, events: list[BlockEvent] | None = None, waiting: int = 0) -> Stepped:
    said = batch.report(events or [], waiting, used=3, cached=1)
    assert said is not None
    return said


def test_slots_bound_what_the_engine_has_and_better_tiers_go_first() -> None:
    batch = Batch(slots=2)
    for work_id, tier in enumerate((Tier.ASYNC, Tier.ASYNC, Tier.INTERACTIVE, Tier.INTERACTIVE), 1):
        batch.submit(work_id, work(tier))
    assert [run.work_id for run in batch.admit()] == [3, 4]
    assert batch.admit() == []
    assert report(batch).stats == (2, 2, 3, 1)
    batch.end(batch.running[3], "stop")
    assert [run.work_id for run in batch.admit()] == [1]


def test_what_ends_while_it_waits_is_never_admitted() -> None:
    batch = Batch(slots=1)
    batch.submit(1, work())
    run = batch.find(1)
    assert run is not None
    batch.end(run, "CANCELLED", "cancelled")
    assert batch.admit() == []
    assert batch.idle
    assert report(batch).ended == [Ended(1, "CANCELLED", "cancelled", 0, 0)]


def test_tokens_are_told_with_their_offsets_and_the_first_ones_with_the_hit() -> None:
    batch = Batch(slots=2)
    batch.submit(1, work(resumed=2))
    batch.submit(2, work(log_probs=True))
    first, second = batch.admit()
    batch.advance(first, [5], [-0.5], cached_tokens=32)
    batch.advance(second, [6, 8], [-0.1, -0.2], cached_tokens=0)
    said = report(batch, [BlockEvent("stored", [9])])
    assert (said.work_ids, said.offsets, said.counts, said.token_ids) == ([1, 2], [2, 0], [1, 2], [5, 6, 8])
    assert said.log_probs[1:] == [-0.1, -0.2]
    assert said.log_probs[0] != said.log_probs[0], "nothing for the work that did not ask"
    assert (said.started, said.events) == ([(1, 3), (2, 0)], [("stored", [9])])
    batch.advance(first, [6], [], cached_tokens=0)
    batch.end(first, "length")
    said = report(batch)
    assert (said.offsets, said.started, said.ended) == ([3], [], [Ended(1, "length", "", 4, 3)])


def test_nothing_new_is_not_told_again() -> None:
    batch = Batch(slots=1)
    batch.submit(1, work())
    batch.admit()
    assert report(batch, waiting=1).stats == (0, 1, 3, 1)
    assert batch.report([], 1, 3, 1) is None
    assert report(batch).stats == (1, 0, 3, 1)


def test_deadlines_count_wherever_a_work_stands() -> None:
    batch = Batch(slots=1)
    for work_id, deadline in ((1, 10.0), (2, 20.0), (3, 10.0)):
        batch.submit(work_id, work(deadline=deadline))
    batch.admit()
    assert [run.work_id for run in batch.overdue(10.0)] == [1, 3]
