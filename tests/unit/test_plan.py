"""Which copy belongs on which executor: the rules, one by one."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from libs.catalogue import ModelSpec, Scaling
from services.placement.plan import plan
from services.placement.values import Copy, ExecutorView, Failure, Load, Plan, Resident, Rules, World

GB = 10**9
NOW = 100_000.0


def spec(name: str, replicas: int = 1, memory: int = GB, version: str = "1", **more: object) -> ModelSpec:
    made = ModelSpec(name, "simulated:", 4096, 100, 16, 8, 512, memory, replicas)
    return replace(made, version=version, pool="", **more)  # type: ignore[arg-type]


def on_demand(name: str, least: int = 0, most: int = 4, works: int = 2, **more: object) -> ModelSpec:
    return spec(name, scaling=Scaling(least, most, works, 60.0), **more)  # type: ignore[arg-type]


def executor(memory: int = 4 * GB, **more: object) -> ExecutorView:
    return replace(ExecutorView("simulated", memory), **more)  # type: ignore[arg-type]


def world(
    models: Sequence[ModelSpec],
    executors: Mapping[str, ExecutorView],
    copies: Sequence[Copy] = (),
    loads: Mapping[str, Load] | None = None,
    **more: object,
) -> World:
    named = {model.name: model for model in models}
    return replace(World(named, executors, copies, loads or {}, now=NOW), **more)  # type: ignore[arg-type]


def lying(executor: str, model: ModelSpec, age_s: float = 5_000.0) -> Copy:
    return Copy(executor, model, "as it was", NOW - age_s)


def answering(before: World, age_s: float = 4_000.0, **states: Resident) -> World:
    """The same, with every copy ready; other states by executor."""
    executors = dict(before.executors)
    for copy in before.copies:
        view = executors[copy.executor]
        known = states.get(copy.executor, Resident("ready", NOW - age_s, copy.spec.copy_bytes))
        executors[copy.executor] = replace(view, residents={**view.residents, copy.spec.pool: known})
    return replace(before, executors=executors)


def where(result: Plan) -> set[tuple[str, str]]:
    """(executor, model)."""
    return {(copy.executor, copy.spec.name) for copy in result.copies}


def versions(result: Plan) -> list[tuple[str, str]]:
    return sorted((copy.executor, copy.spec.version) for copy in result.copies)


def reason(result: Plan, model: str) -> str:
    return next(copy.reason for copy in result.copies if copy.spec.name == model)


# --- What stays, and where a copy goes.


def test_a_copy_goes_to_the_executor_with_the_most_free_memory() -> None:
    executors = {"a": executor(2 * GB), "b": executor(8 * GB), "c": executor(4 * GB)}
    result = plan(world([spec("m", 2)], executors))
    assert where(result) == {("b", "m"), ("c", "m")}
    assert not result.lacks
    assert all("most free memory" in copy.reason for copy in result.copies)


def test_no_replicas_means_everywhere_with_room() -> None:
    executors = {"a": executor(), "b": executor(), "c": executor(draining=True), "d": executor(GB // 2)}
    result = plan(world([spec("m", 0)], executors))
    assert where(result) == {("a", "m"), ("b", "m")}
    assert not result.lacks


def test_what_lies_well_stays_with_its_reason() -> None:
    model = spec("m")
    result = plan(world([model], {"a": executor(GB), "b": executor(8 * GB)}, [lying("a", model)]))
    assert result.copies == [lying("a", model)]


def test_a_model_that_left_the_catalogue_goes() -> None:
    assert where(plan(world([], {"a": executor()}, [lying("a", spec("m"))]))) == set()


def test_room_for_adapters_counts() -> None:
    assert "too small" in plan(world([spec("m", 1, GB, adapter_memory_bytes=1)], {"a": executor(GB)})).lacks["m"].reason


def test_engines_labels_memory_and_draining_are_obstacles() -> None:
    model = spec("m", 1, 2 * GB, engines=("openvino",), required_labels={"gpu": "h200"})
    fits = executor(engine="openvino", labels={"gpu": "h200"})

    def lack(**views: ExecutorView) -> tuple[str, bool]:
        found = plan(world([model], views)).lacks["m"]
        return found.reason, found.hopeless

    assert "its engine is simulated" in lack(a=executor())[0]
    assert "not labelled gpu=h200" in lack(a=replace(fits, labels={"gpu": "a100"}))[0]
    assert "too small" in lack(a=replace(fits, memory_bytes=GB))[0]
    assert lack(a=executor())[1], "none could hold it even if it were empty"
    assert "draining" in lack(a=replace(fits, draining=True))[0]
    assert not lack(a=replace(fits, draining=True))[1], "it may come back"
    assert lack() == ("there is no executor", False)
    assert where(plan(world([model], {"a": fits}))) == {("a", "m")}


def test_an_executor_that_is_away_keeps_what_it_has_and_gets_nothing() -> None:
    executors = {"a": executor(present=False), "b": executor()}
    result = plan(world([spec("m"), spec("n")], executors, [lying("a", spec("m"))]))
    assert where(result) == {("a", "m"), ("b", "n")}


def test_copies_spread_over_the_values_of_a_label() -> None:
    zones = {"a": "x", "b": "x", "c": "y", "d": "z"}
    executors = {name: executor(GB if zone == "z" else 4 * GB, labels={"zone": zone}) for name, zone in zones.items()}
    model = spec("m", 3, spread_label="zone")
    result = plan(world([model], executors))
    assert {zones[copy.executor] for copy in result.copies} == {"x", "y", "z"}
    fewer = plan(answering(world([replace(model, replicas=2)], executors, [lying(e, model) for e in "abc"])))
    assert {zones[copy.executor] for copy in fewer.copies} == {"x", "y"}


def test_pinned_models_come_first_and_are_not_unloaded() -> None:
    models = [spec("a", 1, GB), spec("z", 1, GB, pinned=True)]
    assert where(plan(world(models, {"e": executor(GB)}))) == {("e", "z")}
    before = answering(world([spec("a"), *models[1:]], {"e": executor(GB)}, [lying("e", models[1])]))
    result = plan(replace(before, loads={"a": Load(waiting=9, oldest_waiting_s=100.0)}))
    assert where(result) == {("e", "z")}
    assert "no room" in result.lacks["a"].reason


def test_a_pinned_model_takes_the_place_of_another() -> None:
    models = [spec("a"), spec("z", pinned=True)]
    result = plan(answering(world(models, {"e": executor(GB)}, [lying("e", models[0])])))
    assert where(result) == {("e", "z")}


def test_memory_that_drains_is_used_last() -> None:
    leaving = {"gone@1": Resident("draining", NOW, 8 * GB)}
    executors = {"a": executor(8 * GB, residents=leaving), "b": executor(2 * GB)}
    assert where(plan(world([spec("m")], executors))) == {("b", "m")}
    assert where(plan(world([spec("m", memory=2 * GB)], {"a": executors["a"]}))) == {("a", "m")}, "the executor waits"


def test_a_model_that_grew_moves_when_its_executor_cannot_hold_all() -> None:
    models = [spec("m", 1, 3 * GB), spec("n", 1, 3 * GB)]
    result = plan(world(models, {"a": executor(), "b": executor()}, [lying("a", model) for model in models]))
    assert where(result) == {("a", "m"), ("b", "n")}


# --- Moving others so that a model can lie at all.


def test_others_move_when_a_model_could_not_lie_otherwise() -> None:
    small, other, large = spec("s", memory=2 * GB), spec("t", memory=3 * GB), spec("x", memory=3 * GB)
    executors = {"a": executor(), "b": executor(5 * GB)}
    before = answering(world([small, other, large], executors, [lying("a", small), lying("b", other)]))
    result = plan(before)
    assert where(result) == {("b", "s"), ("b", "t"), ("a", "x")}
    assert "so that x has room" in reason(result, "s")
    assert "moving s to b" in reason(result, "x")


def test_what_was_placed_a_moment_ago_is_not_moved_unless_works_wait() -> None:
    small, other, large = spec("s", memory=2 * GB), spec("t", memory=3 * GB), spec("x", memory=3 * GB)
    executors = {"a": executor(), "b": executor(5 * GB)}
    before = world([small, other, large], executors, [lying("a", small, 10), lying("b", other, 10)])
    assert "no room" in plan(answering(before)).lacks["x"].reason
    waiting = replace(before, loads={"x": Load(waiting=1, oldest_waiting_s=0.5)})
    assert not plan(answering(waiting, 1.0)).lacks


# --- Demand.


def test_copies_follow_the_works_up_at_once_and_down_after_calm() -> None:
    model, executors = on_demand("m", 1, 3), {name: executor() for name in "abcd"}
    busy = plan(world([model], executors, loads={"m": Load(running=4, waiting=1, peak=5)}))
    assert len(busy.copies) == 3
    assert "5 works, 2 a copy" in busy.copies[-1].reason
    assert len(plan(world([model], executors, loads={"m": Load(waiting=99, peak=99)})).copies) == 3, "the most"
    calm = answering(world([model], executors, busy.copies, {"m": Load(peak=5)}))
    assert len(plan(calm).copies) == 3, "it was busy a moment ago"
    assert len(plan(replace(calm, loads={"m": Load(peak=3)})).copies) == 2
    assert len(plan(replace(calm, loads={"m": Load()})).copies) == 1


def test_a_model_without_demand_lies_nowhere_and_comes_when_it_is_asked_for() -> None:
    model = on_demand("m")
    cold = plan(world([model], {"a": executor()}))
    assert (cold.copies, cold.lacks["m"].missing, cold.lacks["m"].hopeless) == ([], 0, False)
    assert "loaded on demand" in cold.lacks["m"].reason
    asked = plan(world([model], {"a": executor()}, loads={"m": Load(waiting=1, oldest_waiting_s=2.0)}))
    assert where(asked) == {("a", "m")}
    assert "works wait 2 s" in reason(asked, "m")


def test_an_idle_model_is_unloaded_and_says_so_until_it_lies_again() -> None:
    model, executors = on_demand("m"), {"a": executor()}
    lies = answering(world([model], executors, [lying("a", model)], {"m": Load(last_request=NOW - 59)}))
    assert where(plan(lies)) == {("a", "m")}
    gone = plan(replace(lies, loads={"m": Load(last_request=NOW - 61)}))
    assert gone.copies == []
    assert gone.lacks["m"].reason == "unloaded from a: nobody asks for it; it is loaded on demand"
    again = plan(world([model], executors, stories={"m": gone.lacks["m"].reason}))
    assert again.lacks == gone.lacks


def test_the_least_recently_used_makes_room_and_both_sides_say_so() -> None:
    models = [on_demand("m1"), on_demand("m2"), on_demand("m3")]
    executors = {"e1": executor(GB), "e2": executor(GB)}
    loads = {
        "m1": Load(last_request=NOW - 34),
        "m2": Load(last_request=NOW - 3),
        "m3": Load(waiting=1, oldest_waiting_s=0.2),
    }
    result = plan(answering(world(models, executors, [lying("e1", models[0]), lying("e2", models[1])], loads)))
    assert where(result) == {("e1", "m3"), ("e2", "m2")}
    assert "in the room of m1 (least recently used, idle 34 s)" in reason(result, "m3")
    assert "unloaded from e1 to make room for m3: least recently used, idle 34 s" in result.lacks["m1"].reason


def test_idle_models_go_before_busy_ones_even_when_used_later() -> None:
    models = [on_demand("m1"), on_demand("m2"), on_demand("m3")]
    executors = {"e1": executor(GB), "e2": executor(GB)}
    loads = {
        "m1": Load(running=1, last_request=NOW - 300),
        "m2": Load(last_request=NOW - 1),
        "m3": Load(waiting=1, oldest_waiting_s=50.0),
    }
    result = plan(answering(world(models, executors, [lying("e1", models[0]), lying("e2", models[1])], loads)))
    assert where(result) == {("e1", "m1"), ("e2", "m3")}


def test_a_surplus_copy_goes_before_the_last_one_of_another_model() -> None:
    wide, lone, new = on_demand("wide"), on_demand("lone"), spec("new")
    executors = {name: executor(GB) for name in ("e1", "e2", "e3")}
    copies = [lying("e1", wide), lying("e2", wide), lying("e3", lone)]
    loads = {"wide": Load(running=1, peak=4, last_request=NOW), "lone": Load(last_request=NOW - 30)}
    result = plan(answering(world([wide, lone, new], executors, copies, loads)))
    assert sorted(model for _, model in where(result)) == ["new", "wide", "wide"], (
        "lone is idle: nothing of it is needed"
    )
    loads["lone"] = Load(running=1, last_request=NOW)
    result = plan(answering(world([wide, lone, new], executors, copies, loads)))
    assert sorted(model for _, model in where(result)) == ["lone", "new", "wide"]


def test_models_that_fight_for_too_few_places_take_turns() -> None:
    models = [on_demand(name) for name in ("m1", "m2", "m3")]
    executors = {"e1": executor(GB), "e2": executor(GB)}
    copies = [lying("e1", models[0], 20), lying("e2", models[1], 20)]
    hot = {
        "m1": Load(running=2, waiting=3, oldest_waiting_s=4.0),
        "m2": Load(running=2, waiting=3, oldest_waiting_s=6.0),
        "m3": Load(waiting=3, oldest_waiting_s=8.0),
    }
    young = answering(world(models, executors, copies, hot), 3.0)
    assert where(plan(young)) == {("e1", "m1"), ("e2", "m2")}, "they have only just come"
    loaded_long = answering(world(models, executors, copies, hot), 8.0)
    assert where(plan(loaded_long)) == {("e1", "m1"), ("e2", "m2")}, "loading took longer than they have been of use"
    result = plan(answering(world(models, executors, copies, hot), 12.0))
    assert where(result) == {("e1", "m3"), ("e2", "m2")}, "the one whose works have waited least makes room"
    assert "it had its turn" in result.lacks["m1"].reason
    hot["m3"] = Load(waiting=3, oldest_waiting_s=3.0)
    assert where(plan(answering(world(models, executors, copies, hot), 12.0))) == {("e1", "m1"), ("e2", "m2")}


def test_nobody_starves_where_three_models_share_two_places() -> None:
    """A simulation in steps of a second: every model always has works, loading takes 2 s."""
    models = [on_demand(name) for name in ("m1", "m2", "m3")]
    waited = {model.name: 0.0 for model in models}
    turns = {model.name: 0 for model in models}
    copies: Sequence[Copy] = []
    loaded: dict[tuple[str, str], float] = {}
    longest, changes, now = 0.0, 0, NOW
    for _ in range(240):
        now += 1
        residents = {
            (e, p): Resident("ready" if now >= at + 2 else "loading", at + 2, GB) for (e, p), at in loaded.items()
        }
        executors = {
            name: executor(GB, residents={p: one for (e, p), one in residents.items() if e == name})
            for name in ("e1", "e2")
        }
        ready = {pool for (_, pool), one in residents.items() if one.state == "ready"}
        for model in models:
            waited[model.name] = 1.0 if model.pool in ready else waited[model.name] + 1
        longest = max(longest, *waited.values())
        loads = {m.name: Load(2 if m.pool in ready else 0, 2, waited[m.name], now) for m in models}
        result = plan(World({m.name: m for m in models}, executors, copies, loads, now=now))
        before = set(loaded)
        loaded = {copy.key: loaded.get(copy.key, now) for copy in result.copies}
        for _, pool in loaded.keys() - before:
            turns[pool.partition("@")[0]] += 1
            changes += 1
        copies = result.copies
    assert longest <= 12, "a model waited for more than its turn"
    assert min(turns.values()) >= 10
    assert changes <= 240 / 2, "they do little but load"


# --- Failures.


def test_after_a_failure_another_executor_is_tried_at_most_three() -> None:
    model, executors = spec("m"), {name: executor() for name in "abcde"}
    copies: Sequence[Copy] = [lying("a", model)]
    failures: dict[tuple[str, str], Failure] = {}
    tried = []
    for _ in range(6):
        (copy,) = copies
        tried.append(copy.executor)
        failures[copy.key] = Failure(NOW, 1, "no such file")
        broken = replace(
            executors[copy.executor], residents={model.pool: Resident("failed", NOW, 0, "no such file", 1)}
        )
        result = plan(world([model], {**executors, copy.executor: broken}, copies, failures=failures))
        copies = result.copies
    assert len(set(tried)) == 3, "three in a row, then no more"
    assert tried[2:] == [tried[2]] * 4, "it stays at the last, which tries again by itself"
    assert "could not be loaded on" in result.lacks["m"].reason
    assert "no such file" in result.lacks["m"].reason
    assert not result.lacks["m"].hopeless
    forgotten = plan(world([model], {**executors, tried[2]: broken}, copies, failures={}))
    assert forgotten.copies[0].executor != tried[2], "when failures are forgotten the next is tried"


def test_an_executor_where_it_failed_is_tried_again_after_a_growing_time() -> None:
    model, rules = spec("m"), Rules()

    def placed(attempts: int, ago_s: float) -> bool:
        failures = {("a", model.pool): Failure(NOW - ago_s, attempts, "")}
        return bool(plan(world([model], {"a": executor()}, failures=failures), rules).copies)

    assert [placed(1, 29), placed(1, 31), placed(2, 59), placed(2, 61), placed(3, 800)] == [
        False, True, False, True, False,
    ]  # fmt: skip


def test_a_failed_copy_makes_room_for_any_other() -> None:
    models = [spec("m"), spec("n")]
    failed = Resident("failed", NOW, GB, "broken", 1)
    result = plan(answering(world(models, {"a": executor(GB)}, [lying("a", models[0])]), a=failed))
    assert where(result) == {("a", "n")}


# --- Rolling updates.


def test_a_new_version_comes_up_beside_the_old_one_which_goes_when_it_answers() -> None:
    old, new = spec("m", 2, version="1"), spec("m", 2, version="2")
    executors = {name: executor() for name in "abc"}
    step = answering(world([new], executors, [lying("a", old), lying("b", old)]))
    seen = []
    for _ in range(10):
        result = plan(step)
        seen.append([copy.spec.version for copy in result.copies])
        assert len(result.copies) <= 3, "one more than wanted, at most"
        assert sum(copy.spec.version == "1" for copy in result.copies) >= 2 - len([
            one for one in step.copies if one.spec.version == "2"
        ]), "an old copy goes only for a new one that answers"  # fmt: skip
        after = replace(step, copies=result.copies, executors=executors)
        step = answering(after)
    assert seen[0] == ["1", "1", "2"]
    assert seen[-1] == ["2", "2"]
    assert not plan(step).lacks


def test_the_old_version_stays_while_the_new_one_loads() -> None:
    old, new = spec("m", version="1"), spec("m", version="2")
    copies = [lying("a", old), lying("b", new, 10)]
    for state in ("pending", "loading", "failed"):
        before = world([new], {"a": executor(), "b": executor()}, copies)
        result = plan(answering(before, b=Resident(state, NOW, GB, "", 1)))
        assert ("a", "1") in versions(result), state


def test_without_room_an_old_copy_goes_first_but_not_the_last_one_that_answers() -> None:
    old, new = spec("m", 2, version="1"), spec("m", 2, version="2")
    executors = {"a": executor(GB), "b": executor(GB)}
    both = answering(world([new], executors, [lying("a", old), lying("b", old)]))
    first = plan(both)
    assert sorted(copy.spec.version for copy in first.copies) == ["1", "2"]
    loading = answering(world([new], executors, first.copies), a=Resident("loading", NOW, GB))
    assert plan(loading).copies == first.copies, "the other goes when this one answers"
    second = plan(answering(world([new], executors, first.copies)))
    assert [copy.spec.version for copy in second.copies] == ["2", "2"]


def test_without_room_a_lone_old_copy_gives_its_place() -> None:
    old, new = spec("m", version="1"), spec("m", version="2")
    result = plan(answering(world([new], {"a": executor(GB)}, [lying("a", old)])))
    assert versions(result) == [("a", "2")]
    assert "works wait" in reason(result, "m")


def test_a_new_version_that_fails_everywhere_stops_and_the_old_one_stays() -> None:
    old, new = spec("m", version="1"), spec("m", version="2")
    failures = {(name, new.pool): Failure(NOW, 1, "bad weights") for name in "abc"}
    executors = {name: executor() for name in "abcd"}
    result = plan(answering(world([new], executors, [lying("a", old)], failures=failures)))
    assert versions(result) == [("a", "1")]
    assert "version 2 waits: it could not be loaded on a, b, c (bad weights)" in result.lacks["m"].reason
    assert "version 1 stay" in result.lacks["m"].reason


def test_where_the_new_version_failed_in_its_place_the_old_one_comes_back() -> None:
    old, new = spec("m", 2, version="1"), spec("m", 2, version="2")
    executors = {"a": executor(GB), "b": executor(GB)}
    failed = answering(
        world([new], executors, [lying("a", new), lying("b", old)]), a=Resident("failed", NOW, GB, "bad", 1)
    )
    result = plan(failed)
    assert versions(result) == [("a", "1"), ("b", "1")]
    assert "2 could not be loaded on a" in next(copy.reason for copy in result.copies if copy.executor == "a")


def test_a_model_on_every_executor_is_rolled_out_on_each() -> None:
    old, new = spec("m", 0, version="1"), spec("m", 0, version="2")
    for memory in (2 * GB, GB):
        executors = {"a": executor(memory), "b": executor(memory)}
        step = answering(world([new], executors, [lying("a", old), lying("b", old)]))
        for _ in range(6):
            step = answering(replace(step, copies=plan(step).copies, executors=executors))
        assert versions(plan(step)) == [("a", "2"), ("b", "2")]


def test_an_old_copy_that_the_new_version_has_no_room_for_goes_when_it_is_not_needed() -> None:
    old, new = spec("m", 0, version="1"), spec("m", 0, version="2", memory=3 * GB)
    executors = {"a": executor(), "b": executor(GB)}
    before = answering(world([new], executors, [lying("a", new), lying("b", old)]))
    assert versions(plan(before)) == [("a", "2")]


def test_an_old_copy_that_would_have_to_be_loaded_is_not() -> None:
    old, new = spec("m", version="1"), spec("m", version="2")
    result = plan(world([new], {"a": executor()}, [lying("a", old)]))
    assert versions(result) == [("a", "2")]
