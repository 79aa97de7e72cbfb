"""Which executor each dispatch policy chooses, and by which figures."""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.policy.v1 import policy_pb2
from services.batcher import policies
from services.batcher.policies.policy import Asked, Choice, Match, Pick, Policy
from services.batcher.policies.weighted_scores import usage, waiting
from services.batcher.scheduling import Dispatch, Reserve, SchedulingRules
from services.batcher.seat import ModelCapacity, Seat

BLOCK = 16
PEERS = [dispatch for dispatch in Dispatch if dispatch is not Dispatch.PROMISE]
DRAWS_ONCE = [dispatch for dispatch in PEERS if dispatch is not Dispatch.POWER_OF_TWO]


def seat(
    executor: str, works: int = 0, *, prefill: int = 0, prefilling: int = 0, context: int = 0, is_open: bool = True,
    capacity: ModelCapacity | None = None, adapters: Sequence[str] = (),
) -> Seat:  # fmt: skip
    made = Seat(executor, capacity or ModelCapacity(slots=8, blocks=100, block_tokens=BLOCK, step_tokens=512))
    made.works, made.prefill_tokens, made.prefilling, made.context_tokens = works, prefill, prefilling, context
    made.open = is_open
    made.adapters = Counter(adapters)
    return made


def asked(prompt: int = 320, matches: Mapping[str, Match] | None = None, adapter: str = "") -> Asked:
    return Asked(prompt_tokens=prompt, reserve_tokens=prompt + 64, matches=matches or {}, adapter=adapter)


def policy(dispatch: Dispatch) -> Policy:
    return policies.make(SchedulingRules(dispatch=dispatch))


def first(count: int) -> int:
    assert count > 0
    return 0


def scripted(*draws: int) -> Pick:
    """Gives these, in this order, and no more; each must be below what is asked for."""
    left = list(draws)

    def pick(count: int) -> int:
        assert 0 <= left[0] < count
        return left.pop(0)

    return pick


def name(choice: Choice) -> str:
    assert choice.seat is not None, choice.reason
    return choice.seat.executor


def outcomes(choose: Callable[[Pick], Choice]) -> list[str]:
    """What is chosen for each draw that is possible, where at most one is made."""
    asked_for: list[int] = []

    def counting(count: int) -> int:
        asked_for.append(count)
        return 0

    chosen = [name(choose(counting))]
    assert len(asked_for) <= 1
    return chosen + [name(choose(scripted(draw))) for draw in range(1, asked_for[0] if asked_for else 1)]


# The rules


def test_every_policy_is_made_by_its_name() -> None:
    made = {text: policy(dispatch) for text, dispatch in policies.NAMES.items()}
    assert {text: one.name for text, one in made.items()} == {text: text for text in made}
    assert [text for text, one in made.items() if one.late] == ["promise"]
    assert len(made) == len(Dispatch)


def test_the_rules_are_those_of_the_message() -> None:
    assert {f.name for f in fields(SchedulingRules)} == set(policy_pb2.Scheduling.DESCRIPTOR.fields_by_name) - {"name"}
    for enum, prefix, mine in (
        (policy_pb2.DispatchPolicy, "DISPATCH_POLICY_", Dispatch),
        (policy_pb2.ReservePolicy, "RESERVE_POLICY_", Reserve),
    ):
        theirs = {text.removeprefix(prefix): number for text, number in enum.items() if number}
        assert theirs == {one.name: one.value for one in mine}


# Round robin


def test_round_robin_takes_each_in_turn() -> None:
    turn, seats = policy(Dispatch.ROUND_ROBIN), [seat("c", 9), seat("a"), seat("b", is_open=False), seat("d")]
    begin = turn.choose(asked(), seats, scripted(2))
    assert (name(begin), begin.reason) == ("d", "the turn begins, at random among 3 open executors")
    later = [turn.choose(asked(), seats, scripted()) for _ in range(4)]
    assert [name(choice) for choice in later] == ["a", "c", "d", "a"]
    assert later[1].reason == "next in turn after a, among 3 open executors"


def test_round_robin_keeps_its_turn_when_executors_come_and_go() -> None:
    turn, seats = policy(Dispatch.ROUND_ROBIN), [seat("a"), seat("b"), seat("d")]
    assert name(turn.choose(asked(), seats, scripted(1))) == "b"
    assert name(turn.choose(asked(), [seat("a"), seat("c"), seat("d")], scripted())) == "c"
    assert name(turn.choose(asked(), seats, scripted())) == "d"
    assert name(turn.choose(asked(), seats, scripted())) == "a"


# Least requests


def test_least_requests_takes_the_fewest_works() -> None:
    choice = policy(Dispatch.LEAST_REQUESTS).choose(asked(), [seat("a", 3), seat("b", 2), seat("c", 5)], scripted())
    assert (name(choice), choice.reason) == ("b", "fewest works, 2")


