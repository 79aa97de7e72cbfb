"""Which model, adapter and pool, and what the router does as a stage."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.catalogue import ModelSpec, Scaling
from libs.clock import ManualClock
from libs.errors import Cancelled, HeadraceError, ModelUnknown, NoExecutor, Overloaded, StageUnavailable, SwitchedOff
from libs.lane.forwarder import DRAINING, Forwarder
from libs.lane.work import POOL_GONE, FinishReason, Note, Outcome, Work
from libs.telemetry.metrics import Metrics
from libs.telemetry.span import SpanRecord
from libs.telemetry.tracing import Tracing
from services.router.journey import REROUTES
from services.router.observe import Observer
from services.router.route import GRACE_S, Catalogue, PoolState, Route, batcher_for, route
from services.router.stage import Router
from tests.unit.lanes import Answers, HandStage, answer, work

NOW = 1000.0


def model(name: str, version: str = "1", **changes: object) -> ModelSpec:
    return replace(ModelSpec(name, "s", 4096, 100, 16, 8, 512, version=version), **changes)  # type: ignore[arg-type]


def adapter(name: str, version: str = "1", **changes: object) -> ModelSpec:
    """Of m."""
    return replace(model("m"), name=name, version=version, base="m", **changes)  # type: ignore[arg-type]


ON_DEMAND = Scaling(0, 2)
CATALOGUE = Catalogue(
    models={
        spec.name: spec
        for spec in (
            *(model(name) for name in ("m", "away", "loading", "gone", "off", "left")),
            *(model(name, scaling=ON_DEMAND) for name in ("cold", "hopeless")),
            adapter("lora"), adapter("twin", shares_prefix=True),
            replace(adapter("of-off"), base="off", pool="off@1"),
        )
    },
    aliases={"nice": "m", "dangling": "nobody", "fine": "lora"},
    switched_off={"off": "it lies"},
    pools={
        "m@1": PoolState(2, 0, NOW),
        "away@1": PoolState(0, 0, NOW - GRACE_S),
        "gone@1": PoolState(0, 0, NOW - GRACE_S - 1),
        "loading@1": PoolState(0, 1, None),
        "left@0": PoolState(leaving=1),
    },
    unplaced={"cold": "all memory is taken", "gone": "no executor has 9 bytes", "hopeless": "none is large enough"},
    hopeless=frozenset({"hopeless"}),
    placed={"m": ["executor-0: it had most room", "executor-1: spread"]},
)  # fmt: skip


def routed(name: str = "m", catalogue: Catalogue = CATALOGUE, **changes: object) -> Route:
    return route(work(**{"model": name, "pool": "", **changes}), catalogue, NOW)  # type: ignore[arg-type]


def refused(name: str, catalogue: Catalogue = CATALOGUE, **changes: object) -> HeadraceError:
    with pytest.raises(HeadraceError) as raised:
        routed(name, catalogue, **changes)
    return raised.value


def test_a_model_runs_in_the_pool_of_its_version() -> None:
    chosen = routed("m", pool="something that nobody asked for")
    assert (chosen.model, chosen.pool, chosen.adapter, chosen.salt, chosen.waiting) == ("m", "m@1", "", "", "")
    assert chosen.pin == "m@1"
    assert "2 copies of m@1 are ready" in chosen.reason


def test_an_alias_is_the_model_behind_it() -> None:
    chosen = routed("nice")
    assert (chosen.model, chosen.pool) == ("m", "m@1")
    assert "nice is an alias of m" in chosen.reason


@pytest.mark.parametrize("name", ["nobody", "dangling", ""])
def test_an_unknown_model(name: str) -> None:
    error = refused(name)
    assert isinstance(error, ModelUnknown)
    assert error.metadata == {"model": name}


@pytest.mark.parametrize("name", ["off", "of-off"])
def test_a_switch_covers_works_that_have_begun_and_the_adapters_of_a_base(name: str) -> None:
    error = refused(name, resumed=[0], pool="off@1")
    assert isinstance(error, SwitchedOff)
    assert [(v.subject, v.description) for v in error.violations] == [("model/off", "it lies")]


def test_a_switch_on_an_adapter_leaves_its_base() -> None:
    catalogue = replace(CATALOGUE, switched_off={"lora": "it lies"})
    assert isinstance(refused("lora", catalogue), SwitchedOff)
    assert isinstance(refused("fine", catalogue), SwitchedOff)
    assert routed("m", catalogue).pool == routed("twin", catalogue).pool == "m@1"


def test_a_pool_that_went_a_moment_ago_is_waited_for() -> None:
    assert routed("away").pool == "away@1"
    assert not routed("away").waiting, "the batcher tells, should it last"
    error = refused("gone")
    assert isinstance(error, NoExecutor)
    assert error.message == "no executor can answer for gone: no executor has 9 bytes"
    assert error.retry_after_s


def test_a_model_that_is_being_loaded_is_waited_for_and_the_caller_told() -> None:
    assert routed("loading").waiting == "loading is being loaded"


def test_a_model_on_demand_is_waited_for_and_the_caller_told() -> None:
    chosen = routed("cold")
    assert (chosen.pool, chosen.waiting) == ("cold@1", "cold is loaded on demand: all memory is taken")
    assert "none is large enough" in refused("hopeless").message
    gone = replace(CATALOGUE, pools={**CATALOGUE.pools, "hopeless@1": PoolState(1)})
    assert routed("hopeless", gone).pool == "hopeless@1", "while an executor holds it, it is not"


# --- versions ------------------------------------------------------------------------------------


def versions(**ready: int) -> Catalogue:
    """Version 2 of m, with so many copies of each: `v1=3, v2=1`."""
    pools = {f"m@{name[1:]}": PoolState(count, 0, NOW if count else None) for name, count in ready.items()}
    return Catalogue({"m": model("m", "2")}, pools=pools)


@given(st.integers(0, 6), st.integers(0, 6))
def test_new_works_go_to_the_versions_by_their_copies(old: int, new: int) -> None:
    if old + new == 0:
        return
    catalogue = versions(v1=old, v2=new)
    counts = Counter(routed("m", catalogue, request_id=f"r-{n}").pool for n in range(400))
    assert abs(counts["m@1"] - 400 * old / (old + new)) < 60
    assert counts["m@1"] == 0 or old
    assert counts["m@2"] == 0 or new


def test_the_same_request_goes_to_the_same_version() -> None:
    catalogue = versions(v1=2, v2=1)
    first = {f"r-{n}": routed("m", catalogue, request_id=f"r-{n}").pool for n in range(50)}
    assert len(set(first.values())) == 2
    assert {name: routed("m", catalogue, request_id=name).pool for name in first} == first
    assert "2 copies of m@1 are ready, 3 of all versions" in routed("m", catalogue, request_id="r-0").reason or (
        "1 copies of m@2 are ready, 3 of all versions" in routed("m", catalogue, request_id="r-0").reason
    )


def test_while_the_new_version_loads_the_old_one_answers() -> None:
    catalogue = versions(v1=1)
    catalogue = replace(catalogue, pools={**catalogue.pools, "m@2": PoolState(coming=1)})
    assert routed("m", catalogue).pool == "m@1"


def test_when_the_old_version_has_just_gone_the_new_one_is_waited_for() -> None:
    catalogue = replace(versions(), pools={"m@1": PoolState(last_ready=NOW), "m@2": PoolState(coming=1)})
    chosen = routed("m", catalogue)
    assert (chosen.pool, chosen.waiting) == ("m@2", "m is being loaded")


def test_a_work_that_has_begun_stays_with_its_version() -> None:
    catalogue = versions(v1=1, v2=50)
    chosen = routed("m", catalogue, resumed=[0], pool="m@1")
    assert (chosen.pool, chosen.pin) == ("m@1", "m@1")
    assert "it began on m@1" in chosen.reason
    assert routed("m", catalogue, resumed=[0]).pool in ("m@1", "m@2"), "nobody said where it began"


@pytest.mark.parametrize("state", [PoolState(1), PoolState(coming=1), PoolState(leaving=1), PoolState(last_ready=NOW)])
def test_a_version_that_leaves_or_comes_back_ends_what_it_began(state: PoolState) -> None:
    catalogue = replace(versions(v2=1), pools={"m@1": state, "m@2": PoolState(1)})
    assert routed("m", catalogue, resumed=[0], pool="m@1").pool == "m@1"


def test_an_answer_of_a_version_that_is_gone_cannot_go_on() -> None:
    error = refused("m", versions(v2=1), resumed=[0], pool="m@1")
    assert isinstance(error, NoExecutor)
    assert "m@1, which began this answer, is not there any more" in error.message


def test_a_work_that_has_begun_waits_for_the_version_that_the_catalogue_has() -> None:
    assert routed("gone", resumed=[0], pool="gone@1").pool == "gone@1"
    assert routed("gone", resumed=[0]).waiting
    assert isinstance(refused("hopeless", resumed=[0], pool="hopeless@1"), NoExecutor)


def test_an_answer_that_an_alias_began_goes_on_with_the_model_that_began_it() -> None:
    moved = replace(CATALOGUE, aliases={"nice": "away", "fine": "away"})
    assert routed("nice", moved).model == "away"
    chosen = routed("nice", moved, resumed=[0], pool="m@1")
    assert (chosen.model, chosen.pool) == ("m", "m@1")
    chosen = routed("fine", moved, resumed=[0], pool="m@1+lora@1")
    assert (chosen.model, chosen.pool, chosen.adapter) == ("lora", "m@1", "lora@1")


@pytest.mark.parametrize(
    ("name", "pool"),
    [
        ("m", "away@1"), ("m", "m@1+lora@1"), ("lora", "m@1"), ("lora", "m@1+twin@1"), ("lora", "away@1+lora@1"),
        ("m", "+"), ("m", "nobody"), ("nice", "nobody@1"),
    ],
)  # fmt: skip
def test_nobody_goes_on_with_another_model_than_was_asked_for(name: str, pool: str) -> None:
    assert isinstance(refused(name, resumed=[0], pool=pool), NoExecutor | ModelUnknown)


# --- adapters ------------------------------------------------------------------------------------


def test_an_adapter_runs_in_the_pool_of_its_base() -> None:
    chosen = routed("fine")
    assert (chosen.model, chosen.pool, chosen.adapter, chosen.salt) == ("lora", "m@1", "lora@1", "lora@1")
    assert chosen.pin == "m@1+lora@1"
    assert "an adapter of m" in chosen.reason
    assert routed("twin").salt == ""


@pytest.mark.parametrize(("name", "salt"), [("m", "/acme"), ("fine", "lora@1/acme"), ("twin", "/acme")])
def test_an_isolated_tenant_stays_isolated_whatever_is_chosen(name: str, salt: str) -> None:
    assert routed(name, salt="/acme").salt == salt
    assert routed(name, salt="another@7/acme").salt == salt
    assert routed(name, salt="another@7").salt == salt.removesuffix("/acme")


def test_an_isolated_answer_stays_with_the_version_of_its_adapter() -> None:
    newer = replace(CATALOGUE, models={**CATALOGUE.models, "lora": adapter("lora", "2")})
    assert routed("lora", newer, salt="lora@2/acme", resumed=[0], pool="m@1+lora@1").salt == "lora@1/acme"


def test_an_adapter_waits_for_its_base() -> None:
    cold = replace(adapter("lora"), base="cold", pool="cold@1", scaling=ON_DEMAND)
    catalogue = replace(CATALOGUE, models={**CATALOGUE.models, "lora": cold})
    assert routed("lora", catalogue).waiting == "cold is loaded on demand: all memory is taken"


def test_an_answer_stays_with_the_version_of_its_adapter() -> None:
    newer = replace(CATALOGUE, models={**CATALOGUE.models, "lora": adapter("lora", "2")})
    assert routed("lora", newer).adapter == "lora@2"
    chosen = routed("lora", newer, resumed=[0], pool="m@1+lora@1")
    assert (chosen.pool, chosen.adapter, chosen.salt, chosen.pin) == ("m@1", "lora@1", "lora@1", "m@1+lora@1")


def test_one_pool_has_one_batcher_and_only_those_of_a_lost_one_move() -> None:
    batchers = [f"batcher-{n}" for n in range(4)]
    pools = [work(pool=f"pool-{n}") for n in range(200)]
    before = {w.pool: batcher_for(w, batchers) for w in pools}
    assert all(count > 20 for count in Counter(before.values()).values())
    after = {w.pool: batcher_for(w, batchers[1:]) for w in pools}
    assert all(after[pool] == batcher for pool, batcher in before.items() if batcher != "batcher-0")


class Routed:
    """A router in front of one batcher, with its spans."""

    def __init__(self, catalogue: Catalogue = CATALOGUE) -> None:
        self.catalogue = catalogue
        self.clock, self.spans, self.behind, self.answers = ManualClock(NOW), list[SpanRecord](), HandStage(), Answers()
        self.forwarder = Forwarder("router", batcher_for, self.clock)
        self.forwarder.set_neighbours({"batcher-0": self.behind})
        self.metrics = Metrics("router", "router-0", "0")
        self.router = Router(
            self.forwarder,
            lambda: self.catalogue,
            Tracing("router", "router-0", 1.0, self.spans.append),
            Observer(self.metrics),
            self.clock,
        )
        self.lane = self.router.open(self.answers)


def test_the_router_passes_works_on_under_the_model_that_runs() -> None:
    routed = Routed()
    routed.lane.submit(1, work(1, model="nice", pool=""))
    (sent,) = routed.behind.lane.sent
    assert (sent.model, sent.pool) == ("m", "m@1")
    assert sent.traceparent
    routed.behind.lane.run()
    assert routed.answers.tokens[1] == answer(sent)
    assert routed.answers.outcomes[1].finish is FinishReason.LENGTH
    assert len(routed.spans) == 1


def test_the_router_refuses_without_asking_anyone() -> None:
    routed = Routed()
    routed.lane.submit(1, work(1, model="nobody", resumed=[1000, 1001]))
    assert isinstance(routed.answers.outcomes[1].error, ModelUnknown)
    assert routed.answers.outcomes[1].output_tokens == 2
    assert not routed.behind.lane.sent
    assert len(routed.spans) == 1


def test_a_draining_router_hands_new_works_back_and_keeps_the_others() -> None:
    routed = Routed()
    routed.lane.submit(1, work(1))
    routed.router.draining = True
    routed.lane.submit(2, work(2))
    error = routed.answers.outcomes[2].error
    assert isinstance(error, StageUnavailable)
    assert DRAINING in error.metadata
    routed.behind.lane.run()
    assert routed.answers.outcomes[1].finish is FinishReason.LENGTH


def test_a_cancel_goes_down_and_its_outcome_comes_up() -> None:
    routed = Routed()
    routed.lane.submit(1, work(1))
    routed.lane.cancel(1)
    (up_id,) = routed.behind.lane.cancels
    routed.behind.lane.end(up_id, Outcome(error=Cancelled("as asked")))
    assert isinstance(routed.answers.outcomes[1].error, Cancelled)


def test_a_lane_that_closes_ends_its_works_and_their_spans() -> None:
    routed = Routed()
    for index in range(3):
        routed.lane.submit(index, work(index))
    routed.lane.close()
    assert sorted(routed.behind.lane.cancels) == sorted(routed.behind.lane.works)
    assert routed.forwarder.in_flight == 0
    assert len(routed.spans) == 3
    routed.behind.lane.run()
    assert not routed.answers.outcomes


def test_the_caller_is_told_the_pool_and_what_it_waits_for() -> None:
    it = Routed()
    it.lane.submit(1, work(1, model="lora"))
    it.lane.submit(2, work(2, model="cold"))
    assert it.answers.notes[1] == [Note("m@1+lora@1", "")]
    assert it.answers.notes[2] == [Note("cold@1", "cold is loaded on demand: all memory is taken")]
    (up_id,) = (up_id for up_id, one in it.behind.lane.works.items() if one.model == "cold")
    it.behind.lane.sink.on_note(up_id, Note(waiting="cold is being loaded on a"))
    assert it.answers.notes[2][1:] == [Note(waiting="cold is being loaded on a")]


def test_a_prefix_that_was_named_for_another_adapter_is_no_prefix() -> None:
    it = Routed()
    for index, (name, salt) in enumerate([("m", ""), ("m", "lora@1"), ("lora", "lora@1"), ("lora", "lora@0")]):
        it.lane.submit(index, work(index, model=name, salt=salt, block_hashes=[7, 8]))
    assert [list(sent.block_hashes) for sent in it.behind.lane.sent] == [[7, 8], [], [7, 8], []]
    assert [sent.salt for sent in it.behind.lane.sent] == ["", "", "lora@1", "lora@1"]
    assert [sent.adapter for sent in it.behind.lane.sent] == ["", "", "lora@1", "lora@1"]


def test_an_isolated_prefix_is_found_again_if_nothing_changed() -> None:
    it = Routed()
    for index, (name, salt) in enumerate([("m", "/t"), ("lora", "lora@1/t"), ("lora", "/t"), ("lora", "lora@0/t")]):
        it.lane.submit(index, work(index, model=name, salt=salt, block_hashes=[7, 8]))
    assert [list(sent.block_hashes) for sent in it.behind.lane.sent] == [[7, 8], [7, 8], [], []]
    assert [sent.salt for sent in it.behind.lane.sent] == ["/t", *["lora@1/t"] * 3]


GONE = NoExecutor("m@1 was withdrawn", metadata={POOL_GONE: "true"})


def hand_back(it: Routed, error: HeadraceError = GONE, tokens: int = 0) -> None:
    (up_id,) = it.behind.lane.works
    it.behind.lane.end(up_id, Outcome(error=error, output_tokens=tokens))


def test_a_work_whose_version_was_withdrawn_goes_to_another_one() -> None:
    it = Routed()
    it.lane.submit(1, work(1))
    it.catalogue = versions(v2=1)
    hand_back(it)
    assert [sent.pool for sent in it.behind.lane.sent] == ["m@1", "m@2"]
    assert [note.pool for note in it.answers.notes[1]] == ["m@1", "m@2"], "the last one counts"
    it.behind.lane.run()
    assert it.answers.tokens[1] == answer(work(1))
    assert len(it.answers.outcomes) == len(it.spans) == 1
    assert it.forwarder.in_flight == 0


def test_a_work_is_not_rerouted_for_ever() -> None:
    it = Routed()
    it.lane.submit(1, work(1))
    for _ in range(REROUTES):
        assert not it.answers.outcomes
        hand_back(it)
    hand_back(it)
    assert it.answers.outcomes[1].error is GONE
    assert len(it.behind.lane.sent) == REROUTES + 1
    assert len(it.spans) == 1


def test_a_work_that_has_begun_is_not_rerouted() -> None:
    it = Routed()
    it.lane.submit(1, work(1))
    it.behind.lane.step(count=2)
    hand_back(it, tokens=2)
    assert it.answers.outcomes[1].error is GONE
    it.lane.submit(2, work(2, resumed=[2000], pool="m@1"))
    it.answers.tokens[2] = [2000]
    hand_back(it, tokens=1)
    assert it.answers.outcomes[2].error is GONE


@pytest.mark.parametrize("error", [NoExecutor("no copy took it"), Overloaded("full", metadata={POOL_GONE: "true"})])
def test_nothing_else_is_rerouted(error: HeadraceError) -> None:
    it = Routed()
    it.lane.submit(1, work(1))
    hand_back(it, error)
    assert it.answers.outcomes[1].error is error


def test_a_work_that_is_cancelled_is_not_rerouted() -> None:
    it = Routed()
    it.lane.submit(1, work(1))
    it.lane.cancel(1)
    hand_back(it)
    assert it.answers.outcomes[1].error is GONE
    assert len(it.behind.lane.sent) == 1


def test_where_no_version_is_left_the_caller_is_told_why() -> None:
    it = Routed()
    it.lane.submit(1, work(1))
    it.catalogue = Catalogue()
    hand_back(it)
    assert isinstance(it.answers.outcomes[1].error, ModelUnknown)
    assert len(it.spans) == 1
    it.lane.close()
    assert len(it.spans) == 1


def test_a_work_that_is_sent_again_is_pinned_to_where_it_began() -> None:
    """By the stage in front, whatever the catalogue says by then."""
    it = Routed()
    first = HandStage()
    front = Forwarder("admission", lambda one, ready: ready[0], it.clock)
    front.set_neighbours({"router-0": first, "router-1": it.router})
    answers = Answers()
    lane = front.open(answers)
    lane.submit(1, work(1, model="lora", pool=""))
    lane.submit(2, work(2, model="lora", pool=""))
    begun, fresh = first.lane.works
    for up_id in (begun, fresh):
        first.lane.sink.on_note(up_id, Note("m@1+lora@0"))
    first.lane.step(begun, count=3)
    first.lane.cut()
    sent: dict[str, Work] = {one.request_id: one for one in it.behind.lane.sent}
    assert sent["request-1"].adapter == "lora@0"
    assert sent["request-2"].adapter == "lora@1", "it has no token that would bind it"
    assert list(sent["request-1"].resumed) == answer(work(1))[:3]
    it.behind.lane.run()
    assert answers.tokens == {index: answer(work(index)) for index in (1, 2)}
    assert answers.notes[1] == [Note("m@1+lora@0"), Note("m@1+lora@0")]


async def test_explain_says_why_not() -> None:
    routed = Routed()
    (refusal,) = await routed.router.explain(work(model="nobody"))
    assert (refusal.stage, refusal.choice) == ("router", "refuse")
    decisions = await routed.router.explain(work())
    assert [d.stage for d in decisions] == ["router", "placement", "placement", "hand"]
    assert await routed.router.queues() == []


async def test_explain_shows_what_placement_said() -> None:
    it = Routed()
    router, first, second, _ = await it.router.explain(work(model="fine"))
    assert router.choice == "pool m@1, adapter lora@1"
    assert (first.choice, first.reason) == ("place", "executor-0: it had most room")
    assert second.reason == "executor-1: spread"
    refusal, lack = await it.router.explain(work(model="gone"))
    assert refusal.choice == "refuse"
    assert (lack.choice, lack.reason) == ("not placed", "no executor has 9 bytes")
    _, lack, _ = await it.router.explain(work(model="cold"))
    assert lack.reason == "all memory is taken"
