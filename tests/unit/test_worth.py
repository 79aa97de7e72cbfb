"""Whether it is worth waiting for the manager to say who remembers a prompt, and what becomes of who does not wait."""

import pytest

from services.batcher.dispatch import LEARN_S, QUICK_S
from services.batcher.policies.policy import Match
from services.batcher.worth import ASK_S, Worth, computing_s
from tests.unit.batching import GRANTED, Rig, knows

RATE = 10_000.0
"""Prompt tokens per second: 100 of them take 10 ms."""
BOTH = ("a", "b")


def heard(gains: list[int], prompt_tokens: int = 100) -> Worth:
    """After prompts of which one executor remembered so much, and the other nothing."""
    worth = Worth()
    for tokens in gains:
        worth.heard(prompt_tokens, {"a": Match(tokens)} if tokens else {}, {}, BOTH)
    return worth


def test_before_anything_is_known_it_is_worth_it() -> None:
    assert Worth().asking(100, RATE)
    assert heard([0] * 1000).asking(100, 0.0), "no speed is known"


def test_where_all_remember_the_same_it_is_not() -> None:
    worth = Worth()
    for _ in range(200):
        worth.heard(100, {"a": Match(64), "b": Match(32, 16, 16)}, {}, BOTH)
    assert not worth.asking(100, RATE)
    assert not heard([0] * 200).asking(100, RATE)
    assert heard([0] * 200).asking(100_000, RATE), "of so long a prompt little is much"


def test_where_one_remembers_more_it_is() -> None:
    assert heard([80] * 200).asking(100, RATE)
    assert heard([0] * 200 + [90] * 30).asking(100, RATE), "that begins anew within a few works"
    assert not heard([90] * 200).asking(100, 100 / ASK_S), "an engine that computes the whole in less time"


def test_an_answer_that_was_expected_tells_nothing() -> None:
    assert Worth().telling(100, RATE), "before anything is known"
    expected, other = {"a": Match(64), "b": Match(64)}, {"a": Match(64), "b": Match(32)}
    worth = Worth()
    for _ in range(200):
        worth.heard(100, expected, expected, BOTH)
    assert not worth.telling(100, RATE)
    assert worth.telling(100, 0.0), "no speed is known"
    for _ in range(30):
        worth.heard(100, other, expected, BOTH)
    assert worth.telling(100, RATE), "of the one it differs"
    assert not worth.telling(100, 100 / ASK_S), "an engine that computes the whole in less time"
    for _ in range(200):
        worth.heard(100, other, other, BOTH)
    assert worth.asking(100, RATE), "one remembers more"
    assert not worth.telling(100, RATE), "and always did"


def test_without_executors_nothing_is_learned() -> None:
    worth = heard([0] * 200)
    worth.heard(100, {"a": Match(100)}, {}, ())
    worth.heard(0, {"a": Match(100)}, {}, BOTH)
    assert not worth.asking(100, RATE)


# --- a work that does not wait -------------------------------------------------------------------

PROMPT: dict[str, object] = {"prompt": 12, "block_hashes": (1, 2, 3), "block_tokens": 4}


@pytest.fixture
def rig() -> Rig:
    """Two executors of which the manager has never said that they differ."""
    one = Rig("a", "b", slots=4, reply="later")
    one.batcher.tick()
    pool = one.book.pool("m")
    for seat in pool.seats:
        seat.prefill_rate = RATE
    for _ in range(200):
        pool.worth.heard(12, {}, {}, pool.executors)
    return one


def test_it_runs_as_soon_as_it_has_blocks_and_the_manager_is_asked_meanwhile(rig: Rig) -> None:
    rig.submit(1, **PROMPT)
    ((ask, _),) = rig.memory.asked
    assert ask.executor == "a", "blocks first"
    rig.memory.answer(GRANTED)
    assert rig.running("a") == [0]
    ((ask, _),) = rig.memory.asked
    assert (ask.executor, tuple(ask.block_hashes)) == ("", (1, 2, 3))
    assert rig.seat("a").prefill_tokens == 12
    rig.memory.answer(knows(a=2))
    assert rig.seat("a").prefill_tokens == 4, "what is remembered is not ahead of the next one"
    rig.memory.reply = GRANTED
    rig.run_all()
    rig.all_right()


def test_what_comes_behind_it_with_the_same_prefix_waits_for_the_answer(rig: Rig) -> None:
    long = PROMPT | {"prompt": 120, "block_tokens": 40}
    rig.submit(1, **long)
    rig.memory.answer(GRANTED)
    rig.submit(1, **{**long, "block_hashes": (1, 2, 9)})
    assert [ask.executor for ask, _ in rig.memory.asked] == ["", ""], "nothing was reserved for it"
    rig.memory.answer(knows(a=2, b=2))
    rig.memory.answer(knows(a=2, b=2))
    ((ask, _),) = rig.memory.asked
    assert ask.executor == "b"
    rig.memory.answer(GRANTED)
    assert rig.memory.asked == [], "it was asked about a moment ago"
    rig.memory.reply = GRANTED
    rig.run_all()
    rig.all_right()