def test_least_requests_draws_among_equals() -> None:
    seats = [seat("a", 2), seat("b", 0, is_open=False), seat("c", 3), seat("d", 2)]
    choice = policy(Dispatch.LEAST_REQUESTS).choose(asked(), seats, scripted(1))
    assert (name(choice), choice.reason) == ("d", "fewest works, 2, one of 2 equals")


# Power of two


def test_power_of_two_takes_the_better_of_two() -> None:
    seats = [seat("a", 0), seat("b", 5), seat("c", 3), seat("d", 9, is_open=False)]
    two = policy(Dispatch.POWER_OF_TWO)
    choice = two.choose(asked(), seats, scripted(1, 0))  # b, and the next after it
    assert (name(choice), choice.reason) == ("c", "3 works, b has 5: two of 3 drawn")
    assert name(two.choose(asked(), seats, scripted(2, 0))) == "a"
    assert name(two.choose(asked(), seats, scripted(2, 1))) == "c"


def test_power_of_two_draws_each_pair_once_and_never_one_twice() -> None:
    seats, two, chosen = [seat(letter) for letter in "abcd"], policy(Dispatch.POWER_OF_TWO), Counter[str]()
    pairs = set()
    for at in range(4):
        for step in range(3):
            choice = two.choose(asked(), seats, scripted(at, step))
            assert name(choice) == "abcd"[at]  # of equals the first drawn
            chosen[name(choice)] += 1
            pairs.add((name(choice), choice.reason))
    assert chosen == Counter(dict.fromkeys("abcd", 3))
    assert len(pairs) == 12


def test_power_of_two_is_nearly_as_even_as_the_paper_says() -> None:
    rng, two, count = random.Random(4), policy(Dispatch.POWER_OF_TWO), 256
    seats = [seat(f"e{i}") for i in range(count)]
    for _ in range(count):
        chosen = two.choose(asked(), seats, rng.randrange).seat
        assert chosen is not None
        chosen.works += 1
    anywhere = Counter(rng.randrange(count) for _ in range(count))
    fullest = max(one.works for one in seats)
    assert fullest <= 4  # 1 + log2 log2 256
    assert fullest < max(anywhere.values())


def test_power_of_two_with_one() -> None:
    choice = policy(Dispatch.POWER_OF_TWO).choose(asked(), [seat("a", is_open=False), seat("b", 7)], scripted())
    assert (name(choice), choice.reason) == ("b", "the only open executor")


# SGLang's cache-aware rule


def test_cache_aware_takes_the_longest_match() -> None:
    matches = {"a": Match(112), "b": Match(64, host=32, disk=32), "gone": Match(320)}
    choice = policy(Dispatch.CACHE_AWARE).choose(
        asked(matches=matches), [seat("a", 0), seat("b", 60), seat("c")], scripted()
    )
    assert (name(choice), choice.reason) == ("b", "longest match, 128 of 320 tokens")


def test_cache_aware_needs_more_than_a_third_or_so_of_the_prompt() -> None:
    rule, seats = policy(Dispatch.CACHE_AWARE), [seat("a", 5), seat("b", 2)]
    choice = rule.choose(asked(matches={"a": Match(96)}), seats, scripted())  # 0.3 of 320, and not more
    assert name(choice) == "b"
    assert choice.reason == "no match above 0.3 of the prompt (longest 96 of 320 tokens): fewest works, 2"
    assert name(rule.choose(asked(matches={"a": Match(97)}), seats, scripted())) == "a"


@pytest.mark.parametrize(
    ("works", "expected"),
    [
        ((0, 64), "holder"),  # no more than 64 apart
        ((0, 65), "other"),
        ((130, 195), "holder"),  # more than 64 apart, but not more than 1.5 times as many
        ((129, 194), "other"),
    ],
)
def test_cache_aware_forgets_the_match_when_loads_are_uneven(works: tuple[int, int], expected: str) -> None:
    seats = [seat("other", works[0]), seat("holder", works[1]), seat("closed", 1000, is_open=False)]
    choice = policy(Dispatch.CACHE_AWARE).choose(asked(matches={"holder": Match(320)}), seats, scripted())
    assert name(choice) == expected
    if expected == "other":
        assert choice.reason == f"uneven loads, {works[0]} to {works[1]} works: the fewest"


def test_cache_aware_takes_the_emptiest_of_equal_matches() -> None:
    seats = [seat("a", 4), seat("b", 3), seat("c", 3), seat("d", 0)]
    matches = dict.fromkeys("abc", Match(320))
    choice = policy(Dispatch.CACHE_AWARE).choose(asked(matches=matches), seats, scripted(1))
    assert (name(choice), choice.reason) == ("c", "longest match, 320 of 320 tokens, one of 2 equals")


