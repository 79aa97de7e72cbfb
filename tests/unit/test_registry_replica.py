"""What a mirror shows, and when deletions are held back."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from structlog.testing import capture_logs

from headrace.registry.v1 import registry_pb2
from libs.registry.replica import Replica
from libs.registry.values import encode


def leader(name: str) -> bytes:
    return encode(registry_pb2.Leader(instance=name))


def replica(hold_s: float = 10.0) -> Replica[registry_pb2.Leader]:
    made = Replica(registry_pb2.Leader, hold_s)
    assert made.replace({"a": leader("1"), "b": leader("1")}, 0.0, again=False)
    return made


def shown(of: Replica[registry_pb2.Leader]) -> dict[str, str]:
    return {name: message.instance for name, message in of.items.items()}


def test_changes_are_applied_in_order_and_reported_once() -> None:
    copy = replica()
    assert copy.apply([("a", leader("2")), ("b", None), ("c", leader("1")), ("c", leader("3"))])
    assert shown(copy) == {"a": "2", "c": "3"}
    assert not copy.apply([("a", leader("2")), ("never", None)])


def test_without_an_outage_deletions_count_at_once() -> None:
    copy = replica()
    assert copy.hold_until is None
    assert copy.apply([("a", None)])
    assert shown(copy) == {"b": "1"}


def test_after_an_outage_what_comes_back_in_time_was_never_away() -> None:
    copy = replica()
    copy.suspend()
    assert not copy.replace({"b": leader("1")}, 100.0, again=True)
    assert copy.hold_until == 110.0
    assert not copy.apply([("b", None)])
    assert shown(copy) == {"a": "1", "b": "1"}
    assert not copy.apply([("a", leader("1"))])
    assert copy.release()
    assert shown(copy) == {"a": "1"}
    assert copy.hold_until is None


def test_an_item_that_comes_back_changed_is_shown_changed() -> None:
    copy = replica()
    copy.replace({}, 100.0, again=True)
    assert copy.apply([("a", leader("2"))])
    assert shown(copy) == {"a": "2", "b": "1"}


def test_a_second_outage_starts_the_time_anew() -> None:
    copy = replica()
    copy.replace({}, 100.0, again=True)
    copy.suspend()
    copy.replace({}, 105.0, again=True)
    assert copy.hold_until == 115.0
    assert shown(copy) == {"a": "1", "b": "1"}
    assert copy.release()
    assert shown(copy) == {}


def test_no_holding_back_when_off() -> None:
    copy = replica(hold_s=0.0)
    assert copy.replace({"a": leader("1")}, 100.0, again=True)
    assert shown(copy) == {"a": "1"}
    assert copy.hold_until is None


def test_an_unreadable_value_is_logged_once_and_the_last_readable_one_stands() -> None:
    copy = replica()
    with capture_logs() as logs:
        assert not copy.apply([("a", b"{"), ("new", b"{")])
        assert not copy.replace({"a": b"{", "b": leader("1"), "new": b"{"}, 1.0, again=True)
    assert shown(copy) == {"a": "1", "b": "1"}
    assert sorted(entry["name"] for entry in logs) == ["a", "new"]
    assert copy.apply([("a", leader("2"))])


class AgainstTruth(RuleBasedStateMachine):
    """Whatever happens, the copy holds all that lies in etcd, and nothing else once nothing is held back."""

    names = st.sampled_from("abc")

    def __init__(self) -> None:
        super().__init__()
        self.truth: dict[str, bytes] = {}
        self.copy = Replica(registry_pb2.Leader, 10.0)
        self.now = 0.0
        self.away = False

    @rule(name=names, value=st.sampled_from("12"))
    def put(self, name: str, value: str) -> None:
        self.truth[name] = leader(value)
        if not self.away:
            self.copy.apply([(name, leader(value))])

    @rule(name=names)
    def delete(self, name: str) -> None:
        if self.truth.pop(name, None) is not None and not self.away:
            self.copy.apply([(name, None)])

    @precondition(lambda self: not self.away)
    @rule()
    def outage(self) -> None:
        self.away = True
        self.copy.suspend()

    @precondition(lambda self: self.away)
    @rule()
    def reconnect(self) -> None:
        self.away = False
        self.copy.replace(dict(self.truth), self.now, again=True)

    @rule(seconds=st.floats(0.1, 20.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        if (due := self.copy.hold_until) is not None and self.now >= due:
            self.copy.release()

    @invariant()
    def right(self) -> None:
        self.copy.check_integrity()
        if self.away:
            return
        copied = {name: encode(message) for name, message in self.copy.items.items()}
        assert self.truth.items() <= copied.items()
        if self.copy.hold_until is None:
            assert copied == self.truth


TestAgainstTruth = AgainstTruth.TestCase
