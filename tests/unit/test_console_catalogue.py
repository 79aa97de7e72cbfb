"""The catalogue and the placements as a person sees them, and when a change counts as in force."""

import io

import pytest
from rich.console import Console, RenderableType

from headrace.operations.v1 import operations_pb2 as pb
from headrace.registry.v1 import registry_pb2
from libs.client.errors import HeadraceError, Violation, from_status
from services.console import changes_view, models_view, placements_view, words
from services.console.operations import told
from services.console.placements import Placements
from services.console.rollout import FAILED_S, Rollout

PENDING, LOADING = registry_pb2.MODEL_STATE_PENDING, registry_pb2.MODEL_STATE_LOADING
READY, DRAINING = registry_pb2.MODEL_STATE_READY, registry_pb2.MODEL_STATE_DRAINING
FAILED = registry_pb2.MODEL_STATE_FAILED
NOW = 1000.0


def text(shown: RenderableType, width: int = 140) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(shown)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def copy(
    executor: str, pool: str, state: registry_pb2.ModelState.ValueType, reason: str = "", **more: object
) -> pb.Copy:
    model, _, version = pool.partition("@")
    return pb.Copy(
        executor=executor, pool=pool, model=model, version=version, state=state, reason=reason, since=NOW - 90,
        memory_bytes=700_000_000, placed=True, placement_reason="most free memory", executor_present=True, **more,  # type: ignore[arg-type]
    )  # fmt: skip


def status(model: str, version: str, ready: int, wanted: int, **more: object) -> pb.ModelStatus:
    fields: dict[str, object] = {"pool": f"{model}@{version}", **more}
    return pb.ModelStatus(model=model, version=version, ready=ready, wanted=wanted, **fields)  # type: ignore[arg-type]


def known(
    *copies: pb.Copy, statuses: list[pb.ModelStatus], unplaced: list[registry_pb2.Unplaced] | None = None
) -> Placements:
    found = Placements()
    executors = [
        pb.ExecutorMemory(executor=name, engine="openvino", memory_bytes=4_000_000_000, used_bytes=700_000_000)
        for name in ("e1", "e2")
    ]
    found.take(
        pb.WatchPlacementsResponse(
            snapshot=True, copies=copies, models=statuses, unplaced=unplaced or [], executors=executors
        )
    )
    return found


CHANGED = pb.ModelChange(
    model="a", kind=pb.CHANGE_KIND_CHANGED, version_before="0", version="1", rolls_out=True,
    fields=[pb.FieldChange(path="slots", before="2", after="4"), pb.FieldChange(path="labels.owner", after="me")],
)  # fmt: skip


def test_changes_say_field_by_field_what_differs_and_what_it_does() -> None:
    shown = text(
        changes_view.changes(
            [
                CHANGED,
                pb.ModelChange(model="b", kind=pb.CHANGE_KIND_CHANGED, version_before="0", version="0"),
                pb.ModelChange(model="x", kind=pb.CHANGE_KIND_ADDED, version="7", base="a"),
                pb.ModelChange(model="y", kind=pb.CHANGE_KIND_UNCHANGED),
                pb.ModelChange(model="z", kind=pb.CHANGE_KIND_REMOVED),
            ]
        )
    )
    assert shown.splitlines() == [
        "~ a  rolls out a@0 → @1",
        "    slots         2 → 4",
        "    labels.owner  unset → me",
        "~ b  b@0 stays loaded as it is",
        "+ x  new: adapter of a, x@7",
        "= y  unchanged",
        "- z  removed: its copies drain and go",
        "1 new, 2 changed, 1 unchanged, 1 removed",
    ]


