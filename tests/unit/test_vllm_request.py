"""What vLLM's child is asked to do for a work, and what a folder says of its model."""

import math
from dataclasses import dataclass, field

import pytest
from msgspec.structs import replace

from libs.lane.work import Sampling, Tier, Work
from services.executor.vllm.facts import facts_of
from services.executor.vllm.question import TOKENS, Question
from services.executor.vllm.sampling import SEEDS, choice
from services.executor.vllm.wire import Defaults

WORK = Work("r1", "t", Tier.INTERACTIVE, "m", [1, 2, 3, 4], Sampling(max_tokens=50), 0.0)


def test_open_choices_are_the_models() -> None:
    defaults = Defaults(temperature=0.7, top_p=0.9, top_k=40, repetition_penalty=1.1)
    how = choice(WORK, 16, defaults)
    assert (how.temperature, how.top_p, how.top_k, how.repetition_penalty) == (0.7, 0.9, 40, 1.1)
    asked = replace(WORK, sampling=Sampling(max_tokens=5, temperature=0.0, top_p=1.0, top_k=0, repetition_penalty=1.0))
    how = choice(asked, 16, defaults)
    assert (how.temperature, how.top_p, how.top_k, how.repetition_penalty) == (0.0, 1.0, 0, 1.0)


def test_an_answer_ends_with_the_context_and_counts_what_was_resumed() -> None:
    assert choice(WORK, 16, Defaults()).max_tokens == 12
    assert choice(replace(WORK, resumed=[5] * 4), 16, Defaults()).max_tokens == 8
    assert choice(replace(WORK, resumed=[5] * 12), 16, Defaults()).max_tokens == 0


def test_a_seed_is_the_works_own_and_moves_on_when_it_is_resumed() -> None:
    seed = choice(WORK, 16, Defaults()).seed
    assert seed == choice(WORK, 16, Defaults()).seed != choice(replace(WORK, request_id="r2"), 16, Defaults()).seed
    assert choice(replace(WORK, resumed=[5] * 3), 16, Defaults()).seed == (seed + 3) % SEEDS
    large = replace(WORK, sampling=Sampling(max_tokens=5, seed=(1 << 64) - 1))
    assert 0 <= choice(large, 16, Defaults()).seed < SEEDS


def test_a_folder_says_vocabulary_context_and_sampling() -> None:
    facts = facts_of({"vocab_size": 10, "max_position_embeddings": 20}, {"temperature": 0.6, "top_k": None})
    assert (facts.vocabulary, facts.context_tokens, facts.defaults) == (10, 20, Defaults(temperature=0.6))
    greedy = facts_of({"text_config": {"vocab_size": 10}}, {"do_sample": False, "temperature": 0.6})
    assert (greedy.vocabulary, greedy.context_tokens, greedy.defaults) == (10, 0, Defaults())
    with pytest.raises(ValueError, match="vocab_size"):
        facts_of({}, {})


@dataclass
class Piece:
    name: str
    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    end: str = ""


def test_a_question_is_answered_when_all_tokens_are_there() -> None:
    question = Question([1, 2], vocabulary=10)
    name = question.next_name()
    assert question.take(Piece("1", [3], [-1.0])) is None
    assert [question.take(Piece(name, [3], [-1.0])) for _ in range(TOKENS - 1)] == [None] * (TOKENS - 1)
    assert question.take(Piece(name, [3], [-1.0], "length")) == ""
    assert question.take(Piece(name, [3], [-1.0])) is None
    assert question.next_name() != name


@pytest.mark.parametrize(
    ("piece", "fault"),
    [
        (Piece("", [10], [-1.0]), "vocabulary"),
        (Piece("", [3], [math.nan]), "not finite"),
        (Piece("", [3], []), "not finite"),
        (Piece("", [3], [-1.0], "length"), "1 tokens instead of"),
        (Piece("", end="INTERNAL"), "gave the question up"),
    ],
)
def test_a_bad_answer_says_what_is_wrong(piece: Piece, fault: str) -> None:
    question = Question([1, 2], vocabulary=10)
    piece.name = question.next_name()
    assert fault in (question.take(piece) or "")
