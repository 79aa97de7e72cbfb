"""What holds for every plan, whatever the mesh looks like."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from libs.catalogue import ModelSpec, Scaling
from services.placement.fit import misfit
from services.placement.plan import plan
from services.placement.values import Copy, ExecutorView, Failure, Load, Plan, Resident, Rules, State, World
from services.placement.wish import wish

NOW = 100_000.0
MODELS = ("k", "l", "m", "n")
EXECUTORS = ("a", "b", "c", "d")
VERSIONS = ("1", "2")

scalings = st.one_of(
    st.none(), st.builds(Scaling, st.integers(0, 2), st.integers(1, 3), st.integers(0, 3), st.just(60.0))
)


@st.composite
def specs(draw: st.DrawFn, name: str) -> ModelSpec:
    memory = draw(st.integers(0, 6))
    made = ModelSpec(name, "simulated:", 64, 4, 16, 2, 64, memory, draw(st.integers(0, 4)))
    return replace(
        made,
        pool="",
        version=draw(st.sampled_from(VERSIONS)),
        engines=draw(st.sampled_from([(), ("x",), ("x", "y")])),
        adapter_memory_bytes=draw(st.sampled_from([0, 0, 2])),
        scaling=draw(scalings),
        pinned=draw(st.integers(0, 4)) == 0,
        spread_label=draw(st.sampled_from(["", "zone"])),
        required_labels=draw(st.sampled_from([{}, {}, {"zone": "p"}])),
    )


executor_views = st.builds(
    ExecutorView,
    engine=st.sampled_from(["x", "y", ""]),
    memory_bytes=st.integers(0, 14),
    labels=st.sampled_from([{"zone": "p"}, {"zone": "q"}, {}]),
    draining=st.integers(0, 5).map(lambda one: one == 0),
    present=st.integers(0, 5).map(lambda one: one > 0),
)
loads = st.builds(
    Load,
    running=st.integers(0, 5),
    waiting=st.integers(0, 5),
    oldest_waiting_s=st.floats(0, 60),
    last_request=st.floats(NOW - 900, NOW),
    peak=st.integers(0, 8),
)
states: st.SearchStrategy[State] = st.sampled_from(
    ["pending", "loading", "ready", "ready", "ready", "draining", "failed"]
)


@st.composite
def worlds(draw: st.DrawFn, *, asked: bool = True, broken: bool = True) -> World:
    """Any mesh, also one that no plan would have led to.

    Args:
        asked: With demand.
        broken: With failures.
    """
    models = {name: draw(specs(name)) for name in draw(st.sets(st.sampled_from(MODELS)))}
    executors = draw(st.dictionaries(st.sampled_from(EXECUTORS), executor_views))
    copies = []
    for name in sorted(draw(st.sets(st.tuples(st.sampled_from(EXECUTORS), st.sampled_from(MODELS))))):
        spec = draw(specs(name[1])) if draw(st.booleans()) else models.get(name[1]) or draw(specs(name[1]))
        copies.append(Copy(name[0], spec, "was here", NOW - draw(st.floats(0, 2000))))
    for copy in copies:
        view = executors.get(copy.executor)
        state: State = draw(states)
        if view is not None and (broken or state != "failed"):
            resident = Resident(state, NOW - draw(st.floats(0, 100)), copy.spec.copy_bytes, "", 1)
            executors[copy.executor] = replace(view, residents={**view.residents, copy.spec.pool: resident})
    failures = {
        (executor, f"{model}@{version}"): Failure(NOW - draw(st.floats(0, 900)), draw(st.integers(1, 4)), "broken")
        for executor, model, version in draw(
            st.sets(
                st.tuples(st.sampled_from(EXECUTORS), st.sampled_from(MODELS), st.sampled_from(VERSIONS)),
                max_size=4 if broken else 0,
            )
        )
    }
    demand = draw(st.dictionaries(st.sampled_from(MODELS), loads)) if asked else {}
    return World(models, executors, copies, demand, failures, now=NOW)


def carried_out(world: World, result: Plan, state: State = "ready") -> World:
    """The mesh once every copy of a plan is in a state; those that were in it stay as they are."""
    executors = {name: replace(view, residents={}) for name, view in world.executors.items()}
    for copy in result.copies:
        view, before = executors[copy.executor], world.executors[copy.executor].residents.get(copy.spec.pool)
        known = before if before and before.state == state else Resident(state, world.now, copy.spec.copy_bytes)
        executors[copy.executor] = replace(view, residents={**view.residents, copy.spec.pool: known})
    stories = {model: lack.reason for model, lack in result.lacks.items()}
    return replace(world, executors=executors, copies=result.copies, stories=stories)


def keys(copies: Sequence[Copy]) -> set[tuple[str, str]]:
    return {copy.key for copy in copies}


@given(worlds())
@settings(deadline=None)
def test_the_rules_hold(world: World) -> None:
    result = plan(world)
    today = keys(world.copies)
    assert len(keys(result.copies)) == len(result.copies), "a copy is placed twice"
    for name, view in world.executors.items():
        held = [copy for copy in result.copies if copy.executor == name]
        assert sum(copy.spec.copy_bytes for copy in held) <= view.memory_bytes
        assert not (view.draining and held)
    for copy in result.copies:
        spec, view = world.models[copy.spec.name], world.executors[copy.executor]
        assert not misfit(copy.spec, view)
        assert copy.reason
        assert copy.spec == spec or copy.spec.pool in {one.spec.pool for one in world.copies}
        if copy.key not in today:
            assert view.present
            assert copy.placed_at == world.now
    for name, spec in world.models.items():
        copies = [copy for copy in result.copies if copy.spec.name == name]
        most = max(spec.scaling.max, spec.scaling.min, 1) if spec.scaling else spec.replicas or 2**31
        rolling = any(copy.spec.pool != spec.pool for copy in copies)
        assert len(copies) <= most + 1
        assert rolling or len(copies) <= most
        if not copies:
            assert name in result.lacks
    assert result.lacks.keys() <= world.models.keys()
    assert result == plan(world), "the same plan for the same world"


@given(worlds(asked=False, broken=False))
@settings(deadline=None)
def test_a_plan_that_is_being_carried_out_is_the_next_plan(world: World) -> None:
    first = plan(world)
    moments: tuple[State, ...] = ("pending", "ready")
    for state in moments:
        if any(copy.spec.pool != world.models[copy.spec.name].pool for copy in first.copies):
            return  # it goes on as soon as new copies answer
        after = carried_out(world, first, state)
        again = plan(after)
        assert again.copies == first.copies
        assert {name: lack.missing for name, lack in again.lacks.items()} == {
            name: lack.missing for name, lack in first.lacks.items()
        }


@given(worlds(broken=False))
@settings(deadline=None, max_examples=60)
def test_plans_come_to_rest(world: World) -> None:
    """With the demand as it is and everything ready, also through a rollout; nobody fights for ever."""
    calm = {name: replace(load, waiting=0, oldest_waiting_s=0.0) for name, load in world.loads.items()}
    world = replace(world, loads=calm)
    for _ in range(40):
        result = plan(world)
        if result.copies == world.copies:
            break
        world = carried_out(world, result)
    else:
        raise AssertionError("the plans never end")
    for name, spec in world.models.items():
        copies = [copy for copy in result.copies if copy.spec.name == name]
        away = any(not world.executors[copy.executor].present for copy in copies)  # it goes on without them
        done = all(copy.spec.pool == spec.pool for copy in copies)
        new = sum(copy.spec.pool == spec.pool for copy in copies)
        needed = max(wish(spec, world.loads.get(name, Load()), world.now).need, 1)
        stopped = name in result.lacks and new < needed
        assert done or away or stopped, "a rollout stopped without a word"


@given(worlds(asked=False, broken=False), st.sampled_from(EXECUTORS))
@settings(deadline=None, max_examples=60)
def test_only_what_lay_on_a_lost_executor_moves(world: World, lost: str) -> None:
    before = settled(world)
    left = {name: view for name, view in before.executors.items() if name != lost}
    result = plan(replace(before, executors=left))
    for copy in before.copies:
        if copy.executor != lost and copy.key not in keys(result.copies):
            made_room(copy, result)


@given(worlds(asked=False, broken=False), executor_views)
@settings(deadline=None, max_examples=60)
def test_another_executor_moves_nothing(world: World, view: ExecutorView) -> None:
    before = settled(world)
    result = plan(replace(before, executors={**before.executors, "new": view}))
    for key in keys(before.copies) - keys(result.copies):
        copy = next(one for one in before.copies if one.key == key)
        made_room(copy, result)  # for something that lay nowhere


@given(worlds(asked=False, broken=False), specs("new"))
@settings(deadline=None, max_examples=60)
def test_another_model_moves_nothing_unless_it_could_not_lie_otherwise(world: World, spec: ModelSpec) -> None:
    before = settled(world)
    result = plan(replace(before, models={**before.models, "new": spec}))
    gone = keys(before.copies) - keys(result.copies)
    if not gone:
        return
    (needy, *_) = [copy for copy in result.copies if copy.spec.name == "new"]
    free = {
        name: view.memory_bytes - sum(one.spec.copy_bytes for one in before.copies if one.executor == name)
        for name, view in before.executors.items()
        if view.present and not view.draining and not misfit(spec, view)
    }
    copies = sum(copy.spec.name == "new" for copy in result.copies)
    room = sum(room >= needy.spec.copy_bytes for room in free.values())
    assert room < copies, "there was room for it"
    for copy in before.copies:
        if copy.key in gone:
            made_room(copy, result)


@given(worlds())
@settings(deadline=None, max_examples=60)
def test_what_is_pinned_is_not_unloaded_for_another(world: World) -> None:
    result = plan(world)
    lost = {copy.spec.name for copy in world.copies} - {copy.spec.name for copy in result.copies}
    for name in lost & world.models.keys():
        assert not (world.models[name].pinned and "to make room for" in result.lacks[name].reason)


def settled(world: World) -> World:
    """The mesh once its plans have come to rest, all copies old enough to be unloaded or moved."""
    for later_s in [0.0] * 12 + [5000.0] * 3:  # with time, some of what is missing may take another's room
        world = replace(world, now=world.now + later_s)
        world = carried_out(world, plan(world))
    return world


def made_room(gone: Copy, result: Plan) -> None:
    """That a copy went for another one that could not have lain otherwise, and that the plan says so."""
    name = gone.spec.name
    reasons = [copy.reason for copy in result.copies]
    moved = any(copy.spec.name == name and f"moved from {gone.executor}" in copy.reason for copy in result.copies)
    unloaded = any(f"in the room of {name}" in reason or f", {name} (" in reason for reason in reasons)
    replaced = any(copy.spec.name == name and copy.spec.pool != gone.spec.pool for copy in result.copies)
    assert moved or unloaded or replaced, f"{gone} went for nothing"


def test_moves_are_the_fewest() -> None:
    """Two small moves would do as well, but one is enough."""

    def spec(name: str, memory: int) -> ModelSpec:
        return ModelSpec(name, "simulated:", 64, 4, 16, 2, 64, memory)

    large, models = spec("x", 6), [spec("s", 2), spec("t", 2), spec("u", 4), spec("v", 3)]
    at = {"s": "a", "t": "a", "u": "b", "v": "c"}
    copies = [Copy(at[one.name], one, "", NOW - 5000) for one in models]
    executors = {"a": ExecutorView("", 8), "b": ExecutorView("", 8), "c": ExecutorView("", 8)}
    world = World({one.name: one for one in [large, *models]}, executors, copies, now=NOW)
    result = plan(world, Rules())
    assert not result.lacks
    assert len(keys(copies) - keys(result.copies)) == 1


def test_room_that_a_smaller_version_leaves_is_used_at_once() -> None:
    """k@2 (3 bytes) gives way to k@1 (2 bytes) on an executor of 4: n (2 bytes) lies there from the same plan on."""

    def model(name: str, adapters: int = 0, memory: int = 0, version: str = "1", **more: object) -> ModelSpec:
        made = ModelSpec(name, "simulated:", 64, 4, 16, 2, 64, memory, 0)
        changed = {"pool": "", "version": version, "adapter_memory_bytes": adapters, "pinned": True, **more}
        return replace(made, **changed)  # type: ignore[arg-type]

    models = {
        "k": model("k", 2), "l": model("l"), "m": model("m"), "n": model("n", 2, scaling=Scaling(1, 1, 0, 60.0)),
    }  # fmt: skip
    off = ExecutorView("x", 0, {"zone": "p"}, draining=True, present=False)
    on = ExecutorView("x", 4, {"zone": "p"})
    copies = [
        Copy("a", models["k"], "was here", NOW),
        Copy("c", model("k", 2, 1, "2"), "was here", NOW),
        Copy("c", models["l"], "was here", NOW),
        Copy("c", models["m"], "was here", NOW),
    ]
    states: tuple[State | None, ...] = ("pending", "loading", "ready", "draining", None)
    for chosen in product(states, repeat=len(copies)):
        executors = {"d": off, "a": off, "c": on}
        for copy, state in zip(copies, chosen, strict=True):
            if state is not None:
                view = executors[copy.executor]
                resident = Resident(state, NOW, copy.spec.copy_bytes, "", 1)
                executors[copy.executor] = replace(view, residents={**view.residents, copy.spec.pool: resident})
        world = World(models, executors, copies, now=NOW)
        first = plan(world)
        if all(copy.spec.pool == models[copy.spec.name].pool for copy in first.copies):
            assert plan(carried_out(world, first, "ready")).copies == first.copies, chosen