def test_placements_name_every_state_in_words() -> None:
    found = known(
        copy("e1", "a@1", READY, adapters=[registry_pb2.ResidentAdapter(adapter="x@7", works=2)]),
        copy("e1", "b@1", PENDING, "waits for memory"),
        copy("e2", "a@0", DRAINING),
        copy("e2", "a@1", LOADING),
        copy("e3", "c@1", FAILED, "no such file"),
        statuses=[],
        unplaced=[registry_pb2.Unplaced(model="d", reason="no room", since=NOW - 7200, hopeless=True)],
    )
    for width in (80, 140):
        shown = text(placements_view.placements(found, NOW, width), width)
        for part in ("● READY", "○ PENDING", "◐ DRAINING", "◌ LOADING", "✗ FAILED", "waits for memory", "no such file",
                     "adapters: x (2 running)", "✗ d: no room (for 2 h)", "0.7 GB of 4.0 GB", "1 min"):  # fmt: skip
            assert part in shown
        assert ("most free memory" in shown) == (width == 140)
        assert max(map(len, shown.splitlines())) <= width
        assert any(line.split()[:2] == ["e3", "away"] for line in shown.splitlines())


def test_placements_say_when_they_may_be_old() -> None:
    found = known(statuses=[])
    assert placements_view.trouble(found, NOW) == ""
    found.take(pb.WatchPlacementsResponse(stale_since=NOW - 30))
    assert "out of touch with etcd for 30 s" in placements_view.trouble(found, NOW)
    found.lost = "connection refused"
    assert "trying again: connection refused" in text(placements_view.placements(found, NOW, 80))


def test_without_a_terminal_each_change_is_a_line() -> None:
    found = known(copy("e1", "a@1", LOADING), copy("e2", "a@0", READY), statuses=[])
    before = found.kept()
    assert list(placements_view.lines(Placements(), before)) == ["e1  a@1  LOADING", "e2  a@0  READY"]
    resident = registry_pb2.ResidentAdapter(adapter="x@7")
    found.take(
        pb.WatchPlacementsResponse(
            copies=[copy("e1", "a@1", READY, adapters=[resident])],
            gone=[pb.Copy(executor="e2", pool="a@0")],
            unplaced=[registry_pb2.Unplaced(model="d", reason="no room")],
        )
    )
    assert list(placements_view.lines(before, found)) == [
        "e1  a@1  LOADING → READY", "e1  a@1  adapter x@7 loaded", "e2  a@0  gone", "unplaced  d  no room",
    ]  # fmt: skip
    before = found.kept()
    found.take(pb.WatchPlacementsResponse(placed=["d"], executors_gone=["e2"], stale_since=NOW))
    assert list(placements_view.lines(before, found)) == [
        "placed  d  has as many copies as wanted", "the mesh is out of touch with etcd: what it says may be old",
    ]  # fmt: skip
    assert list(found.by_executor()) == ["e1"]


def test_models_stand_above_their_adapters() -> None:
    catalogue = [
        registry_pb2.Model(name="a", memory_bytes=700_000_000, engines=["openvino"]),
        registry_pb2.Model(name="lost", base="gone"),
        registry_pb2.Model(name="old", scaling=registry_pb2.Scaling(min=0, max=2), memory_bytes=1),
        registry_pb2.Model(name="b-adapter", base="a"),
    ]
    unplaced = registry_pb2.Unplaced(model="old", reason="no executor is large enough", hopeless=True)
    statuses = [
        status("a", "1", 1, 2, copies=[copy("e1", "a@1", READY), copy("e2", "a@0", DRAINING)], running=3, waiting=4),
        status("lost", "2", 0, 0, base="gone", pool=""),
        status("old", "3", 0, 1, unplaced=unplaced),
        status("b-adapter", "4", 1, 2, base="a", pool="a@1", resident_on=["e1"]),
    ]
    for width in (80, 140):
        shown = text(models_view.models(catalogue, statuses, width), width)
        lines = shown.splitlines()
        assert [line.split()[0] for line in lines[1:3]] == ["a", "└"]
        assert lines[1].split()[1:5] == ["1", "1", "of", "2"]
        assert "e1, e2 DRAINING @0" in shown
        assert "3 run, 4 wait" in shown
        assert "0 of 1 (0–2)" in shown
        assert "✗ old: no executor is large enough" in shown
        assert "✗ lost: there is no model 'gone' to be its base" in shown
        assert ("openvino" in shown) == (width == 140)