# Dynamo's block cost


def test_block_cost_weighs_what_is_remembered_against_load() -> None:
    # In blocks of 16 tokens, for a prompt of 20: a 20 + 20; b 20 - 16 of credit, and 20 + 20; c 20 - 10, 5 + 20.
    seats = [seat("a"), seat("b", context=320), seat("c", context=80)]
    matches = {"b": Match(256), "c": Match(160)}
    choice = policy(Dispatch.BLOCK_COST).choose(asked(matches=matches), seats, scripted())
    assert name(choice) == "c"
    assert choice.reason == ("least cost, 35.0 blocks: prefill 0.0 active + 20.0 prompt - 10.0 credit, decode 25.0")


def test_block_cost_credits_lower_tiers_less() -> None:
    cost, seats = policy(Dispatch.BLOCK_COST), [seat(letter) for letter in "abc"]
    on = {"a": Match(0, disk=160), "b": Match(0, host=160), "c": Match(112)}
    choice = cost.choose(asked(matches=on), seats, scripted())  # credits: 2.5, 7.5 and 7 blocks
    assert name(choice) == "b"
    assert choice.reason == "least cost, 32.5 blocks: prefill 0.0 active + 20.0 prompt - 7.5 credit, decode 20.0"
    disk = cost.choose(asked(matches=on), seats[:1], scripted())
    assert disk.reason == "least cost, 37.5 blocks: prefill 0.0 active + 20.0 prompt - 2.5 credit, decode 20.0"


def test_block_cost_counts_active_prefill_twice_and_no_less_than_nothing() -> None:
    # As prefill and as blocks that stay: a 5 + 20 - 20, 5 + 20 = 30; b 20 - 20, 9 + 20 = 29; c as b, more remembered.
    seats = [seat("a", 1, prefill=80, prefilling=1), seat("b", context=144), seat("c", context=144)]
    matches = {"a": Match(320), "b": Match(320), "c": Match(320, host=64)}
    cost = policy(Dispatch.BLOCK_COST)
    assert outcomes(lambda pick: cost.choose(asked(matches=matches), seats, pick)) == ["b", "c"]


# llm-d's scorers


def test_weighted_scores_add_up() -> None:
    # a: queue 2 x 0, memory 2 x 1, prefix 3 x 1 = 5; b: 2 x 1 + 2 x 0.5 + 3 x 0.5 = 4.5; c: 2 x 1 + 2 x 1 = 4.
    seats = [seat("a", 10), seat("b", 8, context=800), seat("c", 4)]
    matches = {"a": Match(320), "b": Match(160)}
    choice = policy(Dispatch.WEIGHTED_SCORES).choose(asked(matches=matches), seats, scripted())
    assert name(choice) == "a"
    assert choice.reason == (
        "highest score, 5.00: 2 wait (of at most 2), 0.00 of memory in use, 1.00 of the prompt remembered"
    )


def test_weighted_scores_count_lower_tiers_less() -> None:
    seats = [seat("a"), seat("b")]
    matches = {"a": Match(0, host=320), "b": Match(272)}
    choice = policy(Dispatch.WEIGHTED_SCORES).choose(asked(matches=matches), seats, scripted())
    assert name(choice) == "b"  # 0.85 of the prompt, against 0.8


def test_weighted_scores_of_adapters() -> None:
    capacity = ModelCapacity(slots=8, blocks=100, block_tokens=BLOCK, adapter_slots=1, adapters=frozenset({"x"}))
    seats = [
        seat("full", 1, capacity=capacity, adapters=["y"]),
        seat("room", 0, capacity=capacity),
        seat("runs", 1, context=100, capacity=capacity, adapters=["x"]),
    ]
    scores = policy(Dispatch.WEIGHTED_SCORES)
    choice = scores.choose(asked(adapter="x"), seats, scripted())
    assert name(choice) == "runs"  # 2 + 2 x 0.9375 + 1.0 = 4.875 against 2 + 2 + 0.8
    assert choice.reason == (
        "highest score, 4.88: 0 wait (of at most 0), 0.06 of memory in use, 0.00 of the prompt remembered, "
        "adapter scores 1.0"
    )
    assert outcomes(lambda pick: scores.choose(asked(), seats, pick)) == ["full", "room"]


@pytest.mark.parametrize(
    ("works", "prefilling", "prefill", "expected"),
    [
        (8, 2, 512, 0),  # the next step has tokens for both
        (8, 5, 2500, 3),  # of 500 tokens each; a step of 512 begins two of them
        (8, 1, 5000, 0),  # one long prompt, computed in chunks
        (11, 3, 96, 3),  # beyond the slots
    ],
)
def test_what_waits_in_an_engine(works: int, prefilling: int, prefill: int, expected: int) -> None:
    assert waiting(seat("a", works, prefilling=prefilling, prefill=prefill)) == expected


