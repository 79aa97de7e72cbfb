"""What a work asks for, against what a loaded model can do."""

from dataclasses import replace

import pytest

from libs.errors import NotSupported
from libs.lane.work import Grammar, Sampling, Work
from services.executor.engine import Capabilities, Exactness
from services.executor.fit import refusal
from tests.unit.lanes import work

NOTHING = Capabilities(Exactness.EXACT)
EVERYTHING = Capabilities(
    Exactness.EXACT, frozenset({"regex"}), log_probs=True, adapters="swap", penalties=True, ignore_end=True, top_k=True
)
ASKS_ALL = work(
    grammar=Grammar("regex", "a"), log_probs=True, adapter="a@1",
    sampling=Sampling(8, top_k=5, presence_penalty=0.5, ignore_end=True),
)  # fmt: skip


def test_a_plain_work_runs_anywhere() -> None:
    assert refusal(work(), NOTHING) is None
    assert refusal(work(sampling=Sampling(8, temperature=0.5, top_p=0.9, seed=7)), NOTHING) is None


def test_what_is_there_is_not_refused() -> None:
    assert refusal(ASKS_ALL, EVERYTHING) is None


def test_everything_that_lacks_is_said_at_once() -> None:
    error = refusal(ASKS_ALL, NOTHING)
    assert isinstance(error, NotSupported)
    for what in ("a grammar in the form regex", "log-probabilities", "adapters", "penalties", "ignore_end", "top_k"):
        assert what in error.message


def test_a_form_of_grammar_is_not_another() -> None:
    error = refusal(replace(ASKS_ALL, grammar=Grammar("ebnf", "a")), EVERYTHING)
    assert error is not None
    assert error.message.endswith("a grammar in the form ebnf")


@pytest.mark.parametrize(
    ("sampling", "acts"),
    [
        (Sampling(8, repetition_penalty=1.0), False),
        (Sampling(8, repetition_penalty=1.1), True),
        (Sampling(8, presence_penalty=0.0, frequency_penalty=0.0), False),
        (Sampling(8, presence_penalty=1.0), True),
        (Sampling(8, frequency_penalty=-1.0), True),
        (Sampling(8, top_k=0), False),
    ],
)
def test_a_penalty_that_does_nothing_is_none(sampling: Sampling, acts: bool) -> None:
    one: Work = work(sampling=sampling)
    assert (refusal(one, NOTHING) is not None) == acts
