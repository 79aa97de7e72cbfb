"""Works whose pool has no copy yet, versions that are withdrawn, and works that go where their adapter is."""

from collections import Counter

import pytest

from libs.errors import DeadlinePassed, NoExecutor
from libs.lane.work import POOL_GONE, Note, Outcome
from services.batcher.executors import ExecutorInfo
from services.batcher.seat import Affinity, ModelCapacity, Seat
from tests.unit.batching import Rig
from tests.unit.lanes import Answers, work

# --- pools without a copy ------------------------------------------------------------------------


class Cold(Rig):
    """A batcher whose pools have no copy yet; counts how often placement is to be told."""

    def __init__(self, *executors: str) -> None:
        super().__init__(*executors)
        self.capacity = {}
        self.coming: dict[str, str] = {}
        self.leaving: frozenset[str] = frozenset()
        self.starved = 0
        self.batcher.starved = self._starved
        self.say()

    def say(self) -> None:
        """The registry says this of the first executor."""
        infos = {
            name: ExecutorInfo(stage, self.capacity, self.coming, self.leaving) for name, stage in self.stages.items()
        }
        self.batcher.set_executors(infos)

    def come(self, why: str) -> None:
        self.coming = {"m": why}
        self.say()

    def _starved(self) -> None:
        self.starved += 1

    def notes(self, index: int = 0) -> list[str]:
        return [note.waiting for note in self.answers.notes.get(index, [])]


def test_a_work_without_a_copy_waits_and_is_told_of_each_change_once() -> None:
    rig = Cold("a")
    rig.submit(1)
    assert rig.notes() == ["no executor has m yet"]
    assert rig.starved == 1
    for _ in range(3):
        rig.come("waits to be loaded")
        rig.tick(1)
    rig.come("is being loaded")
    rig.submit(1)
    assert rig.notes(1) == ["m is being loaded on a"], "one that comes later is told how it stands"
    rig.tick(1)
    assert rig.notes() == ["no executor has m yet", "m waits to be loaded on a", "m is being loaded on a"]
    rig.coming, rig.capacity = {}, {"m": ModelCapacity(2, 100, 4)}
    rig.say()
    assert rig.running("a") == [1, 0], "the one that is late already goes behind"
    assert len(rig.notes()) == 3, "that it runs, its tokens say"
    assert rig.starved == 2
    assert all(isinstance(note, Note) and not note.pool for note in rig.answers.notes[0])
    rig.run_all()
    rig.all_right()


def test_a_work_that_waits_for_a_slot_is_told_nothing() -> None:
    rig = Rig("a", slots=1)
    rig.submit(2)
    rig.tick(1)
    assert not rig.answers.notes


def test_those_whose_only_copy_goes_are_told() -> None:
    rig = Rig("a", slots=1)
    rig.submit(2)
    lane = rig["a"].lane
    rig.capacity = {}
    rig.have("a")
    assert [note.waiting for note in rig.answers.notes[1]] == ["no executor has m yet"]
    assert 0 not in rig.answers.notes, "it runs"
    lane.cut()
    lane.mend()
    rig.tick()
    rig.capacity = {"m": ModelCapacity(2, 100, 4)}
    rig.have("a")
    rig.run_all()
    rig.all_right()


def test_a_deadline_ends_the_wait_for_a_copy() -> None:
    rig = Cold()
    rig.submit(1, deadline=rig.clock.now() + 5)
    rig.tick(5)
    error = rig.answers.outcomes[0].error
    assert isinstance(error, DeadlinePassed)
    assert error.metadata["stage"] == "queue"
    assert error.metadata["waiting"] == "no executor has m yet"
    assert error.message == "the deadline passed after 5.0 s in the queue: no executor has m yet"
    rig.at_rest()


def test_a_version_that_is_withdrawn_hands_back_what_waits_for_it() -> None:
    rig = Cold("a")
    rig.batcher.set_versions(frozenset({"m", "n"}))
    rig.submit(3)
    rig.submit(1, resumed=[3000])
    rig.batcher.set_versions(frozenset({"n"}))
    assert set(rig.answers.outcomes) == {0, 1, 2, 3}
    for index, outcome in rig.answers.outcomes.items():
        assert isinstance(outcome.error, NoExecutor)
        assert outcome.error.metadata[POOL_GONE] == "true"
        assert outcome.output_tokens == (index == 3), "by this, the router sees who may begin anew"
    rig.at_rest()


@pytest.mark.parametrize("how", ["ready", "coming", "leaving"])
def test_a_version_lives_as_long_as_a_copy_does(how: str) -> None:
    rig = Cold("a", "b")
    rig["a"].lane.cut()
    rig["b"].lane.cut()
    if how == "ready":
        rig.capacity = {"m": ModelCapacity(2, 100, 4)}
    elif how == "coming":
        rig.coming = {"m": "is being loaded"}
    else:
        rig.leaving = frozenset({"m"})
    rig.say()
    rig.submit(1)
    rig.batcher.set_versions(frozenset({"other"}))
    rig.tick(1)
    assert not rig.answers.outcomes
    rig.capacity, rig.coming, rig.leaving = {}, {}, frozenset()
    rig.say()
    assert POOL_GONE in rig.answers.outcomes[0].error.metadata  # type: ignore[union-attr]


def test_what_runs_on_a_version_that_is_withdrawn_ends_there() -> None:
    rig = Rig("a")
    rig.submit(1)
    rig.batcher.set_versions(frozenset())
    rig.capacity = {}
    rig.have("a")
    assert not rig.answers.outcomes
    rig["a"].lane.run()
    rig.all_right()