def test_memory_in_use() -> None:
    assert usage(seat("a", context=400, prefill=400)) == 0.5
    assert usage(seat("a", context=4000)) == 1.0
    assert usage(seat("a", context=4000, capacity=ModelCapacity(8, 0, BLOCK))) == 0.0


# All of them


@st.composite
def questions(draw: st.DrawFn) -> tuple[list[Seat], Asked]:
    """A pool of one capacity in any state, some executors of it closed, and a work."""
    adapter_slots = draw(st.integers(0, 2))
    capacity = ModelCapacity(
        slots=draw(st.integers(1, 8)), blocks=draw(st.integers(1, 64)), block_tokens=BLOCK,
        step_tokens=draw(st.sampled_from([0, 64, 512])), adapter_slots=adapter_slots,
        adapters=frozenset({"x"} if adapter_slots else ()),
    )  # fmt: skip
    few = st.integers(0, 3)
    prompt = draw(st.integers(1, 400))
    seats, matches = [], {}
    for i in range(draw(st.integers(1, 8))):
        prefilling, decoding = draw(few), draw(few)
        running = draw(st.lists(st.sampled_from(["", "x", "y"]), max_size=2))
        seats.append(seat(
            f"e{i}", prefilling + decoding, prefilling=prefilling, prefill=64 * prefilling, context=64 * decoding,
            is_open=draw(st.booleans()), capacity=capacity, adapters=running,
        ))  # fmt: skip
        device = draw(st.sampled_from([0, prompt // 2, prompt]))
        matches[f"e{i}"] = Match(device, host=draw(st.sampled_from([0, (prompt - device) // 2])))
    adapter = draw(st.sampled_from(["", "x"])) if adapter_slots else ""
    return seats, asked(prompt, matches if draw(st.booleans()) else None, adapter)


@pytest.mark.parametrize("dispatch", PEERS)
@given(questions(), st.data())
def test_only_open_seats_are_chosen_and_nothing_is_changed(
    dispatch: Dispatch, question: tuple[list[Seat], Asked], data: st.DataObject
) -> None:
    seats, work = question
    before = [{slot: getattr(one, slot) for slot in Seat.__slots__} for one in seats]
    chosen = policy(dispatch).choose(work, seats, lambda count: data.draw(st.integers(0, count - 1)))
    if any(one.open for one in seats):
        assert any(one is chosen.seat and one.open for one in seats)
    else:
        assert chosen.seat is None
    assert chosen.reason
    assert (chosen.hold_for, chosen.hold_s) == ("", 0.0)
    assert [{slot: getattr(one, slot) for slot in Seat.__slots__} for one in seats] == before


@pytest.mark.parametrize("dispatch", PEERS)
@given(questions(), st.lists(st.integers(0, 1000), min_size=2, max_size=2))
def test_the_same_draws_choose_the_same(
    dispatch: Dispatch, question: tuple[list[Seat], Asked], draws: list[int]
) -> None:
    seats, work = question

    def choice() -> Choice:
        left = list(draws)
        return policy(dispatch).choose(work, seats, lambda count: left.pop(0) % count)

    assert choice() == choice()


@pytest.mark.parametrize("dispatch", DRAWS_ONCE)
@given(questions(), st.randoms(use_true_random=False))
def test_equals_are_equally_likely_in_whatever_order_they_come(
    dispatch: Dispatch, question: tuple[list[Seat], Asked], rng: random.Random
) -> None:
    seats, work = question
    seats[0].open = True
    chosen = outcomes(lambda pick: policy(dispatch).choose(work, seats, pick))
    assert len(set(chosen)) == len(chosen)  # one draw for each: uniform over `pick`
    shuffled = list(seats)
    rng.shuffle(shuffled)
    assert sorted(outcomes(lambda pick: policy(dispatch).choose(work, shuffled, pick))) == sorted(chosen)


@pytest.mark.parametrize("dispatch", DRAWS_ONCE)
@given(st.integers(1, 20), st.integers(0, 12), st.integers(0, 400))
def test_with_equal_loads_and_no_match_all_are_equally_likely(
    dispatch: Dispatch, count: int, works: int, context: int
) -> None:
    seats = [seat(f"e{i}", works, context=context) for i in range(count)]
    chosen = outcomes(lambda pick: policy(dispatch).choose(asked(), seats, pick))
    assert sorted(chosen) == sorted(one.executor for one in seats)


@pytest.mark.parametrize("dispatch", PEERS)
def test_nobody_is_chosen_when_none_is_open(dispatch: Dispatch) -> None:
    chooser = policy(dispatch)
    for seats in ([], [seat("a", is_open=False), seat("b", is_open=False)]):
        choice = chooser.choose(asked(), seats, first)
        assert (choice.seat, choice.reason) == (None, "no executor of the pool is ready")