def test_a_change_is_in_force_when_every_copy_is_ready_and_the_old_ones_are_gone() -> None:
    rollout = Rollout([CHANGED, pb.ModelChange(model="u", kind=pb.CHANGE_KIND_UNCHANGED)])
    stale = known(copy("e1", "a@0", READY), statuses=[status("a", "0", 1, 1)])
    assert [(p.state, p.detail) for p in rollout.judge(stale, 0)] == [("waiting", "the mesh has not heard yet")]
    both = known(copy("e1", "a@0", DRAINING), copy("e2", "a@1", READY), statuses=[status("a", "1", 1, 1)])
    (progress,) = rollout.judge(both, 1)
    assert progress.state == "waiting"
    assert "DRAINING on e1" in progress.detail
    done = known(copy("e2", "a@1", READY), statuses=[status("a", "1", 1, 1)])
    assert [(p.state, p.detail) for p in rollout.judge(done, 2)] == [("ready", "1 of 1 copies, on e2")]


def test_a_failed_load_counts_only_when_nothing_else_is_under_way() -> None:
    rollout = Rollout([CHANGED])
    failed = known(copy("e1", "a@1", FAILED, "no such file"), statuses=[status("a", "1", 0, 1)])
    assert rollout.judge(failed, 0)[0].state == "waiting"
    moved = known(copy("e1", "a@1", FAILED, "x"), copy("e2", "a@1", LOADING), statuses=[status("a", "1", 0, 1)])
    assert rollout.judge(moved, FAILED_S + 1)[0].state == "waiting"
    assert rollout.judge(failed, FAILED_S + 2)[0].state == "waiting"
    (progress,) = rollout.judge(failed, 2 * FAILED_S + 2)
    assert (progress.state, "FAILED on e1 (no such file)" in progress.detail) == ("failed", True)
    hopeless = registry_pb2.Unplaced(model="a", reason="too large for all", hopeless=True)
    nowhere = known(statuses=[status("a", "1", 0, 1)], unplaced=[hopeless])
    rollout = Rollout([CHANGED])
    rollout.judge(nowhere, 0)
    (progress,) = rollout.judge(nowhere, FAILED_S)
    assert (progress.state, "too large for all" in progress.detail) == ("failed", True)


def test_what_sleeps_and_what_is_removed_need_no_copy() -> None:
    asleep = known(statuses=[status("a", "1", 0, 0)])
    assert Rollout([CHANGED], {"a"}).judge(asleep, 0)[0].state == "ready"
    assert Rollout([CHANGED]).judge(asleep, 0)[0].state == "waiting"
    removed = Rollout([pb.ModelChange(model="a", kind=pb.CHANGE_KIND_REMOVED)])
    assert removed.judge(known(copy("e1", "a@1", DRAINING), statuses=[]), 0)[0].detail == "DRAINING on e1"
    assert removed.judge(known(statuses=[]), 0)[0].state == "ready"


@pytest.mark.parametrize(
    ("error", "headline", "advice"),
    [
        (HeadraceError("x is not an operator", reason="NOT_ALLOWED"), "needs an operator's key", "operator: true"),
        (HeadraceError("nobody has this API key", reason="CREDENTIALS_INVALID"), "does not know this key", "--key"),
        (HeadraceError("connection refused"), "no mesh answers at host:1", "headrace up"),
        (HeadraceError("a", reason="CATALOGUE_CHANGED", violations=[Violation("a", "b")]), "somebody else", "again"),
        (from_status(14, "etcd does not answer", []), "no mesh answers", "headrace up"),
        (HeadraceError("etcd is away", reason="STAGE_UNAVAILABLE"), "stage unavailable: etcd is away", ""),
    ],
)  # fmt: skip
def test_every_refusal_says_what_to_do(error: HeadraceError, headline: str, advice: str) -> None:
    problem = told(error, "host:1")
    assert headline in problem.headline
    assert advice in problem.advice


def test_sizes_and_ages_are_for_people() -> None:
    assert [words.age(seconds) for seconds in (-1, 59.9, 60, 3599, 3600, 86400 * 3)] == [
        "0 s", "60 s", "1 min", "59 min", "1 h", "3 d",
    ]  # fmt: skip
    assert [words.size(count) for count in (5, 250_000, 16_000_000, 700_000_000)] == [
        "5 B",
        "0.2 MB",
        "16.0 MB",
        "0.7 GB",
    ]