def test_before_the_catalogue_is_known_nothing_is_withdrawn() -> None:
    rig = Cold()
    rig.submit(1)
    rig.tick(100)
    assert not rig.answers.outcomes


def test_a_sink_may_end_another_work_while_its_pool_is_withdrawn() -> None:
    rig = Cold()
    rig.batcher.set_versions(frozenset({"m"}))

    class Eager(Answers):
        def on_outcome(self, work_id: int, outcome: Outcome) -> None:
            super().on_outcome(work_id, outcome)
            rig.lane.cancel(work_id + 1)

    rig.lane = rig.batcher.open(eager := Eager())
    rig.submit(3)
    rig.batcher.set_versions(frozenset())
    assert set(eager.outcomes) == {0, 1, 2}
    rig.at_rest()


def test_demands_say_what_is_asked_of_each_model() -> None:
    rig = Rig("a", slots=1)
    rig.batcher.set_versions(frozenset({"m@1", "m@2", "n@1"}))
    rig.capacity = {"m@1": ModelCapacity(1, 100, 4)}
    rig.have("a")
    rig.submit(3, pool="m@1")
    rig.submit(1, pool="m@2")
    rig.submit(1, pool="n@1")
    rig.clock.advance(7)
    rig.submit(1, pool="m@2")
    of_m, of_n = rig.batcher.demands()
    assert (of_m.model, of_m.requests, of_m.running, of_m.waiting) == ("m", 5, 1, 4)
    assert (of_m.oldest_waiting_s, of_m.queued_s, of_m.last_request) == (7.0, 0.0, rig.clock.now())
    assert (of_n.model, of_n.requests, of_n.waiting, of_n.last_request) == ("n", 1, 1, rig.clock.now() - 7)
    rig["a"].lane.run()
    assert rig.batcher.demands()[0].queued_s == 7.0
    rig.batcher.set_versions(frozenset({"n@1"}))
    assert [demand.model for demand in rig.batcher.demands()] == ["n"]


# --- adapters ------------------------------------------------------------------------------------


def affinity(slots: int, adapter: str, runs: dict[str, int], lies: frozenset[str] = frozenset()) -> Affinity:
    """How well an adapter goes with a copy on which these run and those lie."""
    seat = Seat("a", ModelCapacity(8, 100, 4, slots, lies))
    seat.adapters = Counter(runs)
    return seat.affinity(adapter)


LIES = frozenset({"a", "b"})


@pytest.mark.parametrize(
    ("slots", "adapter", "runs", "expected"),
    [
        (0, "", {"": 3}, Affinity.RUNS),
        (1, "", {}, Affinity.LIES), (1, "", {"": 1}, Affinity.RUNS), (1, "", {"a": 1}, Affinity.TAKEN),
        (1, "a", {}, Affinity.LIES), (1, "c", {}, Affinity.ROOM), (1, "a", {"a": 2}, Affinity.RUNS),
        (1, "a", {"b": 1}, Affinity.TAKEN), (1, "a", {"": 1}, Affinity.TAKEN),
        (2, "", {"a": 1, "b": 1}, Affinity.RUNS),
        (2, "a", {"b": 1}, Affinity.LIES), (2, "c", {"b": 1}, Affinity.ROOM),
        (2, "c", {"a": 1, "b": 1}, Affinity.TAKEN),
        (2, "a", {"": 5, "b": 1}, Affinity.LIES),  # the base takes no adapter's place
        (2, "a", {"": 5, "b": 1, "c": 1}, Affinity.TAKEN),
    ],
)  # fmt: skip
def test_how_well_an_adapter_goes_with_a_copy(
    slots: int, adapter: str, runs: dict[str, int], expected: Affinity
) -> None:
    assert affinity(slots, adapter, runs, LIES) is expected


def test_works_go_where_their_adapter_is() -> None:
    rig = Rig("a", "b")
    infos = {
        name: ExecutorInfo(stage, {"m": ModelCapacity(4, 100, 4, 1, frozenset(lies))})
        for (name, stage), lies in zip(rig.stages.items(), ({"x@1"}, {"y@1"}), strict=True)
    }
    rig.batcher.set_executors(infos)
    for adapter in ("y@1", "x@1", "y@1", "x@1"):
        rig.submit(1, adapter=adapter)
    assert (rig.running("a"), rig.running("b")) == ([1, 3], [0, 2])
    assert {one.adapter for one in rig["a"].lane.sent} == {"x@1"}
    rig.submit(2, adapter="x@1")
    assert rig.running("a") == [1, 3, 4, 5], "as long as it is not much busier"
    rig.submit(1, adapter="x@1")
    assert rig.running("b") == [0, 2, 6]
    rig.run_all()
    rig.all_right()


async def test_explain_counts_the_adapter_in() -> None:
    rig = Rig("a", "b")
    rig.batcher.set_executors({
        "a": ExecutorInfo(rig["a"], {"m": ModelCapacity(4, 100, 4, 1)}),
        "b": ExecutorInfo(rig["b"], {"m": ModelCapacity(4, 100, 4, 1, frozenset({"x@1"}))}),
    })  # fmt: skip
    _, choice, _ = await rig.batcher.explain(work(adapter="x@1"))
    assert choice.choice == "executor b"
    assert "the adapter is in memory" in choice.reason