def test_a_prefix_that_is_computed_sooner_than_anybody_answers_is_not_waited_for(rig: Rig) -> None:
    assert computing_s(8, RATE) < ASK_S
    rig.submit(1, **PROMPT)
    rig.memory.answer(GRANTED)
    rig.submit(1, **{**PROMPT, "block_hashes": (1, 2, 9)})
    assert [ask.executor for ask, _ in rig.memory.asked] == ["", "b"], "the first is learned about, the second runs"
    rig.memory.answer(knows(a=2))
    rig.memory.answer(GRANTED)
    assert (rig.running("a"), rig.running("b")) == ([0], [1])
    rig.memory.reply = GRANTED
    rig.run_all()
    rig.all_right()


def test_nor_by_a_work_that_was_asked_about(rig: Rig) -> None:
    rig.memory.reply = GRANTED
    rig.pool.worth = Worth()
    for last in range(3, 6):
        rig.submit(1, **{**PROMPT, "block_hashes": (1, 2, last)})
    assert len(rig.running("a") + rig.running("b")) == 3, "none is held back for another"
    rig.run_all()
    rig.all_right()


def test_of_those_that_run_alone_few_are_asked_about(rig: Rig) -> None:
    for index in range(3):
        rig.submit(1, **{**PROMPT, "block_hashes": (index,)})
        rig.memory.answer(GRANTED)
        assert len(rig.memory.asked) == (index != 1), "the first, and one a while later"
        if rig.memory.asked:
            rig.memory.answer(knows())
        rig["a"].lane.run()
        rig.clock.advance(LEARN_S / 2)
    rig.all_right()


@pytest.mark.parametrize(("prompt", "asked"), [(QUICK_S * RATE - 1, 1), (QUICK_S * RATE + 1, 4)])
def test_of_quick_ones_few_are_asked_about_and_of_others_all(rig: Rig, prompt: float, asked: int) -> None:
    for _ in range(200):
        rig.pool.worth.heard(12, {"a": Match(12), "b": Match(12)}, {}, BOTH)
    for index in range(4):
        rig.submit(1, prompt=int(prompt), block_hashes=(index,), block_tokens=4)
    while places := [place for place, (ask, _) in enumerate(rig.memory.asked) if ask.blocks]:
        rig.memory.answer(GRANTED, places[0])
    assert len(rig.running("a") + rig.running("b")) == 4
    assert len(rig.memory.asked) == asked
    rig.memory.reply = GRANTED
    rig.run_all()
    rig.all_right()


def test_where_nothing_new_is_said_few_are_asked_about_and_the_same_is_taken_for_granted(rig: Rig) -> None:
    long = {"prompt": 120, "block_tokens": 40}
    rig.submit(1, **long, block_hashes=(1, 2, 3))
    rig.memory.answer(GRANTED)
    rig.memory.answer(knows(a=2, b=2))
    for last in range(4, 7):
        rig.submit(1, **long, block_hashes=(1, 2, last))
        ((ask, _),) = rig.memory.asked
        assert ask.blocks, "it waits for nobody: its own block is the first that is not there"
        rig.memory.answer(GRANTED)
    assert rig.memory.asked == []
    assert rig.seat("a").prefill_tokens + rig.seat("b").prefill_tokens == 4 * 40
    rig.clock.advance(LEARN_S)
    rig.submit(1, **long, block_hashes=(1, 2, 7))
    rig.memory.answer(GRANTED)
    ((ask, _),) = rig.memory.asked
    assert ask.executor == "", "one in a while is"
    rig.memory.answer(knows())
    rig.submit(1, **long, block_hashes=(1, 2, 8))
    ((ask, _),) = rig.memory.asked
    assert ask.executor == "", "it was forgotten: that one computes it, and is waited for"
    rig.memory.answer(knows())
    rig.memory.reply = GRANTED
    rig.run_all()
    rig.all_right()


def test_an_answer_that_comes_when_it_has_tokens_is_only_learned_from(rig: Rig) -> None:
    rig.submit(1, **PROMPT)
    rig.memory.answer(GRANTED)
    (key,) = rig["a"].lane.works
    rig["a"].lane.step(key)
    for _ in range(3):
        rig.pool.worth.heard(12, {"a": Match(12)}, {}, rig.pool.executors)
    before = rig.pool.worth._gained
    rig.memory.answer(knows(a=3))
    assert rig.pool.worth._gained > before
    assert rig.seat("a").prefill_tokens == 0
    rig.run_all()
    rig.all_right()


def test_what_was_said_long_ago_is_asked_again_when_it_runs(rig: Rig) -> None:
    for _ in range(8):
        rig.submit(1, prompt=12)
    while rig.memory.asked:
        rig.memory.answer(GRANTED)
    rig.submit(1, **PROMPT)
    rig.memory.answer(knows())
    assert rig.memory.asked == [], "all slots are taken"
    rig.clock.advance(1.0)
    lane = rig["a"].lane
    lane.end(next(iter(lane.works)))
    ((ask, _),) = rig.memory.asked
    assert ask.executor == "a"
    rig.memory.answer(GRANTED)
    ((ask, _),) = rig.memory.asked
    assert ask.executor == ""
    rig.memory.answer(knows(a=3))
    assert rig.seat("a").prefill_tokens == 3 * 12 + 1
    rig.memory.reply = GRANTED
    rig.run_all()
