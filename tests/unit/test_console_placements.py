"""From the registry's messages to what an operator sees, and to a console that follows it."""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Generic, TypeVar

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from headrace.operations.v1 import operations_pb2 as pb
from headrace.registry.v1 import registry_pb2
from libs.catalogue import ModelSpec, version_of
from libs.errors import Overloaded
from services.admission.placement_news import PART, news, snapshot
from services.admission.placement_view import MOST_WATCHES, Picture, PlacementView
from services.console.placements import Placements

M = TypeVar("M", bound=Message)
READY, LOADING = registry_pb2.MODEL_STATE_READY, registry_pb2.MODEL_STATE_LOADING


class Held(Generic[M]):
    """Messages that a test holds, as a mirror would."""

    def __init__(self, **items: M) -> None:
        self.held = items
        self.stale_since: float | None = None
        self._callbacks: list[Callable[[], None]] = []

    @property
    def items(self) -> Mapping[str, M]:
        return self.held

    def on_change(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)

    def change(self, **items: M) -> None:
        self.held = items
        for callback in self._callbacks:
            callback()


class World:
    """A catalogue of a base with an adapter, one that scales and one on every executor; two executors."""

    def __init__(self) -> None:
        self.base = registry_pb2.Model(name="a", source="x", replicas=2, memory_bytes=7, adapter_memory_bytes=2)
        self.adapter = registry_pb2.Model(name="x", base="a", source="y", memory_bytes=1)
        self.scaled = registry_pb2.Model(name="s", source="x", scaling=registry_pb2.Scaling(min=0, max=3))
        self.everywhere = registry_pb2.Model(name="e", source="x", memory_bytes=7, required_labels={"zone": "a"})
        self.pool = ModelSpec.from_proto(self.base).pool
        self.resident = registry_pb2.ResidentAdapter(adapter=f"x@{version_of(self.adapter)}", works=1)
        copy = registry_pb2.ExecutorModel(
            model="a",
            state=READY,
            pool=self.pool,
            version=self.pool[2:],
            since=5,
            memory_bytes=9,
            adapters=[self.resident],
        )
        old = registry_pb2.ExecutorModel(model="a", state=READY, pool="a@0", version="0")
        self.models = Held(a=self.base, x=self.adapter, s=self.scaled, e=self.everywhere)
        self.executors = Held(
            e1=registry_pb2.Executor(instance="e1", memory_bytes=10, used_bytes=9, models=[copy], labels={"zone": "a"}),
            e2=registry_pb2.Executor(instance="e2", memory_bytes=10, models=[old], labels={"zone": "b"}),
        )
        self.placements = Held(
            **{
                f"{executor}/{self.pool}": registry_pb2.Placement(
                    executor=executor, model=self.base, adapters=[self.adapter], reason="why", placed_at=3
                )
                for executor in ("e1", "e2", "e3")
            }
        )
        self.unplaced = Held(s=registry_pb2.Unplaced(model="s", reason="nobody asked"))
        asked = registry_pb2.ModelDemand(model="a", running=2, waiting=1, oldest_waiting_ms=7)
        self.demand = Held(
            b1=registry_pb2.Demand(models=[asked]), b2=registry_pb2.Demand(models=[asked, registry_pb2.ModelDemand()])
        )
        self.view = PlacementView(self.models, self.executors, self.placements, self.unplaced, self.demand)


def test_a_copy_is_what_placement_wants_and_what_its_executor_says() -> None:
    world = World()
    copies = world.view.picture().copies
    assert list(copies) == [("e1", world.pool), ("e2", "a@0"), ("e2", world.pool), ("e3", world.pool)]
    first, old, asked, away = copies.values()
    assert (first.state, first.since, first.memory_bytes, first.placed) == (READY, 5, 9, True)
    assert list(first.adapters) == [world.resident]
    assert (old.state, old.placed, old.version) == (READY, False, "0")
    assert (asked.state, asked.since, asked.memory_bytes) == (registry_pb2.MODEL_STATE_PENDING, 3, 9)
    assert (away.executor_present, away.reason) == (False, "its executor is away")


