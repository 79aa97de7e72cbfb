"""Which model belongs on which executor."""

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from libs.catalogue import ModelSpec
from services.placement.plan import ExecutorView, Plan, plan

GB = 10**9


def spec(name: str, replicas: int = 1, memory: int = GB, engines: tuple[str, ...] = ()) -> ModelSpec:
    return ModelSpec(name, "simulated:", 4096, 100, 16, 8, 512, memory, replicas, engines)


def executor(memory: int = 4 * GB, engine: str = "simulated", **changes: object) -> ExecutorView:
    return ExecutorView(engine, memory, **changes)  # type: ignore[arg-type]


def specs(*made: ModelSpec) -> dict[str, ModelSpec]:
    return {one.name: one for one in made}


def where(result: Plan) -> set[tuple[str, str]]:
    return {(placed.executor, placed.model) for placed in result.placements}


def again(result: Plan) -> dict[tuple[str, str], str]:
    return {(placed.executor, placed.model): placed.reason for placed in result.placements}


def test_a_copy_goes_to_the_executor_with_the_most_free_memory() -> None:
    result = plan(specs(spec("m", 2)), {"a": executor(2 * GB), "b": executor(8 * GB), "c": executor(4 * GB)}, {})
    assert where(result) == {("b", "m"), ("c", "m")}
    assert not result.missing
    assert all(placed.reason for placed in result.placements)


def test_no_replicas_means_everywhere() -> None:
    executors = {"a": executor(), "b": executor(), "c": executor(draining=True)}
    assert where(plan(specs(spec("m", 0)), executors, {})) == {("a", "m"), ("b", "m")}


def test_what_lies_well_stays_with_its_reason() -> None:
    result = plan(specs(spec("m")), {"a": executor(GB), "b": executor(8 * GB)}, {("a", "m"): "as it was"})
    assert again(result) == {("a", "m"): "as it was"}


def test_a_model_that_left_the_catalogue_goes() -> None:
    assert where(plan({}, {"a": executor()}, {("a", "m"): ""})) == set()


def test_fewer_copies_take_the_failed_one_first() -> None:
    executors = {"a": executor(failed=frozenset("m")), "b": executor()}
    assert where(plan(specs(spec("m", 1)), executors, {("a", "m"): "", ("b", "m"): ""})) == {("b", "m")}


def test_engines_memory_and_draining_are_obstacles() -> None:
    model = specs(spec("m", 1, 2 * GB, ("openvino",)))
    assert "its engine is simulated" in plan(model, {"a": executor()}, {}).missing["m"]
    assert "too small" in plan(model, {"a": executor(GB, "openvino")}, {}).missing["m"]
    assert "draining" in plan(model, {"a": executor(engine="openvino", draining=True)}, {}).missing["m"]
    assert "there is none" in plan(model, {}, {}).missing["m"]
    assert where(plan(model, {"a": executor(engine="openvino")}, {})) == {("a", "m")}


def test_an_executor_that_is_away_keeps_what_it_has_and_gets_nothing() -> None:
    executors = {"a": executor(present=False), "b": executor()}
    result = plan(specs(spec("m"), spec("n")), executors, {("a", "m"): ""})
    assert where(result) == {("a", "m"), ("b", "n")}


def test_an_executor_of_which_a_new_leader_knows_nothing_keeps_what_it_has() -> None:
    unknown = ExecutorView("", 2**63, present=False)
    result = plan(specs(spec("m", 1, GB, ("openvino",))), {"a": unknown, "b": executor()}, {("a", "m"): ""})
    assert where(result) == {("a", "m")}


def test_where_it_failed_to_load_it_is_not_placed_again() -> None:
    executors = {"a": executor(8 * GB, failed=frozenset("m")), "b": executor(GB)}
    assert where(plan(specs(spec("m")), executors, {})) == {("b", "m")}
    assert "failed to load" in plan(specs(spec("m", 2)), executors, {}).missing["m"]


def test_a_model_that_grew_moves_when_its_executor_cannot_hold_all() -> None:
    executors = {"a": executor(4 * GB), "b": executor(4 * GB)}
    current = {("a", "m"): "", ("a", "n"): ""}
    result = plan(specs(spec("m", 1, 3 * GB), spec("n", 1, 3 * GB)), executors, current)
    assert where(result) == {("a", "m"), ("b", "n")}


names = st.sampled_from(["a", "b", "c", "d"])
models = st.dictionaries(
    st.sampled_from(["k", "l", "m", "n"]),
    st.tuples(st.integers(0, 4), st.integers(0, 6), st.sampled_from([(), ("x",), ("x", "y")])),
).map(lambda made: {name: spec(name, replicas, memory, engines) for name, (replicas, memory, engines) in made.items()})
executors_ = st.dictionaries(
    names,
    st.builds(
        ExecutorView,
        engine=st.sampled_from(["x", "y", ""]),
        memory_bytes=st.integers(0, 12),
        failed=st.frozensets(st.sampled_from(["k", "l", "m", "n"]), max_size=2),
        draining=st.booleans(),
        present=st.booleans(),
    ),
)
currents = st.dictionaries(st.tuples(names, st.sampled_from(["k", "l", "m", "n", "o"])), st.just("was here"))


@given(models, executors_, currents)
def test_the_rules_hold(
    models: Mapping[str, ModelSpec],
    executors: Mapping[str, ExecutorView],
    current: Mapping[tuple[str, str], str],
) -> None:
    result = plan(models, executors, current)
    placed = where(result)
    assert len(placed) == len(result.placements)
    for name, view in executors.items():
        held = [models[model] for executor, model in placed if executor == name]
        assert sum(one.memory_bytes for one in held) <= view.memory_bytes
        if view.draining:
            assert not held
    for executor, model in placed - current.keys():
        assert executors[executor].present
        assert model not in executors[executor].failed
    for name, one in models.items():
        copies = sum(model == name for _, model in placed)
        assert copies <= (one.replicas or len(executors))
        assert (name in result.missing) >= (copies < one.replicas)
    assert result == plan(models, executors, current), "the same plan for the same world"


@given(models, executors_, currents)
def test_a_plan_that_is_carried_out_is_the_next_plan(
    models: Mapping[str, ModelSpec],
    executors: Mapping[str, ExecutorView],
    current: Mapping[tuple[str, str], str],
) -> None:
    first = plan(models, executors, current)
    assert plan(models, executors, again(first)) == first


@given(models, executors_, names)
def test_only_what_lay_on_a_lost_executor_moves(
    models: Mapping[str, ModelSpec], executors: Mapping[str, ExecutorView], lost: str
) -> None:
    first = plan(models, executors, {})
    left = {name: view for name, view in executors.items() if name != lost}
    second = plan(models, left, again(first))
    stayed = {(executor, model) for executor, model in where(first) if executor != lost}
    assert stayed <= where(second)
