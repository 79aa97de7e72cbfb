"""Turns of adapters, and what keeps prefixes apart."""

from hypothesis import given
from hypothesis import strategies as st

from services.executor.openvino.salts import MOST_CLAIMS, REMEMBERED, Claims, Salts
from services.executor.openvino.turns import Turns


def test_a_turn_ends_when_nothing_is_left_or_after_a_quantum() -> None:
    turns = Turns(quantum_s=1.0)
    assert turns.next(5.0, {"": 4.0}, running=True) is None, "nobody else waits"
    assert turns.next(5.0, {"a": 5.0}, running=False) == "a"
    turns.begin("a", 5.0, {"a": 5.0})
    assert turns.next(5.5, {"b": 5.1}, running=True) is None
    assert turns.next(6.0, {"b": 5.1}, running=True) == "b"
    assert turns.next(5.5, {"b": 5.1}, running=False) == "b"


@given(st.integers(2, 20), st.integers(1, 5))
def test_adapters_in_demand_take_turns(adapters: int, rounds: int) -> None:
    turns, now = Turns(quantum_s=1.0), 10.0
    waiting = {f"a{n}": float(n) / adapters for n in range(adapters)}
    order = []
    for _ in range(adapters * rounds):
        now += 1.0
        chosen = turns.next(now, waiting, running=True)
        assert chosen is not None
        turns.begin(chosen, now, waiting)
        order.append(chosen)
    assert order == list(waiting) * rounds


@given(st.lists(st.text(max_size=4), max_size=30), st.integers(2, 1 << 20), st.data())
def test_salts_never_meet_and_the_low_bits_are_the_token(
    salts: list[str], vocabulary: int, data: st.DataObject
) -> None:
    subject, token = Salts(vocabulary), data.draw(st.integers(0, vocabulary - 1))
    bits = (vocabulary - 1).bit_length()
    marks = {salt: subject.mark([token, 1], salt)[0] for salt in salts}
    assert len(set(marks.values())) == len(marks)
    assert all(mark & ((1 << bits) - 1) == token for mark in marks.values())
    assert marks == {salt: subject.mark([token], salt)[0] for salt in salts}
    assert 0 < subject.with_number([token], subject.most)[0] < 1 << 62


def test_a_forgotten_salt_gets_a_number_that_was_never_used() -> None:
    subject = Salts(2)
    first = subject.mark([0], "first")
    seen = {subject.mark([0], str(n))[0] for n in range(REMEMBERED)}
    assert subject.mark([0], "first")[0] not in {*seen, *first}


def test_beginnings_belong_to_one_salt() -> None:
    claims = Claims(block_tokens=4)
    assert claims.take([1, 2, 3, 4, 5], "a")
    assert claims.take([1, 2, 3, 4, 9], "a")
    assert not claims.take([1, 2, 3, 4, 9], "b")
    assert not claims.take([1, 2], "b"), "it could be found behind two tokens"
    assert claims.take([1, 2, 3, 5], "b"), "blocks differ"
    assert not claims.take([1, 2, 3], "a"), "and now it begins as one of b's"
    claims.clear()
    assert claims.take([1, 2], "b")
    assert not claims.take([1, 2, 7, 8, 9], "a"), "the shorter one may go on like this"
    assert all(claims.take([7, n], "c") for n in range(MOST_CLAIMS - 1))
    assert not claims.take([8], "c"), "no more until the cache is emptied"