def test_a_model_counts_its_copies_works_and_adapters() -> None:
    world = World()
    models = world.view.picture().models
    assert [(s.model, s.ready, s.wanted) for s in models.values()] == [
        ("a", 1, 2),
        ("e", 0, 1),
        ("s", 0, 0),
        ("x", 1, 2),
    ]
    assert (models["a"].running, models["a"].waiting, models["a"].oldest_waiting_ms) == (4, 2, 7)
    assert (models["x"].pool, list(models["x"].resident_on), list(models["a"].resident_on)) == (world.pool, ["e1"], [])
    assert models["s"].unplaced.reason == "nobody asked"
    assert not models["a"].HasField("unplaced")


def test_a_new_version_is_not_ready_while_only_the_old_one_is() -> None:
    world = World()
    changed = registry_pb2.Model()
    changed.CopyFrom(world.base)
    changed.revision = "2"
    world.models.change(a=changed, x=world.adapter)
    models = world.view.picture().models
    assert models["a"].version == version_of(changed)
    assert [(s.model, s.ready) for s in models.values()] == [("a", 0), ("x", 0)]
    world.models.change(x=world.adapter)
    orphan = world.view.picture().models["x"]
    assert (orphan.pool, orphan.ready, orphan.wanted) == ("", 0, 0)


def test_a_picture_of_some_models_has_their_base_and_adapters() -> None:
    world = World()
    for chosen in (["a"], ["x"]):
        picture = world.view.picture(chosen)
        assert list(picture.models) == ["a", "x"]
        assert {copy.model for copy in picture.copies.values()} == {"a"}
        assert not picture.unplaced
    assert list(world.view.picture(["s"]).unplaced) == ["s"]
    world.executors.stale_since = 12.0
    assert world.view.picture().stale_since == 12.0


def test_watches_wake_on_change_and_are_bounded() -> None:
    world = World()
    with world.view.watch() as event:
        world.unplaced.change()
        assert event.is_set()
    opened = [world.view.watch() for _ in range(MOST_WATCHES)]
    for watch in opened:
        watch.__enter__()
    with pytest.raises(Overloaded), world.view.watch():
        pass
    opened[0].__exit__(None, None, None)
    with world.view.watch() as event:
        assert not event.is_set()


KEYS = st.sampled_from(["e1", "e2", "e3"])
PICTURES = st.builds(
    Picture,
    st.dictionaries(st.tuples(KEYS, st.sampled_from(["a@1", "b@1"])), st.sampled_from([READY, LOADING])).map(
        lambda d: {k: pb.Copy(executor=k[0], pool=k[1], state=v) for k, v in d.items()}
    ),
    st.dictionaries(KEYS, st.text(max_size=2)).map(
        lambda d: {k: registry_pb2.Unplaced(model=k, reason=v) for k, v in d.items()}
    ),
    st.dictionaries(KEYS, st.integers(0, 3)).map(
        lambda d: {k: pb.ExecutorMemory(executor=k, used_bytes=v) for k, v in d.items()}
    ),
    st.dictionaries(KEYS, st.integers(0, 3)).map(lambda d: {k: pb.ModelStatus(model=k, ready=v) for k, v in d.items()}),
    st.sampled_from([0.0, 9.0]),
)


@given(st.lists(PICTURES, min_size=1, max_size=5))
def test_whoever_follows_the_news_sees_every_picture(pictures: list[Picture]) -> None:
    seen = Placements()
    for message in snapshot(pictures[0]):
        seen.take(message)
    for before, now in pairwise(pictures):
        message_or_none = news(before, now)
        assert (message_or_none is None) == (before == now)
        if message_or_none is not None:
            seen.take(message_or_none)
        assert (seen.copies, seen.unplaced, seen.executors, seen.models, seen.stale_since) == (
            now.copies, now.unplaced, now.executors, now.models, now.stale_since,
        )  # fmt: skip


def test_a_large_picture_comes_in_parts() -> None:
    copies = {(f"e{n}", "a@1"): pb.Copy(executor=f"e{n}", pool="a@1") for n in range(2 * PART + 1)}
    parts = list(snapshot(Picture(copies)))
    assert [part.snapshot for part in parts] == [True, False, False]
    seen = Placements()
    for part in parts:
        seen.take(part)
    assert seen.copies == copies
